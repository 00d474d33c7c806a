// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/hints.hpp>
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

/// An eviction policy with an order, in which a block can take the place just before another's.
///
/// A prompt that is saved in parts arrives head first, and each part, inserted as it comes, would outlive the one in
/// front of it. `insert_behind(entry, front)` inserts a block right behind a held one as if both had come in one batch.
/// Where `front` waits in the order that the newcomer enters, or was set aside from it as pinned, the newcomer gets the
/// place just before it. Elsewhere (`front` was used since and moved on, or a policy that remembers what it gave up
/// knows one of the two) it enters as by `insert`. What a policy learns from keys is the same as with `insert`.
/// Shape   front: held, and came in for the same request. The newcomer is as old as it is: behind a block that was
///         there before the request, `insert`
/// Cost    amortised O(1), no allocation
template <class P>
concept chained_eviction = eviction_policy<P> && requires(P policy, const eviction_entry& entry, slot_index front) {
  policy.insert_behind(entry, front);
};

/// A request as a policy that learns from requests sees it.
struct eviction_request {
  /// Deepest first. slot: where the tier has the block, `no_slot` where it has not. Keys chain: equal key, equal
  /// prefix.
  std::span<const eviction_entry> blocks;
  /// How many blocks of the request are in front of these.
  std::size_t before = 0;
  /// Key of the block right in front of these, where `before` is not 0.
  std::uint64_t parent = 0;
  /// The same in several calls about one request, whose blocks count once, also those told twice; 0: a request of its
  /// own.
  std::uint64_t id = 0;
  session_state session = session_state::unknown;
  /// When the session's next request is expected; zero: unknown.
  std::chrono::milliseconds returns_in{0};
};

/// An eviction policy that learns from whole requests, and may refuse newcomers.
///
/// `access(request)` takes the place of `touch`, and comes before room is made for the request's newcomers. Then,
/// front first and only where no slot is free: `admits(key)` says whether a newcomer is worth the slot that it would
/// cost. What it refuses is used by its request and then forgotten. Whoever must have a slot all the same (a read
/// needs a buffer) calls `evict` without asking; such a block is what goes next.
/// Cost    amortised O(1) per block, no allocation
template <class P>
concept request_eviction = eviction_policy<P> &&
    requires(P policy, const P& view, const eviction_request& request, std::uint64_t key) {
  policy.access(request);
  { view.admits(key) } -> std::same_as<bool>;
};

/// An eviction policy that takes news about a session between its requests: it was closed, a tool was called.
/// Shape   keys: the blocks of the session's last request, deepest first; those not known are ignored
template <class P>
concept hint_eviction = eviction_policy<P> &&
    requires(P policy, std::span<const std::uint64_t> keys, const hints& news) {
  policy.advise(keys, news);
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
