// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace kvx {

/// Turns bytes into a digest that is equal on every machine, compiler and process.
///
/// `id` is written into every slot header, so it never changes once released.
/// `collision_resistant` says whether strangers who choose the bytes cannot make two of them collide.
/// Thread  any, concurrently
template <class H>
concept hasher = requires(std::span<const std::byte> bytes) {
  typename H::digest_type;
  { H::id } -> std::convertible_to<std::uint32_t>;
  { H::collision_resistant } -> std::convertible_to<bool>;
  { H::hash(bytes) }
  noexcept->std::same_as<typename H::digest_type>;
}
&&std::is_trivially_copyable_v<typename H::digest_type>&& std::equality_comparable<typename H::digest_type>&&
        std::same_as<typename H::digest_type, digest<H::digest_type::size()>> &&
    (H::digest_type::size() >= 16) && (H::digest_type::size() <= 32);

namespace archetype {

/// The least that models `hasher`; FNV-1a twice, for tests of what a cache may ask of one.
struct hasher {
  using digest_type = digest<16>;
  static constexpr std::uint32_t id = 0xFFFF'FFFFU;
  static constexpr bool collision_resistant = false;

  [[nodiscard]] static digest_type hash(std::span<const std::byte> bytes) noexcept {
    std::uint64_t low = 0xcbf2'9ce4'8422'2325U;
    std::uint64_t high = 0x8422'2325'cbf2'9ce4U;
    for (const std::byte b : bytes) {
      low = (low ^ static_cast<std::uint64_t>(b)) * 0x100'0000'01b3U;
      high = (high ^ static_cast<std::uint64_t>(b) ^ (low >> 32U)) * 0x100'0000'01b3U;
    }
    digest_type out;
    std::memcpy(out.bytes.data(), &low, sizeof low);
    std::memcpy(out.bytes.data() + sizeof low, &high, sizeof high);
    return out;
  }
};

}  // namespace archetype

static_assert(hasher<archetype::hasher>);

}  // namespace kvx
