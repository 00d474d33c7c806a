// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/core_state.hpp>
#include <kvx/sequence.hpp>

#include <cerrno>

namespace kvx::detail {

/// Takes blocks out of engine memory into slots, and slots to storage.
///
/// A save is copied (the transfer engine), published in memory, sealed (header and digests), written, and
/// logged in the journal. Sealing runs on the pump thread; what storage cannot take in time is dropped:
/// the block stays in memory, and only the saving is lost.
template <class Hasher, class Policies, class Io, class Operation>
class saver {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;

  explicit saver(state_type& state) noexcept : state_(state) {}

  /// One block being copied out of the engine.
  struct copy {
    std::size_t entry = 0;
    std::uint16_t group = 0;
    std::size_t block = 0;  // position in the prompt
    node_id node = no_node;
    slot_index slot = no_slot;
    digest_type key{};
    block_key parent{};
    std::vector<token_id> tokens;
    std::vector<std::byte> extra;
    std::vector<std::uint64_t> page_checksums{};  // where the transfer engine says them
    hints wanted{};
  };
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
      drop(*ticket, entry);
      return std::nullopt;
    }
    const std::span<const token_id> tokens = from.tokens(block);
    copy made{entry,           group, block, no_node, no_slot, key, from.parent(block), {tokens.begin(), tokens.end()},
              std::move(extra)};
    made.wanted = from.given_hints();
    if (const node_id known = g.index.find(key);
        known != no_node && (g.index.memory_slot(known) != no_slot || g.index.storage_slot(known) != no_slot)) {
      made.node = known;
      made.slot = g.index.memory_slot(known);
      // An earlier save of it may have been dropped on its way to storage.
      const bool only_in_memory = g.storage && g.index.storage_slot(known) == no_slot;
      if (!only_in_memory || g.index.memory_busy(known) || g.memory.dirty(made.slot))
        decide(*ticket, entry, errc::ok);
      else if (wanted_on_storage(g, *ticket, made))
        await_write(g, ticket, std::move(made));
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
    const slot_index slot = state_.take_memory_slot(g, io_class::save, now);
    if (slot == no_slot) {
      drop(*ticket, entry);
      return std::nullopt;
    }
    const node_id parent = block == 0 ? no_node : g.index.find(from_block_key<digest_type>(from.parent(block)));
    const node_id node = g.index.insert(key, parent);
    if (node == no_node) {  // parents that are gone, kept by their cached children, fill the index
      g.memory.release(slot);
      drop(*ticket, entry);
      return std::nullopt;
    }
    g.memory.assign(slot, node);
    g.index.set_memory(node, slot, true);
    // From now on, so that the blocks behind it know.
    g.memory.set_dirty(slot, to_storage);
    g.keep_tokens(slot, tokens);
    made.node = node;
    made.slot = slot;
    return made;
  }

  /// Tells the policies that learn from requests which blocks of a save are new. Caller holds the lock.
  /// Shape   saved(block): whether the engine keeps the block's pages of this group
  template <class Saved>
  void announce(std::uint16_t group, const sequence& from, std::size_t first, std::size_t blocks, Saved&& saved) {
    if constexpr (request_eviction<typename Policies::eviction>) {
      group_type& g = *state_.groups[group];
      news to_memory;
      news to_storage;
      for (std::size_t b = first + blocks; b-- > first;) {
        if (!saved(b - first)) continue;
        const node_id node = g.index.find(from_block_key<digest_type>(from.key(b)));
        const bool stored = node != no_node && g.index.storage_slot(node) != no_slot;
        const bool here = node != no_node && g.index.memory_slot(node) != no_slot;
        if (!here && !stored) to_memory.add(from, b);
        if (g.storage && !stored) to_storage.add(from, b);
      }
      if (!to_memory.blocks.empty()) g.memory.access(to_memory.request(from));
      if (!to_storage.blocks.empty()) g.storage->access(to_storage.request(from));
    }
  }

  /// A block for which the engine keeps no page: there is nothing to save. Caller holds the lock.
  void skip(save_state& ticket, std::size_t entry) { decide(ticket, entry, errc::ok); }

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
      decide(ticket, c.entry, why);
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

  /// Seals and submits one waiting write, if the window and the store allow. Takes and releases the lock.
  /// Returns whether there may be more to do.
  bool write_one() {
    std::unique_lock lock(state_.mutex);
    if (closed_) return false;
    const clock::time_point now = clock::now();
    while (!waiting_.empty()) {
      pending_write& next = waiting_.front();
      group_type& g = *state_.groups[next.what.group];
      const bool here = still_there(g, next);
      if (!here || next.ticket->deadline <= now || !may_write()) {
        drop_front(g, here);
        continue;
      }
      if (state_.writes_under_way != 0 && state_.write_bytes_under_way + g.geometry.stride > window_bytes())
        return false;
      const auto place = take_place(g, now);
      if (!place) return false;
      start(lock, g, *place);
      return true;
    }
    return false;
  }

