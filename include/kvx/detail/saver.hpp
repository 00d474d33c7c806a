// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/block_writer.hpp>
#include <kvx/detail/core_state.hpp>
#include <kvx/sequence.hpp>

namespace kvx::detail {

/// Takes blocks out of engine memory into slots, and passes on what goes to storage.
///
/// A block is admitted or refused, copied (the transfer engine), published in memory, and then the writer's.
template <class Hasher, class Policies, class Io, class Operation>
class saver {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;

  using copy = saved_block<digest_type>;

  saver(state_type& state, block_writer<Hasher, Policies, Io>& writer) noexcept : state_(state), writer_(writer) {}

  /// A piece of a save whose copies are under way.
  struct job {
    std::shared_ptr<save_state> ticket;
    std::vector<Operation> operations;
    std::vector<copy> copies;
    clock::time_point started{};
  };

  /// Makes room for a block and puts it into the index as pending. Nothing when it is known already (the entry is
  /// decided), or when there is no room (it is dropped). Caller holds the lock.
  [[nodiscard]] std::optional<copy> admit(const std::shared_ptr<save_state>& ticket, std::size_t entry,
                                          std::uint16_t group, const sequence& from, std::size_t block,
                                          clock::time_point now) {
    group_type& g = *state_.groups[group];
    const digest_type key = from_block_key<digest_type>(from.key(block));
    std::vector<std::byte> extra = from.extra(block);
    if (extra.size() > g.geometry.extra_capacity) {
      state_.drop(*ticket, entry);
      return std::nullopt;
    }
    const std::span<const token_id> tokens = from.tokens(block);
    copy made;
    made.entry = entry;
    made.group = group;
    made.block = block;
    made.request = from.id();
    made.key = key;
    made.parent = to_block_key(from_block_key<digest_type>(from.parent(block)));  // engines' keys may be longer
    made.tokens.assign(tokens.begin(), tokens.end());
    made.extra = std::move(extra);
    const block_orders orders = state_.orders(from.given_hints(), now);
    if (const node_id known = g.index.find(key);
        known != no_node && (g.index.memory_slot(known) != no_slot || g.index.storage_slot(known) != no_slot)) {
      made.node = known;
      made.slot = g.index.memory_slot(known);
      strengthen(g, known, orders);
      if (made.slot != no_slot) made.fills = g.memory.fills(made.slot);
      // An earlier save of it may have been dropped on its way to storage.
      const bool only_in_memory = g.storage && g.index.storage_slot(known) == no_slot;
      if (!only_in_memory || g.index.memory_busy(known) || g.memory.dirty(made.slot))
        state_.decide(*ticket, entry, errc::ok);
      else if (wanted_on_storage(g, *ticket, made))
        writer_.await(g, ticket, std::move(made));
      else
        refuse(*ticket, entry, tier::storage);
      return std::nullopt;
    }
    if (!wanted_in_memory(g, *ticket, made)) {
      refuse(*ticket, entry, tier::memory);
      return std::nullopt;
    }
    const bool to_storage = wanted_on_storage(g, *ticket, made);
    // What storage takes passes through memory anyway.
    if (!to_storage && g.chained && g.memory.free_slots() == 0 && !g.memory.admits(group_type::bits_of(key))) {
      refuse(*ticket, entry, tier::memory);
      return std::nullopt;
    }
    node_id front = front_of(g, made);
    const bool found = g.cached(front);
    // What nothing leads to may have a slot that is free, but no other block's; and what leads to it stays somewhere.
    const bool of_use = found || !g.chained || block == 0 || (g.memory.free_slots() != 0 && g.has_node());
    const bool only_here = found && g.chained && g.index.storage_slot(front) == no_slot;
    // Storage takes nothing behind a block that it neither has nor will have.
    const bool passes =
        to_storage && state_.saves_breaker.closed() && (!only_here || g.memory.dirty(g.index.memory_slot(front)));
    const slot_index slot =
        of_use ? state_.take_memory_slot(g, io_class::save, now, {only_here ? front : no_node, passes}) : no_slot;
    if (slot == no_slot) {
      state_.drop(*ticket, entry);
      return std::nullopt;
    }
    front = front_of(g, made);  // it may have gone with the block that gave its slot, or have been that block
    const node_id node = g.index.insert(key, front);
    if (node == no_node) {  // parents that are gone, kept by their cached children, fill the index
      g.memory.release(slot);
      state_.drop(*ticket, entry);
      return std::nullopt;
    }
    g.memory.assign(slot, node);
    g.memory.order(slot, orders);
    g.index.set_memory(node, slot, true);
    // From now on, so that the blocks behind it know.
    g.memory.set_dirty(slot, to_storage);
    g.keep_tokens(slot, tokens);
    made.node = node;
    made.slot = slot;
    made.fills = g.memory.fills(slot);
    return made;
  }

