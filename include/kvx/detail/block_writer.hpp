// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/core_state.hpp>

#include <deque>
#include <limits>

namespace kvx::detail {

/// One block of a save: what it is, and the slot that it is copied into.
template <class Digest>
struct saved_block {
  std::size_t entry = 0;
  std::uint16_t group = 0;
  std::size_t block = 0;      // position in the prompt
  std::uint64_t request = 0;  // that it is saved for
  node_id node = no_node;
  slot_index slot = no_slot;
  std::uint32_t fills = 0;  // of the slot, which may be given up and filled again
  Digest key{};
  block_key parent{};
  std::vector<token_id> tokens;
  std::vector<std::byte> extra;
  std::vector<std::uint64_t> page_checksums{};  // where the transfer engine says them
};

/// Takes blocks from memory to storage: seals them (header and digests), writes them, and logs them in the journal.
///
/// Sealing runs on the pump thread. What storage cannot take is dropped, and what it does not take in time ends as
/// timed out: the block stays in memory, and only the saving is lost.
template <class Hasher, class Policies, class Io>
class block_writer {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using block_type = saved_block<typename Hasher::digest_type>;
  using clock = std::chrono::steady_clock;

  explicit block_writer(state_type& state) noexcept : state_(state) {}

  /// Queues a published block. Caller holds the lock.
  void await(group_type& g, const std::shared_ptr<save_state>& ticket, block_type what) {
    g.memory.set_dirty(what.slot, true);
    look_again_ = std::min(look_again_, ticket->deadline);
    waiting_.push_back({ticket, std::move(what)});
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
      if (next.ticket->deadline <= now) {
        give_up_front(errc::timed_out);
        continue;
      }
      // Half open, one write at a time finds out.
      if (!still_there(g, next) || (!state_.saves_breaker.closed() && !state_.saves_breaker.probe_wanted())) {
        give_up_front(errc::dropped);
        continue;
      }
      if (!of_use(g, next.what)) {
        give_up_front(errc::dropped);
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
      state_.decide(*w->ticket, w->what.entry, errc::timed_out);
      state_.metrics.storage.timeouts.add();
      if (state_.saves_breaker.failed(now)) state_.metrics.breaker_save.opened.add();
    }
    if (look_again_ <= now) {
      look_again_ = clock::time_point::max();
      std::erase_if(waiting_, [&](const pending_write& p) {
        if (p.ticket->deadline <= now) {
          give_up(p, errc::timed_out);
          return true;
        }
        look_again_ = std::min(look_again_, p.ticket->deadline);
        return false;
      });
    }
    return std::min(next, look_again_);
  }

  /// Blocks whose journal records are not on storage yet, for the thread that flushes; logged() tells what became of
  /// them. Caller holds the lock.
  [[nodiscard]] bool has_unlogged() const noexcept { return !unlogged_.empty(); }
  void begin_logging() { logging_ = std::exchange(unlogged_, {}); }
  /// The journal holds them now, and they survive this process; or it does not. Caller holds the lock.
  void logged(bool well) {
    for (const auto& [ticket, entry] : std::exchange(logging_, {}))
      state_.decide(*ticket, entry, well ? errc::ok : errc::io_failed);
  }

  /// Evicts own places until the reserve of free ones is there. Caller holds the lock.
  /// Shape   front: a block that stays
  void refill(group_type& g, std::size_t reserve, clock::time_point now, node_id front = no_node) {
    if (now < g.no_place_before) return;
    const std::uint32_t today = state_.lease_clock(now);
    while (g.storage->store().free_slots() + g.storage->freeing() < reserve) {
      const slot_index victim = g.storage->evict(today, [&](slot_index place) {
        const node_id node = g.storage->node_of(place);
        return node == front || g.index.has_children_in_storage(node) || g.index.memory_busy(node) ||
               g.index.storage_busy(node) || g.index.lease(node) > today;
      });
      if (victim == no_slot) {
        // What only this write must leave alone, others may have at once.
        if (front == no_node) g.no_place_before = now + state_type::no_victim_pause;
        return;
      }
      state_.drop_storage(g, g.storage->node_of(victim));
      state_.metrics.storage.evicted.add();
    }
  }
  /// Free places to keep, evicted ahead of need.
  [[nodiscard]] static std::size_t reserve(group_type& g) noexcept {
    return std::clamp<std::size_t>(g.storage->store().own_slots() / 16, 1, 64);
  }

  /// Whether writes to these places are under way. Caller holds the lock.
  [[nodiscard]] bool uses(const group_type& g, std::size_t first, std::size_t count) const noexcept {
    return std::any_of(writes_.begin(), writes_.end(),
                       [&](const write* w) { return w->group == &g && w->place >= first && w->place - first < count; });
  }

  [[nodiscard]] bool idle() const noexcept { return waiting_.empty() && unlogged_.empty() && logging_.empty(); }
  [[nodiscard]] bool waiting() const noexcept { return !waiting_.empty(); }

