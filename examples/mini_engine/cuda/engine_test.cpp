// SPDX-License-Identifier: Apache-2.0
// The engine on a GPU against the one on the CPU, and through kvx against itself. The real-model case reads
// $KVX_TEST_MODELS/stories260K.bin, a llama2.c checkpoint.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "../paged_kv.hpp"
#include "../thread_pool.hpp"
#include "../transformer.hpp"
#include "device_test.hpp"
#include "engine.hpp"
#include "kernels.hpp"
#include "kv_cache.hpp"

using namespace mini_engine;
using namespace std::chrono_literals;
namespace gpu = mini_engine::cuda;

namespace {

struct temporary_directory {
  temporary_directory() {
    path = (std::filesystem::temp_directory_path() / "mini_engine_cuda-XXXXXX").string();
    REQUIRE(::mkdtemp(path.data()) != nullptr);
  }
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

std::vector<token_id> some_tokens(std::size_t count, std::size_t vocabulary) {
  std::vector<token_id> tokens;
  for (std::size_t i = 0; i < count; ++i) tokens.push_back(static_cast<token_id>((i * 7919 + i / 3) % vocabulary));
  return tokens;
}

/// Heads of 128 channels, as large models have them: these run on the tensor cores.
model with_wide_heads() { return model::random(model_config{512, 1000, 3, 4, 2, 512, 4096, false}, "wide heads", 5); }

/// Logits after each of the chunks, from pages that come in an unusual order.
template <class Engine, class Pages>
std::vector<std::vector<float>> logits_after(Engine& engine, Pages& kv, const std::vector<token_id>& tokens,
                                             const std::vector<std::size_t>& chunks) {
  sequence skipped, s;
  REQUIRE(kv.reserve(skipped.pages, 3 * kv.block_tokens()));
  REQUIRE(kv.reserve(s.pages, tokens.size()));
  std::reverse(s.pages.begin(), s.pages.end());
  std::vector<std::vector<float>> all;
  std::size_t start = 0;
  for (const std::size_t n : chunks) {
    const step chunk{&s, {tokens.data() + start, n}, start};
    const float* logits = engine.forward({&chunk, 1});
    all.emplace_back(logits, logits + engine.config().vocabulary);
    start += n;
  }
  kv.release(s.pages);
  kv.release(skipped.pages);
  return all;
}

void compare_with_cpu(const model& m) {
  const std::vector<std::size_t> chunks = {300, 1, 1, 16, 77, 1};
  std::size_t total = 0;
  for (const std::size_t n : chunks) total += n;
  const auto tokens = some_tokens(total, m.config.vocabulary);
  thread_pool pool(4);
  mini_engine::paged_kv host_pages(m.config, 16, total / 16 + 8);
  mini_engine::transformer host(m, host_pages, pool, 300);
  const auto expected = logits_after(host, host_pages, tokens, chunks);

  const gpu::stream on;
  const gpu::weights w(m, on);
  gpu::paged_kv pages(m.config, 16, total / 16 + 8);
  gpu::transformer compute(w, pages, on, 300, 4);
  const auto got = logits_after(compute, pages, tokens, chunks);
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    double difference = 0, length = 0;
    for (std::size_t v = 0; v < expected[i].size(); ++v) {
      const double e = static_cast<double>(expected[i][v]), d = static_cast<double>(got[i][v]) - e;
      difference += d * d;
      length += e * e;
    }
    MESSAGE("chunk of " << chunks[i] << ": relative error " << std::sqrt(difference / length));
    // bfloat16 keeps 8 bits: each weight is off by up to 0.4 %, and so are the activations of every layer.
    CHECK(std::sqrt(difference / length) < 0.05);
  }
}

/// A model with an engine around it, for one request at a time.
struct fixture {
  explicit fixture(const model& m) : w(m, on), e(w, on, 16, 1024, 512, 4, 512) {}

