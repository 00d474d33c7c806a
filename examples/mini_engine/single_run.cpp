// SPDX-License-Identifier: Apache-2.0
#include "single_run.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <chrono>

#include "stopwatch.hpp"

namespace mini_engine {

std::uint64_t digest_of(std::span<const float> values, std::uint64_t seed) {
  return XXH3_64bits_withSeed(values.data(), values.size_bytes(), seed);
}

std::vector<std::uint64_t> digests_of_pages(paged_kv& kv, std::size_t layers, const std::vector<page_id>& pages,
                                            std::size_t blocks) {
  const std::size_t floats = kv.page_bytes() / sizeof(float);
  std::vector<std::uint64_t> digests;
  for (std::size_t b = 0; b < blocks; ++b) {
    for (std::size_t l = 0; l < layers; ++l) {
      const std::size_t at = pages[b] * floats;
      digests.push_back(digest_of({kv.v(l) + at, floats}, digest_of({kv.k(l) + at, floats})));
    }
  }
  return digests;
}

namespace {

void swap_pages(paged_kv& kv, std::size_t layers, page_id a, page_id b) {
  const std::size_t floats = kv.page_bytes() / sizeof(float);
  for (std::size_t l = 0; l < layers; ++l) {
    std::swap_ranges(kv.k(l) + a * floats, kv.k(l) + (a + 1) * floats, kv.k(l) + b * floats);
    std::swap_ranges(kv.v(l) + a * floats, kv.v(l) + (a + 1) * floats, kv.v(l) + b * floats);
  }
}

}  // namespace

single_run run_alone(std::string name, engine& e, request& from, std::optional<opening_cache>& cache,
                     const cache_settings* to_open, const single_run_settings& how) {
  const std::size_t layers = e.weights.config.layers;
  single_run run;
  run.name = std::move(name);
  from.submitted = std::chrono::steady_clock::now();
  if (to_open != nullptr && !cache) cache.emplace(*to_open, e.weights, e.kv, e.cost);
  server one(e.compute, e.cost, cache ? &*cache : nullptr, how.chunk_tokens, how.patient);
  collect(
      one, from, e.kv.block_tokens(), how,
      [&](const std::vector<page_id>& pages, std::size_t blocks) {
        return digests_of_pages(e.kv, layers, pages, blocks);
      },
      [&](page_id i, page_id j) { swap_pages(e.kv, layers, i, j); }, run);
  run.open_seconds = to_open != nullptr ? cache->open_seconds() : 0;
  run.loaded_bytes = run.cached_tokens / e.kv.block_tokens() * layers * 2 * e.kv.page_bytes();
  return run;
}

}  // namespace mini_engine
