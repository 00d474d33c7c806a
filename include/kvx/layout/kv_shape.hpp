// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvx {

/// Type of one cached number. The values are part of fingerprints and never change.
enum class element_type : std::uint8_t { f32 = 1, f16 = 2, bf16 = 3, f8_e4m3 = 4, f8_e5m2 = 5, i8 = 6, u8 = 7 };

/// Units   bytes; 0 for a value that is no element_type
[[nodiscard]] constexpr std::size_t element_bytes(element_type element) noexcept {
  switch (element) {
    case element_type::f32:
      return 4;
    case element_type::f16:
    case element_type::bf16:
      return 2;
    case element_type::f8_e4m3:
    case element_type::f8_e5m2:
    case element_type::i8:
    case element_type::u8:
      return 1;
  }
  return 0;
}

/// Order of the axes inside one page: N tokens, H heads, D channels.
enum class token_order : std::uint8_t { nhd, hnd };

/// What one region holds. The values are part of fingerprints and never change.
enum class tensor_role : std::uint8_t {
  key = 1,
  value = 2,
  key_value = 3,  ///< both, told apart by an axis `key_value`
  latent = 4,     ///< what multi-head latent attention caches instead of either
  state = 5,      ///< of a recurrent layer
};

/// One direction of a tensor. The values are part of fingerprints and never change.
enum class axis : std::uint8_t { token = 1, head = 2, channel = 3, key_value = 4, state = 5 };

struct axis_extent {
  kvx::axis axis = axis::channel;
  std::uint64_t extent = 0;

  friend constexpr bool operator==(const axis_extent&, const axis_extent&) noexcept = default;
};

/// What the keys and values of a group of attention layers are.
///
/// Structural, so that it can also be a template argument (`static_layout`).
/// Units   page_tokens: tokens per page of the engine; block_tokens: a multiple of it
struct kv_shape {
  std::uint32_t block_tokens = 0;
  std::uint32_t page_tokens = 0;
  std::size_t layers = 0;
  std::size_t heads = 0;  ///< key/value heads on this device
  std::size_t head_dim = 0;
  element_type element = element_type::bf16;
  token_order order = token_order::nhd;
  attention_kind kind = attention_kind::full;
  std::uint32_t window_tokens = 0;  ///< of a sliding window, else 0

  friend constexpr bool operator==(const kv_shape&, const kv_shape&) noexcept = default;
};

/// Hashes the meaning of slot bytes; equal on every machine and compiler.
class fingerprint_hash {
 public:
  constexpr void add(std::uint64_t value) noexcept {
    for (unsigned i = 0; i < 8; ++i) state_ = (state_ ^ ((value >> (8U * i)) & 0xFFU)) * 0x100'0000'01b3U;
  }

  /// Adds a tensor, outermost axis first.
  ///
  /// Axes of extent 1 are left out and equal neighbours are one: they do not change the order of the bytes.
  /// That is why the engine's page size matters only where tokens are not the outermost axis of a page.
  constexpr void add(tensor_role role, std::span<const axis_extent> axes) noexcept {
    add(static_cast<std::uint64_t>(role));
    axis_extent run{axis::channel, 1};
    for (const axis_extent& next : axes) {
      if (next.extent == 1) continue;
      if (run.extent != 1 && run.axis == next.axis) {
        run.extent *= next.extent;
        continue;
      }
      add_run(run);
      run = next;
    }
    add_run(run);
    add(end_of_tensor);
  }

  [[nodiscard]] constexpr std::uint64_t value() const noexcept {
    std::uint64_t mixed = state_;
    mixed = (mixed ^ (mixed >> 33U)) * 0xff51'afd7'ed55'8ccdU;
    mixed = (mixed ^ (mixed >> 33U)) * 0xc4ce'b9fe'1a85'ec53U;
    return mixed ^ (mixed >> 33U);
  }

 private:
  static constexpr std::uint64_t end_of_tensor = 0xFF;

  constexpr void add_run(const axis_extent& run) noexcept {
    if (run.extent == 1) return;
    add(static_cast<std::uint64_t>(run.axis));
    add(run.extent);
  }

  std::uint64_t state_ = 0xcbf2'9ce4'8422'2325U;
};

/// Version of fingerprints and of the order of a slot's bytes.
inline constexpr std::uint64_t layout_format_version = 1;

namespace detail {

/// Axes of a whole block's keys, or values, in the order of the slot's bytes.
[[nodiscard]] constexpr std::array<axis_extent, 4> half_axes(const kv_shape& shape) noexcept {
  const axis_extent pages{axis::token, shape.page_tokens == 0 ? 0 : shape.block_tokens / shape.page_tokens};
  const axis_extent tokens{axis::token, shape.page_tokens};
  const axis_extent heads{axis::head, shape.heads};
  const axis_extent channels{axis::channel, shape.head_dim};
  if (shape.order == token_order::hnd) return {pages, heads, tokens, channels};
  return {pages, tokens, heads, channels};
}

constexpr void begin_fingerprint(fingerprint_hash& hash, attention_kind kind, element_type element,
                                 std::size_t layers) noexcept {
  hash.add(layout_format_version);
  hash.add(static_cast<std::uint64_t>(kind));
  hash.add(static_cast<std::uint64_t>(element));
  hash.add(layers);
}

}  // namespace detail

/// Fingerprint of a group whose layers each hold keys, then values, of this shape.
[[nodiscard]] constexpr std::uint64_t fingerprint_of(const kv_shape& shape) noexcept {
  fingerprint_hash hash;
  detail::begin_fingerprint(hash, shape.kind, shape.element, shape.layers);
  const std::array<axis_extent, 4> axes = detail::half_axes(shape);
  for (std::size_t layer = 0; layer < shape.layers; ++layer) {
    hash.add(2);  // regions
    hash.add(tensor_role::key, axes);
    hash.add(tensor_role::value, axes);
  }
  return hash.value();
}

}  // namespace kvx