  single_run serve(std::optional<gpu::opening_cache>& cache, const cache_settings* to_open, float temperature = 0,
                   std::optional<std::pair<std::size_t, std::size_t>> swapped = std::nullopt,
                   std::size_t restart_at = 0) {
    request from;
    from.prompt = some_tokens(700, e.config().vocabulary);
    from.tokens = 24;
    from.choose = sampler(temperature, 0.9f, 7);
    from.chunk_end = 688;
    from.restart_at = restart_at;
    return gpu::run_alone("run", e, from, cache, to_open, {512, true, swapped});
  }
  std::vector<std::uint64_t> digests(const std::vector<page_id>& pages) {
    const gpu::device_buffer<std::uint32_t> ids(pages.size());
    const gpu::device_buffer<std::uint64_t> to(pages.size() * e.config().layers);
    gpu::check(cudaMemcpyAsync(ids.data(), pages.data(), ids.bytes(), cudaMemcpyHostToDevice, on), "upload");
    gpu::digest_pages(e.kv.layer(0), ids.data(), pages.size(), e.config().layers, e.kv.layer_elements(),
                      e.kv.page_elements(), to.data(), on);
    std::vector<std::uint64_t> all(to.size());
    gpu::check(cudaMemcpyAsync(all.data(), to.data(), to.bytes(), cudaMemcpyDeviceToHost, on), "download");
    on.wait();
    return all;
  }

  gpu::stream on;
  gpu::weights w;
  gpu::engine e;
};

cache_settings settings_in(const std::string& directory) {
  cache_settings settings;
  settings.directory = directory;
  settings.memory_bytes = std::uint64_t{64} << 20;
  settings.storage_bytes = std::uint64_t{256} << 20;
  settings.load_deadline = 30s;
  return settings;
}

}  // namespace

TEST_CASE("logits agree with the CPU's, as far as bfloat16 goes") {
  SUBCASE("small heads") { compare_with_cpu(model::random("tiny", 3)); }
  SUBCASE("heads for the tensor cores") { compare_with_cpu(with_wide_heads()); }
  SUBCASE("a trained model") {
    const char* models = std::getenv("KVX_TEST_MODELS");
    if (models == nullptr) {
      MESSAGE("SKIPPED: set KVX_TEST_MODELS to a directory with stories260K.bin");
      return;
    }
    compare_with_cpu(model::load(std::string(models) + "/stories260K.bin"));
  }
}

TEST_CASE("a batch of sequences gives each about what it gets alone, and the same twice") {
  const model m = with_wide_heads();
  const gpu::stream on;
  const gpu::weights w(m, on);
  gpu::paged_kv pages(m.config, 16, 64);
  gpu::transformer compute(w, pages, on, 256, 4);
  const auto tokens = some_tokens(200, m.config.vocabulary);
  std::vector<sequence> sequences(3);
  const std::vector<std::size_t> lengths = {190, 17, 40};
  std::vector<std::vector<float>> alone;
  std::vector<step> steps;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    REQUIRE(pages.reserve(sequences[i].pages, lengths[i]));
    const step before{&sequences[i], {tokens.data(), lengths[i] - 1}, 0},
        last{&sequences[i], {tokens.data() + lengths[i] - 1, 1}, lengths[i] - 1};
    compute.forward({&before, 1});
    const float* logits = compute.forward({&last, 1});
    alone.emplace_back(logits, logits + m.config.vocabulary);
    steps.push_back(last);
  }
  std::vector<float> first;
  for (int repeat = 0; repeat < 2; ++repeat) {
    std::vector<std::size_t> layers;
    const float* logits = compute.forward(steps, [&](std::size_t layer) { layers.push_back(layer); });
    CHECK(layers == std::vector<std::size_t>{0, 1, 2});
    const std::vector<float> all(logits, logits + steps.size() * compute.logits_stride());
    if (repeat == 0) first = all;
    CHECK(std::memcmp(first.data(), all.data(), all.size() * sizeof(float)) == 0);
    for (std::size_t i = 0; i < steps.size(); ++i) {
      double difference = 0, length = 0;
      for (std::size_t v = 0; v < m.config.vocabulary; ++v) {
        const double e = static_cast<double>(alone[i][v]),
                     d = static_cast<double>(all[i * compute.logits_stride() + v]) - e;
        difference += d * d;
        length += e * e;
      }
      CHECK(std::sqrt(difference / length) < 0.03);
    }
  }
}

