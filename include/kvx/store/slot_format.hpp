// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/bytes.hpp>
#include <kvx/detail/page_checksum.hpp>
#include <kvx/store/checksum.hpp>
#include <kvx/store/slot_geometry.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

namespace kvx::store {

/// Version of the slot's bytes, docs/format.md.
inline constexpr std::uint32_t slot_format_version = 1;

/// What every slot of one store shares.
struct slot_identity {
  block_key identity_digest;
  kvx::shard shard;
  std::uint32_t hash_id = 0;

  friend constexpr bool operator==(const slot_identity&, const slot_identity&) noexcept = default;
};

/// What a saver says about one block.
/// Shape   tokens: at most geometry.token_capacity, none unless has_tokens; extra: at most extra_capacity bytes
struct block_header {
  block_key key, parent;
  std::uint64_t generation = 0;
  std::uint64_t slot_number = 0;
  writer_id writer;
  std::span<const token_id> tokens{};
  std::span<const std::byte> extra{};
  bool has_tokens = false;
};

/// What a reader insists on.
/// Shape   tokens, extra: compared when not empty; with tokens, an empty extra means that there must be none
struct slot_expectation {
  block_key key;
  std::optional<block_key> parent;
  std::span<const token_id> tokens{};
  std::span<const std::byte> extra{};
  std::optional<writer_id> writer;
  std::uint64_t slot_number = 0;
};

/// Why a slot is, or is not, what was asked for. Everything but `ok` is a miss.
enum class slot_verdict : std::uint8_t {
  ok = 0,
  wrong_size,       ///< not the bytes of one header or slot of this geometry
  not_a_slot,       ///< never written, or something else
  other_format,     ///< written by another version, or with an option this one lacks
  header_damaged,   ///< the header contradicts its checksum
  other_geometry,   ///< another block size
  other_identity,   ///< another model or hasher
  other_shard,      ///< another group, rank or layout
  other_key,        ///< another block, or another parent
  other_tokens,     ///< the key fits and the tokens or extra do not, or the slot has none to compare
  other_place,      ///< a valid slot of another writer or slot number: misdirected
  payload_damaged,  ///< the payload contradicts the header: torn, stale or flipped
};

[[nodiscard]] constexpr std::string_view to_string(slot_verdict verdict) noexcept {
  switch (verdict) {
    case slot_verdict::ok:
      return "ok";
    case slot_verdict::wrong_size:
      return "wrong size";
    case slot_verdict::not_a_slot:
      return "not a slot";
    case slot_verdict::other_format:
      return "other format";
    case slot_verdict::header_damaged:
      return "header damaged";
    case slot_verdict::other_geometry:
      return "other geometry";
    case slot_verdict::other_identity:
      return "other identity";
    case slot_verdict::other_shard:
      return "other shard";
    case slot_verdict::other_key:
      return "other key";
    case slot_verdict::other_tokens:
      return "other tokens";
    case slot_verdict::other_place:
      return "other place";
    case slot_verdict::payload_damaged:
      return "payload damaged";
  }
  return "unknown";
}

/// A header that proved itself; says nothing about the payload.
struct parsed_header {
  block_key key, parent;
  std::uint64_t generation = 0;
  std::uint64_t slot_number = 0;
  writer_id writer;
  std::size_t token_count = 0;
  std::size_t extra_bytes = 0;
  bool has_tokens = false;
};

namespace slot_impl {

inline constexpr std::array<std::byte, 8> magic{std::byte{0x89}, std::byte{'k'}, std::byte{'v'}, std::byte{'x'},
                                                std::byte{'s'},  std::byte{'l'}, std::byte{'o'}, std::byte{'t'}};
inline constexpr std::uint32_t flag_tokens = 1;

// Offsets of the fixed part, in the order they are written.
inline constexpr std::size_t version_at = 8;
inline constexpr std::size_t identity_at = 32;
inline constexpr std::size_t key_at = 64;
inline constexpr std::size_t parent_at = 96;
inline constexpr std::size_t shard_at = 128;
inline constexpr std::size_t shard_bytes = 24;
inline constexpr std::size_t payload_bytes_at = 152;
inline constexpr std::size_t generation_at = 160;
inline constexpr std::size_t slot_number_at = 168;
inline constexpr std::size_t writer_at = 176;
inline constexpr std::size_t mac_at = 192;
inline constexpr std::size_t mac_bytes = 32;
inline constexpr std::size_t counts_at = 224;
inline constexpr std::size_t reserved_at = 236;

inline void put_shard(detail::le_writer& out, const kvx::shard& where) noexcept {
  out.put(where.group).put(where.tensor_rank).put(where.tensor_size).put(where.pipeline_rank);
  out.put(where.pipeline_size).pad_to(out.offset() + 6).put(where.layout_fingerprint);
}

// What a layer's digest is bound to, once per slot: 16 bytes over key, shard, writer, slot and generation.
[[nodiscard]] inline std::array<std::byte, 16> binding(std::span<const std::byte> header) noexcept {
  std::array<std::byte, 32 + shard_bytes + 8 + 8 + 16> bound;
  detail::le_writer out(bound);
  out.put(header.subspan(key_at, 32)).put(header.subspan(shard_at, shard_bytes));
  out.put(header.subspan(generation_at, 8)).put(header.subspan(slot_number_at, 8)).put(header.subspan(writer_at, 16));
  const XXH128_hash_t hash = XXH3_128bits(bound.data(), bound.size());
  std::array<std::byte, 16> to;
  detail::store_le<std::uint64_t>(to.data(), hash.low64);
  detail::store_le<std::uint64_t>(to.data() + 8, hash.high64);
  return to;
}

// Long layers are folded in runs, so that no layer needs a buffer of its size.
inline constexpr std::size_t pages_per_run = 128;

// Shape   known: the checksums of the layer's pages, or none where they are not known; pages: the layer's first byte
[[nodiscard]] inline std::uint64_t layer_digest(const std::array<std::byte, 16>& bound, std::size_t layer,
                                                std::size_t layer_bytes, const std::byte* pages,
                                                std::span<const std::uint64_t> known = {}) noexcept {
  std::array<std::uint64_t, pages_per_run> found;
  std::array<std::byte, 40 + 8 * pages_per_run> run;
  const std::size_t count = layer_bytes / page_bytes;
  std::uint64_t folded = 0;
  for (std::size_t first = 0; first < count; first += pages_per_run) {
    const std::size_t in_run = std::min(pages_per_run, count - first);
    if (known.empty()) detail::page_checksums(pages + first * page_bytes, std::span(found).first(in_run));
    const std::span<const std::uint64_t> values =
        known.empty() ? std::span<const std::uint64_t>(found).first(in_run) : known.subspan(first, in_run);
    detail::le_writer out(run);
    out.put(bound).put<std::uint64_t>(layer).put<std::uint64_t>(first).put(folded);
    for (const std::uint64_t value : values) out.put(value);
    folded = checksum(std::span(run).first(out.offset()));
  }
  return folded;
}

[[nodiscard]] inline block_key key_from(std::span<const std::byte> header, std::size_t at) noexcept {
  block_key key;
  std::memcpy(key.bytes.data(), header.data() + at, key.bytes.size());
  return key;
}

}  // namespace slot_impl

/// Writes the header in front of a payload that is already in place.
///
/// Every byte of the header is written, padding as zeros. The padding of the layers is the caller's: whatever
/// it holds goes to storage and is proved like the rest.
/// Shape   slot: geometry.stride bytes; block: what block_header says; page_checksums: of every page of the payload, or
/// none where they are not known
/// Thread  any, concurrently on different slots
/// Cost    one XXH3 pass over the payload where page_checksums are not given
inline void encode_slot(std::span<std::byte> slot, const slot_geometry& geometry, const slot_identity& identity,
                        const block_header& block, std::span<const std::uint64_t> page_checksums = {}) noexcept {
  using namespace slot_impl;
  assert(slot.size() == geometry.stride);
  assert(block.has_tokens ? block.tokens.size() <= geometry.token_capacity : block.tokens.empty());
  assert(block.extra.size() <= geometry.extra_capacity);
  assert(page_checksums.empty() || page_checksums.size() == geometry.payload_bytes / page_bytes);
  const auto header = slot.first(geometry.header_bytes);
  detail::le_writer out(header);
  out.put(magic).put(slot_format_version).put(static_cast<std::uint32_t>(geometry.header_bytes));
  out.put(identity.hash_id).put(block.has_tokens ? flag_tokens : 0U);
  out.put(static_cast<std::uint32_t>(block.tokens.size())).put(static_cast<std::uint32_t>(block.extra.size()));
  out.put(identity.identity_digest.bytes).put(block.key.bytes).put(block.parent.bytes);
  put_shard(out, identity.shard);
  out.put<std::uint64_t>(geometry.payload_bytes).put(block.generation).put(block.slot_number);
  out.put(block.writer.bytes).pad_to(counts_at);
  out.put(static_cast<std::uint32_t>(geometry.layer_bytes.size()));
  out.put(static_cast<std::uint32_t>(geometry.token_capacity));
  out.put(static_cast<std::uint32_t>(geometry.extra_capacity));
  out.pad_to(geometry.tokens_offset());
  for (const token_id token : block.tokens) out.put(token);
  out.pad_to(geometry.extra_offset()).put(block.extra).pad_to(geometry.digests_offset());
  const auto bound = binding(header);
  for (std::size_t layer = 0; layer < geometry.layer_bytes.size(); ++layer) {
    const std::size_t at = geometry.layer_offsets[layer];
    const std::size_t bytes = geometry.layer_bytes[layer];
    const auto known =
        page_checksums.empty() ? page_checksums : page_checksums.subspan(at / page_bytes, bytes / page_bytes);
    out.put(layer_digest(bound, layer, bytes, slot.data() + geometry.header_bytes + at, known));
  }
  out.pad_to(geometry.header_bytes - slot_geometry::header_trailer_bytes);
  out.put(checksum(header.first(out.offset())));
}

/// Checks a header on its own: that it is whole and of this geometry, identity and shard.
///
/// Nothing in it is believed before its checksum fits, and no length or offset in it is ever used.
/// Shape   header: geometry.header_bytes
/// Cost    one XXH3 pass over the header
inline slot_verdict parse_header(std::span<const std::byte> header, const slot_geometry& geometry,
                                 const slot_identity& identity, parsed_header& out) noexcept {
  using namespace slot_impl;
  if (header.size() != geometry.header_bytes) return slot_verdict::wrong_size;
  if (!std::equal(magic.begin(), magic.end(), header.begin())) return slot_verdict::not_a_slot;
  detail::le_reader in(header, version_at);
  if (in.get<std::uint32_t>() != slot_format_version) return slot_verdict::other_format;
  const std::size_t sealed = geometry.header_bytes - slot_geometry::header_trailer_bytes;
  if (detail::load_le<std::uint64_t>(header.data() + sealed) != checksum(header.first(sealed))) {
    return slot_verdict::header_damaged;
  }
  if (in.get<std::uint32_t>() != geometry.header_bytes) return slot_verdict::other_geometry;
  const auto hash_id = in.get<std::uint32_t>();
  const auto flags = in.get<std::uint32_t>();
  const auto token_count = in.get<std::uint32_t>();
  const auto extra_bytes = in.get<std::uint32_t>();
  const auto reserved = header.subspan(reserved_at, slot_geometry::fixed_header_bytes - reserved_at);
  if ((flags & ~flag_tokens) != 0 || !detail::all_zero(header.subspan(mac_at, mac_bytes)) ||
      !detail::all_zero(reserved)) {
    return slot_verdict::other_format;
  }
  if (hash_id != identity.hash_id || key_from(header, identity_at) != identity.identity_digest) {
    return slot_verdict::other_identity;
  }
  std::array<std::byte, shard_bytes> shard;
  detail::le_writer expected(shard);
  put_shard(expected, identity.shard);
  if (!std::equal(shard.begin(), shard.end(), header.begin() + shard_at)) return slot_verdict::other_shard;
  detail::le_reader counts(header, counts_at);
  const auto layers = counts.get<std::uint32_t>();
  const auto token_capacity = counts.get<std::uint32_t>();
  const auto extra_capacity = counts.get<std::uint32_t>();
  if (detail::load_le<std::uint64_t>(header.data() + payload_bytes_at) != geometry.payload_bytes ||
      layers != geometry.layer_bytes.size() || token_capacity != geometry.token_capacity ||
      extra_capacity != geometry.extra_capacity) {
    return slot_verdict::other_geometry;
  }
  out.has_tokens = (flags & flag_tokens) != 0;
  // A checksum that fits over counts that cannot be is another program's header; the counts bound later reads.
  if (token_count > (out.has_tokens ? token_capacity : 0U) || extra_bytes > extra_capacity) {
    return slot_verdict::other_format;
  }
  out.token_count = token_count;
  out.extra_bytes = extra_bytes;
  out.key = key_from(header, key_at);
  out.parent = key_from(header, parent_at);
  out.generation = detail::load_le<std::uint64_t>(header.data() + generation_at);
  out.slot_number = detail::load_le<std::uint64_t>(header.data() + slot_number_at);
  std::memcpy(out.writer.bytes.data(), header.data() + writer_at, out.writer.bytes.size());
  return slot_verdict::ok;
}

namespace slot_impl {

// What the header alone can prove.
inline slot_verdict verify_header(std::span<const std::byte> header, const slot_geometry& geometry,
                                  const slot_identity& identity, const slot_expectation& expected) noexcept {
  parsed_header found;
  if (const slot_verdict verdict = parse_header(header, geometry, identity, found); verdict != slot_verdict::ok) {
    return verdict;
  }
  if (found.key != expected.key || (expected.parent && found.parent != *expected.parent)) {
    return slot_verdict::other_key;
  }
  if (found.slot_number != expected.slot_number || (expected.writer && found.writer != *expected.writer)) {
    return slot_verdict::other_place;
  }
  if (!expected.tokens.empty()) {
    if (!found.has_tokens || found.token_count != expected.tokens.size()) return slot_verdict::other_tokens;
    detail::le_reader in(header, geometry.tokens_offset());
    for (const token_id token : expected.tokens) {
      if (in.get<token_id>() != token) return slot_verdict::other_tokens;
    }
  }
  if (!expected.tokens.empty() || !expected.extra.empty()) {
    const auto extra = header.subspan(geometry.extra_offset(), found.extra_bytes);
    if (!std::equal(extra.begin(), extra.end(), expected.extra.begin(), expected.extra.end())) {
      return slot_verdict::other_tokens;
    }
  }
  return slot_verdict::ok;
}

// Shape   payload: null where page_values are given, which are none otherwise
inline slot_verdict verify_payload(std::span<const std::byte> header, const slot_geometry& geometry,
                                   const std::byte* payload, std::span<const std::uint64_t> page_values) noexcept {
  const auto bound = binding(header);
  for (std::size_t layer = 0; layer < geometry.layer_bytes.size(); ++layer) {
    const std::size_t at = geometry.layer_offsets[layer];
    const std::size_t bytes = geometry.layer_bytes[layer];
    const auto known = page_values.empty() ? page_values : page_values.subspan(at / page_bytes, bytes / page_bytes);
    const auto digest = detail::load_le<std::uint64_t>(header.data() + geometry.digests_offset() +
                                                       layer * slot_geometry::layer_digest_bytes);
    if (layer_digest(bound, layer, bytes, payload != nullptr ? payload + at : nullptr, known) != digest)
      return slot_verdict::payload_damaged;
  }
  return slot_verdict::ok;
}

}  // namespace slot_impl

/// The whole proof, header and payload: `ok` means that these bytes are the block that was asked for.
/// Shape   slot: geometry.stride bytes
/// Thread  any, concurrently
/// Cost    one XXH3 pass over the slot; a wrong header costs no pass over the payload
inline slot_verdict verify_slot(std::span<const std::byte> slot, const slot_geometry& geometry,
                                const slot_identity& identity, const slot_expectation& expected) noexcept {
  if (slot.size() != geometry.stride) return slot_verdict::wrong_size;
  const auto header = slot.first(geometry.header_bytes);
  const slot_verdict verdict = slot_impl::verify_header(header, geometry, identity, expected);
  if (verdict != slot_verdict::ok) return verdict;
  return slot_impl::verify_payload(header, geometry, slot.data() + geometry.header_bytes, {});
}

/// The same where the payload is out of the processor's reach and its pages' checksums were computed where it lies.
/// Shape   header: geometry.header_bytes; page_values: XXH3-64 of every page of the payload
/// Cost    8 bytes of each page are hashed
inline slot_verdict verify_slot(std::span<const std::byte> header, std::span<const std::uint64_t> page_values,
                                const slot_geometry& geometry, const slot_identity& identity,
                                const slot_expectation& expected) noexcept {
  if (header.size() != geometry.header_bytes || page_values.size() != geometry.payload_bytes / page_bytes)
    return slot_verdict::wrong_size;
  const slot_verdict verdict = slot_impl::verify_header(header, geometry, identity, expected);
  if (verdict != slot_verdict::ok) return verdict;
  return slot_impl::verify_payload(header, geometry, nullptr, page_values);
}

}  // namespace kvx::store
