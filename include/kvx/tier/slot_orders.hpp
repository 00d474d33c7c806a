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

/// What the engine ordered for a block.
/// Shape   expires: in the coarse clock of the tiers; 0: never
struct block_orders {
  retention priority = retention::normal;
  bool pinned = false;
  std::uint32_t expires = 0;

  friend bool operator==(const block_orders&, const block_orders&) = default;

  /// What holds for a block that two requests share: of priority, pin and time to live each the one that keeps it
  /// longer, so that neither request gets less than it asked for.
  [[nodiscard]] static block_orders stronger(const block_orders& a, const block_orders& b) noexcept {
    const bool forever = a.expires == 0 || b.expires == 0;
    return {std::max(a.priority, b.priority), a.pinned || b.pinned, forever ? 0 : std::max(a.expires, b.expires)};
  }
};

/// The orders for the slots of a tier, whatever its eviction policy: keep, keep before others, give up first.
///
/// At most half of the slots are kept by order; more orders to keep are remembered and have no effect.
/// Thread  one caller at a time
/// Cost    nothing until the first order; then 36 bytes per slot, O(log slots) per time to live, else O(1)
class slot_orders {
 public:
  explicit slot_orders(std::size_t slots) noexcept : slots_(slots) {}

  /// Replaces what was ordered for a slot.
  void set(slot_index slot, const block_orders& wanted) {
    const bool nothing = wanted == block_orders{};
    if (orders_.empty()) {
      if (nothing) return;
      orders_.resize(slots_);
      go_first_ = detail::slot_lists(slots_, 1);
      deadlines_.reserve(2 * slots_);
    }
    order& at = orders_[slot];
    if (at.asked == wanted && at.kept == wanted.pinned) return;  // a deadline that is there already counts once
    clear(slot);
    if (nothing) return;
    at.asked = wanted;
    at.kept = wanted.pinned && kept_ < slots_ / 2;
    kept_ += at.kept ? 1 : 0;
    high_ += wanted.priority == retention::high ? 1 : 0;
    if (wanted.priority == retention::low) give_up_first(slot);
    if (wanted.expires != 0) remember(slot, wanted.expires);
  }
  [[nodiscard]] block_orders of(slot_index slot) const noexcept {
    return orders_.empty() ? block_orders{} : orders_[slot].asked;
  }
  /// The slot is given up, or nothing is ordered any more.
  void clear(slot_index slot) noexcept {
    if (orders_.empty()) return;
    const order was = std::exchange(orders_[slot], {});
    kept_ -= was.kept ? 1 : 0;
    high_ -= was.asked.priority == retention::high ? 1 : 0;
    if (was.first) go_first_.remove(slot);
  }

  [[nodiscard]] bool pinned(slot_index slot) const noexcept { return kept_ != 0 && orders_[slot].kept; }
  [[nodiscard]] bool high(slot_index slot) const noexcept {
    return high_ != 0 && orders_[slot].asked.priority == retention::high;
  }
  [[nodiscard]] bool any_high() const noexcept { return high_ != 0; }

  /// A slot that is to go before any other and is not pinned; `no_slot` when there is none.
  template <class Pinned>
  [[nodiscard]] slot_index first_to_go(std::uint32_t now, Pinned& pinned) {
    if (orders_.empty()) return no_slot;
    while (!deadlines_.empty() && deadlines_.front().first <= now) {
      const auto [expires, slot] = deadlines_.front();
      std::pop_heap(deadlines_.begin(), deadlines_.end(), later);
      deadlines_.pop_back();
      if (orders_[slot].asked.expires == expires && !orders_[slot].first) give_up_first(slot);
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
    block_orders asked;
    bool kept = false;
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
      deadlines_.clear();
      for (std::size_t i = 0; i < slots_; ++i) {
        if (orders_[i].asked.expires != 0 && !orders_[i].first)
          deadlines_.emplace_back(orders_[i].asked.expires, static_cast<slot_index>(i));
      }
      std::make_heap(deadlines_.begin(), deadlines_.end(), later);
      return;  // this one's is among them
    }
    deadlines_.emplace_back(expires, slot);
    std::push_heap(deadlines_.begin(), deadlines_.end(), later);
  }

  std::size_t slots_;
  std::vector<order> orders_;
  detail::slot_lists go_first_{0, 1};
  std::vector<deadline> deadlines_;
  std::size_t kept_ = 0;
  std::size_t high_ = 0;
};

}  // namespace kvx
