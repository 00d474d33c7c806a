// SPDX-License-Identifier: Apache-2.0
// The kernels against the textbook in double precision, on random numbers.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention.hpp"
#include "blas.hpp"
#include "buffer.hpp"
#include "device_test.hpp"
#include "kernels.hpp"

using namespace mini_engine::cuda;

namespace {

using bf16 = __nv_bfloat16;

/// Numbers as the GPU has them, and the same in double precision.
struct numbers {
  explicit numbers(std::size_t size) : bits(size), device(size) {}
  numbers(std::size_t size, double spread, std::uint64_t seed) : numbers(size) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal(0, spread);
    for (bf16& each : bits) each = __float2bfloat16(static_cast<float>(normal(random)));
    upload();
  }
  void upload() { check(cudaMemcpy(device.data(), bits.data(), device.bytes(), cudaMemcpyHostToDevice), "upload"); }
  void download() { check(cudaMemcpy(bits.data(), device.data(), device.bytes(), cudaMemcpyDeviceToHost), "download"); }
  void poison() { check(cudaMemset(device.data(), 0xFF, device.bytes()), "poison"); }
  double operator[](std::size_t i) const { return static_cast<double>(__bfloat162float(bits[i])); }
  std::size_t size() const { return bits.size(); }

  std::vector<bf16> bits;
  device_buffer<bf16> device;
};

template <class T>
device_buffer<T> on_device(std::span<const T> from) {
  device_buffer<T> to(std::max<std::size_t>(1, from.size()));
  check(cudaMemcpy(to.data(), from.data(), from.size_bytes(), cudaMemcpyHostToDevice), "upload");
  return to;
}

/// How far numbers are from what is expected of them, as a share of its length.
struct distance {
  double difference = 0, length = 0;
  void add(double got, double expected) {
    difference += (got - expected) * (got - expected);
    length += expected * expected;
  }
  double relative() const { return std::sqrt(difference / length); }  // not a number if anything is
};

struct request {
  std::uint32_t tokens, position;
};

/// Runs one step of several sequences and compares a sample of its rows.
void compare_attention(const attention_shape& shape, const std::vector<request>& requests, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uint32_t rows = 0, pages = 0;
  for (const request& r : requests) {
    rows += r.tokens;
    pages += (r.position + r.tokens + shape.page_tokens - 1) / shape.page_tokens;
  }
  const std::size_t head = shape.head_dim, width = shape.qkv_width();
  numbers qkv(rows * width, 1.5, seed + 1), pool((pages + 3) * shape.page_elements(), 1.0, seed + 2),
      out(rows * shape.out_width());
  std::vector<std::uint32_t> tables(pages + 3);
  for (std::uint32_t i = 0; i < tables.size(); ++i) tables[i] = i;
  std::shuffle(tables.begin(), tables.end(), random);

  constexpr std::uint32_t most_parts = 128;
  attention_plan plan(shape, 132, most_parts);
  std::vector<std::uint32_t> first_row, first_page;
  std::uint32_t row = 0, page = 0;
  for (const request& r : requests) {
    first_row.push_back(row);
    first_page.push_back(page);
    plan.add(row, r.tokens, r.position, page);
    row += r.tokens;
    page += (r.position + r.tokens + shape.page_tokens - 1) / shape.page_tokens;
  }
  plan.finish();
  CHECK(plan.tiles().size() <= plan.most_tiles(rows, requests.size()));
  attention run(shape, most_parts);
  const auto table = on_device<std::uint32_t>(tables);
  const auto tiles = on_device(plan.tiles());
  const auto merges = on_device(plan.merges());
  const stream on;
  std::vector<bf16> before;
  for (int repeat = 0; repeat < 2; ++repeat) {
    out.poison();
    run.run(qkv.device.data(), pool.device.data(), table.data(), tiles.data(), plan.tiles().size(), merges.data(),
            plan.merges().size(), out.device.data(), on);
    on.wait();
    out.download();
    if (repeat == 0) before = out.bits;
  }
  CHECK(std::memcmp(before.data(), out.bits.data(), before.size() * sizeof(bf16)) == 0);
  CHECK(std::none_of(out.bits.begin(), out.bits.end(), [](bf16 each) { return std::isnan(__bfloat162float(each)); }));

  distance all;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const request& r = requests[i];
    for (int sample = 0; sample < 40; ++sample) {
      const auto token = sample < 4
                             ? r.tokens - 1 - std::min<std::uint32_t>(r.tokens - 1, static_cast<std::uint32_t>(sample))
                             : static_cast<std::uint32_t>(random() % r.tokens);
      const auto h = static_cast<std::uint32_t>(random() % shape.heads);
      const std::size_t query = (first_row[i] + token) * width + h * head, keys = r.position + token + 1;
      const auto place = [&](std::size_t key) {
        return tables[first_page[i] + key / shape.page_tokens] * shape.page_elements() +
               (key % shape.page_tokens * shape.kv_heads + h / shape.group()) * head;
      };
      std::vector<double> weights(keys), expected(head);
      double highest = -1e300, sum = 0;
      for (std::size_t k = 0; k < keys; ++k) {
        for (std::size_t c = 0; c < head; ++c) weights[k] += qkv[query + c] * pool[place(k) + c];
        weights[k] /= std::sqrt(static_cast<double>(head));
        highest = std::max(highest, weights[k]);
      }
      for (double& w : weights) sum += w = std::exp(w - highest);
      for (std::size_t k = 0; k < keys; ++k) {
        for (std::size_t c = 0; c < head; ++c) {
          expected[c] += weights[k] / sum * pool[place(k) + shape.page_elements() / 2 + c];
        }
      }
      for (std::size_t c = 0; c < head; ++c)
        all.add(out[(first_row[i] + token) * shape.out_width() + h * head + c], expected[c]);
    }
  }
  MESSAGE("heads " << shape.heads << "/" << shape.kv_heads << " of " << shape.head_dim << ", pages of "
                   << shape.page_tokens << ", " << requests.size() << " sequences, " << plan.tiles().size()
                   << " tiles, " << plan.merges().size() << " shared out: relative error " << all.relative());
  CHECK(all.relative() < 1e-2);
}

}  // namespace

