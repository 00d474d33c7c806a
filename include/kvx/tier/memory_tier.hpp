// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/index.hpp>
#include <kvx/tier/newcomer_queue.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx {

/// The slots of one group in the arena, who uses them, and which to give up.
///
/// A slot is free, busy (being filled from storage or from the engine), or ready. Ready slots are in the
/// policy; a slot with pins, a lease or cached children is never its victim.
/// Shape   memory: a whole number of strides
/// Thread  one caller at a time
template <eviction_policy Policy>
class memory_tier {
 public:
  memory_tier(std::span<std::byte> memory, std::size_t stride_bytes)
      : base_(memory.data()), stride_(stride_bytes), slots_(memory.size() / stride_bytes), evictable_(slots_.size()) {
    free_.reserve(slots_.size());
    for (std::size_t i = slots_.size(); i-- > 0;) free_.push_back(static_cast<slot_index>(i));
  }

  [[nodiscard]] std::size_t capacity() const noexcept { return slots_.size(); }
  [[nodiscard]] std::size_t free_slots() const noexcept { return free_.size(); }
  /// Slots with at least one pin.
  [[nodiscard]] std::size_t pinned_slots() const noexcept { return pinned_; }

  /// Header and payload of a slot.
  [[nodiscard]] std::span<std::byte> bytes(slot_index slot) const noexcept { return {base_ + slot * stride_, stride_}; }
  [[nodiscard]] node_id node_of(slot_index slot) const noexcept { return slots_[slot].node; }
  [[nodiscard]] std::uint32_t pins(slot_index slot) const noexcept { return slots_[slot].pins; }

  /// A free slot, for assign(); `no_slot` when there is none.
  [[nodiscard]] slot_index take() {
    if (free_.empty()) return no_slot;
    const slot_index slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void assign(slot_index slot, node_id node) noexcept { slots_[slot].node = node; }
  /// Changes whenever a slot is given back: who remembers it knows whether the slot still holds what it held.
  [[nodiscard]] std::uint32_t fills(slot_index slot) const noexcept { return slots_[slot].fills; }

  /// The slot holds a verified block and may be evicted from now on.
  void publish(const eviction_entry& entry, const block_origin& from) { evictable_.add(entry, from); }
  /// An operation that brought blocks is finished.
  void settle() { evictable_.settle(); }
  /// A request uses blocks; slots are published ones.
  void access(const eviction_request& request) { evictable_.access(request); }
  [[nodiscard]] bool admits(std::uint64_t key) const { return evictable_.admits(key); }
  void advise(std::span<const std::uint64_t> keys, const hints& news) { evictable_.advise(keys, news); }
  /// How many blocks of a request access() was told of, from the front.
  [[nodiscard]] std::size_t told(std::uint64_t request) const noexcept { return evictable_.told(request); }
  /// What the engine orders for an assigned slot, in place of what it ordered before; it holds until the slot is given
  /// back.
  void order(slot_index slot, const block_orders& wanted) { evictable_.order(slot, wanted); }
  [[nodiscard]] block_orders orders(slot_index slot) const noexcept { return evictable_.orders(slot); }
  [[nodiscard]] bool published(slot_index slot) const noexcept { return evictable_.contains(slot); }

  /// Gives a slot back; one that was published leaves the policy.
  void release(slot_index slot) {
    evictable_.remove(slot);
    slots_[slot] = {.fills = slots_[slot].fills + 1};
    free_.push_back(slot);
  }

  /// Evicts one slot for which `keep(slot)` is false and that has no pins, and returns it, still assigned to its
  /// node; release() it. `no_slot` when everything is in use.
  template <class Keep>
  [[nodiscard]] slot_index evict(std::uint32_t now, Keep&& keep) {
    return evictable_.evict(now, [&](slot_index candidate) { return slots_[candidate].pins != 0 || keep(candidate); });
  }

  /// Whether a slot's block still waits to be written to storage.
  [[nodiscard]] bool dirty(slot_index slot) const noexcept { return slots_[slot].dirty; }
  void set_dirty(slot_index slot, bool is) noexcept { slots_[slot].dirty = is; }

  void pin(slot_index slot) noexcept {
    if (slots_[slot].pins++ == 0) ++pinned_;
  }
  void unpin(slot_index slot) noexcept {
    if (--slots_[slot].pins == 0) --pinned_;
  }

 private:
  struct slot_state {
    node_id node = no_node;
    std::uint32_t pins = 0;
    bool dirty = false;
    std::uint32_t fills = 0;
  };

  std::byte* base_;
  std::size_t stride_;
  std::vector<slot_state> slots_;
  std::vector<slot_index> free_;
  std::size_t pinned_ = 0;
  newcomer_queue<Policy> evictable_;
};

}  // namespace kvx
