// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/fold_key.hpp>
#include <kvx/detail/random.hpp>
#include <kvx/detail/tier_policies.hpp>
#include <kvx/index.hpp>
#include <kvx/store/block_store.hpp>
#include <kvx/store/slot_format.hpp>
#include <kvx/tickets.hpp>
#include <kvx/tier/memory_tier.hpp>
#include <kvx/tier/storage_tier.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace kvx::detail {

template <class Digest>
[[nodiscard]] Digest from_block_key(const block_key& key) noexcept {
  Digest out;
  std::memcpy(out.bytes.data(), key.bytes.data(), Digest::size());
  return out;
}

/// Layer groups of one cache; models have one to three.
inline constexpr std::size_t most_groups = 16;

/// Who waits for a busy memory slot to become ready.
struct slot_waiter {
  std::shared_ptr<prefetch_state> ticket;
  std::size_t entry = 0;
};

/// 0 where the system has no random numbers: an index without a secret works as well, for those who trust their
/// prompts.
[[nodiscard]] inline std::uint64_t random_word() {
  std::uint64_t word = 0;
  if (const auto id = random_id()) std::memcpy(&word, id->bytes.data(), sizeof word);
  return word;
}

/// Everything of one layer group: where its blocks are, and in which order to give them up.
template <class Digest, class Policies>
struct group_state {
  using eviction = typename Policies::eviction;

  group_state(store::slot_geometry shape, store::slot_identity who, std::span<std::byte> memory_bytes,
              const store::store_options* storage_options)
      : geometry(std::move(shape)),
        identity(who),
        memory(memory_bytes, geometry.stride),
        storage(storage_options != nullptr
                    ? std::make_unique<storage_tier<eviction>>(*storage_options, identity, geometry)
                    : nullptr),
        memory_admission(memory.capacity()),
        storage_admission(storage ? storage->capacity() : 0),
        index(most_nodes(), random_word()),
        tokens_(memory.capacity() * geometry.token_capacity),
        has_tokens_(memory.capacity(), false) {}

  store::slot_geometry geometry;
  store::slot_identity identity;
  memory_tier<eviction> memory;
  std::unique_ptr<storage_tier<eviction>> storage;
  [[no_unique_address]] tier_admission<typename Policies::memory_admission> memory_admission;
  [[no_unique_address]] tier_admission<typename Policies::storage_admission> storage_admission;
  // A resume needs every block before, so that one without its parent is of no use.
  bool chained = true;
  block_index<Digest> index;
  std::unordered_map<slot_index, std::vector<slot_waiter>> waiters;
  // When nothing could be evicted, looking again at once would cost a walk over all slots for each block.
  std::chrono::steady_clock::time_point no_slot_before{};
  std::chrono::steady_clock::time_point no_place_before{};

  [[nodiscard]] std::size_t most_nodes() const noexcept {
    return memory.capacity() + (storage ? storage->capacity() : 0);
  }
  [[nodiscard]] bool has_node() const noexcept { return index.size() < most_nodes(); }
  /// Whether a block is in any tier, or on its way there.
  [[nodiscard]] bool cached(node_id node) const noexcept {
    return node != no_node && (index.memory_slot(node) != no_slot || index.storage_slot(node) != no_slot);
  }
  /// Where this process wrote a node's block, or is writing it; `no_slot` for other writers' places.
  [[nodiscard]] slot_index own_place(node_id node) const noexcept {
    const slot_index place = index.storage_slot(node);
    return place != no_slot && (storage->published(place) || index.storage_busy(node)) ? place : no_slot;
  }
  /// Remembers the tokens of a slot's block; none where the engine gave only keys.
  void keep_tokens(slot_index slot, std::span<const token_id> tokens) {
    has_tokens_[slot] = !tokens.empty();
    std::copy(tokens.begin(), tokens.end(),
              tokens_.begin() + static_cast<std::ptrdiff_t>(slot * geometry.token_capacity));
  }
  /// Whether a slot's block has these tokens. Its key says so already; this is against a weak hasher and mistakes.
  [[nodiscard]] bool holds_tokens(slot_index slot, std::span<const token_id> tokens) const noexcept {
    if (tokens.empty() || !has_tokens_[slot]) return true;
    return std::equal(tokens.begin(), tokens.end(),
                      tokens_.begin() + static_cast<std::ptrdiff_t>(slot * geometry.token_capacity));
  }
  /// The payload of a slot.
  [[nodiscard]] std::byte* payload(slot_index slot) const noexcept {
    return memory.bytes(slot).data() + geometry.header_bytes;
  }
  /// Shape   block: its position in the prompt
  [[nodiscard]] eviction_entry entry_of(slot_index slot, node_id node, std::size_t block) const noexcept {
    return {slot, bits_of(index.key(node)), static_cast<std::uint32_t>(block * geometry.token_capacity)};
  }
  /// A block that arrived may be evicted from now on.
  /// Shape   block: its position in the prompt; request: that brings it in
  void publish_in_memory(slot_index slot, node_id node, std::size_t block, std::uint64_t request) {
    const node_id parent = index.parent(node);
    memory.publish(entry_of(slot, node, block), {request, parent == no_node ? no_slot : index.memory_slot(parent)});
  }
  void publish_on_storage(slot_index place, node_id node, std::size_t block, std::uint64_t request) {
    const node_id parent = index.parent(node);
    storage->publish(entry_of(place, node, block), {request, parent == no_node ? no_slot : index.storage_slot(parent)});
  }
  /// What policies are told of a key, from the bytes that count.
  [[nodiscard]] static std::uint64_t bits_of(const Digest& key) noexcept { return fold_key(key.bytes); }
  [[nodiscard]] static std::uint64_t bits_of(const block_key& key) noexcept {
    return bits_of(from_block_key<Digest>(key));
  }

 private:
  // Beside the slots, not in their headers: those are sealed while others compare.
  std::vector<token_id> tokens_;
  std::vector<bool> has_tokens_;
};

}  // namespace kvx::detail