  /// Tells the tiers' eviction policies of a save's request: of all its blocks so far that they were not told of, also
  /// of those in front that the engine had itself. Caller holds the lock.
  /// Shape   saved(block): whether the engine keeps the block's pages of this group
  template <class Saved>
  void announce(std::uint16_t group, const sequence& from, std::size_t first, std::size_t blocks, Saved&& saved) {
    group_type& g = *state_.groups[group];
    // Of a sliding window, what is in front of it is nothing to the request.
    const auto is_saved = [&](std::size_t b) { return b < first ? g.chained : saved(b - first); };
    tell(g, g.memory, from, first, first + blocks, is_saved, [&](node_id node) { return g.index.memory_slot(node); });
    if (g.storage)
      tell(g, *g.storage, from, first, first + blocks, is_saved,
           [&](node_id node) { return g.index.storage_slot(node); });
  }

  /// A block for which the engine keeps no page: there is nothing to save. Caller holds the lock.
  void skip(save_state& ticket, std::size_t entry) { state_.decide(ticket, entry, errc::ok); }

  /// Follows copies that were submitted. Caller holds the lock.
  void follow(job copying) { copying_.push_back(std::move(copying)); }
  /// Nothing reads the engine's pages any more.
  static void release_source(save_state& ticket) {
    ticket.source_released.store(true, std::memory_order_release);
    ticket.wake();
  }

  /// Undoes what admit() did for copies that never happened. Caller holds the lock.
  void abandon(save_state& ticket, std::span<const copy> copies, errc why, clock::time_point now) {
    for (const copy& c : copies) {
      group_type& g = *state_.groups[c.group];
      state_.resolve(g, c.slot, errc::miss, now);
      g.memory.release(c.slot);
      g.index.clear_memory(c.node);
      g.index.erase_if_unused(c.node);
      state_.decide(ticket, c.entry, why);
    }
  }

  /// Publishes saves whose copies ended. Returns whether some are still under way. Caller holds the lock.
  bool poll_copies(clock::time_point now) {
    std::erase_if(copying_, [&](job& j) {
      if (!std::all_of(j.operations.begin(), j.operations.end(), [](const Operation& op) { return op.done(); }))
        return false;
      const bool well =
          std::all_of(j.operations.begin(), j.operations.end(), [](const Operation& op) { return op.outcome().ok(); });
      state_.metrics.latency.save_copy.record(now - j.started);
      if (well) {
        publish(j, now);
      } else {
        state_.metrics.memory.errors.add();
        abandon(*j.ticket, j.copies, errc::device_failed, now);
      }
      if (--j.ticket->pieces_copying == 0) {
        for (const auto& g : state_.groups) g->memory.settle();
        release_source(*j.ticket);
      }
      return true;
    });
    return !copying_.empty();
  }

  [[nodiscard]] bool copying() const noexcept { return !copying_.empty(); }

  /// Decides whatever is still undecided: nobody will act on it any more. Caller holds the lock.
  void close() {
    for (const job& j : copying_)
      for (const copy& c : j.copies) state_.decide(*j.ticket, c.entry, errc::closed);
  }

