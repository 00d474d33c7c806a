// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvx::detail {

/// 64 bits that depend on every byte of a key: engines' own keys need not differ in the first. Zeros at the end change
/// nothing.
template <std::size_t N>
[[nodiscard]] std::uint64_t fold_key(const std::array<std::byte, N>& key) noexcept {
  static_assert(N % sizeof(std::uint64_t) == 0);
  std::uint64_t bits = 0, factor = 1;
  for (std::size_t at = 0; at < N; at += sizeof bits, factor *= 0x9E37'79B9'7F4A'7C15U) {
    std::uint64_t word = 0;
    std::memcpy(&word, key.data() + at, sizeof word);
    bits ^= word * factor;
  }
  return bits;
}

}  // namespace kvx::detail