TEST_CASE("steps that do not fit are refused") {
  const model m = model::random("tiny", 6);
  const gpu::stream on;
  const gpu::weights w(m, on);
  gpu::paged_kv pages(m.config, 16, 2);
  gpu::transformer compute(w, pages, on, 24, 1);
  sequence s;
  REQUIRE(pages.reserve(s.pages, 32));
  const auto tokens = some_tokens(40, 512);
  const auto forward = [&](std::size_t count, std::size_t start) {
    const step one{&s, {tokens.data(), count}, start};
    compute.forward({&one, 1});
  };
  CHECK_THROWS_AS(forward(25, 0), std::length_error);   // more than max_rows
  CHECK_THROWS_AS(forward(10, 23), std::length_error);  // more than the pages
  const step one{&s, {tokens.data(), 1}, 0};
  const step two[] = {one, one};
  CHECK_THROWS_AS(compute.forward(two), std::length_error);  // more than max_sequences
  const std::vector<token_id> unknown = {512};
  const step strange{&s, unknown, 0};
  CHECK_THROWS_AS(compute.forward({&strange, 1}), std::out_of_range);
}

TEST_CASE("what kvx gives back is what was saved: pages, logits and tokens, to the last bit") {
  for (const bool wide : {true, false}) {
    for (const float temperature : {0.0f, 0.8f}) {
      fixture f(wide ? with_wide_heads() : model::random("tiny", 4));
      const temporary_directory directory;
      const cache_settings settings = settings_in(directory.path);
      std::optional<gpu::opening_cache> none, cache, again;
      const single_run cold = f.serve(none, nullptr, temperature);
      const single_run saved = f.serve(cache, &settings, temperature);
      REQUIRE(cache->wait_for(10s) != nullptr);
      REQUIRE(cache->get()->drain(10s));
      const single_run memory = f.serve(cache, nullptr, temperature);
      cache.reset();
      const single_run storage = f.serve(again, &settings, temperature);
      CHECK(cold.cached_tokens == 0);
      CHECK(memory.cached_tokens == 688);
      CHECK(storage.cached_tokens == 688);
      CHECK(cold.result.tokens.size() == 24);
      CHECK(cold.result.pages.size() == 45 * f.e.config().layers);
      CHECK(saved.result == cold.result);
      CHECK(memory.result == cold.result);
      CHECK(storage.result == cold.result);
    }
  }
}

TEST_CASE("a wrong block is noticed") {
  fixture f(with_wide_heads());
  std::optional<gpu::opening_cache> none, cache;
  const cache_settings settings = settings_in("");
  const single_run cold = f.serve(none, nullptr);
  f.serve(cache, &settings);
  REQUIRE(cache->wait_for(10s) != nullptr);
  REQUIRE(cache->get()->drain(10s));
  CHECK_FALSE(f.serve(cache, nullptr, 0, std::pair<std::size_t, std::size_t>{1, 3}).result == cold.result);
}

TEST_CASE(
    "a hit of part of the prompt computes what a run with the same cuts does, and a wrong block in it is noticed") {
  for (const bool wide : {true, false}) {
    fixture f(wide ? with_wide_heads() : model::random("tiny", 4));
    std::optional<gpu::opening_cache> none, cache;
    cache_settings settings = settings_in("");
    settings.memory_bytes = gpu::memory_for(200, f.e);  // 28 of the prompt's 43 blocks
    const single_run saved = f.serve(cache, &settings);
    REQUIRE(cache->wait_for(10s) != nullptr);
    REQUIRE(cache->get()->drain(10s));
    const single_run part = f.serve(cache, nullptr);
    REQUIRE(part.cached_tokens > 3 * 16);
    REQUIRE(part.cached_tokens < 688);
    const single_run expected = f.serve(none, nullptr, 0, std::nullopt, part.cached_tokens);
    CHECK(expected.cached_tokens == 0);
    CHECK(part.result == expected.result);
    const single_run wrong = f.serve(cache, nullptr, 0, std::pair<std::size_t, std::size_t>{1, 3});
    // What the run before saved may have taken room, or given some.
    REQUIRE(wrong.cached_tokens > 3 * 16);
    REQUIRE(wrong.cached_tokens < 688);
    CHECK_FALSE(wrong.result == f.serve(none, nullptr, 0, std::nullopt, wrong.cached_tokens).result);
  }
}

TEST_CASE("a prompt larger than the memory comes from storage in parts, and computes the same") {
  fixture f(with_wide_heads());
  const temporary_directory directory;
  cache_settings settings = settings_in(directory.path);
  std::optional<gpu::opening_cache> cache, again;
  const single_run saved = f.serve(cache, &settings);
  REQUIRE(cache->wait_for(10s) != nullptr);
  REQUIRE(cache->get()->drain(10s));
  cache.reset();
  settings.memory_bytes = gpu::memory_for(200, f.e);
  const single_run storage = f.serve(again, &settings);
  CHECK(storage.cached_tokens == 688);
  CHECK(storage.result == saved.result);
}