 private:
  template <class Tier, class Saved, class SlotOf>
  void tell(group_type& g, Tier& tier, const sequence& from, std::size_t first, std::size_t end, Saved& saved,
            SlotOf&& slot_of) {
    const std::size_t begin = from.id() == 0 ? first : std::min(first, tier.told(from.id()));
    told_.clear();
    eviction_request request;
    for (std::size_t b = end; b-- > begin;) {
      if (!saved(b)) continue;
      const node_id node = g.index.find(from_block_key<digest_type>(from.key(b)));
      const slot_index slot = node == no_node ? no_slot : slot_of(node);
      told_.push_back({slot != no_slot && tier.published(slot) ? slot : no_slot, group_type::bits_of(from.key(b))});
      request.before = b;
    }
    if (told_.empty()) return;
    request.blocks = told_;
    if (request.before != 0) request.parent = group_type::bits_of(from.key(request.before - 1));
    request.id = from.id();
    request.session = from.given_hints().session;
    request.returns_in = from.given_hints().returns_in;
    tier.access(request);
  }
  // A block that is cached already and saved again, by another request as a rule.
  static void strengthen(group_type& g, node_id node, const block_orders& orders) {
    if (const slot_index slot = g.index.memory_slot(node); slot != no_slot)
      g.memory.order(slot, block_orders::stronger(g.memory.orders(slot), orders));
    if (const slot_index place = g.own_place(node); place != no_slot)
      g.storage->order(place, block_orders::stronger(g.storage->orders(place), orders));
  }
  void refuse(save_state& ticket, std::size_t entry, tier where) {
    state_.metrics.of(where).refused.add();
    state_.decide(ticket, entry, errc::refused);
  }

  [[nodiscard]] admission_candidate candidate(const save_state& ticket, const copy& c) const {
    const std::size_t behind = (ticket.entries() - 1 - c.entry) / state_.groups.size();
    return {group_type::bits_of(c.key), group_type::bits_of(c.parent), static_cast<std::uint32_t>(c.block),
            static_cast<std::uint32_t>(behind)};
  }
  // The block in front of it, cached or not; `no_node` for the first.
  [[nodiscard]] static node_id front_of(const group_type& g, const copy& c) {
    return c.block == 0 ? no_node : g.index.find(from_block_key<digest_type>(c.parent));
  }
  template <class Fits>
  [[nodiscard]] static bool parent_fits(const group_type& g, const copy& c, Fits&& fits) {
    if (c.block == 0 || !g.chained) return true;
    const node_id parent = front_of(g, c);
    return parent != no_node && fits(parent);
  }
  [[nodiscard]] bool wanted_in_memory(group_type& g, const save_state& ticket, const copy& c) {
    if constexpr (decltype(g.memory_admission)::asks) {
      const bool reachable = parent_fits(g, c, [&](node_id parent) { return g.cached(parent); });
      return g.memory_admission.admit(candidate(ticket, c), reachable);
    }
    return true;
  }
  [[nodiscard]] bool wanted_on_storage(group_type& g, const save_state& ticket, const copy& c) {
    if (!g.storage) return false;
    if constexpr (decltype(g.storage_admission)::asks) {
      const bool reachable = parent_fits(g, c, [&](node_id parent) {
        const slot_index slot = g.index.memory_slot(parent);
        return g.index.storage_slot(parent) != no_slot || (slot != no_slot && g.memory.dirty(slot));
      });
      if (!g.storage_admission.admit(candidate(ticket, c), reachable)) return false;
    }
    if (!g.chained || g.storage->may_grow()) return true;
    const bool full =
        g.storage->store().free_slots() + g.storage->freeing() <= block_writer<Hasher, Policies, Io>::reserve(g);
    return !full || g.storage->admits(group_type::bits_of(c.key));
  }
  void publish(job& j, clock::time_point now) {
    for (const copy& c : j.copies) {
      group_type& g = *state_.groups[c.group];
      g.publish_in_memory(c.slot, c.node, c.block, c.request);
      g.index.set_memory(c.node, c.slot, false);
      state_.metrics.memory.stored.add();
      state_.metrics.memory.blocks.add();
      state_.metrics.memory.written_bytes.add(g.geometry.payload_bytes);
      state_.tell(block_event::what::stored, tier::memory, g, c.node);
      state_.resolve(g, c.slot, errc::ok, now);
    }
    for (copy& c : j.copies) {
      group_type& g = *state_.groups[c.group];
      if (!g.storage)
        state_.decide(*j.ticket, c.entry, errc::ok);
      else if (g.memory.dirty(c.slot))
        writer_.await(g, j.ticket, std::move(c));
      else
        refuse(*j.ticket, c.entry, tier::storage);
    }
  }

  state_type& state_;
  block_writer<Hasher, Policies, Io>& writer_;
  std::vector<job> copying_;
  std::vector<eviction_entry> told_;
};

}  // namespace kvx::detail
