// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/types.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace kvx {

/// What the engine's own prefill costs, for deciding whether loading is worth it.
///
/// n tokens after a past of p take `seconds_per_token * n + seconds_per_token_pair * n * (p + n / 2)`.
struct prefill_cost {
  double seconds_per_token = 0;
  double seconds_per_token_pair = 0;

  [[nodiscard]] double seconds(std::size_t past, std::size_t tokens) const noexcept {
    const auto p = static_cast<double>(past);
    const auto n = static_cast<double>(tokens);
    return n * (seconds_per_token + seconds_per_token_pair * (p + n / 2));
  }
};

/// Something a router may want to know.
struct block_event {
  enum class what : std::uint8_t { stored, evicted };
  what happened = what::stored;
  tier where = tier::memory;
  std::uint16_t group = 0;
  block_key key{};
};

/// Everything a cache is configured with.
/// Units   *_bytes: bytes; durations carry their own
struct options {
  kvx::identity identity;

  /// Pinned memory for blocks and I/O; at least four blocks of every group.
  std::uint64_t memory_bytes = 1ULL << 30U;
  /// Directory on a local drive or a parallel file system; empty: no storage tier.
  std::string root;
  /// Cap on what all processes together keep under `root`.
  std::uint64_t storage_bytes = 16ULL << 30U;
  /// Part of the cap that a writer claims at a time; fixed when the root is first used. 0: what the root has, and
  /// 1 GiB for a new one, less where the cap is small.
  std::uint64_t extent_bytes = 0;
  /// A writer whose heartbeat stood still for this long is dead; its extents are reclaimed.
  std::chrono::milliseconds writer_dead_after{10'000};

  std::uint16_t tensor_rank = 0;
  std::uint16_t tensor_size = 1;
  std::uint16_t pipeline_rank = 0;
  std::uint16_t pipeline_size = 1;

  /// Room for extra bytes (`block_extra`) in each slot's header.
  std::size_t extra_bytes = 256;
  /// States that nobody who can choose prompts wants to harm the others: allows a hasher that is not
  /// collision resistant together with a storage root or a tenant salt.
  bool prompts_trusted = false;

  /// What match found is not evicted for this long.
  std::chrono::milliseconds lease{10'000};
  /// A prefetch whose block did not arrive by then reports it as missed.
  std::chrono::milliseconds load_deadline{2'000};
  /// A save that storage did not take by then is reported as timed out.
  std::chrono::milliseconds save_deadline{30'000};
  /// How long the destructor waits for storage and devices before it leaks what they may still write.
  std::chrono::milliseconds drain_deadline{10'000};
  /// Errors or deadlines in a row that open the circuit breaker of a direction, and how long it stays open.
  unsigned breaker_failures = 8;
  std::chrono::milliseconds breaker_pause{5'000};

  /// Given: match cuts what is slower to load than to compute. Else learned through `cache::report_prefill`.
  std::optional<kvx::prefill_cost> prefill;

  io_options io{};

  /// Called by a thread of the cache, in batches between its other work; must not call the cache.
  std::function<void(const block_event&)> on_event;
};

}  // namespace kvx
