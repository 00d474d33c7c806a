// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/count_min_sketch.hpp>
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

/// Lets a newcomer take the place of an older slot only if it was seen more often.
///
/// Newcomers enter a small window in the order of the last use. What leaves it competes with the main part's next
/// victim, and the one that the sketch of past uses has seen less often is given up; the newcomer at a tie. Of two that
/// came in one batch the deeper one goes, which came first. The main part is segmented: what is used there is
/// protected, for at most four fifths of it. Pinned slots that are due are set aside in order within their part, and
/// looked at first.
/// Units   window_percent: of the slots
/// Thread  one caller at a time
/// Cost    O(1) per slot; evict: amortised O(1) while a slot that is not set aside may be evicted; 24 to 32 bytes per
///         slot, the sketch included
/// Source  Einziger et al., TinyLFU: a highly efficient cache admission policy, ACM TOS 2017
class w_tinylfu {
 public:
  explicit w_tinylfu(std::size_t slots, unsigned window_percent = 1)
      : lists_(slots, 5),
        keys_(slots),
        states_(slots),
        seen_(slots, 10 * slots),
        window_target_(std::max<std::size_t>(1, slots * window_percent / 100)),
        protected_target_((slots - std::min(slots, window_target_)) * 4 / 5) {}

  void insert(std::span<const eviction_entry> entries) noexcept {
    ++batch_;
    for (const eviction_entry& entry : entries) {
      meet(entry, batch_);
      enter(window, entry.slot);
      keep_window();
    }
    size_ += entries.size();
  }
  /// Shape   front: came in for the same request; where it left the window, or was set aside, the newcomer is there too
  void insert_behind(const eviction_entry& entry, slot_index front) noexcept {
    const std::uint8_t list = states_[front].list;
    if (list != guarded) {
      meet(entry, states_[front].batch);
      enter(list, entry.slot, front);
    } else {
      meet(entry, ++batch_);  // not of its batch: there the deeper one would be the older
      enter(window, entry.slot);
    }
    keep_window();
    ++size_;
  }
  void touch(std::span<const slot_index> slots) noexcept {
    for (const slot_index slot : slots) {
      seen_.add(keys_[slot]);
      move(part_of(states_[slot].list) == window ? window : guarded, slot);
      const slot_index demoted = lists_.oldest(guarded);
      if (sizes_[guarded] > protected_target_ && demoted != no_slot) move(probation, demoted);
    }
  }
  void erase(slot_index slot) noexcept {
    leave(slot);
    --size_;
  }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    slot_index slot = compete(detail::parked_tries, pinned);
    if (slot == no_slot) slot = next_of(window, window_aside, detail::parked_tries, pinned);
    if (slot == no_slot) slot = compete(size_, pinned);
    if (slot == no_slot) slot = next_of(window, window_aside, size_, pinned);
    if (slot == no_slot) return no_slot;
    leave(slot);
    --size_;
    return slot;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::uint8_t window = 0;
  static constexpr std::uint8_t probation = 1;
  static constexpr std::uint8_t guarded = 2;
  static constexpr std::uint8_t window_aside = 3;
  static constexpr std::uint8_t main_aside = 4;

  struct state {
    std::uint32_t list : 3;
    std::uint32_t batch : 29;
  };

  [[nodiscard]] static std::uint32_t part_of(std::uint32_t list) noexcept {
    return list == window_aside ? window : list;
  }
  void meet(const eviction_entry& newcomer, std::uint32_t batch) noexcept {
    keys_[newcomer.slot] = detail::ghost_table::shorten(newcomer.key);
    states_[newcomer.slot].batch = batch & 0x1FFF'FFFFU;
    seen_.add(keys_[newcomer.slot]);
  }
  // There was room, or the window's oldest could not compete, being pinned.
  void keep_window() noexcept {
    const slot_index oldest = lists_.oldest(window);
    if (sizes_[window] > window_target_ && oldest != no_slot) move(probation, oldest);
  }
  /// As the newest, or just before `next`.
  void enter(std::uint8_t list, slot_index slot, slot_index next = no_slot) noexcept {
    next == no_slot ? lists_.push_newest(list, slot) : lists_.push_before(next, slot);
    states_[slot].list = list & 7U;
    ++sizes_[part_of(list)];
  }
  void leave(slot_index slot) noexcept {
    lists_.remove(slot);
    --sizes_[part_of(states_[slot].list)];
  }
  void move(std::uint8_t list, slot_index slot) noexcept {
    leave(slot);
    enter(list, slot);
  }

  // The slot to give up, still in its list; a newcomer that wins is in the main part afterwards.
  template <class Pinned>
  [[nodiscard]] slot_index compete(std::size_t tries, Pinned& pinned) {
    slot_index victim = next_of(probation, main_aside, tries, pinned);
    if (victim == no_slot) victim = next_of(guarded, main_aside, 0, pinned);
    if (sizes_[window] < window_target_) return victim;
    const slot_index newcomer = next_of(window, window_aside, tries, pinned);
    if (newcomer == no_slot || victim == no_slot) return newcomer == no_slot ? victim : newcomer;
    if (states_[newcomer].batch == states_[victim].batch) return victim;
    if (seen_.count(keys_[newcomer]) <= seen_.count(keys_[victim])) return newcomer;
    move(probation, newcomer);
    return victim;
  }

  // The next slot of a list that may go, those set aside first; still in its list.
  template <class Pinned>
  [[nodiscard]] slot_index next_of(std::uint8_t list, std::uint8_t aside, std::size_t tries, Pinned& pinned) {
    for (; tries != 0; --tries) {
      const slot_index slot = lists_.oldest(aside);
      if (slot == no_slot) break;
      if (!pinned(slot)) return slot;
      lists_.move_to_newest(aside, slot);
    }
    for (slot_index slot = lists_.oldest(list); slot != no_slot; slot = lists_.oldest(list)) {
      if (!pinned(slot)) return slot;
      move(aside, slot);
    }
    return no_slot;
  }

  detail::slot_lists lists_;
  std::vector<std::uint32_t> keys_;
  std::vector<state> states_;
  detail::count_min_sketch seen_;
  std::size_t window_target_;
  std::size_t protected_target_;
  std::array<std::size_t, 5> sizes_{};
  std::size_t size_ = 0;
  std::uint32_t batch_ = 0;
};

static_assert(eviction_policy<w_tinylfu>);
static_assert(chained_eviction<w_tinylfu>);

}  // namespace kvx
