// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvx::detail {

/// Which entry of a history each slot of a tier holds, and which slots two opinions of what should be held do without.
///
/// What an opinion does without is surplus to it, and goes before all that it wants: what it gave up first goes first.
/// Cost    O(1), any(): O(slots); 20 bytes per slot, allocation only in the constructor
class held_slots {
 public:
  enum opinion : std::uint8_t { choice, lru };
  static constexpr std::uint32_t none = 0xFFFF'FFFFU;

  explicit held_slots(std::size_t slots)
      : entry_in_(slots, none), surplus_{slot_lists(slots, 1), slot_lists(slots, 1)} {}

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::uint32_t entry(slot_index slot) const noexcept { return entry_in_[slot]; }

  /// Shape   chosen, in_lru: whether the two opinions want the entry
  void hold(slot_index slot, std::uint32_t entry, bool chosen, bool in_lru) noexcept {
    entry_in_[slot] = entry;
    ++size_;
    if (!chosen) unwanted(choice, slot);
    if (!in_lru) unwanted(lru, slot);
  }
  /// Shape   chosen, in_lru: as the opinions are now
  void release(slot_index slot, bool chosen, bool in_lru) noexcept {
    entry_in_[slot] = none;
    --size_;
    if (!chosen) wanted(choice, slot);
    if (!in_lru) wanted(lru, slot);
  }
  /// An opinion changed about a held slot.
  void wanted(opinion by, slot_index slot) noexcept { surplus_[by].remove(slot); }
  void unwanted(opinion by, slot_index slot) noexcept { surplus_[by].push_newest(0, slot); }

  /// A slot that an opinion does without and that is not pinned, among a few that are looked at in turn.
  template <class Pinned>
  [[nodiscard]] slot_index surplus(opinion to, Pinned& pinned) {
    slot_lists& list = surplus_[to];
    for (std::size_t tries = 2 * parked_tries; tries != 0 && list.oldest(0) != no_slot; --tries) {
      const slot_index slot = list.oldest(0);
      if (!pinned(slot)) return slot;
      list.move_to_newest(0, slot);
    }
    return no_slot;
  }
  /// Any slot that is not pinned, in turn.
  template <class Pinned>
  [[nodiscard]] slot_index any(Pinned& pinned) {
    for (std::size_t tries = entry_in_.size(); tries != 0; --tries) {
      hand_ = hand_ + 1 < entry_in_.size() ? hand_ + 1 : 0;
      const auto slot = static_cast<slot_index>(hand_);
      if (entry_in_[slot] != none && !pinned(slot)) return slot;
    }
    return no_slot;
  }

 private:
  std::vector<std::uint32_t> entry_in_;
  std::array<slot_lists, 2> surplus_;
  std::size_t size_ = 0;
  std::size_t hand_ = 0;
};

}  // namespace kvx::detail
