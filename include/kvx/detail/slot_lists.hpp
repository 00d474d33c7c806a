// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <cstddef>
#include <utility>
#include <vector>

namespace kvx::detail {

/// Several queues over the same slots, each slot in at most one of them.
/// Shape   slots: below 2^32 - lists; a list is named by its number
/// Cost    O(1) each, 8 bytes per slot, allocation only in the constructor
class slot_lists {
 public:
  slot_lists(std::size_t slots, std::size_t lists) : links_(slots + lists), slots_(slots) {
    for (std::size_t list = 0; list < lists; ++list) at(end(list)) = {end(list), end(list)};
  }

  /// The one to leave next, `no_slot` when the list is empty.
  [[nodiscard]] slot_index oldest(std::size_t list) const noexcept {
    const slot_index first = links_[end(list)].newer;
    return first == end(list) ? no_slot : first;
  }

  /// Precondition: `slot` is in no list.
  void push_newest(std::size_t list, slot_index slot) noexcept {
    link& sentinel = at(end(list));
    at(slot) = {sentinel.older, end(list)};
    at(sentinel.older).newer = slot;
    sentinel.older = slot;
  }

  /// Precondition: `slot` is in a list.
  void remove(slot_index slot) noexcept {
    if (slot == next_try_) next_try_ = newer(slot);
    const link from = at(slot);
    at(from.older).newer = from.newer;
    at(from.newer).older = from.older;
  }

  /// The next newer one of its list, `no_slot` for the newest.
  [[nodiscard]] slot_index newer(slot_index slot) const noexcept {
    const slot_index next = links_[slot].newer;
    return next < slots_ ? next : no_slot;
  }

  /// Precondition: `slot` is in no list, `next` in one; `slot` becomes the next older one.
  void push_before(slot_index next, slot_index slot) noexcept {
    const slot_index older = at(next).older;
    at(slot) = {older, next};
    at(older).newer = slot;
    at(next).older = slot;
  }

  void move_to_newest(std::size_t list, slot_index slot) noexcept {
    remove(slot);
    push_newest(list, slot);
  }

  /// Looks at the oldest slot and, from where it stopped the last time, at some others, and takes out the first one
  /// that is not pinned. For one of the lists.
  template <class Pinned>
  [[nodiscard]] slot_index take_unpinned(std::size_t list, std::size_t tries, Pinned& pinned) {
    slot_index slot = oldest(list);
    for (; slot != no_slot && tries != 0; --tries) {
      if (!pinned(slot)) {
        remove(slot);
        return slot;
      }
      if (next_try_ == no_slot) next_try_ = oldest(list);
      slot = std::exchange(next_try_, newer(next_try_));
    }
    return no_slot;
  }
  /// Takes out the oldest slot that is not pinned.
  /// Cost    O(slots that are pinned and older)
  template <class Pinned>
  [[nodiscard]] slot_index take_oldest_unpinned(std::size_t list, Pinned& pinned) {
    slot_index slot = oldest(list);
    while (slot != no_slot && pinned(slot)) slot = newer(slot);
    if (slot != no_slot) remove(slot);
    return slot;
  }

 private:
  struct link {
    slot_index older = no_slot;
    slot_index newer = no_slot;
  };

  // The ends of a list are one more link behind the slots', so that no operation has a special case.
  [[nodiscard]] slot_index end(std::size_t list) const noexcept { return static_cast<slot_index>(slots_ + list); }
  [[nodiscard]] link& at(slot_index slot) noexcept { return links_[slot]; }

  std::vector<link> links_;
  std::size_t slots_;
  slot_index next_try_ = no_slot;  // of take_unpinned(); no_slot: from the oldest on
};

/// How many parked slots an eviction looks at again before it takes a younger one.
inline constexpr std::size_t parked_tries = 4;

}  // namespace kvx::detail
