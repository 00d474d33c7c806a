// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/huge_page_allocator.hpp>
#include <kvx/types.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

namespace kvx {

using node_id = std::uint32_t;
inline constexpr node_id no_node = 0xFFFF'FFFFU;

/// Which blocks of one group are where: a hash table that many threads read while one changes it.
///
/// A node is one block in any tier. It knows its place in memory and in storage (each perhaps `busy`:
/// being filled or written), its parent, and how many cached children it has per tier, so that only
/// leaves are evicted and a prefix outlives its suffix. Node ids stay valid until erase().
/// Thread  lookup*: any, without locks; everything else: one caller at a time
/// Cost    40 bytes per node with 16-byte digests, and 4 to 8 for the buckets; no allocation after construction
template <class Digest>
class block_index {
 public:
  /// Shape   capacity: the most nodes there will ever be; below 2^28; seed: secret, against keys that are made to
  ///         share a bucket
  explicit block_index(std::size_t capacity, std::uint64_t seed = 0)
      : seed_(seed),
        nodes_(capacity),
        bucket_mask_(bucket_count(capacity) - 1),
        heads_(bucket_mask_ + 1),
        sequences_(stripe_count) {
    for (auto& head : heads_) head.store(no_node, std::memory_order_relaxed);
    for (std::size_t i = capacity; i-- > 0;) {
      nodes_[i].next.store(free_, std::memory_order_relaxed);
      free_ = static_cast<node_id>(i);
    }
  }

  /// Where a block is now; found blocks are leased until `lease` (in the caller's coarse clock).
  [[nodiscard]] tier lookup(const Digest& key, std::uint32_t lease) const noexcept {
    const words wanted = to_words(key);
    const std::size_t bucket = bucket_of(wanted);
    const std::atomic<std::uint32_t>& sequence = sequences_[stripe_of(bucket)];
    for (;;) {
      const std::uint32_t before = sequence.load(std::memory_order_acquire);
      if ((before & 1U) != 0) continue;  // a writer is inside; it holds no lock and does no I/O there
      tier found = tier::miss;
      std::size_t steps = 0;
      for (node_id n = heads_[bucket].load(std::memory_order_acquire); n != no_node && steps < max_steps; ++steps) {
        const node& at = nodes_[n];
        if (equal(at, wanted)) {
          found = tier_of(at.memory.load(std::memory_order_acquire), at.storage.load(std::memory_order_acquire));
          if (found != tier::miss && at.lease.load(std::memory_order_acquire) < lease)
            at.lease.store(lease, std::memory_order_relaxed);
          break;
        }
        n = at.next.load(std::memory_order_acquire);
      }
      // A chain that really is this long is no accident; what is behind it is a miss.
      if (sequence.load(std::memory_order_relaxed) == before) return found;
    }
  }

  /// Looks up a window of keys with their cache misses overlapped.
  /// Shape   where.size() == keys.size()
  void lookup(std::span<const Digest> keys, std::uint32_t lease, std::span<tier> where) const noexcept {
    // Bucket, first node, second node: what is read here is only a hint of what to fetch.
    for (const Digest& key : keys) __builtin_prefetch(&heads_[bucket_of(to_words(key))]);
    for (const Digest& key : keys) prefetch(heads_[bucket_of(to_words(key))].load(std::memory_order_relaxed));
    for (const Digest& key : keys) {
      const words wanted = to_words(key);
      const node_id head = heads_[bucket_of(wanted)].load(std::memory_order_relaxed);
      if (head != no_node && !equal(nodes_[head], wanted)) prefetch(nodes_[head].next.load(std::memory_order_relaxed));
    }
    for (std::size_t i = 0; i < keys.size(); ++i) where[i] = lookup(keys[i], lease);
  }

  [[nodiscard]] node_id find(const Digest& key) const noexcept {
    const words wanted = to_words(key);
    node_id n = heads_[bucket_of(wanted)].load(std::memory_order_relaxed);
    while (n != no_node && !equal(nodes_[n], wanted)) n = nodes_[n].next.load(std::memory_order_relaxed);
    return n;
  }

  /// Finds or adds a block; `no_node` when the index is full. A new node is in no tier, and must be put
  /// into one before anything else is taken out of the index: its parent is held only by placed children.
  [[nodiscard]] node_id insert(const Digest& key, node_id parent) noexcept {
    if (const node_id known = find(key); known != no_node) {
      // A node in no tier did not hold its former parent, whose node may be somebody else's by now.
      if (placeless(nodes_[known])) nodes_[known].parent = parent;
      return known;
    }
    if (free_ == no_node) return no_node;
    const node_id n = free_;
    node& at = nodes_[n];
    free_ = at.next.load(std::memory_order_relaxed);
    const words value = to_words(key);
    const std::size_t bucket = bucket_of(value);
    const write_section guard(sequences_[stripe_of(bucket)]);
    for (std::size_t i = 0; i < word_count; ++i) at.key[i].store(value[i], std::memory_order_release);
    at.memory.store(no_place, std::memory_order_release);
    at.storage.store(no_place, std::memory_order_release);
    at.lease.store(0, std::memory_order_relaxed);
    at.parent = parent;
    at.children = {};
    at.next.store(heads_[bucket].load(std::memory_order_relaxed), std::memory_order_release);
    heads_[bucket].store(n, std::memory_order_release);
    ++size_;
    return n;
  }