  /// Decides whatever is still undecided: nobody will act on it any more. Caller holds the lock.
  void close() {
    closed_ = true;
    for (const pending_write& p : std::exchange(waiting_, {})) state_.decide(*p.ticket, p.what.entry, errc::closed);
    for (write* w : writes_) state_.decide(*w->ticket, w->what.entry, errc::closed);
    for (auto* logged_last : {&unlogged_, &logging_})
      for (const auto& [ticket, entry] : std::exchange(*logged_last, {})) state_.decide(*ticket, entry, errc::closed);
  }

 private:
  struct pending_write {
    std::shared_ptr<save_state> ticket;
    block_type what;
  };
  struct write {
    block_writer* owner = nullptr;
    group_type* group = nullptr;
    std::shared_ptr<save_state> ticket;
    block_type what;
    slot_index place = no_slot;
    std::uint64_t generation = 0;
    clock::time_point started{};
  };
  using ticket_entries = std::vector<std::pair<std::shared_ptr<save_state>, std::size_t>>;

  // Memory may have given the block up since, and its slot and node may be somebody else's now, or the same block's
  // with other bytes.
  [[nodiscard]] static bool still_there(const group_type& g, const pending_write& p) {
    return g.index.find(p.what.key) == p.what.node && g.index.memory_slot(p.what.node) == p.what.slot &&
           g.memory.fills(p.what.slot) == p.what.fills && !g.index.memory_busy(p.what.node) &&
           g.index.storage_slot(p.what.node) == no_slot;
  }

  // The block in front of it; `no_node` where that decides nothing.
  [[nodiscard]] static node_id front_of(const group_type& g, const block_type& what) {
    if (what.block == 0 || !g.chained) return no_node;
    return g.index.find(from_block_key<typename Hasher::digest_type>(what.parent));
  }
  // What nothing on storage leads to may have a place that is free, but no other block's.
  [[nodiscard]] static bool of_use(group_type& g, const block_type& what) {
    if (what.block == 0 || !g.chained || g.storage->may_grow() || g.storage->store().free_slots() > reserve(g))
      return true;
    const node_id front = front_of(g, what);
    return front != no_node && g.index.storage_slot(front) != no_slot;
  }

  void give_up(const pending_write& p, errc why) {
    group_type& g = *state_.groups[p.what.group];
    if (still_there(g, p)) g.memory.set_dirty(p.what.slot, false);
    if (why == errc::dropped)
      state_.drop(*p.ticket, p.what.entry);
    else
      state_.decide(*p.ticket, p.what.entry, why);
  }
  void give_up_front(errc why) {
    give_up(waiting_.front(), why);
    waiting_.pop_front();
  }

  [[nodiscard]] std::optional<slot_index> take_place(group_type& g, clock::time_point now) {
    store::block_store& store = g.storage->store();
    const std::size_t wanted = reserve(g);
    if (store.free_slots() < wanted) {
      if (!g.storage->may_grow()) refill(g, wanted, now, front_of(g, waiting_.front().what));
      state_.wake_keeper();
    }
    const auto place = store.allocate();
    if (place) return *place;
    // The keeper may yet gain an extent or flush what was freed; only where it cannot is the save lost.
    if (!g.storage->may_grow() && g.storage->freeing() == 0) give_up_front(errc::dropped);
    return std::nullopt;
  }

  void start(std::unique_lock<std::mutex>& lock, group_type& g, slot_index place) {
    const auto target = g.storage->store().prepare_write(place);
    if (!target) {
      g.storage->free(place);
      return give_up_front(errc::dropped);
    }
    state_.saves_breaker.takes_probe();
    auto* w = new write{this,
                        &g,
                        std::move(waiting_.front().ticket),
                        std::move(waiting_.front().what),
                        place,
                        target->generation,
                        clock::now()};
    waiting_.pop_front();
    const block_key key = to_block_key(w->what.key);
    g.memory.set_dirty(w->what.slot, false);
    g.memory.pin(w->what.slot);
    g.storage->assign(place, w->what.node);
    g.storage->order(place, g.memory.orders(w->what.slot));
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
      g.publish_on_storage(w->place, w->what.node, w->what.block, w->what.request);
      store.log_insert(to_block_key(g.index.key(w->what.node)), w->what.parent, w->place, w->generation);
      if (closed_)
        state_.decide(*w->ticket, w->what.entry, errc::closed);
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
      state_.decide(*w->ticket, w->what.entry, errc::io_failed);
    }
    state_.wake_pump();
  }

  [[nodiscard]] std::uint64_t window_bytes() const noexcept {
    return std::min<std::uint64_t>(state_.io_window_bytes(), 2 * state_.opts.io.in_flight_bytes);
  }

  state_type& state_;
  std::deque<pending_write> waiting_;
  clock::time_point look_again_ = clock::time_point::max();  // no waiting write's deadline is earlier
  std::vector<write*> writes_;
  ticket_entries unlogged_;
  ticket_entries logging_;
  bool closed_ = false;
};

}  // namespace kvx::detail
