// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kvx {

using token_id = std::uint32_t;

/// Number of a page in the engine's pool; `null_block` stands for "no page here" (outside a window).
using block_id = std::uint32_t;
inline constexpr block_id null_block = 0xFFFF'FFFFU;

/// Number of a slot in one tier of one group.
using slot_index = std::uint32_t;
inline constexpr slot_index no_slot = 0xFFFF'FFFFU;

/// Payload pages, slot headers and direct I/O are all multiples of this.
inline constexpr std::size_t page_bytes = 4096;

/// Smallest multiple of `alignment` (a power of two) that is not below `bytes`.
[[nodiscard]] constexpr std::size_t round_up(std::size_t bytes, std::size_t alignment = page_bytes) noexcept {
  return (bytes + alignment - 1) & ~(alignment - 1);
}

/// Bytes of a hash, as a value; keys are digests.
/// Shape   `Bytes` bytes, in the order the hash function's canonical form defines
template <std::size_t Bytes>
struct digest {
  alignas(8) std::array<std::byte, Bytes> bytes{};

  [[nodiscard]] static constexpr std::size_t size() noexcept { return Bytes; }
  friend constexpr auto operator<=>(const digest&, const digest&) noexcept = default;
};

/// A key as it stands on storage and in plans: the digest, zero-padded to 32 bytes.
using block_key = digest<32>;

/// Pads a digest of at most 32 bytes.
template <std::size_t Bytes>
requires(Bytes <= 32) [[nodiscard]] constexpr block_key to_block_key(const digest<Bytes>& from) noexcept {
  block_key to;
  for (std::size_t i = 0; i < Bytes; ++i) to.bytes[i] = from.bytes[i];
  return to;
}

/// What must be equal for key/value bytes to mean the same thing.
struct identity {
  std::string model;     ///< name or path as the operator knows it
  std::string revision;  ///< digest of the weights, or whatever changes when they change
  std::string dtype;     ///< of the cached keys and values, quantisation and scales included
};

/// What separates users of one model. Default: everybody shares.
struct scope {
  std::string adapter;      ///< e.g. a LoRA's name and digest
  std::string tenant_salt;  ///< a secret of the operator's; never taken from a request

  friend bool operator==(const scope&, const scope&) = default;
};

/// Bytes beyond the tokens that change a block's meaning, e.g. the digest of an image in it.
struct block_extra {
  std::size_t block = 0;  ///< index of the block in the prompt
  std::span<const std::byte> bytes{};
};

/// Where a block sits in a model split over devices. Chooses the slot; never part of the key.
struct shard {
  std::uint16_t group = 0;
  std::uint16_t tensor_rank = 0;
  std::uint16_t tensor_size = 1;
  std::uint16_t pipeline_rank = 0;
  std::uint16_t pipeline_size = 1;
  /// Meaning of the slot's bytes: axes, order, dtype, heads, tokens (`layout::fingerprint`).
  std::uint64_t layout_fingerprint = 0;

  friend constexpr bool operator==(const shard&, const shard&) noexcept = default;
};

/// 128 random bits, drawn anew each time a store is opened for writing.
using writer_id = digest<16>;

/// Where a block is, cheapest first.
enum class tier : std::uint8_t {
  miss = 0,
  pending = 1,  ///< somebody loads or saves it now: join, don't repeat
  storage = 2,
  memory = 3,
};

[[nodiscard]] constexpr std::string_view to_string(tier where) noexcept {
  switch (where) {
    case tier::miss:
      return "miss";
    case tier::pending:
      return "pending";
    case tier::storage:
      return "storage";
    case tier::memory:
      return "memory";
  }
  return "unknown";
}

/// How a layer group uses its past, hence which blocks a resume needs.
enum class attention_kind : std::uint8_t {
  full,            ///< every block of the prefix
  sliding_window,  ///< the blocks that cover the last `window_tokens`
  recurrent,       ///< one snapshot: the last block
};

}  // namespace kvx
