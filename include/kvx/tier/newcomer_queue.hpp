// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/recent_requests.hpp>
#include <kvx/tier/slot_orders.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvx {

/// Where a block comes from that arrives in a tier.
struct block_origin {
  /// The request that brings it in; 0: unknown.
  std::uint64_t request = 0;
  /// Where the tier has the block in front of it; `no_slot`: nowhere.
  slot_index front = no_slot;
};

/// An eviction policy behind a list of newcomers, which reach it tail first, and behind what the engine ordered.
///
/// Blocks arrive front first, one by one, as copies and reads end; policies want a prompt's deepest block first,
/// so that its prefix stays longest. So newcomers wait until their operation is finished, or until nothing else
/// is left to evict, and then go to the policy deepest first. What a request brings in later goes behind what it
/// brought in before, where the policy can do that.
/// Thread  one caller at a time
/// Cost    bytes_per_slot and 48 KiB, beside the policy's own
template <eviction_policy Policy>
class newcomer_queue {
  enum class place : std::uint8_t { outside, newcomer, held };
  struct origin {
    std::uint32_t request = 0;  // the low half of its id tells it from those before and after it
    slot_index front = no_slot;
  };

 public:
  static constexpr std::size_t bytes_per_slot = sizeof(place) + (chained_eviction<Policy> ? sizeof(origin) : 0);

  explicit newcomer_queue(std::size_t slots)
      : places_(slots, place::outside),
        origins_(chained_eviction<Policy> ? slots : 0),
        policy_(slots),
        orders_(slots) {}

  /// Shape   entry.slot: not in here
  void add(const eviction_entry& entry, const block_origin& from = {}) {
    places_[entry.slot] = place::newcomer;
    if constexpr (chained_eviction<Policy>)
      origins_[entry.slot] = {static_cast<std::uint32_t>(from.request), from.front};
    newcomers_.push_back(entry);
    if (!orders_.high(entry.slot)) high_passes_to_skip_ = 0;
  }
  /// Hands the newcomers to the policy.
  void settle() {
    if (newcomers_.empty()) return;
    // Copies and reads end in an order of their own. What is nearly in order is sorted in next to no time.
    std::reverse(newcomers_.begin(), newcomers_.end());
    std::stable_sort(newcomers_.begin(), newcomers_.end(),
                     [](const eviction_entry& a, const eviction_entry& b) { return a.past_tokens > b.past_tokens; });
    auto continued = newcomers_.begin();
    if constexpr (chained_eviction<Policy>)
      continued = std::stable_partition(newcomers_.begin(), newcomers_.end(),
                                        [this](const eviction_entry& e) { return goes_on(e.slot); });
    insert(std::span(continued, newcomers_.end()));
    while (continued != newcomers_.begin()) insert_behind(*--continued);
    newcomers_.clear();
  }

  [[nodiscard]] bool contains(slot_index slot) const noexcept { return places_[slot] != place::outside; }

  /// Shape   slots: in here, tail first; those that the policy does not know yet are new enough
  void touch(std::vector<slot_index>& slots) {
    std::erase_if(slots, [this](slot_index slot) { return places_[slot] != place::held; });
    policy_.touch(slots);
  }
  /// Tells a policy that learns from requests of one; others only of the blocks that are here, and of each once.
  /// Shape   request.blocks: slots in here, or none
  void access(const eviction_request& request) {
    // What is in front of these may be the engine's own, and untold yet.
    const std::size_t told_before = told(request.id), end = request.before + request.blocks.size();
    if (!request.blocks.empty() && request.before <= told_before) told_.of(request.id) = std::max(told_before, end);
    if constexpr (request_eviction<Policy>) {
      policy_.access(request);
    } else {
      touched_.clear();
      const std::size_t untold = end - std::clamp(told_before, request.before, end);
      for (const eviction_entry& e : request.blocks.first(untold))
        if (e.slot != no_slot) touched_.push_back(e.slot);
      touch(touched_);
    }
  }
  /// Whether the policy would give up something for a block; all but those that learn from requests always would.
  [[nodiscard]] bool admits(std::uint64_t key) const {
    if constexpr (request_eviction<Policy>) return policy_.admits(key);
    return true;
  }
  /// News of a session, for policies that take them.
  void advise(std::span<const std::uint64_t> keys, const hints& news) {
    if constexpr (hint_eviction<Policy>) policy_.advise(keys, news);
  }
  /// How many blocks of a request access() was told of, from the front.
  [[nodiscard]] std::size_t told(std::uint64_t request) const noexcept {
    const std::size_t* const blocks = told_.find(request);
    return blocks == nullptr ? 0 : *blocks;
  }
  /// What the engine orders for a slot, in place of what it ordered before. It may come before add(), and holds until
  /// the slot is taken out.
  void order(slot_index slot, const block_orders& wanted) {
    if (places_[slot] != place::outside && wanted != orders_.of(slot)) high_passes_to_skip_ = 0;
    orders_.set(slot, wanted);
  }
  [[nodiscard]] block_orders orders(slot_index slot) const noexcept { return orders_.of(slot); }

