// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/store/heartbeat.hpp>
#include <kvx/store/journal_format.hpp>
#include <kvx/store/journal_reader.hpp>
#include <kvx/store/journal_writer.hpp>
#include <kvx/store/root.hpp>
#include <kvx/store/slab.hpp>
#include <kvx/store/slot_geometry.hpp>
#include <kvx/store/store_options.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace kvx::store {

/// The numbers that follow from the options, the geometry and the root's facts.
struct store_sizes {
  std::size_t slots_per_extent = 0;
  std::size_t extent_count = 0;
  std::uint64_t slab_bytes = 0;
  journal_limits journal;

  [[nodiscard]] std::size_t slot_count() const noexcept { return extent_count * slots_per_extent; }

  /// What everything below the root but the slabs takes at most, while `writers` stores of this geometry hold extents
  /// or live.
  /// Units   bytes; a directory, and a file's map of extents, count as a page each
  [[nodiscard]] std::uint64_t metadata_allowance_bytes(std::size_t writers) const noexcept {
    const std::uint64_t for_root = 6 * page_bytes;
    const std::uint64_t for_extents = extent_count * 2 * page_bytes;
    return for_root + for_extents + writers * (journal.most() + heartbeat_bytes + 4 * page_bytes);
  }

  /// Errors  throws bad_argument: an option is out of range
  [[nodiscard]] static store_sizes make(const store_options& options, const slot_geometry& geometry,
                                        const root_facts& facts) {
    if (options.digest_bytes < 16 || options.digest_bytes > 32) {
      throw error(errc::bad_argument, "store_options::digest_bytes is " + std::to_string(options.digest_bytes) +
                                          "; give the hasher's digest size, 16 to 32");
    }
    if (options.dead_after <= std::chrono::milliseconds{0}) {
      throw error(errc::bad_argument, "store_options::dead_after is not above 0; give several seconds");
    }
    store_sizes made;
    made.slots_per_extent = static_cast<std::size_t>((facts.extent_bytes - superblock_bytes) / geometry.stride);
    const std::uint64_t extents = options.capacity_bytes / facts.extent_bytes;
    if (extents > (no_slot - 1) / made.slots_per_extent) {
      throw error(errc::bad_argument, "store_options::capacity_bytes of " + std::to_string(options.capacity_bytes) +
                                          " gives more than 2^32 slots; lower it, or store larger blocks");
    }
    made.extent_count = static_cast<std::size_t>(extents);
    made.slab_bytes = superblock_bytes + made.slots_per_extent * static_cast<std::uint64_t>(geometry.stride);
    made.journal = {segment_bytes(options), checkpoint_bytes(made.slot_count(), options.digest_bytes)};
    return made;
  }

 private:
  [[nodiscard]] static std::uint64_t segment_bytes(const store_options& options) {
    constexpr std::uint64_t least = 4 * frame_bytes;
    constexpr std::uint64_t usual_least = std::uint64_t{64} << 10U;
    constexpr std::uint64_t usual_most = std::uint64_t{1} << 20U;
    if (options.journal_segment_bytes == 0) {
      return std::clamp(options.capacity_bytes / 1024 / frame_bytes * frame_bytes, usual_least, usual_most);
    }
    if (options.journal_segment_bytes < least || options.journal_segment_bytes > most_segment_bytes ||
        options.journal_segment_bytes % frame_bytes != 0) {
      throw error(errc::bad_argument, "store_options::journal_segment_bytes is " +
                                          std::to_string(options.journal_segment_bytes) + "; give a multiple of " +
                                          std::to_string(frame_bytes) + " from " + std::to_string(least) + " to " +
                                          std::to_string(most_segment_bytes));
    }
    return options.journal_segment_bytes;
  }
};

}  // namespace kvx::store
