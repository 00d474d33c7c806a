// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx {

/// Gives up in the order of insertion, but lets what was used since have one more round.
///
/// A use only sets a bit: nothing moves, which is what makes it cheaper than `lru` where hits outnumber all else.
/// Pinned slots that are due are set aside in order and looked at again first; one that is used there goes back.
/// Thread  one caller at a time
/// Cost    touch: one byte; insert: O(1); evict: amortised O(1), one step per slot that was used since; 9 bytes per
///         slot
/// Source  Corbató, A paging experiment with the Multics system, 1968
class clock {
 public:
  explicit clock(std::size_t slots) : lists_(slots, 2), states_(slots, fresh) {}

  void insert(std::span<const eviction_entry> entries) noexcept {
    for (const eviction_entry& entry : entries) {
      states_[entry.slot] = fresh;
      lists_.push_newest(ring, entry.slot);
    }
    size_ += entries.size();
  }
  /// Shape   front: came in for the same request; where it was set aside, the newcomer is too
  void insert_behind(const eviction_entry& entry, slot_index front) noexcept {
    states_[entry.slot] = states_[front] == parked ? parked : fresh;
    lists_.push_before(front, entry.slot);
    ++size_;
  }
  void touch(std::span<const slot_index> slots) noexcept {
    for (const slot_index slot : slots) {
      if (states_[slot] == parked) lists_.move_to_newest(ring, slot);
      states_[slot] = used;
    }
  }
  void erase(slot_index slot) noexcept {
    lists_.remove(slot);
    --size_;
  }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    slot_index slot = lists_.take_unpinned(aside, detail::parked_tries, pinned);
    for (slot_index next = lists_.oldest(ring); slot == no_slot && next != no_slot; next = lists_.oldest(ring)) {
      if (states_[next] == used) {
        states_[next] = fresh;
        lists_.move_to_newest(ring, next);
      } else if (pinned(next)) {
        states_[next] = parked;
        lists_.move_to_newest(aside, next);
      } else {
        lists_.remove(next);
        slot = next;
      }
    }
    if (slot == no_slot) slot = lists_.take_oldest_unpinned(aside, pinned);
    if (slot != no_slot) --size_;
    return slot;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::size_t ring = 0;
  static constexpr std::size_t aside = 1;
  enum state : std::uint8_t { fresh, used, parked };

  detail::slot_lists lists_;
  std::vector<std::uint8_t> states_;
  std::size_t size_ = 0;
};

static_assert(eviction_policy<clock>);
static_assert(chained_eviction<clock>);

}  // namespace kvx
