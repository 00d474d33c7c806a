// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "kv_cache.hpp"
#include "serve.hpp"

namespace mini_engine {

/// What a request computed, as digests: two runs of one prompt did the same if and only if these are equal.
struct evidence {
  std::vector<token_id> tokens;
  std::vector<std::uint64_t> logits;  // of each generated token
  std::vector<std::uint64_t> pages;   // of every full block, layer by layer: keys and values

  friend bool operator==(const evidence&, const evidence&) = default;
};

/// How one request went.
struct single_run {
  std::string name;
  std::size_t prompt_tokens = 0;
  std::size_t cached_tokens = 0;
  double open_seconds = 0;  // of the cache, from submission on
  double load_seconds = 0;  // from the match until the cached blocks were in the pages
  double ttft_seconds = 0;  // from submission until the first token
  std::uint64_t loaded_bytes = 0;
  evidence result;
  std::vector<std::pair<std::string, double>> more;  // further figures, by their name in the JSON
  std::optional<evidence> expected;                  // of the same cuts, where they are not the first run's

  double bytes_per_second() const { return loaded_bytes == 0 ? 0 : static_cast<double>(loaded_bytes) / load_seconds; }
};

/// How to run.
struct single_run_settings {
  std::size_t chunk_tokens = 0;
  bool patient = false;  // see server
  std::optional<std::pair<std::size_t, std::size_t>>
      swapped_blocks;  // once they are loaded: a fault, to see it noticed
};

/// A digest of logits, whatever engine computed them.
std::uint64_t digest_of(std::span<const float> values, std::uint64_t seed = 0);

/// Serves one request alone and collects the evidence, which is not part of its time.
/// Shape   served: a server with nothing to do; blocks: full ones to digests; swap: exchanges two of the sequence's
/// blocks
template <class Server, class Digests, class Swap>
void collect(Server& served, request& from, std::size_t block_tokens, const single_run_settings& how,
             const Digests& digests_of_pages, const Swap& swap_pages, single_run& run) {
  run.prompt_tokens = from.prompt.size();
  from.on_logits = [&run](std::span<const float> logits) { run.result.logits.push_back(digest_of(logits)); };
  from.on_loaded = [&](std::size_t blocks) {
    if (!how.swapped_blocks || blocks == 0) return;
    const auto [i, j] = *how.swapped_blocks;
    if (i >= blocks || j >= blocks)
      throw std::out_of_range("--swap-block: only " + std::to_string(blocks) + " blocks are loaded");
    swap_pages(from.kv.pages[i], from.kv.pages[j]);
  };
  from.on_finished = [&](std::size_t tokens) {
    run.result.pages = digests_of_pages(from.kv.pages, tokens / block_tokens);
  };
  served.submit(from);
  served.run();
  run.cached_tokens = from.cached_tokens;
  run.load_seconds = from.load_seconds;
  run.ttft_seconds = from.ttft_seconds;
  run.result.tokens = from.output;
}

/// Digests of a sequence's first blocks.
std::vector<std::uint64_t> digests_of_pages(paged_kv& kv, std::size_t layers, const std::vector<page_id>& pages,
                                            std::size_t blocks);

/// Memory in which the cache holds `tokens` tokens, as in kv_cache.hpp.
inline std::uint64_t memory_for(std::size_t tokens, const engine& e) { return memory_for(tokens, e.config(), e.kv); }

/// The same on the CPU's engine. With settings for a cache that is not open yet, opens it first, which is part of the
/// time.
single_run run_alone(std::string name, engine& e, request& from, std::optional<opening_cache>& cache,
                     const cache_settings* to_open, const single_run_settings& how);

}  // namespace mini_engine
