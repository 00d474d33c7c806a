// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx {

/// Keeps what is used often and dear to compute again, and lets what is not used age.
///
/// A slot's value is the age of the cache at its last use, plus its uses times the cost of computing it per byte. The
/// least value is given up, and becomes the age. Slots of a tier are alike in bytes, but not in cost: attention makes
/// a token dearer the more tokens are before it. With `double_at` tokens before it, a block costs twice what the
/// first one does: about 15,000 for a model of 1e9 parameters, 30,000 for 8e9 and 50,000 for 70e9.
///
/// Values are kept in eighths of the first block's cost, on a wheel of lists, oldest first in each. Pinned slots that
/// are due are set aside in order and looked at again first; one that is used there gets a new value.
/// Units   double_at: tokens
/// Thread  one caller at a time
/// Cost    O(1) per slot; evict: amortised O(1), and at most 65 words to find the next list; 12 bytes per slot and
///         33 KiB
/// Source  Cherkasova, Improving WWW proxies performance with greedy-dual-size-frequency caching policy, HPL-98-69
class gdsf {
 public:
  explicit gdsf(std::size_t slots, std::uint32_t double_at = 32'768)
      : lists_(slots, levels + 1), states_(slots), double_at_(std::max(double_at, 1U)) {}

  void insert(std::span<const eviction_entry> entries) noexcept {
    std::size_t behind = 0;
    for (const eviction_entry& entry : entries) {
      const std::uint64_t cost = grain + std::uint64_t{entry.past_tokens} * grain / double_at_;
      states_[entry.slot] = {static_cast<std::uint16_t>(std::min<std::uint64_t>(cost, levels - 1)), 1};
      lists_.push_newest(raise(entry.slot, behind), entry.slot);
    }
    size_ += entries.size();
  }
  void touch(std::span<const slot_index> slots) noexcept {
    std::size_t behind = 0;
    for (const slot_index slot : slots) {
      std::uint16_t& uses = states_[slot].uses;
      if (uses < most_uses) ++uses;
      lists_.move_to_newest(raise(slot, behind), slot);
    }
  }
  void erase(slot_index slot) noexcept {
    lists_.remove(slot);
    --size_;
  }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    slot_index slot = lists_.take_unpinned(parked, detail::parked_tries, pinned);
    while (slot == no_slot) {
      const std::size_t level = least();
      if (level == levels) {
        slot = lists_.take_oldest_unpinned(parked, pinned);
        break;
      }
      const slot_index next = lists_.oldest(level);
      if (pinned(next)) {
        lists_.move_to_newest(parked, next);
      } else {
        age_ = level;
        lists_.remove(next);
        slot = next;
      }
    }
    if (slot != no_slot) --size_;
    return slot;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::size_t levels = 4096;
  static constexpr std::size_t word_bits = 64;
  static constexpr std::size_t words = levels / word_bits;
  static constexpr std::size_t parked = levels;
  static constexpr std::uint32_t grain = 8;
  static constexpr std::uint16_t most_uses = 0xFFFF;

  struct state {
    std::uint16_t cost = 0;  // in grains
    std::uint16_t uses = 0;
  };

  // The list for a slot's value. The wheel turns below all of them: what is on it is at most a turn ahead of the age.
  // A block is worth no less than those `behind` it, before which it cannot go.
  std::size_t raise(slot_index slot, std::size_t& behind) noexcept {
    const std::size_t worth = std::size_t{states_[slot].cost} * states_[slot].uses;
    behind = std::min(std::max(worth, behind), levels - 1);
    const std::size_t level = (age_ + behind) % levels;
    filled_[level / word_bits] |= std::uint64_t{1} << (level % word_bits);
    return level;
  }

  // The first list with a slot, from the age on; `levels` when there is none.
  [[nodiscard]] std::size_t least() noexcept {
    for (std::size_t i = 0; i <= words; ++i) {
      const std::size_t word = (age_ / word_bits + i) % words;
      const std::uint64_t from_age = ~std::uint64_t{0} << (age_ % word_bits);
      const std::uint64_t mask = i == 0 ? from_age : i == words ? ~from_age : ~std::uint64_t{0};
      while ((filled_[word] & mask) != 0) {
        const auto bit = static_cast<std::size_t>(std::countr_zero(filled_[word] & mask));
        const std::size_t level = word * word_bits + bit;
        if (lists_.oldest(level) != no_slot) return level;
        filled_[word] &= ~(std::uint64_t{1} << bit);  // emptied since
      }
    }
    return levels;
  }

  detail::slot_lists lists_;
  std::vector<state> states_;
  std::array<std::uint64_t, words> filled_{};
  std::uint32_t double_at_;
  std::size_t age_ = 0;  // on the wheel
  std::size_t size_ = 0;
};

static_assert(eviction_policy<gdsf>);

}  // namespace kvx