TEST_CASE("attention agrees with the textbook") {
  const std::vector<attention_shape> shapes = {{32, 8, 128, 16}, {8, 1, 128, 16}, {4, 2, 128, 64},
                                               {6, 2, 128, 1},   {8, 4, 8, 16},   {3, 1, 48, 12}};
  std::uint64_t seed = 1;
  for (const attention_shape& shape : shapes) {
    CAPTURE(shape.head_dim);
    compare_attention(shape, {{300, 0}}, seed += 10);
    compare_attention(shape, {{1, 0}}, seed += 10);
    compare_attention(shape, {{16, 4080}}, seed += 10);
    compare_attention(shape, {{1, 3000}}, seed += 10);
    compare_attention(shape, {{1, 127}, {1, 2000}, {200, 129}, {1, 0}, {33, 512}}, seed += 10);
  }
}

TEST_CASE("a plan covers every query and key once") {
  const attention_shape shape{32, 8, 128, 16};
  attention_plan plan(shape, 132, 64);
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    plan.clear();
    std::vector<std::uint32_t> wanted;  // keys of each row
    std::uint32_t row = 0;
    for (auto sequences = random() % 40 + 1; sequences-- > 0;) {
      const auto tokens = static_cast<std::uint32_t>(random() % 3 == 0 ? random() % 500 + 1 : 1),
                 position = static_cast<std::uint32_t>(random() % 9000);
      plan.add(row, tokens, position, 0);
      for (std::uint32_t t = 0; t < tokens; ++t) wanted.push_back(position + t + 1);
      row += tokens;
    }
    plan.finish();
    std::vector<std::uint32_t> seen(wanted.size());
    std::vector<int> parts(64);
    for (const attention_tile& tile : plan.tiles()) {
      REQUIRE(tile.first_key < tile.end_key);
      if (tile.part >= 0) ++parts.at(static_cast<std::size_t>(tile.part));
      for (std::uint32_t t = 0; t < tile.tokens; ++t) {
        const std::uint32_t end = std::min(tile.end_key, tile.position + t + 1);
        seen.at(tile.row + t) += end - std::min(end, tile.first_key);
      }
    }
    CHECK(seen == wanted);
    for (const attention_merge& merge : plan.merges()) {
      for (std::uint32_t i = 0; i < merge.parts; ++i) CHECK(parts.at(merge.first_part + i)-- == 1);
    }
    CHECK(std::all_of(parts.begin(), parts.end(), [](int n) { return n == 0; }));
  }
}

TEST_CASE("products agree with the textbook, to the last bit with themselves") {
  const stream on;
  blas products(on);
  for (const std::size_t rows : {1u, 16u, 200u}) {
    const std::size_t outputs = 136, inputs = 264;
    numbers x(rows * inputs, 1, 1), w(outputs * inputs, 0.1, 2), y(rows * outputs, 1, 3);
    const numbers before = [&] {
      numbers copy(y.size());
      copy.bits = y.bits;
      return copy;
    }();
    products.multiply(x.device.data(), rows, w.device.data(), outputs, inputs, y.device.data(), true);
    on.wait();
    y.download();
    device_buffer<float> wide(rows * outputs);
    products.multiply(x.device.data(), rows, w.device.data(), outputs, inputs, wide.data());
    on.wait();
    std::vector<float> plain(rows * outputs);
    check(cudaMemcpy(plain.data(), wide.data(), wide.bytes(), cudaMemcpyDeviceToHost), "download");
    distance added, alone;
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t o = 0; o < outputs; ++o) {
        double expected = 0;
        for (std::size_t i = 0; i < inputs; ++i) expected += x[r * inputs + i] * w[o * inputs + i];
        alone.add(static_cast<double>(plain[r * outputs + o]), expected);
        added.add(y[r * outputs + o], expected + before[r * outputs + o]);
      }
    }
    CHECK(alone.relative() < 1e-5);
    CHECK(added.relative() < 4e-3);
  }
}

