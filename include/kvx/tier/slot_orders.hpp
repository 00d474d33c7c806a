// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/hints.hpp>
#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvx {

/// What the engine ordered for slots, whatever the eviction policy: keep, keep before others, give up first.
///
/// At most half of the slots are kept by order; more orders to keep are ignored.
/// Shape   now, expires: in one coarse clock; 0: never expires
/// Thread  one caller at a time
/// Cost    nothing until the first order; then 28 bytes per slot, O(log slots) per time to live, else O(1)
class slot_orders {
 public:
  explicit slot_orders(std::size_t slots) noexcept : slots_(slots) {}

  /// Replaces what was ordered for a slot.
  void set(slot_index slot, const hints& wanted, std::uint32_t expires) {
    const bool nothing = wanted.priority == retention::normal && !wanted.pinned && expires == 0;
    if (orders_.empty()) {
      if (nothing) return;
      orders_.resize(slots_);
      go_first_ = detail::slot_lists(slots_, 1);
      deadlines_.reserve(2 * slots_);
    }
    clear(slot);
    if (nothing) return;
    order& at = orders_[slot];
    at.pinned = wanted.pinned && pinned_ < slots_ / 2;
    at.high = wanted.priority == retention::high;
    at.expires = expires;
    pinned_ += at.pinned ? 1 : 0;
    high_ += at.high ? 1 : 0;
    if (wanted.priority == retention::low) give_up_first(slot);
    if (expires != 0) remember(slot, expires);
  }
  /// The slot is given up, or nothing is ordered any more.
  void clear(slot_index slot) noexcept {
    if (orders_.empty()) return;
    const order was = std::exchange(orders_[slot], {});
    pinned_ -= was.pinned ? 1 : 0;
    high_ -= was.high ? 1 : 0;
    if (was.first) go_first_.remove(slot);
  }

  [[nodiscard]] bool pinned(slot_index slot) const noexcept { return pinned_ != 0 && orders_[slot].pinned; }
  [[nodiscard]] bool high(slot_index slot) const noexcept { return high_ != 0 && orders_[slot].high; }
  [[nodiscard]] bool any_high() const noexcept { return high_ != 0; }

  /// A slot that is to go before any other and is not pinned; `no_slot` when there is none.
  template <class Pinned>
  [[nodiscard]] slot_index first_to_go(std::uint32_t now, Pinned& pinned) {
    if (orders_.empty()) return no_slot;
    while (!deadlines_.empty() && deadlines_.front().first <= now) {
      const auto [expires, slot] = deadlines_.front();
      std::pop_heap(deadlines_.begin(), deadlines_.end(), later);
      deadlines_.pop_back();
      if (orders_[slot].expires == expires && !orders_[slot].first) give_up_first(slot);
    }
    constexpr std::size_t most_tries = 16;
    for (std::size_t tries = most_tries; tries != 0; --tries) {
      const slot_index slot = go_first_.oldest(0);
      if (slot == no_slot) return no_slot;
      if (!pinned(slot)) return slot;
      go_first_.move_to_newest(0, slot);
    }
    return no_slot;
  }

 private:
  struct order {
    std::uint32_t expires = 0;
    bool pinned = false;
    bool high = false;
    bool first = false;
  };
  using deadline = std::pair<std::uint32_t, slot_index>;

  static bool later(const deadline& a, const deadline& b) noexcept { return a.first > b.first; }

  // A prompt's blocks come front first, and only its last can go: the last that came is looked at first.
  void give_up_first(slot_index slot) noexcept {
    orders_[slot].first = true;
    const slot_index before = go_first_.oldest(0);
    if (before == no_slot)
      go_first_.push_newest(0, slot);
    else
      go_first_.push_before(before, slot);
  }
  void remember(slot_index slot, std::uint32_t expires) {
    // Those of slots that were given up since are only thrown out when their time comes, or here.
    if (deadlines_.size() == 2 * slots_) {
      std::erase_if(deadlines_, [this](const deadline& d) { return orders_[d.second].expires != d.first; });
      std::make_heap(deadlines_.begin(), deadlines_.end(), later);
      if (deadlines_.size() == 2 * slots_) deadlines_.pop_back();
    }
    deadlines_.emplace_back(expires, slot);
    std::push_heap(deadlines_.begin(), deadlines_.end(), later);
  }

  std::size_t slots_;
  std::vector<order> orders_;
  detail::slot_lists go_first_{0, 1};
  std::vector<deadline> deadlines_;
  std::size_t pinned_ = 0;
  std::size_t high_ = 0;
};

}  // namespace kvx
