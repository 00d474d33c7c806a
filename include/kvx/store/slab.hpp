// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/bytes.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/store/checksum.hpp>
#include <kvx/store/root.hpp>
#include <kvx/store/slot_format.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace kvx::store {

inline constexpr std::uint32_t slab_format_version = 1;
/// Bytes before the first slot.
inline constexpr std::size_t superblock_bytes = page_bytes;

/// All that must be equal for the slots of a slab to be readable, as bytes: slabs and journals carry it.
inline constexpr std::size_t description_bytes = 136;
using store_description = std::array<std::byte, description_bytes>;

[[nodiscard]] inline store_description describe(const slot_identity& identity, const slot_geometry& geometry,
                                                const root_facts& facts) {
  std::vector<std::byte> layers(8 * geometry.layer_bytes.size());
  detail::le_writer sizes(layers);
  for (const std::size_t bytes : geometry.layer_bytes) sizes.put<std::uint64_t>(bytes);
  store_description to;
  detail::le_writer out(to);
  out.put(identity.identity_digest.bytes).put(identity.hash_id);
  out.put(static_cast<std::uint32_t>(geometry.token_capacity));
  slot_impl::put_shard(out, identity.shard);
  out.put<std::uint64_t>(geometry.header_bytes).put<std::uint64_t>(geometry.payload_bytes);
  out.put<std::uint64_t>(geometry.stride).put(static_cast<std::uint32_t>(geometry.extra_capacity));
  out.put(static_cast<std::uint32_t>(geometry.layer_bytes.size())).put(checksum(layers)).put(facts.extent_bytes);
  out.put<std::uint64_t>((facts.extent_bytes - superblock_bytes) / geometry.stride).put(facts.id.bytes);
  return to;
}

/// One slab: its writer, its extent, and the writer's place in the order of openings.
struct slab_facts {
  writer_id writer;
  std::uint64_t extent = 0;
  std::uint64_t epoch = 0;
};

enum class slab_verdict : std::uint8_t {
  ok,
  unwritten,     ///< its maker did not come as far as the superblock
  damaged,       ///< the superblock contradicts its checksum, or its place
  other_format,  ///< another version: not ours to read, and not ours to remove
  other_store,   ///< another model, shard or geometry
};

namespace slab_impl {

inline constexpr std::array<std::byte, 8> magic{std::byte{0x89}, std::byte{'k'}, std::byte{'v'}, std::byte{'x'},
                                                std::byte{'s'},  std::byte{'l'}, std::byte{'a'}, std::byte{'b'}};
inline constexpr std::size_t sealed_bytes = superblock_bytes - 8;

}  // namespace slab_impl

/// Shape   to: superblock_bytes
inline void encode_superblock(std::span<std::byte> to, const store_description& description,
                              const slab_facts& facts) noexcept {
  detail::le_writer out(to);
  out.put(slab_impl::magic).put(slab_format_version).put<std::uint32_t>(page_bytes).put(description);
  out.put(facts.writer.bytes).put(facts.extent).put(facts.epoch).pad_to(slab_impl::sealed_bytes);
  out.put(checksum(to.first(slab_impl::sealed_bytes)));
}

/// `out` is filled for ok and other_store.
/// Shape   from: superblock_bytes
inline slab_verdict parse_superblock(std::span<const std::byte> from, const store_description& description,
                                     slab_facts& out) noexcept {
  using namespace slab_impl;
  if (from.size() != superblock_bytes) return slab_verdict::damaged;
  if (detail::all_zero(from)) return slab_verdict::unwritten;
  if (!std::equal(magic.begin(), magic.end(), from.begin())) return slab_verdict::damaged;
  detail::le_reader in(from, magic.size());
  if (in.get<std::uint32_t>() != slab_format_version) return slab_verdict::other_format;
  if (detail::load_le<std::uint64_t>(from.data() + sealed_bytes) != checksum(from.first(sealed_bytes))) {
    return slab_verdict::damaged;
  }
  const auto alignment = in.get<std::uint32_t>();
  const auto found = in.get(description_bytes);
  const auto writer = in.get(out.writer.bytes.size());
  std::memcpy(out.writer.bytes.data(), writer.data(), writer.size());
  out.extent = in.get<std::uint64_t>();
  out.epoch = in.get<std::uint64_t>();
  const bool ours = alignment == page_bytes && std::equal(found.begin(), found.end(), description.begin());
  return ours ? slab_verdict::ok : slab_verdict::other_store;
}

namespace slab_impl {

// The first real direct transfer of a file: some file systems accept O_DIRECT at open and refuse it only here.
template <class Transfer>
status with_direct_fallback(detail::opened_file& file, Transfer&& transfer) noexcept {
  status outcome = transfer();
  if (file.direct && (outcome.os_error() == EINVAL || outcome.os_error() == EOPNOTSUPP)) {
    if (::fcntl(file.handle.fd(), F_SETFL, 0) != 0) return detail::last_error();
    file.direct = false;
    outcome = transfer();
  }
  return outcome;
}

}  // namespace slab_impl

/// Writes the superblock; falls back to buffered I/O where direct I/O is refused.
inline status write_superblock(detail::opened_file& slab, const store_description& description,
                               const slab_facts& facts) {
  const detail::aligned_buffer page(superblock_bytes);
  encode_superblock(page.span(), description, facts);
  return slab_impl::with_direct_fallback(slab, [&] { return detail::pwrite_all(slab.handle.fd(), page.span(), 0); });
}

/// Reads and judges the superblock of `writer`'s slab in `extent`; a slab too short for its slots is damaged.
/// Errors  io_failed: errno of the system
inline result<slab_verdict> read_superblock(detail::opened_file& slab, const store_description& description,
                                            std::uint64_t least_bytes, const writer_id& writer, std::uint64_t extent,
                                            slab_facts& out) {
  if (slab.size_bytes < superblock_bytes) return slab_verdict::unwritten;
  const detail::aligned_buffer page(superblock_bytes);
  const status outcome =
      slab_impl::with_direct_fallback(slab, [&] { return detail::pread_all(slab.handle.fd(), page.span(), 0); });
  if (!outcome) return outcome;
  const slab_verdict verdict = parse_superblock(page.span(), description, out);
  if (verdict != slab_verdict::ok && verdict != slab_verdict::other_store) return verdict;
  if (out.writer != writer || out.extent != extent) return slab_verdict::damaged;
  if (verdict == slab_verdict::ok && slab.size_bytes < least_bytes) return slab_verdict::damaged;
  return verdict;
}

}  // namespace kvx::store