  /// Gives a block that was inserted without its parent the parent that came later. Keys are chained, so that a block
  /// is no ancestor of its own parent.
  void adopt(node_id n, node_id parent) noexcept {
    node& at = nodes_[n];
    if (at.parent != no_node || parent == n || placeless(at)) return;
    at.parent = parent;
    for (const std::size_t which : {0U, 1U}) {
      const auto& place = which == 0 ? at.memory : at.storage;
      std::uint16_t& children = nodes_[parent].children[which];
      if (place.load(std::memory_order_relaxed) != no_place && children != 0xFFFFU) ++children;
    }
  }

  /// Drops a node that is in no tier and has no cached children; otherwise does nothing.
  void erase_if_unused(node_id n) noexcept {
    node& at = nodes_[n];
    if (!placeless(at) || at.children[0] != 0 || at.children[1] != 0) return;
    const std::size_t bucket = bucket_of(load_words(at));
    {
      const write_section guard(sequences_[stripe_of(bucket)]);
      std::atomic<node_id>* link = &heads_[bucket];
      while (link->load(std::memory_order_relaxed) != n) link = &nodes_[link->load(std::memory_order_relaxed)].next;
      link->store(at.next.load(std::memory_order_relaxed), std::memory_order_release);
    }
    at.next.store(free_, std::memory_order_release);
    free_ = n;
    --size_;
  }

  /// Puts a block into a tier, or changes whether it is busy there.
  void set_memory(node_id n, slot_index slot, bool busy) noexcept { set_place(n, 0, pack(slot, busy)); }
  void set_storage(node_id n, slot_index slot, bool busy) noexcept { set_place(n, 1, pack(slot, busy)); }
  /// Takes a block out of a tier; erase_if_unused() then frees its node when nothing else needs it.
  void clear_memory(node_id n) noexcept { set_place(n, 0, no_place); }
  void clear_storage(node_id n) noexcept { set_place(n, 1, no_place); }

