// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx::detail {

/// Keys seen lately: buckets of eight words, each 16 bits of the key and the time, coarsely.
///
/// Remembers as many as it is made for, less what buckets that fill unevenly lose. Mistakes another key for
/// one it holds about once in 2^11 to 2^15 times, which costs its user a place, and no more.
/// Cost    O(1), 4 bytes per key, allocation only in the constructor
class ghost_table {
 public:
  explicit ghost_table(std::size_t keys)
      : buckets_((keys + ways - 1) / ways + 1),
        remembered_per_tick_(keys / 1024 + 1),
        window_(static_cast<std::uint16_t>(keys / remembered_per_tick_ + 1)) {}

  /// 32 well mixed bits of a key, since a key's 64 need not be.
  [[nodiscard]] static std::uint32_t shorten(std::uint64_t key) noexcept {
    key = (key ^ (key >> 33U)) * 0xff51'afd7'ed55'8ccdU;
    return static_cast<std::uint32_t>(key >> 32U);
  }

  void remember(std::uint32_t key) noexcept {
    if (++remembered_ % remembered_per_tick_ == 0) ++now_;
    bucket& at = bucket_of(key);
    // An empty word is as good as the oldest.
    auto oldest = at.begin();
    for (auto word = at.begin(); word != at.end(); ++word) {
      if (*word == 0) {
        oldest = word;
        break;
      }
      if (age(*word) > age(*oldest)) oldest = word;
    }
    *oldest = tag(key) | now_;
  }

  /// Whether the key was remembered within the window; it is not remembered any more afterwards.
  [[nodiscard]] bool forget(std::uint32_t key) noexcept {
    for (std::uint32_t& word : bucket_of(key)) {
      if ((word & tag_mask) != tag(key)) continue;
      const bool recent = age(word) <= window_;
      word = 0;
      return recent;
    }
    return false;
  }

 private:
  static constexpr std::size_t ways = 8;
  static constexpr std::uint32_t tag_mask = 0xFFFF'0000U;
  using bucket = std::array<std::uint32_t, ways>;

  // The bucket is chosen by the key's high bits, so that its low bits tell keys of one bucket apart. A tag
  // is never 0: 0 stands for an empty word.
  [[nodiscard]] static std::uint32_t tag(std::uint32_t key) noexcept {
    const std::uint32_t low = key << 16U;
    return low != 0 ? low : 1U << 16U;
  }
  [[nodiscard]] bucket& bucket_of(std::uint32_t key) noexcept {
    return buckets_[static_cast<std::size_t>((std::uint64_t{key} * buckets_.size()) >> 32U)];
  }
  [[nodiscard]] std::uint16_t age(std::uint32_t word) const noexcept { return static_cast<std::uint16_t>(now_ - word); }

  std::vector<bucket> buckets_;
  std::size_t remembered_ = 0;
  std::size_t remembered_per_tick_;
  std::uint16_t window_;  // in ticks
  std::uint16_t now_ = 0;
};

}  // namespace kvx::detail