  /// Takes a slot out, if it is in here.
  void remove(slot_index slot) {
    orders_.clear(slot);
    const place was = std::exchange(places_[slot], place::outside);
    if (was == place::held) policy_.erase(slot);
    if (was == place::newcomer) std::erase_if(newcomers_, [slot](const eviction_entry& e) { return e.slot == slot; });
  }
  /// Takes out the next slot for which `pinned` is false; `no_slot` when there is none.
  /// Shape   now: in the clock of order()
  template <std::predicate<slot_index> Pinned>
  [[nodiscard]] slot_index evict(std::uint32_t now, Pinned&& pinned) {
    const auto kept = [&](slot_index slot) { return orders_.pinned(slot) || pinned(slot); };
    // What is still on its way into a slot can have orders already.
    const auto kept_or_absent = [&](slot_index slot) { return places_[slot] == place::outside || kept(slot); };
    if (const slot_index first = orders_.first_to_go(now, kept_or_absent); first != no_slot) {
      remove(first);
      return first;
    }
    slot_index victim = no_slot;
    bool in_vain = false;
    if (high_passes_to_skip_ != 0 && now == high_pass_at_) {
      --high_passes_to_skip_;
    } else if (orders_.any_high()) {
      victim = take([&](slot_index slot) { return orders_.high(slot) || kept(slot); });
      in_vain = victim == no_slot;
    }
    if (victim == no_slot) victim = take(kept);
    if (victim == no_slot) return no_slot;
    if (in_vain) {
      // That was a walk over all slots: it is not worth one for every eviction, but one for some, and one whenever what
      // was kept may have ended.
      high_passes_to_skip_ = places_.size() / 64;
      high_pass_at_ = now;
    }
    places_[victim] = place::outside;
    orders_.clear(victim);
    return victim;
  }

 private:
  void insert(std::span<const eviction_entry> entries) {
    for (const eviction_entry& e : entries) places_[e.slot] = place::held;
    policy_.insert(entries);
  }
  // An engine saves a long prompt in parts: one that comes later would be newer than the one in front, and stay longer.
  void insert_behind(const eviction_entry& entry) {
    if constexpr (chained_eviction<Policy>) {
      if (const slot_index front = origins_[entry.slot].front; places_[front] == place::held) {
        places_[entry.slot] = place::held;
        return policy_.insert_behind(entry, front);
      }
    }
    insert({&entry, 1});
  }
  // Behind a block that another request brought in, a newcomer would be as old as that.
  [[nodiscard]] bool goes_on(slot_index newcomer) const noexcept {
    const auto [request, front] = origins_[newcomer];
    return request != 0 && front != no_slot && places_[front] != place::outside && origins_[front].request == request;
  }
  template <class Kept>
  [[nodiscard]] slot_index take(Kept&& kept) {
    const slot_index victim = policy_.evict(kept);
    if (victim != no_slot || newcomers_.empty()) return victim;
    settle();
    return policy_.evict(kept);
  }

  std::vector<place> places_;
  std::vector<origin> origins_;
  std::vector<eviction_entry> newcomers_;
  std::vector<slot_index> touched_;
  detail::recent_requests<std::size_t> told_;
  Policy policy_;
  slot_orders orders_;
  std::size_t high_passes_to_skip_ = 0;
  std::uint32_t high_pass_at_ = 0;
};

}  // namespace kvx
