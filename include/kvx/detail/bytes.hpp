// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <span>

namespace kvx::detail {

/// The value with its bytes reversed where the machine is big-endian: what a file holds is little-endian.
template <std::unsigned_integral T>
[[nodiscard]] constexpr T to_little_endian(T value) noexcept {
  if constexpr (std::endian::native == std::endian::little) {
    return value;
  } else {
    T reversed = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      reversed = static_cast<T>(reversed << 8U) | static_cast<T>((value >> (8U * i)) & 0xFFU);
    }
    return reversed;
  }
}

/// Writes sizeof(T) bytes, least significant first; `to` needs no alignment.
template <std::unsigned_integral T>
void store_le(std::byte* to, T value) noexcept {
  const T little = to_little_endian(value);
  std::memcpy(to, &little, sizeof little);
}

/// Reads sizeof(T) bytes, least significant first; `from` needs no alignment.
template <std::unsigned_integral T>
[[nodiscard]] T load_le(const std::byte* from) noexcept {
  T little = 0;
  std::memcpy(&little, from, sizeof little);
  return to_little_endian(little);
}

/// Lays fields out one after the other.
///
/// Precondition of every put: the span has room for it.
class le_writer {
 public:
  explicit le_writer(std::span<std::byte> to) noexcept : to_(to) {}

  template <std::unsigned_integral T>
  le_writer& put(T value) noexcept {
    store_le(to_.data() + at_, value);
    at_ += sizeof(T);
    return *this;
  }
  le_writer& put(std::span<const std::byte> bytes) noexcept {
    if (!bytes.empty()) std::memcpy(to_.data() + at_, bytes.data(), bytes.size());
    at_ += bytes.size();
    return *this;
  }
  /// Zeros up to `offset`.
  le_writer& pad_to(std::size_t offset) noexcept {
    if (offset > at_) std::memset(to_.data() + at_, 0, offset - at_);
    at_ = offset;
    return *this;
  }
  [[nodiscard]] std::size_t offset() const noexcept { return at_; }

 private:
  std::span<std::byte> to_;
  std::size_t at_ = 0;
};

/// Takes fields out one after the other.
///
/// Precondition of every get: the span holds that much more.
class le_reader {
 public:
  explicit le_reader(std::span<const std::byte> from, std::size_t offset = 0) noexcept : from_(from), at_(offset) {}

  template <std::unsigned_integral T>
  [[nodiscard]] T get() noexcept {
    const T value = load_le<T>(from_.data() + at_);
    at_ += sizeof(T);
    return value;
  }
  [[nodiscard]] std::span<const std::byte> get(std::size_t bytes) noexcept {
    const auto out = from_.subspan(at_, bytes);
    at_ += bytes;
    return out;
  }
  [[nodiscard]] std::size_t offset() const noexcept { return at_; }

 private:
  std::span<const std::byte> from_;
  std::size_t at_ = 0;
};

/// Whether every byte is zero.
[[nodiscard]] inline bool all_zero(std::span<const std::byte> bytes) noexcept {
  std::byte any{0};
  for (const std::byte b : bytes) any |= b;
  return any == std::byte{0};
}

}  // namespace kvx::detail
