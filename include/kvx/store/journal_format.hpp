// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/bytes.hpp>
#include <kvx/store/checksum.hpp>
#include <kvx/store/slab.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace kvx::store {

inline constexpr std::uint16_t journal_format_version = 1;
inline constexpr std::size_t frame_bytes = 4096;
inline constexpr std::size_t frame_head_bytes = 48;
inline constexpr std::size_t frame_room_bytes = frame_bytes - frame_head_bytes - 8;

enum class frame_kind : std::uint16_t { segment_head = 1, records = 2, checkpoint_head = 3, checkpoint_records = 4 };

enum class journal_op : std::uint32_t { insert = 1, evict = 2 };

/// One line of a journal.
struct journal_record {
  journal_op op = journal_op::insert;
  slot_index slot = no_slot;
  std::uint64_t generation = 0;  ///< inserts only, as are the keys
  block_key key, parent;
};

/// Units   digest_bytes: significant bytes of a key, at most 32
[[nodiscard]] constexpr std::size_t record_bytes(journal_op op, std::size_t digest_bytes) noexcept {
  return op == journal_op::insert ? 16 + 2 * digest_bytes : 8;
}
[[nodiscard]] constexpr std::size_t inserts_per_frame(std::size_t digest_bytes) noexcept {
  return frame_room_bytes / record_bytes(journal_op::insert, digest_bytes);
}
/// Longest checkpoint of a writer with that many slots.
[[nodiscard]] constexpr std::uint64_t checkpoint_bytes(std::uint64_t slots, std::size_t digest_bytes) noexcept {
  const std::uint64_t per_frame = inserts_per_frame(digest_bytes);
  return frame_bytes * (1 + (slots + per_frame - 1) / per_frame);
}

/// What a frame says about itself.
struct frame_head {
  frame_kind kind = frame_kind::records;
  std::uint64_t file = 0;  ///< number of the segment or checkpoint it belongs to
  std::uint64_t sequence =
      0;  ///< of record frames: counts through a writer's life. Of heads: of the frame that follows
  std::uint32_t count = 0;
  writer_id writer;
};

namespace journal_impl {

inline constexpr std::array<std::byte, 4> magic{std::byte{0x89}, std::byte{'k'}, std::byte{'v'}, std::byte{'j'}};
inline constexpr std::size_t sealed_bytes = frame_bytes - 8;

}  // namespace journal_impl

/// Completes a frame whose first `used` bytes of room are already in place.
/// Shape   frame: frame_bytes; used: at most frame_room_bytes
inline void seal_frame(std::span<std::byte> frame, const frame_head& head, std::size_t used) noexcept {
  using namespace journal_impl;
  detail::le_writer out(frame);
  out.put(magic).put(journal_format_version).put(static_cast<std::uint16_t>(head.kind)).put(head.file);
  out.put(head.sequence).put(head.count).put(static_cast<std::uint32_t>(used)).put(head.writer.bytes);
  std::memset(frame.data() + frame_head_bytes + used, 0, frame_room_bytes - used);
  detail::store_le(frame.data() + sealed_bytes, checksum(frame.first(sealed_bytes)));
}

/// A frame that proved itself.
struct parsed_frame {
  frame_head head;
  std::span<const std::byte> used;
};