TEST_CASE("what is beside products and attention agrees with the textbook") {
  const stream on;
  const std::size_t rows = 37, dim = 4096;
  numbers x(rows * dim, 3, 1), weight(dim, 1, 2), y(rows * dim);
  y.poison();
  normalize(x.device.data(), weight.device.data(), rows, dim, y.device.data(), on);
  on.wait();
  y.download();
  distance normalized;
  for (std::size_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (std::size_t i = 0; i < dim; ++i) squares += x[r * dim + i] * x[r * dim + i];
    for (std::size_t i = 0; i < dim; ++i) {
      normalized.add(y[r * dim + i], x[r * dim + i] * weight[i] / std::sqrt(squares / static_cast<double>(dim) + 1e-5));
    }
  }
  CHECK(normalized.relative() < 4e-3);

  const std::size_t hidden = 72;
  numbers both(rows * 2 * hidden, 2, 3), gated(rows * hidden);
  gated.poison();
  gate(both.device.data(), rows, hidden, gated.device.data(), on);
  on.wait();
  gated.download();
  distance through;
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t i = 0; i < hidden; ++i) {
      const double g = both[r * 2 * hidden + i], up = both[r * 2 * hidden + hidden + i];
      through.add(gated[r * hidden + i], g / (1 + std::exp(-g)) * up);
    }
  }
  CHECK(through.relative() < 4e-3);

  const attention_shape shape{4, 2, 8, 16};
  const std::size_t head = 8, pairs = head / 2, context = 100;
  std::vector<float> frequencies;
  for (std::size_t i = 0; i < pairs; ++i)
    frequencies.push_back(1.0f / std::pow(10000.0f, static_cast<float>(2 * i) / static_cast<float>(head)));
  const auto turning = on_device<float>(frequencies);
  device_buffer<float2> angles(context * pairs);
  fill_angles(angles.data(), context, pairs, turning.data(), on);
  numbers qkv(rows * shape.qkv_width(), 1, 4), pool(5 * shape.page_elements());
  pool.poison();
  std::vector<row_place> places;
  for (std::uint32_t r = 0; r < rows; ++r) places.push_back({0, 60 + r, (r * 11) % 80});
  const auto where = on_device<row_place>(places);
  rotate_and_store(qkv.device.data(), where.data(), rows, shape, angles.data(), pool.device.data(), on);
  on.wait();
  numbers rotated(qkv.size());
  check(cudaMemcpy(rotated.bits.data(), qkv.device.data(), qkv.device.bytes(), cudaMemcpyDeviceToHost), "download");
  pool.download();
  distance turned;
  for (std::size_t r = 0; r < rows; ++r) {
    const std::size_t from = r * shape.qkv_width(), slot = places[r].slot;
    for (std::size_t h = 0; h < shape.heads + 2 * shape.kv_heads; ++h) {
      const bool key = h >= shape.heads && h < shape.heads + shape.kv_heads, value = h >= shape.heads + shape.kv_heads;
      const std::size_t at = slot / 16 * shape.page_elements() + (value ? shape.page_elements() / 2 : 0) +
                             (slot % 16 * shape.kv_heads + (value ? h - 6 : h - 4)) * head;
      for (std::size_t i = 0; i < head; ++i) {
        const double angle =
            static_cast<double>(places[r].position) * std::pow(10000.0, -static_cast<double>(i / 2 * 2) / 8);
        const double a = qkv[from + h * head + i / 2 * 2], b = qkv[from + h * head + i / 2 * 2 + 1];
        const double expected = value        ? qkv[from + h * head + i]
                                : i % 2 == 0 ? a * std::cos(angle) - b * std::sin(angle)
                                             : a * std::sin(angle) + b * std::cos(angle);
        turned.add(key || value ? pool[at + i] : rotated[from + h * head + i], expected);
      }
    }
  }
  CHECK(turned.relative() < 4e-3);
}

TEST_CASE("a page's digest tells one changed bit, and where it is") {
  const stream on;
  const std::size_t page = 256, layers = 3, pages = 4;
  numbers pool(layers * pages * page, 1, 9);
  const std::vector<std::uint32_t> ids = {2, 0, 3};
  const auto which = on_device<std::uint32_t>(ids);
  const auto digests = [&] {
    device_buffer<std::uint64_t> to(ids.size() * layers);
    digest_pages(pool.device.data(), which.data(), ids.size(), layers, pages * page, page, to.data(), on);
    on.wait();
    std::vector<std::uint64_t> all(to.size());
    check(cudaMemcpy(all.data(), to.data(), to.bytes(), cudaMemcpyDeviceToHost), "download");
    return all;
  };
  const auto before = digests();
  CHECK(before == digests());
  auto* bytes = reinterpret_cast<std::uint8_t*>(pool.bits.data() + (1 * pages + 3) * page + 17);
  *bytes ^= 0x10;
  pool.upload();
  const auto after = digests();
  for (std::size_t i = 0; i < after.size(); ++i) CHECK((after[i] == before[i]) == (i != 2 * layers + 1));
}

int main(int argc, char** argv) { return run_on_device(argc, argv); }
