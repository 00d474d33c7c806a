// SPDX-License-Identifier: Apache-2.0
// c++ -std=c++20 -O2 -Iinclude examples/01_lookup.cpp -pthread -o 01_lookup && ./01_lookup
//
// A toy engine computes a prompt once. A second request that starts with the same tokens takes their keys and values
// from the cache and computes the rest, to the same answer.

#include <kvx/kvx.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "01_lookup: failed: %s\n", what);
  std::exit(1);
}

/// Paged keys and values, and a model in which every token's depend on all tokens before it.
class toy_engine {
 public:
  static constexpr std::uint32_t page_tokens = 16;
  static constexpr std::size_t layers = 4;
  static constexpr std::size_t heads = 2;
  static constexpr std::size_t head_dim = 8;
  static constexpr std::size_t pages = 64;

  toy_engine() : tensors_(2 * layers, std::vector<float>(pages * page_tokens * token_floats)) {}

  /// Tells the cache where the keys and values are; see 02_own_layout.cpp for other shapes of memory.
  [[nodiscard]] kvx::layout layout() {
    std::vector<std::byte*> keys;
    std::vector<std::byte*> values;
    for (std::size_t l = 0; l < layers; ++l) {
      keys.push_back(reinterpret_cast<std::byte*>(tensors_[2 * l].data()));
      values.push_back(reinterpret_cast<std::byte*>(tensors_[2 * l + 1].data()));
    }
    kvx::separate_kv tensors;
    tensors.shape = {.block_tokens = page_tokens,
                     .page_tokens = page_tokens,
                     .layers = layers,
                     .heads = heads,
                     .head_dim = head_dim,
                     .element = kvx::element_type::f32};
    tensors.page_count = pages;
    tensors.keys = keys;
    tensors.values = values;
    tensors.tensor_bytes = tensors_[0].size() * sizeof(float);
    return kvx::layout(page_tokens, {tensors});
  }

  /// Computes one layer of the tokens from `first` on, out of what the pages hold of those before.
  void compute_layer(std::size_t layer, std::span<const kvx::token_id> prompt, std::size_t first,
                     std::span<const kvx::block_id> table) {
    for (std::size_t t = first; t < prompt.size(); ++t) {
      for (std::size_t half = 0; half < 2; ++half) {
        for (std::size_t i = 0; i < token_floats; ++i) {
          const float before = t == 0 ? 0.0F : at(layer, half, t - 1, i, table);
          at(layer, half, t, i, table) = 0.75F * before + static_cast<float>(prompt[t] % 97 + layer + half + i);
        }
      }
    }
  }
  /// The model's answer: a sum over what the last token has in every layer.
  [[nodiscard]] float answer(std::size_t tokens, std::span<const kvx::block_id> table) {
    float sum = 0;
    for (std::size_t l = 0; l < layers; ++l)
      for (std::size_t i = 0; i < token_floats; ++i) sum += at(l, 1, tokens - 1, i, table);
    return sum;
  }

 private:
  static constexpr std::size_t token_floats = heads * head_dim;

  [[nodiscard]] float& at(std::size_t layer, std::size_t half, std::size_t token, std::size_t i,
                          std::span<const kvx::block_id> table) {
    const std::size_t row = table[token / page_tokens] * page_tokens + token % page_tokens;
    return tensors_[2 * layer + half][row * token_floats + i];
  }

  std::vector<std::vector<float>> tensors_;
};

struct outcome {
  float answer = 0;
  std::size_t cached_tokens = 0;
};

// [serve]
/// One request, from the prompt to the answer. table: the engine's pages for it, one per block of 16 tokens.
outcome serve(kvx::host_cache<>& cache, toy_engine& engine, std::span<const kvx::token_id> prompt,
              std::span<const kvx::block_id> table) {
  const kvx::sequence chain = cache.make_sequence(prompt);     // hashes the prompt's blocks, once
  const kvx::plan plan = cache.match(chain);                   // which prefix is cached: no I/O
  const kvx::prefetch_ticket arriving = cache.prefetch(plan);  // storage -> memory, while the request is queued
  arriving.wait_for(std::chrono::seconds(2));                  // a scheduler polls done() and goes on meanwhile

  const auto load = cache.load(plan, table.first(arriving.ready_blocks()));  // memory -> pages
  const std::size_t cached = load.loaded_blocks();                           // the rest is computed
  for (std::size_t layer = 0; layer < toy_engine::layers; ++layer) {
    if (!load.wait_layer(layer, {})) throw std::runtime_error("the device failed: give the step up");
    engine.compute_layer(layer, prompt, cached * cache.block_tokens(), table);
  }

  const auto save =
      cache.save(chain, cached, table.subspan(cached, chain.blocks() - cached));  // pages -> memory, storage
  save.wait_source_released(std::chrono::seconds(2));  // before the pages are used for something else
  return {engine.answer(prompt.size(), table), cached * cache.block_tokens()};
}
// [/serve]

}  // namespace

int main() {
  toy_engine engine;
  // [open]
  kvx::options options;
  options.identity = {"toy-model", "weights-1", "f32"};  // what must be equal for cached bytes to mean the same
  options.memory_bytes = 16U << 20U;                     // with options.root, blocks also go to storage
  kvx::host_cache<> cache(options, engine.layout());     // throws kvx::error; nothing after it does
  // [/open]

  std::vector<kvx::token_id> first(300);
  std::iota(first.begin(), first.end(), 1000U);
  std::vector<kvx::token_id> second(first.begin(), first.begin() + 256);
  second.insert(second.end(), {7U, 8U, 9U});
  std::vector<kvx::block_id> pages_of_first(19);
  std::iota(pages_of_first.begin(), pages_of_first.end(), 0U);
  std::vector<kvx::block_id> pages_of_second(17);
  std::iota(pages_of_second.rbegin(), pages_of_second.rend(), 20U);  // any pages will do

  const outcome cold = serve(cache, engine, first, pages_of_first);
  check(cold.cached_tokens == 0, "an empty cache has nothing");
  const outcome warm = serve(cache, engine, second, pages_of_second);
  check(warm.cached_tokens == 256, "the common prefix comes from the cache");

  toy_engine without_cache;
  for (std::size_t l = 0; l < toy_engine::layers; ++l) without_cache.compute_layer(l, second, 0, pages_of_second);
  check(warm.answer == without_cache.answer(second.size(), pages_of_second), "the answer is the same to the bit");

  std::printf("first request:  %zu of %zu tokens from the cache\n", cold.cached_tokens, first.size());
  std::printf("second request: %zu of %zu tokens from the cache, the same answer\n", warm.cached_tokens, second.size());
}
