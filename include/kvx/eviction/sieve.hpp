// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvx {

/// Sifts the queue of insertion with a hand that leaves what was used where it is.
///
/// The hand goes from old to new. What was used since it last came by keeps its place and is passed; the first that
/// was not is given up. So newcomers meet the hand early, and what was once used has to be used again only each time
/// the hand has gone round. Pinned slots that the hand meets are set aside in order and looked at again first; one
/// that is used there goes back behind the hand.
/// Thread  one caller at a time
/// Cost    touch: one byte; insert: O(1); evict: amortised O(1), one step per slot that was used since; 9 bytes per
///         slot
/// Source  Zhang et al., SIEVE is simpler than LRU, NSDI 2024
class sieve {
 public:
  explicit sieve(std::size_t slots) : lists_(slots, 2), states_(slots, fresh) {}

  void insert(std::span<const eviction_entry> entries) noexcept {
    for (const eviction_entry& entry : entries) {
      states_[entry.slot] = fresh;
      lists_.push_newest(queue, entry.slot);
    }
    size_ += entries.size();
  }
  /// Shape   front: came in for the same request; where it was set aside, the newcomer is too
  void insert_behind(const eviction_entry& entry, slot_index front) noexcept {
    states_[entry.slot] = states_[front] == parked ? parked : fresh;
    lists_.push_before(front, entry.slot);
    // Else the hand would give up the front first, and come to the newcomer a round later.
    if (hand_ == front) hand_ = entry.slot;
    ++size_;
  }
  void touch(std::span<const slot_index> slots) noexcept {
    for (const slot_index slot : slots) {
      if (states_[slot] == parked) {
        lists_.remove(slot);
        hand_ == no_slot ? lists_.push_newest(queue, slot) : lists_.push_before(hand_, slot);
      }
      states_[slot] = used;
    }
  }
  void erase(slot_index slot) noexcept {
    leave(slot);
    --size_;
  }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    slot_index slot = lists_.take_unpinned(aside, detail::parked_tries, pinned);
    while (slot == no_slot) {
      const slot_index at = hand_ != no_slot ? hand_ : lists_.oldest(queue);
      if (at == no_slot) {
        slot = lists_.take_oldest_unpinned(aside, pinned);
        break;
      }
      if (states_[at] == used) {
        states_[at] = fresh;
        hand_ = lists_.newer(at);
        continue;
      }
      hand_ = at;
      leave(at);
      if (pinned(at)) {
        states_[at] = parked;
        lists_.push_newest(aside, at);
      } else {
        slot = at;
      }
    }
    if (slot != no_slot) --size_;
    return slot;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::size_t queue = 0;
  static constexpr std::size_t aside = 1;
  enum state : std::uint8_t { fresh, used, parked };

  void leave(slot_index slot) noexcept {
    if (hand_ == slot) hand_ = lists_.newer(slot);
    lists_.remove(slot);
  }

  detail::slot_lists lists_;
  std::vector<std::uint8_t> states_;
  slot_index hand_ = no_slot;  // none: the oldest
  std::size_t size_ = 0;
};

static_assert(eviction_policy<sieve>);
static_assert(chained_eviction<sieve>);

}  // namespace kvx
