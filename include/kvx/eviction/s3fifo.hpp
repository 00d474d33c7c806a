// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/ghost_table.hpp>
#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx {

/// Lets newcomers prove themselves in a small queue, so that what is used once does not push out the rest.
///
/// A newcomer enters the small queue; one that was given up there not long ago enters the main queue at once. At
/// the small queue's end, one use since is enough to move on to the main queue; without, the slot is given up and
/// its key remembered. At the main queue's end every use (up to three) buys another round. Pinned slots that are
/// due are set aside in order, looked at again first, and go to the main queue when they are touched.
///
/// The small queue's share is half of the slots rather than the paper's tenth: prompts repeat their blocks after
/// minutes, not at once, and bench/trace_replay shows what that costs.
/// Thread  one caller at a time
/// Cost    amortised O(1) per slot; 17 bytes per slot, ghosts included
/// Source  Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023
class s3fifo {
 public:
  /// Units   small_percent: of the slots, for the small queue
  explicit s3fifo(std::size_t slots, unsigned small_percent = 50)
      : lists_(slots, 3),
        keys_(slots),
        states_(slots),
        ghosts_(slots),
        small_target_(std::max<std::size_t>(1, slots * small_percent / 100)) {}

  void insert(std::span<const eviction_entry> entries) noexcept {
    for (const eviction_entry& entry : entries) enter(list_for(entry), entry.slot);
    size_ += entries.size();
  }
  /// Shape   front: came in for the same request; where it was set aside, a newcomer that is not remembered is too
  void insert_behind(const eviction_entry& entry, slot_index front) noexcept {
    const std::uint8_t list = list_for(entry);
    const std::uint8_t of_front = states_[front].list;
    if (of_front == list || (of_front == parked && list == small))
      enter(of_front, entry.slot, front);
    else
      enter(list, entry.slot);
    ++size_;
  }

  void touch(std::span<const slot_index> slots) noexcept {
    for (const slot_index slot : slots) {
      state& at = states_[slot];
      if (at.uses < most_uses) at.uses = (at.uses + 1U) & most_uses;
      if (at.list == parked) move(main, slot);
    }
  }

  void erase(slot_index slot) noexcept {
    leave(slot);
    --size_;
  }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    slot_index slot = lists_.take_unpinned(parked, detail::parked_tries, pinned);
    while (slot == no_slot) {
      const slot_index in_small = lists_.oldest(small);
      const slot_index in_main = lists_.oldest(main);
      if (in_small != no_slot && (small_size_ >= small_target_ || in_main == no_slot)) {
        slot = leave_small(in_small, pinned);
      } else if (in_main != no_slot) {
        slot = leave_main(in_main, pinned);
      } else {
        slot = lists_.take_oldest_unpinned(parked, pinned);
        break;
      }
    }
    if (slot != no_slot) --size_;
    return slot;
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::uint8_t small = 0;
  static constexpr std::uint8_t main = 1;
  static constexpr std::uint8_t parked = 2;
  static constexpr std::uint8_t most_uses = 3;

  struct state {
    std::uint8_t list : 4;
    std::uint8_t uses : 4;
  };

  /// Takes a newcomer's key, and says which queue it has earned.
  [[nodiscard]] std::uint8_t list_for(const eviction_entry& entry) noexcept {
    const std::uint32_t key = detail::ghost_table::shorten(entry.key);
    keys_[entry.slot] = key;
    states_[entry.slot].uses = 0;
    return ghosts_.forget(key) ? main : small;
  }
  /// As the newest, or just before `next`.
  void enter(std::uint8_t list, slot_index slot, slot_index next = no_slot) noexcept {
    next == no_slot ? lists_.push_newest(list, slot) : lists_.push_before(next, slot);
    states_[slot].list = list & 3U;
    if (list == small) ++small_size_;
  }
  void leave(slot_index slot) noexcept {
    lists_.remove(slot);
    if (states_[slot].list == small) --small_size_;
  }
  void move(std::uint8_t list, slot_index slot) noexcept {
    leave(slot);
    enter(list, slot);
  }

  /// Moves the oldest slot of the small queue on; returns it where it left altogether.
  template <class Pinned>
  [[nodiscard]] slot_index leave_small(slot_index slot, Pinned& pinned) {
    if (states_[slot].uses != 0) {
      states_[slot].uses = 0;
      move(main, slot);
      return no_slot;
    }
    if (pinned(slot)) {
      move(parked, slot);
      return no_slot;
    }
    leave(slot);
    ghosts_.remember(keys_[slot]);
    return slot;
  }
  template <class Pinned>
  [[nodiscard]] slot_index leave_main(slot_index slot, Pinned& pinned) {
    if (states_[slot].uses != 0) {
      states_[slot].uses = (states_[slot].uses - 1U) & most_uses;
      lists_.move_to_newest(main, slot);
      return no_slot;
    }
    if (pinned(slot)) {
      move(parked, slot);
      return no_slot;
    }
    leave(slot);
    return slot;
  }

  detail::slot_lists lists_;
  std::vector<std::uint32_t> keys_;
  std::vector<state> states_;
  detail::ghost_table ghosts_;
  std::size_t small_target_;
  std::size_t small_size_ = 0;
  std::size_t size_ = 0;
};

static_assert(eviction_policy<s3fifo>);
static_assert(chained_eviction<s3fifo>);

/// `s3fifo` with another share for the small queue, as a type of its own.
/// Units   SmallPercent: of the slots
template <unsigned SmallPercent>
requires(SmallPercent <= 100) class s3fifo_share : public s3fifo {
 public:
  explicit s3fifo_share(std::size_t slots) : s3fifo(slots, SmallPercent) {}
};

static_assert(eviction_policy<s3fifo_share<10>>);

}  // namespace kvx