  [[nodiscard]] slot_index memory_slot(node_id n) const noexcept { return slot_in(nodes_[n].memory); }
  [[nodiscard]] slot_index storage_slot(node_id n) const noexcept { return slot_in(nodes_[n].storage); }
  [[nodiscard]] bool memory_busy(node_id n) const noexcept { return busy_in(nodes_[n].memory); }
  [[nodiscard]] bool storage_busy(node_id n) const noexcept { return busy_in(nodes_[n].storage); }
  [[nodiscard]] bool has_children_in_memory(node_id n) const noexcept { return nodes_[n].children[0] != 0; }
  [[nodiscard]] bool has_children_in_storage(node_id n) const noexcept { return nodes_[n].children[1] != 0; }
  /// `no_node` for a prompt's first block, and where the parent was not known.
  [[nodiscard]] node_id parent(node_id n) const noexcept { return nodes_[n].parent; }
  [[nodiscard]] std::uint32_t lease(node_id n) const noexcept {
    return nodes_[n].lease.load(std::memory_order_relaxed);
  }
  [[nodiscard]] Digest key(node_id n) const noexcept {
    const words value = load_words(nodes_[n]);
    Digest out;
    std::memcpy(out.bytes.data(), value.data(), Digest::size());
    return out;
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t memory_bytes() const noexcept {
    return nodes_.size() * sizeof(node) + heads_.size() * sizeof(heads_[0]) + sequences_.size() * sizeof(sequences_[0]);
  }

 private:
  static constexpr std::size_t word_count = (Digest::size() + 7) / 8;
  using words = std::array<std::uint64_t, word_count>;

  // A place is a slot in 28 bits and a busy bit; all ones is "not in this tier".
  static constexpr std::uint32_t no_place = 0xFFFF'FFFFU;
  static constexpr std::uint32_t busy_bit = 0x8000'0000U;
  static constexpr std::uint32_t slot_mask = 0x0FFF'FFFFU;
  static constexpr std::size_t stripe_count = 1024;
  // A chain this long is a reader that strayed into a node that was freed and reused.
  static constexpr std::size_t max_steps = 4096;

  struct node {
    std::array<std::atomic<std::uint64_t>, word_count> key{};
    std::atomic<std::uint32_t> memory{no_place};
    std::atomic<std::uint32_t> storage{no_place};
    std::atomic<node_id> next{no_node};
    mutable std::atomic<std::uint32_t> lease{0};
    node_id parent = no_node;
    // Saturates and then sticks: a block with 65,535 cached children stays for good.
    std::array<std::uint16_t, 2> children{};
  };

  class write_section {
   public:
    explicit write_section(std::atomic<std::uint32_t>& sequence) noexcept : sequence_(sequence) {
      sequence_.store(sequence_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
    ~write_section() { sequence_.store(sequence_.load(std::memory_order_relaxed) + 1, std::memory_order_release); }
    write_section(const write_section&) = delete;
    write_section& operator=(const write_section&) = delete;

   private:
    std::atomic<std::uint32_t>& sequence_;
  };

  [[nodiscard]] static std::size_t bucket_count(std::size_t capacity) noexcept {
    std::size_t count = 1024;
    while (count < capacity) count *= 2;
    return count;
  }
  void prefetch(node_id n) const noexcept {
    if (n == no_node) return;
    // Nodes are not aligned to cache lines, for the sake of memory.
    const auto* const at = reinterpret_cast<const char*>(&nodes_[n]);
    __builtin_prefetch(at);
    __builtin_prefetch(at + sizeof(node) - 1);
  }
  [[nodiscard]] static words to_words(const Digest& key) noexcept {
    words out{};
    std::memcpy(out.data(), key.bytes.data(), Digest::size());
    return out;
  }
  [[nodiscard]] static words load_words(const node& at) noexcept {
    words out;
    for (std::size_t i = 0; i < word_count; ++i) out[i] = at.key[i].load(std::memory_order_relaxed);
    return out;
  }
  [[nodiscard]] static bool equal(const node& at, const words& wanted) noexcept {
    for (std::size_t i = 0; i < word_count; ++i)
      if (at.key[i].load(std::memory_order_acquire) != wanted[i]) return false;
    return true;
  }
  [[nodiscard]] std::size_t bucket_of(const words& key) const noexcept {
    // Digests are uniform, but keys may be an engine's own, or chosen by somebody who wants them all in one bucket.
    std::uint64_t mixed = (key[0] ^ seed_) * 0x9E37'79B9'7F4A'7C15U;
    mixed = ((mixed ^ (mixed >> 32U)) + key[word_count - 1]) * 0xD6E8'FEB8'6659'FD93U;
    return (mixed >> 24U) & bucket_mask_;
  }
  [[nodiscard]] static std::size_t stripe_of(std::size_t bucket) noexcept { return bucket % stripe_count; }

  [[nodiscard]] static constexpr std::uint32_t pack(slot_index slot, bool busy) noexcept {
    return slot | (busy ? busy_bit : 0U);
  }
  [[nodiscard]] static slot_index slot_in(const std::atomic<std::uint32_t>& place) noexcept {
    const std::uint32_t value = place.load(std::memory_order_relaxed);
    return value == no_place ? no_slot : value & slot_mask;
  }
  [[nodiscard]] static bool busy_in(const std::atomic<std::uint32_t>& place) noexcept {
    const std::uint32_t value = place.load(std::memory_order_relaxed);
    return value != no_place && (value & busy_bit) != 0;
  }
  [[nodiscard]] static tier tier_of(std::uint32_t memory, std::uint32_t storage) noexcept {
    if (memory != no_place && (memory & busy_bit) == 0) return tier::memory;
    if (memory != no_place) return tier::pending;
    if (storage != no_place) return (storage & busy_bit) == 0 ? tier::storage : tier::pending;
    return tier::miss;
  }

  // A single word changes, so readers see the old place or the new one and need no write section.
  void set_place(node_id n, std::size_t which, std::uint32_t value) noexcept {
    node& at = nodes_[n];
    std::atomic<std::uint32_t>& place = which == 0 ? at.memory : at.storage;
    const bool was = place.load(std::memory_order_relaxed) != no_place;
    const bool is = value != no_place;
    place.store(value, std::memory_order_release);
    const node_id parent = at.parent;
    if (was == is || parent == no_node) return;
    std::uint16_t& children = nodes_[parent].children[which];
    if (children == 0xFFFFU) return;
    is ? ++children : --children;
    if (!is) erase_if_unused(parent);
  }
  [[nodiscard]] static bool placeless(const node& at) noexcept {
    return at.memory.load(std::memory_order_relaxed) == no_place &&
           at.storage.load(std::memory_order_relaxed) == no_place;
  }

  template <class T>
  using array = std::vector<T, detail::huge_page_allocator<T>>;

  const std::uint64_t seed_;
  array<node> nodes_;
  std::size_t bucket_mask_;
  mutable array<std::atomic<node_id>> heads_;
  mutable std::vector<std::atomic<std::uint32_t>> sequences_;
  node_id free_ = no_node;
  std::size_t size_ = 0;
};

}  // namespace kvx
