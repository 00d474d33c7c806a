// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx {

/// A block as an eviction policy sees it.
struct eviction_entry {
  slot_index slot = no_slot;
  /// 64 bits of the key, for policies that remember what they evicted.
  std::uint64_t key = 0;
  /// Tokens of its prompt before the block, for policies that weigh what computing it again would cost.
  std::uint32_t past_tokens = 0;
};

/// Decides which slot of a tier to give up next.
///
/// Batches come tail first: element 0 is the deepest block of a prompt, so that a policy that takes them
/// in order lets a prefix outlive its suffix. `evict(pinned)` returns a slot that it held and for which
/// `pinned(slot)` is false, and forgets it; `no_slot` when there is none. A slot for which it is true is
/// in use, leased, or the parent of a cached block: the policy may requeue it, but keeps it.
/// Shape   constructed with the tier's number of slots; slots are below it; a slot is held at most once
/// Thread  one caller at a time
/// Errors  none; inserting a held slot or touching or erasing one that is not held is the caller's bug
/// Cost    amortised O(1) per slot, allocations only in the constructor
template <class P>
concept eviction_policy = std::constructible_from<P, std::size_t> && std::movable<P> &&
    requires(P policy, const P& view, slot_index slot, std::span<const eviction_entry> entries,
             std::span<const slot_index> slots, bool (*pinned)(slot_index)) {
  policy.insert(entries);
  policy.touch(slots);
  policy.erase(slot);
  { policy.evict(pinned) } -> std::same_as<slot_index>;
  { view.size() } -> std::convertible_to<std::size_t>;
};

namespace archetype {

/// The least that models `eviction_policy`: gives up the lowest slot that is not pinned.
class eviction {
 public:
  explicit eviction(std::size_t slots) : held_(slots, false) {}

  void insert(std::span<const eviction_entry> entries) {
    for (const eviction_entry& e : entries) set(e.slot, true);
  }
  void touch(std::span<const slot_index>) {}
  void erase(slot_index slot) { set(slot, false); }

  template <std::predicate<slot_index> Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    for (std::size_t i = 0; i < held_.size(); ++i) {
      const auto slot = static_cast<slot_index>(i);
      if (!held_[i] || pinned(slot)) continue;
      set(slot, false);
      return slot;
    }
    return no_slot;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  void set(slot_index slot, bool held) {
    if (held_[slot] == held) return;
    held_[slot] = held;
    held ? ++size_ : --size_;
  }

  std::vector<bool> held_;
  std::size_t size_ = 0;
};

}  // namespace archetype

static_assert(eviction_policy<archetype::eviction>);

}  // namespace kvx
