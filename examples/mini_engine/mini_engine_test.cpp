// SPDX-License-Identifier: Apache-2.0
// The last two cases read $KVX_TEST_MODELS/stories260K.bin and tok512.bin, a llama2.c pair of a vocabulary of 512.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "model.hpp"
#include "paged_kv.hpp"
#include "sampler.hpp"
#include "thread_pool.hpp"
#include "tokenizer.hpp"
#include "transformer.hpp"

using namespace mini_engine;

namespace {

std::vector<token_id> some_tokens(std::size_t count) {
  std::vector<token_id> tokens;
  for (std::size_t i = 0; i < count; ++i) tokens.push_back(static_cast<token_id>((i * 7919 + i / 3) % 512));
  return tokens;
}

struct outcome {
  std::vector<float> logits, kv;  // kv in the order of layers and positions
};

/// Prefills in chunks of the given sizes, the last one repeating, with pages that come in an unusual order.
outcome prefill(const model& m, const std::vector<token_id>& tokens, const std::vector<std::size_t>& chunks,
                std::size_t threads, std::size_t pages_skipped) {
  thread_pool pool(threads);
  paged_kv kv(m.config, 16, tokens.size() / 16 + 1 + pages_skipped);
  sequence skipped, s;
  REQUIRE(kv.reserve(skipped.pages, pages_skipped * 16));
  REQUIRE(kv.reserve(s.pages, tokens.size()));
  if (pages_skipped > 0) std::reverse(s.pages.begin(), s.pages.end());
  transformer engine(m, kv, pool, 1024);
  outcome out;
  std::size_t chunk = 0;
  for (std::size_t start = 0; start < tokens.size(); chunk = std::min(chunk + 1, chunks.size() - 1)) {
    const std::size_t n = std::min(chunks[chunk], tokens.size() - start);
    const auto logits = engine.prefill_chunk(s, {tokens.data() + start, n}, start);
    out.logits.assign(logits.begin(), logits.end());
    start += n;
  }
  for (std::size_t l = 0; l < m.config.layers; ++l) {
    for (std::size_t position = 0; position < tokens.size(); ++position) {
      const std::size_t at = kv.offset(s.pages, position);
      out.kv.insert(out.kv.end(), kv.k(l) + at, kv.k(l) + at + kv.token_floats());
      out.kv.insert(out.kv.end(), kv.v(l) + at, kv.v(l) + at + kv.token_floats());
    }
  }
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// The textbook, one token at a time and in double precision.
std::vector<double> reference_logits(const model& m, const std::vector<token_id>& tokens) {
  const model_config& c = m.config;
  const std::size_t head = c.head_dim();
  const auto product = [](const packed_matrix& w, const std::vector<double>& x) {
    std::vector<double> y(w.rows());
    for (std::size_t r = 0; r < w.rows(); ++r) {
      for (std::size_t k = 0; k < w.columns(); ++k) {
        y[r] += x[k] * static_cast<double>(w.panel(r / simd::panel)[k * simd::panel + r % simd::panel]);
      }
    }
    return y;
  };
  const auto normalized = [&](const std::vector<double>& x, const std::vector<float>& weight) {
    double squares = 0;
    for (const double v : x) squares += v * v;
    std::vector<double> y(x);
    for (std::size_t i = 0; i < y.size(); ++i) {
      y[i] *= static_cast<double>(weight[i]) / std::sqrt(squares / static_cast<double>(x.size()) + 1e-5);
    }
    return y;
  };
  const auto rotate = [&](double* x, std::size_t heads, std::size_t position) {
    for (std::size_t i = 0; i < heads * head; i += 2) {
      const double angle =
          static_cast<double>(position) * std::pow(10000.0, -static_cast<double>(i % head) / static_cast<double>(head));
      const double a = x[i], b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  };
  std::vector<std::vector<std::vector<double>>> cache(c.layers);
  std::vector<double> x;
  for (std::size_t position = 0; position < tokens.size(); ++position) {
    x.assign(m.embedding.data() + tokens[position] * c.dim, m.embedding.data() + (tokens[position] + 1) * c.dim);
    for (std::size_t l = 0; l < c.layers; ++l) {
      const auto normed = normalized(x, m.layers[l].attention_norm);
      auto q = product(m.layers[l].query, normed), key_value = product(m.layers[l].key_value, normed);
      rotate(q.data(), c.heads, position);
      rotate(key_value.data(), c.kv_heads, position);
      cache[l].push_back(key_value);
      std::vector<double> attended(c.dim);
      for (std::size_t h = 0; h < c.heads; ++h) {
        std::vector<double> weight;
        double total = 0;
        for (const auto& past : cache[l]) {
          double score = 0;
          for (std::size_t i = 0; i < head; ++i) score += q[h * head + i] * past[h / c.group() * head + i];
          weight.push_back(std::exp(score / std::sqrt(static_cast<double>(head))));
          total += weight.back();
        }
        for (std::size_t t = 0; t <= position; ++t) {
          for (std::size_t i = 0; i < head; ++i) {
            attended[h * head + i] += weight[t] / total * cache[l][t][c.kv_dim() + h / c.group() * head + i];
          }
        }
      }
      const auto out = product(m.layers[l].output, attended);
      for (std::size_t i = 0; i < c.dim; ++i) x[i] += out[i];
      const auto fed = normalized(x, m.layers[l].feed_forward_norm);
      auto gate = product(m.layers[l].gate, fed);
      const auto up = product(m.layers[l].up, fed);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
      const auto down = product(m.layers[l].down, gate);
      for (std::size_t i = 0; i < c.dim; ++i) x[i] += down[i];
    }
  }
  return product(m.classifier, normalized(x, m.final_norm));
}

bool something_skipped = false;

struct stories {
  const char* models = std::getenv("KVX_TEST_MODELS");
  std::string checkpoint = std::string(models == nullptr ? "" : models) + "/stories260K.bin";
  std::string tokenizer_file = std::string(models == nullptr ? "" : models) + "/tok512.bin";

  bool absent() const {
    if (models != nullptr && *models != '\0') return false;
    std::fputs(
        "KVX-SKIPPED: the real model is not tested: set KVX_TEST_MODELS to the directory that holds stories260K.bin "
        "and tok512.bin\n",
        stderr);
    something_skipped = true;
    return true;
  }
};

std::string message_of(const std::string& checkpoint) {
  try {
    static_cast<void>(model::load(checkpoint));
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("logits agree with the textbook") {
  const model m = model::random("tiny", 3);
  const auto tokens = some_tokens(300);
  const auto expected = reference_logits(m, tokens);
  const auto got = prefill(m, tokens, {300}, 2, 0).logits;
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  MESSAGE("largest error " << worst << " of logits up to " << largest);
  CHECK(worst < 2e-4);
}

TEST_CASE("KV and logits do not depend on chunks, threads or pages, to the last bit") {
  const model m = model::random("tiny", 4);
  const auto tokens = some_tokens(700);
  const outcome whole = prefill(m, tokens, {700}, 1, 0);
  const std::vector<std::vector<std::size_t>> cuts = {{512}, {100}, {1}, {13}, {640, 60}, {688, 12}, {3, 250, 1, 400}};
  for (const auto& chunks : cuts) {
    for (const std::size_t threads : {1u, 2u, 16u}) {
      const outcome cut = prefill(m, tokens, chunks, threads, 5);
      CHECK(same_bits(whole.logits, cut.logits));
      CHECK(same_bits(whole.kv, cut.kv));
    }
  }
}

TEST_CASE("a step that was left undone changes nothing about the next one") {
  const model m = model::random("tiny", 4);
  const auto tokens = some_tokens(300);
  const outcome whole = prefill(m, tokens, {300}, 2, 0);
  thread_pool pool(2);
  paged_kv kv(m.config, 16, 20);
  transformer engine(m, kv, pool, 300);
  sequence s;
  REQUIRE(kv.reserve(s.pages, 300));
  const step all{&s, tokens, 0};
  std::size_t asked = 0;
  CHECK(engine.forward({&all, 1}, {}, [&](std::size_t layers) { return ++asked, layers == 2; }) == nullptr);
  CHECK(asked == 2);
  const float* logits = engine.forward({&all, 1}, {}, [&](std::size_t) { return false; });
  REQUIRE(logits != nullptr);
  CHECK(same_bits(whole.logits, {logits, logits + m.config.vocabulary}));
}

TEST_CASE("a product is cut into enough blocks for all threads, which cover it once") {
  for (const std::size_t m : {1U, 5U, 97U, 256U, 1024U, 1600U}) {
    for (const std::size_t panels : {1U, 3U, 24U, 64U}) {
      for (const std::size_t threads : {1U, 2U, 16U}) {
        CAPTURE(m);
        CAPTURE(panels);
        CAPTURE(threads);
        const blocking cut = blocks_for(m, panels, threads);
        CHECK(((cut.row_blocks - 1) * cut.rows < m && m <= cut.row_blocks * cut.rows));
        CHECK(((cut.groups - 1) * cut.panels < panels && panels <= cut.groups * cut.panels));
        CHECK((cut.rows <= block_rows && cut.panels <= block_panels));
        const bool small = cut.panels == 1 && (cut.rows < 96 || cut.row_blocks == 1);
        CHECK((threads == 1 || small || cut.tasks() >= 4 * threads));
      }
    }
  }
}

TEST_CASE("a batch of sequences gives each what it would get alone") {
  const model m = model::random("tiny", 5);
  const auto tokens = some_tokens(90);
  thread_pool pool(2);
  paged_kv kv(m.config, 16, 32);
  transformer engine(m, kv, pool, 128);
  std::vector<sequence> sequences(3);
  const std::vector<std::size_t> lengths = {90, 17, 40};
  std::vector<step> steps;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    REQUIRE(kv.reserve(sequences[i].pages, lengths[i]));
    engine.prefill_chunk(sequences[i], {tokens.data(), lengths[i] - 1}, 0);
    steps.push_back({&sequences[i], {tokens.data() + lengths[i] - 1, 1}, lengths[i] - 1});
  }
  std::vector<std::size_t> layers;
  const float* logits = engine.forward(steps, [&](std::size_t layer) { layers.push_back(layer); });
  CHECK(layers == std::vector<std::size_t>{0, 1, 2, 3});
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<token_id> prefix(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(lengths[i]));
    const float* row = logits + i * engine.logits_stride();
    CHECK(same_bits(prefill(m, prefix, {1024}, 1, 0).logits, {row, row + m.config.vocabulary}));
  }
}

TEST_CASE("steps that do not fit are refused") {
  const model m = model::random("tiny", 6);
  thread_pool pool(1);
  paged_kv kv(m.config, 16, 2);
  transformer engine(m, kv, pool, 24);
  sequence s;
  CHECK_FALSE(kv.reserve(s.pages, 33));
  CHECK(s.pages.empty());
  REQUIRE(kv.reserve(s.pages, 32));
  CHECK_THROWS_AS(engine.prefill_chunk(s, some_tokens(25), 0), std::length_error);   // more than max_rows
  CHECK_THROWS_AS(engine.prefill_chunk(s, some_tokens(10), 23), std::length_error);  // more than the pages
  const std::vector<token_id> unknown = {512};
  CHECK_THROWS_AS(engine.prefill_chunk(s, unknown, 0), std::out_of_range);
  kv.release(s.pages);
  CHECK(kv.free_pages() == 2);
}

TEST_CASE("a random model is its name and seed") {
  CHECK(model::random("tiny", 1).digest == model::random("tiny", 1).digest);
  CHECK(model::random("tiny", 1).digest != model::random("tiny", 2).digest);
  CHECK_THROWS_AS(model::random("huge", 1), std::runtime_error);
}

TEST_CASE("sampling keeps to the nucleus, and to its seed") {
  const std::vector<float> logits = {0.0f, 3.0f, 2.9f, -1.0f};
  CHECK(sampler(0, 1, 1).sample(logits) == 1);
  sampler one(1.0f, 0.8f, 7), same(1.0f, 0.8f, 7);
  std::vector<int> seen(4);
  for (int i = 0; i < 200; ++i) {
    const token_id token = one.sample(logits);
    CHECK(token == same.sample(logits));
    ++seen[token];
  }
  CHECK(seen[0] == 0);
  CHECK(seen[1] > 50);
  CHECK(seen[2] > 50);
  CHECK(seen[3] == 0);
}

TEST_CASE("checkpoints that do not fit their header are refused") {
  const stories files;
  if (files.absent()) return;
  const auto copy =
      std::filesystem::temp_directory_path() / ("mini_engine_test_" + std::to_string(::getpid()) + ".bin");
  std::filesystem::copy_file(files.checkpoint, copy);
  std::filesystem::permissions(copy, std::filesystem::perms::owner_all);
  const auto bytes = std::filesystem::file_size(copy);
  CHECK(model::load(copy).digest == model::load(files.checkpoint).digest);
  {
    std::fstream file(copy, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(bytes / 2));
    file.put('!');
  }
  CHECK(model::load(copy).digest != model::load(files.checkpoint).digest);
  std::filesystem::resize_file(copy, bytes - 4);
  CHECK(message_of(copy).find("bytes, but its header asks for") != std::string::npos);
  std::filesystem::resize_file(copy, 20);
  CHECK(message_of(copy).find("shorter than its header") != std::string::npos);
  std::filesystem::resize_file(copy, bytes);
  {
    std::fstream file(copy, std::ios::in | std::ios::out | std::ios::binary);
    const std::int32_t heads = -8;
    file.seekp(12);
    file.write(reinterpret_cast<const char*>(&heads), sizeof(heads));
  }
  CHECK(message_of(copy).find("n_heads is -8") != std::string::npos);
  std::filesystem::remove(copy);
  CHECK(message_of(copy).find("cannot be opened") != std::string::npos);
}

TEST_CASE("text survives the tokenizer, bytes that are no piece included") {
  const stories files;
  const std::string texts[] = {"Once upon a time, there was a little girl named Lily.\n", "naïve 日本語 \U0001F600 ~^`",
                               "x"};
  for (const auto& text : texts) {
    const tokenizer bytes;
    std::string back;
    for (const token_id t : bytes.encode(text)) back += bytes.decode(0, t);
    CHECK(back == text);
  }
  if (files.absent()) return;
  const tokenizer words(files.tokenizer_file, 512);
  for (const auto& text : texts) {
    const auto tokens = words.encode(text);
    std::string back;
    for (std::size_t i = 1; i < tokens.size(); ++i) back += words.decode(tokens[i - 1], tokens[i]);
    CHECK(back == text);
  }
  CHECK(words.encode("").size() == 1);
  CHECK_THROWS_AS(tokenizer(files.tokenizer_file, 511), std::runtime_error);
  CHECK_THROWS_AS(tokenizer(files.tokenizer_file, 513), std::runtime_error);
}

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int failed = context.run();
  return failed == 0 && something_skipped ? 77 : failed;
}