/// Nothing where the bytes are not a whole frame of this version.
/// Shape   frame: frame_bytes
[[nodiscard]] inline std::optional<parsed_frame> parse_frame(std::span<const std::byte> frame) noexcept {
  using namespace journal_impl;
  if (frame.size() != frame_bytes || !std::equal(magic.begin(), magic.end(), frame.begin())) return std::nullopt;
  if (detail::load_le<std::uint64_t>(frame.data() + sealed_bytes) != checksum(frame.first(sealed_bytes))) {
    return std::nullopt;
  }
  detail::le_reader in(frame, magic.size());
  if (in.get<std::uint16_t>() != journal_format_version) return std::nullopt;
  parsed_frame out;
  const auto kind = in.get<std::uint16_t>();
  if (kind < 1 || kind > 4) return std::nullopt;
  out.head.kind = static_cast<frame_kind>(kind);
  out.head.file = in.get<std::uint64_t>();
  out.head.sequence = in.get<std::uint64_t>();
  out.head.count = in.get<std::uint32_t>();
  const auto used = in.get<std::uint32_t>();
  if (used > frame_room_bytes) return std::nullopt;
  const auto writer = in.get(out.head.writer.bytes.size());
  std::memcpy(out.head.writer.bytes.data(), writer.data(), writer.size());
  out.used = frame.subspan(frame_head_bytes, used);
  return out;
}

/// Precondition: `to` has record_bytes() of room.
inline std::size_t encode_record(std::span<std::byte> to, const journal_record& record,
                                 std::size_t digest_bytes) noexcept {
  detail::le_writer out(to);
  out.put(static_cast<std::uint32_t>(record.op)).put(record.slot);
  if (record.op == journal_op::insert) {
    out.put(record.generation).put(std::span(record.key.bytes).first(digest_bytes));
    out.put(std::span(record.parent.bytes).first(digest_bytes));
  }
  return out.offset();
}

/// Takes the next record off the front of `from`; nothing when the rest is no record.
[[nodiscard]] inline std::optional<journal_record> take_record(std::span<const std::byte>& from,
                                                               std::size_t digest_bytes) noexcept {
  if (from.size() < record_bytes(journal_op::evict, digest_bytes)) return std::nullopt;
  detail::le_reader in(from);
  journal_record record;
  record.op = static_cast<journal_op>(in.get<std::uint32_t>());
  if (record.op != journal_op::insert && record.op != journal_op::evict) return std::nullopt;
  record.slot = in.get<std::uint32_t>();
  if (record.op == journal_op::insert) {
    if (from.size() < record_bytes(journal_op::insert, digest_bytes)) return std::nullopt;
    record.generation = in.get<std::uint64_t>();
    const auto key = in.get(digest_bytes);
    const auto parent = in.get(digest_bytes);
    std::memcpy(record.key.bytes.data(), key.data(), key.size());
    std::memcpy(record.parent.bytes.data(), parent.data(), parent.size());
  }
  from = from.subspan(in.offset());
  return record;
}

/// The first frame of a segment or checkpoint.
struct journal_head {
  store_description description{};
  std::uint64_t epoch = 0;
  std::uint64_t base = 0;     ///< segments: the checkpoint to start from, 0: none, start from segment 1
  std::uint64_t records = 0;  ///< checkpoints: how many records
  std::uint64_t frames = 0;   ///< checkpoints: in how many frames after this one
  std::uint32_t digest_bytes = 32;
};

inline constexpr std::size_t journal_head_bytes = description_bytes + 8 + 8 + 8 + 8 + 4;

inline void encode_journal_head(std::span<std::byte> frame, const frame_head& head,
                                const journal_head& facts) noexcept {
  detail::le_writer out(frame.subspan(frame_head_bytes));
  out.put(facts.description).put(facts.epoch).put(facts.base).put(facts.records).put(facts.frames);
  out.put(facts.digest_bytes);
  seal_frame(frame, head, out.offset());
}

[[nodiscard]] inline std::optional<journal_head> parse_journal_head(const parsed_frame& frame) noexcept {
  if (frame.used.size() != journal_head_bytes) return std::nullopt;
  detail::le_reader in(frame.used);
  journal_head out;
  const auto description = in.get(description_bytes);
  std::copy(description.begin(), description.end(), out.description.begin());
  out.epoch = in.get<std::uint64_t>();
  out.base = in.get<std::uint64_t>();
  out.records = in.get<std::uint64_t>();
  out.frames = in.get<std::uint64_t>();
  out.digest_bytes = in.get<std::uint32_t>();
  return out;
}

}  // namespace kvx::store
