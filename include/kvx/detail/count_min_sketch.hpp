// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx::detail {

/// How often keys were seen lately, up to 15 times each, in four bits per counter.
///
/// A key has one counter in each of four rows of its bucket, and the least of them counts. After `period` keys all
/// are halved, a few buckets with each key, so that old fame fades and no key pays for all.
/// Shape   keys: 32 well mixed bits
/// Cost    O(1), at most two cache lines; 8 to 16 bytes per key that it is made for, allocation only in the constructor
/// Source  Einziger et al., TinyLFU: a highly efficient cache admission policy, ACM TOS 2017
class count_min_sketch {
 public:
  static constexpr unsigned most = 15;

  /// Shape   keys: that shall be told apart; period: keys after which counts are halved
  count_min_sketch(std::size_t keys, std::size_t period)
      : words_(word_count(keys)),
        step_(std::max<std::size_t>(1, words_.size() / std::max<std::size_t>(period, 1))),
        every_(std::max<std::size_t>(1, period / words_.size())) {}

  void add(std::uint32_t key) noexcept {
    std::uint64_t* const bucket = bucket_of(key);
    for (unsigned row = 0; row < rows; ++row) {
      const unsigned shift = shift_of(key, row);
      if (((bucket[row] >> shift) & most) != most) bucket[row] += std::uint64_t{1} << shift;
    }
    if (++added_ % every_ == 0) fade();
  }
  [[nodiscard]] unsigned count(std::uint32_t key) const noexcept {
    const std::uint64_t* const bucket = bucket_of(key);
    unsigned least = most;
    for (unsigned row = 0; row < rows; ++row)
      least = std::min(least, static_cast<unsigned>((bucket[row] >> shift_of(key, row)) & most));
    return least;
  }

 private:
  static constexpr unsigned rows = 4;  // a word of 16 counters each

  [[nodiscard]] static std::size_t word_count(std::size_t keys) noexcept {
    std::size_t count = rows * 2;
    while (count < keys) count *= 2;
    return count;
  }
  // High bits choose the bucket, 16 low ones the counters.
  [[nodiscard]] std::size_t first_word(std::uint32_t key) const noexcept {
    return static_cast<std::size_t>((std::uint64_t{key} * (words_.size() / rows)) >> 32U) * rows;
  }
  [[nodiscard]] std::uint64_t* bucket_of(std::uint32_t key) noexcept { return &words_[first_word(key)]; }
  [[nodiscard]] const std::uint64_t* bucket_of(std::uint32_t key) const noexcept { return &words_[first_word(key)]; }
  [[nodiscard]] static unsigned shift_of(std::uint32_t key, unsigned row) noexcept {
    return ((key >> (4 * row)) & 15U) * 4;
  }

  void fade() noexcept {
    for (std::size_t i = 0; i < step_; ++i) {
      std::uint64_t& word = words_[next_];
      word = (word >> 1U) & 0x7777'7777'7777'7777U;
      next_ = next_ + 1 == words_.size() ? 0 : next_ + 1;
    }
  }

  std::vector<std::uint64_t> words_;
  std::size_t step_;
  std::size_t every_;
  std::size_t added_ = 0;
  std::size_t next_ = 0;
};

}  // namespace kvx::detail
