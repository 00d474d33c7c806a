// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/store/slab.hpp>
#include <kvx/store/slot_format.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

namespace kvx::store {

/// A slab whose journal is of no use.
struct slab_to_rebuild {
  int file = -1;
  writer_id writer;
  std::uint64_t first_slot_number = 0;
  std::size_t slots = 0;
};

/// A slot whose own header says what it holds; only a read proves the payload.
struct rebuilt_slot {
  block_key key, parent;
  std::uint64_t generation = 0;
  std::uint64_t slot_number = 0;
};

namespace rebuild_impl {

inline void read_slab(const slab_to_rebuild& slab, const slot_geometry& geometry, const slot_identity& identity,
                      std::vector<rebuilt_slot>& out) {
  // Small slots are read whole, many at a time; of large ones only the headers.
  constexpr std::size_t most_read_bytes = std::size_t{4} << 20U;
  constexpr std::size_t small_stride_bytes = std::size_t{64} << 10U;
  const bool small = geometry.stride <= small_stride_bytes;
  const std::size_t per_read = small ? most_read_bytes / geometry.stride : 1;
  const detail::aligned_buffer buffer(small ? per_read * geometry.stride : geometry.header_bytes);
  for (std::size_t first = 0; first < slab.slots; first += per_read) {
    const std::size_t count = std::min(per_read, slab.slots - first);
    const auto bytes = buffer.span().first(small ? count * geometry.stride : geometry.header_bytes);
    if (!detail::pread_all(slab.file, bytes, superblock_bytes + first * geometry.stride)) continue;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t number = slab.first_slot_number + first + i;
      parsed_header header;
      const auto from = bytes.subspan(i * geometry.stride, geometry.header_bytes);
      if (parse_header(from, geometry, identity, header) != slot_verdict::ok) continue;
      if (header.slot_number != number || header.writer != slab.writer) continue;
      out.push_back({header.key, header.parent, header.generation, number});
    }
  }
}

}  // namespace rebuild_impl

/// Reads the headers of all slots of one writer, oldest first by generation. What cannot be read is left out.
/// Cost    a read per slot, or of whole slabs where slots are small; several slabs at a time
inline std::vector<rebuilt_slot> rebuild_from_headers(std::span<const slab_to_rebuild> slabs,
                                                      const slot_geometry& geometry, const slot_identity& identity) {
  std::vector<std::vector<rebuilt_slot>> found(slabs.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < slabs.size(); i = next++) {
      rebuild_impl::read_slab(slabs[i], geometry, identity, found[i]);
    }
  };
  constexpr std::size_t most_readers = 8;
  std::vector<std::thread> helpers;
  helpers.reserve(most_readers);
  try {
    while (helpers.size() + 1 < std::min(most_readers, slabs.size())) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are, and this one, do the work.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  std::vector<rebuilt_slot> all;
  for (const auto& part : found) all.insert(all.end(), part.begin(), part.end());
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.generation < b.generation; });
  return all;
}

}  // namespace kvx::store