  /// Gives up what storage did not take in time. Returns when to look again. Caller holds the lock.
  [[nodiscard]] clock::time_point expire(clock::time_point now) {
    clock::time_point next = clock::time_point::max();
    for (write* w : writes_) {
      if (w->ticket->decided(w->what.entry)) continue;
      if (w->ticket->deadline > now) {
        next = std::min(next, w->ticket->deadline);
        continue;
      }
      decide(*w->ticket, w->what.entry, errc::timed_out);
      state_.metrics.storage.timeouts.add();
      if (state_.saves_breaker.failed(now)) state_.metrics.breaker_save.opened.add();
    }
    for (const pending_write& p : waiting_) next = std::min(next, p.ticket->deadline);
    return next;
  }

  /// Blocks whose journal records are not on storage yet. Caller holds the lock.
  [[nodiscard]] bool has_unlogged() const noexcept { return !unlogged_.empty(); }
  [[nodiscard]] auto take_unlogged() { return std::exchange(unlogged_, {}); }
  /// The journal holds them now: they survive this process. Caller holds the lock.
  template <class Unlogged>
  void logged(const Unlogged& written, bool well) {
    for (const auto& [ticket, entry] : written) decide(*ticket, entry, well ? errc::ok : errc::io_failed);
  }

  /// Evicts own places until the reserve of free ones is there. Caller holds the lock.
  void refill(group_type& g, std::size_t reserve, clock::time_point now) {
    if (now < g.no_place_before) return;
    const std::uint32_t today = state_.lease_clock(now);
    while (g.storage->store().free_slots() + g.storage->freeing() < reserve) {
      const slot_index victim = g.storage->evict(today, [&](slot_index place) {
        const node_id node = g.storage->node_of(place);
        return g.index.has_children_in_storage(node) || g.index.memory_busy(node) || g.index.storage_busy(node) ||
               g.index.lease(node) > today;
      });
      if (victim == no_slot) {
        g.no_place_before = now + state_type::no_victim_pause;
        return;
      }
      state_.drop_storage(g, g.storage->node_of(victim));
      state_.metrics.storage.evicted.add();
    }
  }

  /// Whether writes to these places are under way. Caller holds the lock.
  [[nodiscard]] bool uses(const group_type& g, std::size_t first, std::size_t count) const noexcept {
    return std::any_of(writes_.begin(), writes_.end(),
                       [&](const write* w) { return w->group == &g && w->place >= first && w->place - first < count; });
  }

  [[nodiscard]] bool idle() const noexcept { return copying_.empty() && waiting_.empty() && unlogged_.empty(); }
  [[nodiscard]] bool copying() const noexcept { return !copying_.empty(); }
  [[nodiscard]] bool writes_waiting() const noexcept { return !waiting_.empty(); }

  /// Decides whatever is still undecided: nobody will act on it any more. Caller holds the lock.
  void close() {
    closed_ = true;
    for (const pending_write& p : std::exchange(waiting_, {})) decide(*p.ticket, p.what.entry, errc::closed);
    for (write* w : writes_) decide(*w->ticket, w->what.entry, errc::closed);
    for (const auto& [ticket, entry] : std::exchange(unlogged_, {})) decide(*ticket, entry, errc::closed);
    for (const job& j : copying_)
      for (const copy& c : j.copies) decide(*j.ticket, c.entry, errc::closed);
  }

 private:
  // Blocks that a tier does not have, deepest first.
  struct news {
    std::vector<eviction_entry> blocks;
    std::size_t first = 0;

    void add(const sequence& from, std::size_t block) {
      blocks.push_back({no_slot, group_type::bits_of(from.key(block))});
      first = block;
    }
    [[nodiscard]] eviction_request request(const sequence& from) const {
      eviction_request made;
      made.blocks = blocks;
      made.before = first;
      if (first != 0) made.parent = group_type::bits_of(from.key(first - 1));
      made.session = from.given_hints().session;
      made.returns_in = from.given_hints().returns_in;
      return made;
    }
  };
  struct pending_write {
    std::shared_ptr<save_state> ticket;
    copy what;
  };
  struct write {
    saver* owner = nullptr;
    group_type* group = nullptr;
    std::shared_ptr<save_state> ticket;
    copy what;
    slot_index place = no_slot;
    std::uint64_t generation = 0;
    clock::time_point started{};
  };

