// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <list>
#include <span>
#include <vector>

namespace kvx_replay {

/// LRU to the letter: the oldest slot that is not pinned goes, and pinned ones keep their places.
///
/// The reference for published figures. `kvx::lru` sets pinned slots aside in place of walking past all of them each
/// time, which changes their order a little.
/// Cost    evict: O(pinned)
class strict_lru {
 public:
  explicit strict_lru(std::size_t slots) : place_(slots) {}

  void insert(std::span<const kvx::eviction_entry> entries) {
    for (const kvx::eviction_entry& e : entries) place_[e.slot] = oldest_first_.insert(oldest_first_.end(), e.slot);
  }
  void touch(std::span<const kvx::slot_index> slots) {
    for (const kvx::slot_index slot : slots) oldest_first_.splice(oldest_first_.end(), oldest_first_, place_[slot]);
  }
  void erase(kvx::slot_index slot) { oldest_first_.erase(place_[slot]); }

  template <class Pinned>
  [[nodiscard]] kvx::slot_index evict(Pinned&& pinned) {
    for (auto at = oldest_first_.begin(); at != oldest_first_.end(); ++at) {
      const kvx::slot_index slot = *at;
      if (pinned(slot)) continue;
      oldest_first_.erase(at);
      return slot;
    }
    return kvx::no_slot;
  }
  [[nodiscard]] std::size_t size() const noexcept { return oldest_first_.size(); }

 private:
  std::list<kvx::slot_index> oldest_first_;
  std::vector<std::list<kvx::slot_index>::iterator> place_;
};

static_assert(kvx::eviction_policy<strict_lru>);

}  // namespace kvx_replay
