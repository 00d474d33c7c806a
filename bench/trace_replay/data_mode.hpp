// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "trace.hpp"

#include <kvx/any_cache.hpp>
#include <kvx/layout.hpp>
#include <kvx/metrics/snapshot.hpp>
#include <kvx/options.hpp>
#include <kvx/transfer/host.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace kvx_replay {

using host_stream = kvx::host_transfer::stream_type;
using erased_cache = kvx::any_cache<host_stream>;

/// A real cache under a policy.
struct cache_entry {
  std::string policy;
  std::function<erased_cache(const kvx::options&, const kvx::layout&)> make;
};

/// Every eviction policy that a cache can have; data_policies.cpp lists them.
[[nodiscard]] const std::vector<cache_entry>& all_caches();

struct data_settings {
  /// Where the storage tier goes, a directory that is made and removed inside of it; empty: memory alone.
  std::string root;
  double memory_percent = 5;  ///< of the distinct blocks
  double storage_percent = 50;
  std::uint64_t bytes_per_block = 64U << 10U;
  std::size_t clients = 1;
  /// Requests arrive at their timestamps times `time_scale`; false: a client asks again as soon as its
  /// request is answered and saved.
  bool open_loop = false;
  double time_scale = 0.01;
  /// What the engine computes of the trace's tokens in a second, times time_scale; 0: it takes no time.
  double prefill_tokens_per_second = 0;
};

struct data_result {
  std::string policy;
  std::size_t memory_blocks = 0;
  std::size_t storage_blocks = 0;
  std::uint64_t hit_blocks = 0;
  std::uint64_t hit_tokens = 0;
  std::uint64_t wrong_blocks = 0;  ///< loaded, but not what was saved
  double seconds = 0;
  /// From arrival to the prefix in the engine's pages; waiting for a client counts.
  double load_p50_ms = 0;
  double load_p90_ms = 0;
  double load_p99_ms = 0;
  double load_longest_ms = 0;
  kvx::metrics_snapshot stats{};
};

/// Replays a trace through a real cache: every request is matched, prefetched, loaded, checked and saved.
/// Errors  throws kvx::error or std::runtime_error: the cache cannot be opened with these settings
[[nodiscard]] data_result replay_data(const trace& work, const cache_entry& with, const data_settings& how);

/// Tables for people, on the standard output.
void print(const trace& work, const std::vector<data_result>& results, const data_settings& how);

[[nodiscard]] std::string to_json(const std::string& name, const trace& work, const std::vector<data_result>& results,
                                  const data_settings& how);

}  // namespace kvx_replay