  void decide(save_state& ticket, std::size_t entry, errc code) {
    if (ticket.decided(entry)) return;
    switch (code) {
      case errc::ok:
        break;
      case errc::timed_out:
        state_.metrics.save.timed_out_blocks.add();
        break;
      case errc::dropped:
        state_.metrics.save.dropped_blocks.add();
        break;
      case errc::refused:
        state_.metrics.save.refused_blocks.add();
        break;
      case errc::cancelled:
        state_.metrics.save.cancelled_blocks.add();
        break;
      default:
        state_.metrics.save.failed_blocks.add();
        break;
    }
    if (!ticket.decide(entry, code)) return;
    for (const auto& g : state_.groups)
      if (g->storage) g->storage->settle();
    state_.complete(ticket.id(), completion::operation::save, ticket.overall());
  }
  void drop(save_state& ticket, std::size_t entry) {
    state_.metrics.storage.dropped.add();
    decide(ticket, entry, errc::dropped);
  }

  void refuse(save_state& ticket, std::size_t entry, tier where) {
    state_.metrics.of(where).refused.add();
    decide(ticket, entry, errc::refused);
  }

  [[nodiscard]] admission_candidate candidate(const save_state& ticket, const copy& c) const {
    const std::size_t behind = (ticket.entries() - 1 - c.entry) / state_.groups.size();
    return {group_type::bits_of(c.key), group_type::bits_of(c.parent), static_cast<std::uint32_t>(c.block),
            static_cast<std::uint32_t>(behind)};
  }
  template <class Fits>
  [[nodiscard]] static bool parent_fits(const group_type& g, const copy& c, Fits&& fits) {
    if (c.block == 0 || !g.chained) return true;
    const node_id parent = g.index.find(from_block_key<digest_type>(c.parent));
    return parent != no_node && fits(parent);
  }
  [[nodiscard]] bool wanted_in_memory(group_type& g, const save_state& ticket, const copy& c) {
    if constexpr (decltype(g.memory_admission)::asks) {
      const bool reachable = parent_fits(g, c, [&](node_id parent) {
        return g.index.memory_slot(parent) != no_slot || g.index.storage_slot(parent) != no_slot;
      });
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
    const bool full = g.storage->store().free_slots() + g.storage->freeing() <= reserve(g);
    return !full || g.storage->admits(group_type::bits_of(c.key));
  }
  [[nodiscard]] static std::size_t reserve(group_type& g) noexcept {
    return std::clamp<std::size_t>(g.storage->store().own_slots() / 16, 1, 64);
  }

  void publish(job& j, clock::time_point now) {
    for (const copy& c : j.copies) {
      group_type& g = *state_.groups[c.group];
      g.memory.publish(g.entry_of(c.slot, c.node, c.block));
      g.memory.order(c.slot, c.wanted, state_.expires(c.wanted, now));
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
        decide(*j.ticket, c.entry, errc::ok);
      else if (g.memory.dirty(c.slot))
        await_write(g, j.ticket, std::move(c));
      else
        refuse(*j.ticket, c.entry, tier::storage);
    }
  }

  void await_write(group_type& g, const std::shared_ptr<save_state>& ticket, copy what) {
    g.memory.set_dirty(what.slot, true);
    waiting_.push_back({ticket, std::move(what)});
  }

  // Memory may have given the block up since, and its slot and node may be somebody else's now.
  [[nodiscard]] bool still_there(const group_type& g, const pending_write& p) const {
    return g.index.find(p.what.key) == p.what.node && g.index.memory_slot(p.what.node) == p.what.slot &&
           !g.index.memory_busy(p.what.node) && g.index.storage_slot(p.what.node) == no_slot;
  }

  // Half open, one write at a time finds out.
  [[nodiscard]] bool may_write() noexcept {
    const breaker::state now = state_.saves_breaker.now();
    return now == breaker::state::closed || state_.saves_breaker.takes_probe();
  }

  [[nodiscard]] std::optional<slot_index> take_place(group_type& g, clock::time_point now) {
    store::block_store& store = g.storage->store();
    const std::size_t wanted = reserve(g);
    if (store.free_slots() < wanted) {
      if (!g.storage->may_grow()) refill(g, wanted, now);
      state_.wake_keeper();
    }
    const auto place = store.allocate();
    if (place) return *place;
    // The keeper may yet gain an extent or flush what was freed; only where it cannot is the save lost.
    if (!g.storage->may_grow() && g.storage->freeing() == 0) drop_front(g, true);
    return std::nullopt;
  }

  void drop_front(group_type& g, bool here) {
    if (here) g.memory.set_dirty(waiting_.front().what.slot, false);
    drop(*waiting_.front().ticket, waiting_.front().what.entry);
    waiting_.pop_front();
  }

  void start(std::unique_lock<std::mutex>& lock, group_type& g, slot_index place) {
    auto* w = new write{this, &g,          std::move(waiting_.front().ticket), std::move(waiting_.front().what), place,
                        0,    clock::now()};
    const block_key key = to_block_key(waiting_.front().what.key);
    waiting_.pop_front();
    const auto target = g.storage->store().prepare_write(place);
    if (!target) {
      g.memory.set_dirty(w->what.slot, false);
      g.storage->free(place);
      drop(*w->ticket, w->what.entry);
      delete w;
      return;
    }
    w->generation = target->generation;
    g.memory.set_dirty(w->what.slot, false);
    g.memory.pin(w->what.slot);
    g.storage->assign(place, w->what.node);
    g.index.set_storage(w->what.node, place, true);
    writes_.push_back(w);
    ++state_.writes_under_way;
    state_.write_bytes_under_way += g.geometry.stride;
    state_.metrics.storage.in_flight_write_bytes.add(g.geometry.stride);
    lock.unlock();

    store::block_header header;
    header.key = key;
    header.parent = w->what.parent;
    header.generation = target->generation;
    header.slot_number = target->slot_number;
    header.writer = target->writer;
    header.tokens = w->what.tokens;
    header.extra = w->what.extra;
    header.has_tokens = !w->what.tokens.empty();
    store::encode_slot(g.memory.bytes(w->what.slot), g.geometry, g.identity, header, w->what.page_checksums);
    io_request request;
    request.op = io_op::write;
    request.priority = io_class::save;
    request.file = target->place.file;
    request.offset = target->place.offset;
    request.data = g.memory.bytes(w->what.slot).data();
    request.bytes = g.geometry.stride;
    request.context = w;
    request.done = [](void* context, const io_result& outcome) noexcept {
      write* const self = static_cast<write*>(context);
      self->owner->finish(self, outcome);
    };
    state_.runtime->io().submit({&request, 1});
  }

  void finish(write* finished, const io_result& outcome) noexcept {
    const std::unique_ptr<write> w(finished);
    group_type& g = *w->group;
    const clock::time_point now = clock::now();
    const std::lock_guard lock(state_.mutex);
    std::erase(writes_, finished);
    --state_.writes_under_way;
    state_.write_bytes_under_way -= g.geometry.stride;
    state_.metrics.storage.in_flight_write_bytes.sub(g.geometry.stride);
    g.memory.unpin(w->what.slot);
    store::block_store& store = g.storage->store();
    if (outcome.error == 0) {
      // One that came after its deadline proves nothing.
      const bool late = w->ticket->deadline <= now;
      if (!late && state_.saves_breaker.succeeded()) state_.metrics.breaker_save.closed.add();
      state_.metrics.latency.store_write.record(now - w->started);
      state_.metrics.storage.written_bytes.add(g.geometry.stride);
      state_.metrics.storage.stored.add();
      state_.metrics.storage.blocks.add();
      g.index.set_storage(w->what.node, w->place, false);
      g.storage->publish(g.entry_of(w->place, w->what.node, w->what.block));
      g.storage->order(w->place, w->what.wanted, state_.expires(w->what.wanted, now));
      store.log_insert(to_block_key(g.index.key(w->what.node)), w->what.parent, w->place, w->generation);
      if (closed_)
        decide(*w->ticket, w->what.entry, errc::closed);
      else
        unlogged_.emplace_back(w->ticket, w->what.entry);
      state_.tell(block_event::what::stored, tier::storage, g, w->what.node);
      state_.wake_keeper();
    } else {
      state_.metrics.storage.errors.add();
      if (state_.saves_breaker.failed(now)) state_.metrics.breaker_save.opened.add();
      g.storage->forget(w->place);
      g.storage->free(w->place);
      g.index.clear_storage(w->what.node);
      g.index.erase_if_unused(w->what.node);
      decide(*w->ticket, w->what.entry, errc::io_failed);
    }
    state_.wake_pump();
  }

  [[nodiscard]] std::uint64_t window_bytes() const noexcept {
    return std::min<std::uint64_t>(state_.io_window_bytes(), 2 * state_.opts.io.in_flight_bytes);
  }

  state_type& state_;
  std::vector<job> copying_;
  std::deque<pending_write> waiting_;
  std::vector<write*> writes_;
  std::vector<std::pair<std::shared_ptr<save_state>, std::size_t>> unlogged_;
  bool closed_ = false;
};

}  // namespace kvx::detail
