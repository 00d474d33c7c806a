// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace kvx::store {

/// Where the storage tier lives and how much of it.
struct store_options {
  /// Directory that all stores of a file system share; made if its parent exists.
  std::string root;
  /// Everything below `root`, whoever wrote it, stays below this plus block_store::metadata_allowance_bytes().
  std::uint64_t capacity_bytes = 0;
  /// What is claimed and given back at once; fixed for a root by who makes it. 0: whatever the root has, and for a
  /// new root 1 GiB, less where the capacity is small.
  std::uint64_t extent_bytes = 0;
  /// A writer whose heartbeat stood still this long is dead, and what it stored may be taken.
  std::chrono::milliseconds dead_after{10'000};
  /// Bypass the page cache where the file system can.
  bool direct = true;
  /// Reserve an extent's space when it is claimed, so that a full file system shows then and not while saving.
  bool preallocate = true;
  /// Accept a root that other users own or may write to. They can delete and damage what is in it, and damage is only
  /// a miss; but whoever can write there can also forge blocks.
  bool allow_shared_root = false;
  /// Significant bytes of a key, the hasher's digest size; shorter keys make a smaller journal.
  std::size_t digest_bytes = 32;
  /// Length of one journal file. 0: from 64 KiB to 1 MiB, growing with the capacity.
  std::size_t journal_segment_bytes = 0;
};

}  // namespace kvx::store
