// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <cstddef>

namespace kvx::detail {

/// A queue of slots, oldest first, that sets pinned ones aside in their order.
///
/// A pinned slot that reaches the old end is parked, once, and keeps its place among the parked. They are older than
/// all others, so every eviction first looks at the oldest of them and at the next few, in turn: a parent is given up
/// soon after its last child, without looking at all parents each time. When nothing else is left, all of them are
/// looked at.
/// Cost    evict: amortised O(1) while something in the queue may be evicted, else O(parked)
class parking_queue {
 public:
  explicit parking_queue(std::size_t slots) : lists_(slots, 2) {}

  void insert(slot_index slot) noexcept {
    lists_.push_newest(queue, slot);
    ++size_;
  }
  /// Behind `next`, which is in here, as the next to go before it: among the parked where that is.
  void insert_before(slot_index next, slot_index slot) noexcept {
    lists_.push_before(next, slot);
    ++size_;
  }
  void renew(slot_index slot) noexcept { lists_.move_to_newest(queue, slot); }
  void erase(slot_index slot) noexcept {
    lists_.remove(slot);
    --size_;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned& pinned) {
    slot_index slot = lists_.take_unpinned(parked, parked_tries, pinned);
    for (slot_index next = lists_.oldest(queue); slot == no_slot && next != no_slot; next = lists_.oldest(queue)) {
      if (pinned(next)) {
        lists_.move_to_newest(parked, next);
      } else {
        lists_.remove(next);
        slot = next;
      }
    }
    if (slot == no_slot) slot = lists_.take_oldest_unpinned(parked, pinned);
    if (slot != no_slot) --size_;
    return slot;
  }

 private:
  static constexpr std::size_t queue = 0;
  static constexpr std::size_t parked = 1;

  slot_lists lists_;
  std::size_t size_ = 0;
};

}  // namespace kvx::detail