TEST_CASE("straight from storage the engine computes the same, and a wrong block is noticed") {
  for (const bool wide : {true, false}) {
    fixture f(wide ? with_wide_heads() : model::random("tiny", 4));
    const temporary_directory directory;
    cache_settings settings = settings_in(directory.path);
    std::optional<gpu::opening_cache> cache, again;
    const single_run saved = f.serve(cache, &settings);
    REQUIRE(cache->wait_for(10s) != nullptr);
    REQUIRE(cache->get()->drain(10s));
    cache.reset();
    settings.straight = straight_kind::host;
    gpu::read_straight(settings, true, f.e);
    REQUIRE(f.e.reader != nullptr);
    const single_run storage = f.serve(again, &settings);
    CHECK(storage.cached_tokens == 688);
    CHECK(storage.result == saved.result);
    const single_run wrong = f.serve(again, nullptr, 0, std::pair<std::size_t, std::size_t>{1, 3});
    CHECK(wrong.cached_tokens == 688);
    CHECK_FALSE(wrong.result == saved.result);
    CHECK(again->get()->stats().memory.blocks < 688 / 16);  // the prompt's blocks passed it by
    again.reset();
  }
}

TEST_CASE("who does not wait for a layer reads what is not there yet") {
  fixture f(with_wide_heads());
  const cache_settings settings = settings_in("");
  gpu::opening_cache opening(settings, f.e);
  gpu::external_cache* cache = opening.wait_for(10s);
  REQUIRE(cache != nullptr);
  const auto tokens = some_tokens(641, f.e.config().vocabulary);
  sequence s;
  REQUIRE(f.e.kv.reserve(s.pages, 640));
  for (const std::size_t start : {std::size_t{0}, std::size_t{512}}) {
    const step chunk{&s, {tokens.data() + start, std::min<std::size_t>(512, 640 - start)}, start};
    f.e.compute.forward({&chunk, 1});
  }
  const auto expected = f.digests(s.pages);
  const kvx::sequence chain = cache->make_sequence(tokens);
  REQUIRE(cache->save(chain, 0, s.pages, f.on).wait_source_released(10s));
  REQUIRE(cache->drain(10s));
  gpu::check(cudaMemsetAsync(f.e.kv.layer(0), 0xFF, f.e.kv.layers() * f.e.kv.layer_elements() * 2, f.on), "poison");
  f.on.wait();

  const kvx::plan plan = cache->match(chain);
  REQUIRE(plan.blocks() == 40);
  const kvx::prefetch_ticket fetched = cache->prefetch(plan);
  REQUIRE(fetched.wait_for(10s));
  const gpu::stream busy;  // the copies go behind what is submitted to it
  gpu::check(cudaLaunchHostFunc(
                 busy, [](void*) { std::this_thread::sleep_for(200ms); }, nullptr),
             "a pause");
  const auto load = cache->load(plan, s.pages, busy);
  REQUIRE(load.loaded_blocks() == 40);
  CHECK(f.digests(s.pages) != expected);  // the bug: no wait
  for (std::size_t l = 0; l < f.e.config().layers; ++l) REQUIRE(load.wait_layer(l, f.on).ok());
  CHECK(f.digests(s.pages) == expected);
  f.e.kv.release(s.pages);
}

TEST_CASE("requests that share a beginning are served through a pool that holds two of them") {
  fixture f(with_wide_heads());
  const cache_settings settings = settings_in("");
  gpu::opening_cache opening(settings, f.e);
  REQUIRE(opening.wait_for(10s) != nullptr);
  std::vector<request> requests(5);
  gpu::server all(f.e.compute, f.e.cost, &opening, 256, true, f.on);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = some_tokens(400, f.e.config().vocabulary);
    requests[i].prompt.back() = static_cast<token_id>(i);
    requests[i].tokens = 20;
    all.submit(requests[i]);
  }
  all.run();
  for (const request& each : requests) {
    CHECK(each.done);
    CHECK(each.output.size() == 20);
  }
  CHECK(all.figures().largest_batch == 2);
  CHECK(requests.back().cached_tokens == 384);
  CHECK(f.e.kv.free_pages() == f.e.kv.pages());
}

int main(int argc, char** argv) { return gpu::run_on_device(argc, argv); }
