// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvx {

/// An eviction policy behind a list of newcomers, which reach it tail first.
///
/// Blocks arrive front first, one by one, as copies and reads end; policies want a prompt's deepest block first,
/// so that its prefix stays longest. So newcomers wait until their operation is finished, or until nothing else
/// is left to evict, and then go to the policy in reverse.
/// Thread  one caller at a time
/// Cost    one byte per slot beside the policy's own
template <eviction_policy Policy>
class newcomer_queue {
 public:
  explicit newcomer_queue(std::size_t slots) : places_(slots, place::outside), policy_(slots) {}

  /// Shape   entry.slot: not in here
  void add(const eviction_entry& entry) {
    places_[entry.slot] = place::newcomer;
    newcomers_.push_back(entry);
  }
  /// Hands the newcomers to the policy.
  void settle() {
    if (newcomers_.empty()) return;
    std::reverse(newcomers_.begin(), newcomers_.end());
    for (const eviction_entry& e : newcomers_) places_[e.slot] = place::held;
    policy_.insert(newcomers_);
    newcomers_.clear();
  }

  [[nodiscard]] bool contains(slot_index slot) const noexcept { return places_[slot] != place::outside; }

  /// Shape   slots: in here, tail first; those that the policy does not know yet are new enough
  void touch(std::vector<slot_index>& slots) {
    std::erase_if(slots, [this](slot_index slot) { return places_[slot] != place::held; });
    policy_.touch(slots);
  }
  /// Takes a slot out, if it is in here.
  void remove(slot_index slot) {
    const place was = std::exchange(places_[slot], place::outside);
    if (was == place::held) policy_.erase(slot);
    if (was == place::newcomer) std::erase_if(newcomers_, [slot](const eviction_entry& e) { return e.slot == slot; });
  }
  /// Takes out the next slot for which `pinned` is false; `no_slot` when there is none.
  template <std::predicate<slot_index> Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    slot_index victim = policy_.evict(pinned);
    if (victim == no_slot && !newcomers_.empty()) {
      settle();
      victim = policy_.evict(pinned);
    }
    if (victim != no_slot) places_[victim] = place::outside;
    return victim;
  }

 private:
  enum class place : std::uint8_t { outside, newcomer, held };

  std::vector<place> places_;
  std::vector<eviction_entry> newcomers_;
  Policy policy_;
};

}  // namespace kvx
