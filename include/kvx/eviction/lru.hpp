// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/parking_queue.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <span>

namespace kvx {

/// Gives up the slot whose last use is longest ago.
///
/// The safe choice for agents and chats, where whoever comes back comes back soon. Pinned slots keep their age:
/// they are set aside in order, and go first once they are free.
/// Thread  one caller at a time
/// Cost    O(1) per slot, 8 bytes per slot; evict: amortised O(1) while a slot that is not set aside may be evicted
class lru {
 public:
  explicit lru(std::size_t slots) : queue_(slots) {}

  void insert(std::span<const eviction_entry> entries) noexcept {
    for (const eviction_entry& entry : entries) queue_.insert(entry.slot);
  }
  /// Shape   front: came in for the same request; where it was set aside, the newcomer is too
  void insert_behind(const eviction_entry& entry, slot_index front) noexcept {
    queue_.insert_before(front, entry.slot);
  }
  void touch(std::span<const slot_index> slots) noexcept {
    for (const slot_index slot : slots) queue_.renew(slot);
  }
  void erase(slot_index slot) noexcept { queue_.erase(slot); }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    return queue_.evict(pinned);
  }
  [[nodiscard]] std::size_t size() const noexcept { return queue_.size(); }

 private:
  detail::parking_queue queue_;
};

static_assert(eviction_policy<lru>);
static_assert(chained_eviction<lru>);

}  // namespace kvx
