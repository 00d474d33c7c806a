// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/index.hpp>
#include <kvx/store/block_store.hpp>
#include <kvx/tier/newcomer_queue.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx {

/// The places of one group on storage, which block is where, and which of its own to give up.
///
/// Own slots are evicted by the policy; other writers' slots are only read and forgotten.
/// Thread  one caller at a time, but for store()'s own rules
template <eviction_policy Policy>
class storage_tier {
 public:
  storage_tier(const store::store_options& options, const store::slot_identity& identity,
               const store::slot_geometry& geometry)
      : store_(options, identity, geometry), nodes_(store_.slot_count(), no_node), evictable_(store_.slot_count()) {}

  [[nodiscard]] store::block_store& store() noexcept { return store_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return nodes_.size(); }
  [[nodiscard]] std::size_t blocks() const noexcept { return blocks_; }
  [[nodiscard]] node_id node_of(slot_index slot) const noexcept { return nodes_[slot]; }

  /// Says that a node's block is at a place; own ones become evictable with publish().
  void assign(slot_index slot, node_id node) noexcept {
    if (nodes_[slot] == no_node) ++blocks_;
    nodes_[slot] = node;
  }
  /// The block at a place is gone from the index; an own slot that was published leaves the policy.
  void forget(slot_index slot) {
    if (nodes_[slot] != no_node) --blocks_;
    nodes_[slot] = no_node;
    evictable_.remove(slot);
  }

  /// An own slot may be evicted from now on.
  void publish(const eviction_entry& entry, const block_origin& from) { evictable_.add(entry, from); }
  [[nodiscard]] bool published(slot_index slot) const noexcept { return evictable_.contains(slot); }
  /// An operation that stored blocks is finished.
  void settle() { evictable_.settle(); }
  /// A request uses blocks; slots are published ones.
  void access(const eviction_request& request) { evictable_.access(request); }
  [[nodiscard]] bool admits(std::uint64_t key) const { return evictable_.admits(key); }
  void advise(std::span<const std::uint64_t> keys, const hints& news) { evictable_.advise(keys, news); }
  [[nodiscard]] std::size_t told(std::uint64_t request) const noexcept { return evictable_.told(request); }
  /// What the engine orders for an assigned own slot, in place of what it ordered before; it holds until forget().
  void order(slot_index slot, const block_orders& wanted) { evictable_.order(slot, wanted); }
  [[nodiscard]] block_orders orders(slot_index slot) const noexcept { return evictable_.orders(slot); }

  /// The next own slot to give up, out of the policy already; forget() and free it. `no_slot`: none may go.
  template <class Keep>
  [[nodiscard]] slot_index evict(std::uint32_t now, Keep&& keep) {
    return evictable_.evict(now, keep);
  }

  /// Whether the store may still claim extents; its keeper finds out.
  [[nodiscard]] bool may_grow() const noexcept { return may_grow_; }
  void may_grow(bool possible) noexcept { may_grow_ = possible; }
  /// Places given back whose eviction the journal does not hold yet: they are free after its next flush.
  [[nodiscard]] std::size_t freeing() const noexcept { return freeing_; }
  void free(slot_index slot) {
    store_.free(slot);
    ++freeing_;
  }
  void flushed(std::size_t places) noexcept { freeing_ -= places; }

  /// Bytes of bookkeeping per place, the policy's apart.
  [[nodiscard]] std::size_t memory_bytes() const noexcept {
    return nodes_.size() * (sizeof(node_id) + newcomer_queue<Policy>::bytes_per_slot);
  }

 private:
  store::block_store store_;
  std::vector<node_id> nodes_;
  std::size_t blocks_ = 0;
  std::size_t freeing_ = 0;
  bool may_grow_ = true;
  newcomer_queue<Policy> evictable_;
};

}  // namespace kvx
