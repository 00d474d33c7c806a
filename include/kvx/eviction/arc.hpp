// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/ghost_lists.hpp>
#include <kvx/detail/ghost_table.hpp>
#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx {

/// Shares the slots between what was used once and what was used more often, and learns how from its mistakes.
///
/// Both halves are in the order of the last use, and each remembers the keys it gave up. One that comes back says
/// that its half was too small: the target moves that way, faster where the other half remembers more. Pinned slots
/// that are due are set aside in order within their half, and looked at first when it is its turn.
///
/// The paper moves the target before it makes room for a key that came back, and at the very target takes what was used
/// once if the other half remembers that key. Here the room is made first, since an eviction does not know for whom it
/// is, and at the target what was used more often goes.
/// Thread  one caller at a time
/// Cost    O(1) per slot; evict: amortised O(1) while a slot that is not set aside may be evicted; 37 to 41 bytes per
///         slot, ghosts included
/// Source  Megiddo, Modha, ARC: a self-tuning, low overhead replacement cache, FAST 2003
class arc {
 public:
  explicit arc(std::size_t slots)
      : slots_(slots), lists_(slots, 4), keys_(slots), list_of_(slots, once), ghosts_(slots + 1) {}

  void insert(std::span<const eviction_entry> entries) noexcept {
    for (const eviction_entry& entry : entries) {
      enter(half_for(entry), entry.slot);
      forget_surplus();
    }
  }
  /// Shape   front: came in for the same request; where it was set aside in the newcomer's half, the newcomer is too
  void insert_behind(const eviction_entry& entry, slot_index front) noexcept {
    const std::uint8_t half = half_for(entry);
    if ((list_of_[front] & 1U) == half)
      enter(list_of_[front], entry.slot, front);
    else
      enter(half, entry.slot);
    forget_surplus();
  }
  void touch(std::span<const slot_index> slots) noexcept {
    for (const slot_index slot : slots) {
      leave(slot);
      enter(often, slot);
    }
  }
  void erase(slot_index slot) noexcept { leave(slot); }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    const std::uint8_t first = sizes_[once] > target_ ? once : often;
    slot_index slot = oldest_of(first, detail::parked_tries, pinned);
    if (slot == no_slot) slot = oldest_of(first ^ 1U, detail::parked_tries, pinned);
    if (slot == no_slot) slot = oldest_of(first, size(), pinned);
    if (slot == no_slot) slot = oldest_of(first ^ 1U, size(), pinned);
    if (slot == no_slot) return no_slot;
    const auto half = static_cast<std::uint8_t>(list_of_[slot] & 1U);
    leave(slot);
    if (ghosts_.full()) ghosts_.forget_oldest(ghosts_.size(often) != 0 ? often : once);
    ghosts_.remember(half, keys_[slot]);
    return slot;
  }
  [[nodiscard]] std::size_t size() const noexcept { return sizes_[once] + sizes_[often]; }

 private:
  static constexpr std::uint8_t once = 0;
  static constexpr std::uint8_t often = 1;
  static constexpr std::uint8_t parked = 2;  // added to either

  /// Learns from a newcomer's key, and says which half it belongs to.
  [[nodiscard]] std::uint8_t half_for(const eviction_entry& entry) noexcept {
    const std::uint32_t key = detail::ghost_table::shorten(entry.key);
    const std::size_t of_once = ghosts_.size(once);
    const std::size_t of_often = ghosts_.size(often);
    const std::uint8_t came_from = ghosts_.forget(key);
    if (came_from == once) target_ = std::min(slots_, target_ + std::max<std::size_t>(1, of_often / of_once));
    if (came_from == often) target_ -= std::min(target_, std::max<std::size_t>(1, of_once / of_often));
    keys_[entry.slot] = key;
    return came_from == detail::ghost_lists::none ? once : often;
  }
  // What was used once, and what is remembered of it, are never more than the slots.
  void forget_surplus() noexcept {
    while (sizes_[once] + ghosts_.size(once) > slots_ && ghosts_.size(once) != 0) ghosts_.forget_oldest(once);
  }
  /// As the newest, or just before `next`.
  void enter(std::uint8_t list, slot_index slot, slot_index next = no_slot) noexcept {
    next == no_slot ? lists_.push_newest(list, slot) : lists_.push_before(next, slot);
    list_of_[slot] = list;
    ++sizes_[list & 1U];
  }
  void leave(slot_index slot) noexcept {
    lists_.remove(slot);
    --sizes_[list_of_[slot] & 1U];
  }

  // The next slot of one half that may go, still in its list.
  template <class Pinned>
  [[nodiscard]] slot_index oldest_of(std::uint32_t half, std::size_t tries, Pinned& pinned) {
    for (; tries != 0; --tries) {
      const slot_index slot = lists_.oldest(half + parked);
      if (slot == no_slot) break;
      if (!pinned(slot)) return slot;
      lists_.move_to_newest(half + parked, slot);
    }
    for (slot_index slot = lists_.oldest(half); slot != no_slot; slot = lists_.oldest(half)) {
      if (!pinned(slot)) return slot;
      lists_.move_to_newest(half + parked, slot);
      list_of_[slot] = static_cast<std::uint8_t>(half + parked);
    }
    return no_slot;
  }

  std::size_t slots_;
  detail::slot_lists lists_;
  std::vector<std::uint32_t> keys_;
  std::vector<std::uint8_t> list_of_;
  detail::ghost_lists ghosts_;
  std::array<std::size_t, 2> sizes_{};
  std::size_t target_ = 0;  // slots for what was used once
};

static_assert(eviction_policy<arc>);
static_assert(chained_eviction<arc>);

}  // namespace kvx
