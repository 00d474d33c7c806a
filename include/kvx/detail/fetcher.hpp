// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/core_state.hpp>
#include <kvx/detail/slot_reading.hpp>

#include <cerrno>

namespace kvx::detail {

/// Brings blocks from storage into memory and proves them there.
///
/// A prefetch's blocks wait in a queue, front first, and are started while the window of bytes in I/O and
/// the memory allow. A block that somebody else is bringing is joined, not read twice.
template <class Hasher, class Policies, class Io>
class fetcher {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;
  using requests = std::vector<io_request>;

  explicit fetcher(state_type& state) noexcept : state_(state) {}

  /// Queues what a ticket wants. Caller holds the lock, and submits what admit() then returns.
  void enqueue(const std::shared_ptr<prefetch_state>& ticket) {
    active_.push_back(ticket);
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < ticket->entries(); ++i) {
      const prefetch_state::entry& wanted = ticket->wanted[i];
      if (ticket->what->where(wanted.block, wanted.group) != tier::memory)
        bytes += group_of(*ticket, i).geometry.stride;
      queue_.push_back({ticket, i});
    }
    ticket->bytes_wanted.store(bytes, std::memory_order_relaxed);
  }

  /// Starts as many queued blocks as fit. Caller holds the lock and submits the requests after it let go.
  [[nodiscard]] requests admit(clock::time_point now) {
    requests out;
    while (!queue_.empty()) {
      const slot_waiter& next = queue_.front();
      if (!next.ticket->decided(next.entry) && !start(next, now, out)) break;
      queue_.pop_front();
    }
    return out;
  }

  /// Gives up what a ticket still waits for. Reads that only it waits for end early.
  void give_up(const std::shared_ptr<prefetch_state>& ticket, errc why, clock::time_point now) {
    ticket->given_up.store(true, std::memory_order_relaxed);
    for (std::size_t i = 0; i < ticket->entries(); ++i)
      state_.decide(group_of(*ticket, i), {ticket, i}, no_slot, why, now);
    for (read* r : reads_) {
      const auto waiting = r->group->waiters.find(r->slot);
      const bool wanted = waiting != r->group->waiters.end() &&
                          std::any_of(waiting->second.begin(), waiting->second.end(), [](const slot_waiter& w) {
                            return !w.ticket->given_up.load(std::memory_order_relaxed);
                          });
      if (!wanted) r->cancelled.store(true, std::memory_order_relaxed);
    }
  }

  /// Lets go of the blocks a ticket keeps in memory. Caller holds the lock.
  void unpin(prefetch_state& ticket) {
    if (ticket.pins_released) return;
    ticket.pins_released = true;
    for (std::size_t i = 0; i < ticket.entries(); ++i) {
      slot_index& pinned = ticket.wanted[i].pinned;
      if (pinned != no_slot) group_of(ticket, i).memory.unpin(pinned);
      pinned = no_slot;
    }
  }

  /// Acts on deadlines and on pins that expired. Returns when to look again. Caller holds the lock.
  [[nodiscard]] clock::time_point expire(clock::time_point now) {
    clock::time_point next = clock::time_point::max();
    std::erase_if(active_, [&](const std::shared_ptr<prefetch_state>& ticket) {
      if (!ticket->finished() && ticket->deadline <= now) {
        state_.count_late_reads(reads_, now);
        give_up(ticket, errc::timed_out, now);
      }
      if (ticket->finished() && ticket->pins_expire <= now) unpin(*ticket);
      if (ticket->finished() && ticket->pins_released) return true;
      next = std::min(next, ticket->finished() ? ticket->pins_expire : ticket->deadline);
      return false;
    });
    return next;
  }

  /// Whether reads from these places are under way. Caller holds the lock.
  [[nodiscard]] bool uses(const group_type& g, std::size_t first, std::size_t count) const noexcept {
    return std::any_of(reads_.begin(), reads_.end(),
                       [&](const read* r) { return r->group == &g && r->place >= first && r->place - first < count; });
  }

  /// Ends every prefetch; reads that the backend holds stay its own.
  void shut_down(clock::time_point now) {
    for (const auto& ticket : active_) {
      give_up(ticket, errc::closed, now);
      unpin(*ticket);
    }
    active_.clear();
    queue_.clear();
  }

 private:
  /// One block's read; lives until its own completion, whatever became of those who wanted it.
  struct read {
    fetcher* owner = nullptr;
    group_type* group = nullptr;
    node_id node = no_node;
    slot_index slot = no_slot;
    slot_index place = no_slot;
    int file = -1;
    std::uint64_t offset = 0;
    std::shared_ptr<const plan> what;
    std::size_t block = 0;
    clock::time_point started{};
    bool late_counted = false;
    std::atomic<bool> cancelled{false};
  };

  [[nodiscard]] group_type& group_of(const prefetch_state& ticket, std::size_t entry) const noexcept {
    return *state_.groups[ticket.wanted[entry].group];
  }

  // Returns false when there is no room now and the block must stay queued.
  bool start(const slot_waiter& next, clock::time_point now, requests& out) {
    prefetch_state& ticket = *next.ticket;
    const std::size_t block = ticket.wanted[next.entry].block;
    group_type& g = group_of(ticket, next.entry);
    const node_id node = g.index.find(from_block_key<digest_type>(ticket.what->keys[block]));
    if (node == no_node) return refuse_from(next, errc::miss, now);
    if (const slot_index ready = g.index.memory_slot(node); ready != no_slot) {
      if (!g.index.memory_busy(node)) {
        if (!g.holds_tokens(ready, ticket.what->block(block))) return refuse_from(next, errc::miss, now);
        if (!ticket.pins_released && g.memory.pins(ready) == 0 && g.memory.pinned_slots() >= state_.pin_limit(g))
          return state_.loads_under_way != 0 ? false : refuse_from(next, errc::no_space, now);
        state_.decide(g, next, ready, errc::ok, now);
      } else {
        g.waiters[ready].push_back(next);
      }
      return true;
    }
    const slot_index place = g.index.storage_slot(node);
    if (place == no_slot || g.index.storage_busy(node) || !state_.loads_breaker.closed())
      return refuse_from(next, errc::miss, now);
    if (g.memory.pinned_slots() + state_.reads_under_way >= state_.pin_limit(g)) {
      // Those who hold the pins may let go, but a ticket cannot wait for itself.
      if (state_.reads_under_way != 0 || state_.loads_under_way != 0) return false;
      return refuse_from(next, errc::no_space, now);
    }
    if (state_.reads_under_way != 0 && state_.read_bytes_under_way + g.geometry.stride > window_bytes()) return false;
    const auto from = g.storage->store().place_for_read(place);
    if (!from) {
      state_.drop_storage(g, node);
      return refuse_from(next, errc::miss, now);
    }
    const slot_index slot = state_.take_memory_slot(g, io_class::load, now);
    if (slot == no_slot) {
      const bool may_wait = state_.reads_under_way != 0 || state_.loads_under_way != 0;
      return may_wait ? false : refuse_from(next, errc::no_space, now);
    }

    g.memory.assign(slot, node);
    g.memory.order(slot, g.storage->orders(place));
    g.index.set_memory(node, slot, true);
    g.waiters[slot].push_back(next);
    auto* r = new read;
    r->owner = this;
    r->group = &g;
    r->node = node;
    r->slot = slot;
    r->place = place;
    r->file = from->file;
    r->offset = from->offset;
    r->what = ticket.what;
    r->block = block;
    r->started = now;
    reads_.push_back(r);
    ++state_.reads_under_way;
    state_.read_bytes_under_way += g.geometry.stride;
    state_.read_started(g.geometry.stride, now);
    io_request request;
    request.op = io_op::read;
    request.priority = io_class::load;
    request.file = r->file;
    request.offset = r->offset;
    request.data = g.memory.bytes(slot).data();
    request.bytes = g.geometry.stride;
    request.cancelled = &r->cancelled;
    request.context = r;
    request.done = [](void* context, const io_result& outcome) noexcept {
      read* const self = static_cast<read*>(context);
      self->owner->finish(self, outcome);
    };
    out.push_back(request);
    return true;
  }

  // Behind a block that will not come, the group's later ones are of no use to a resume.
  bool refuse_from(const slot_waiter& next, errc why, clock::time_point now) {
    const std::shared_ptr<prefetch_state> ticket = next.ticket;
    const std::uint16_t group = ticket->wanted[next.entry].group;
    for (std::size_t i = next.entry; i < ticket->entries(); ++i)
      if (ticket->wanted[i].group == group) state_.decide(group_of(*ticket, i), {ticket, i}, no_slot, why, now);
    return true;
  }

  // Enough to keep the backend busy, little enough that a cancelled prefetch soon lets storage go. It starts with what
  // a fast drive needs to be busy, and grows as blocks arrive.
  [[nodiscard]] std::uint64_t window_bytes() const noexcept {
    constexpr std::uint64_t first_window = 24U << 20U;
    return std::min({state_.io_window_bytes(), std::uint64_t{2} * state_.opts.io.in_flight_bytes,
                     first_window + bytes_since_idle_});
  }

  void finish(read* finished, const io_result& outcome) noexcept {
    const std::unique_ptr<read> r(finished);
    group_type& g = *r->group;
    auto verdict = store::slot_verdict::not_a_slot;
    const clock::time_point came = clock::now();
    if (outcome.error == 0) {
      const slot_reading reading{*r->what, r->block, r->place, r->file, r->offset, g.geometry.stride};
      verdict = store::verify_slot(g.memory.bytes(r->slot), g.geometry, g.identity, reading.expected());
      state_.metrics.latency.verify.record(clock::now() - came);
      if (verdict != store::slot_verdict::ok) reading.leave_page_cache();
    }
    requests more;
    {
      const std::lock_guard lock(state_.mutex);
      const clock::time_point now = clock::now();  // in the order in which blocks are settled
      std::erase(reads_, finished);
      --state_.reads_under_way;
      state_.read_bytes_under_way -= g.geometry.stride;
      bytes_since_idle_ = state_.reads_under_way == 0 ? 0 : bytes_since_idle_ + g.geometry.stride;
      state_.read_ended(g.geometry.stride, outcome.error, r->late_counted, came, now);
      settle(*r, outcome, verdict, now);
      if (!state_.stopping) more = admit(now);
      state_.wake_pump();
    }
    if (!more.empty()) state_.runtime->io().submit(more);
  }

  void settle(const read& r, const io_result& outcome, store::slot_verdict verdict, clock::time_point now) {
    group_type& g = *r.group;
    if (outcome.error == 0 && verdict == store::slot_verdict::ok) {
      state_.metrics.storage.read_bytes.add(g.geometry.stride);
      state_.metrics.latency.prefetch_block.record(now - r.started);
      g.publish_in_memory(r.slot, r.node, r.block, r.what->lease.id);
      g.keep_tokens(r.slot, r.what->block(r.block));
      g.index.set_memory(r.node, r.slot, false);
      state_.metrics.memory.stored.add();
      state_.metrics.memory.blocks.add();
      state_.tell(block_event::what::stored, tier::memory, g, r.node);
      state_.resolve(g, r.slot, errc::ok, now);
      return;
    }
    const bool cancelled = outcome.error == ECANCELED;
    const bool unexpected = outcome.error == 0 &&
                            state_type::is_unexpected(g, verdict, g.memory.bytes(r.slot).first(g.geometry.header_bytes),
                                                      r.what->keys[r.block]);
    const bool useless = !cancelled && state_.count_failed_read(outcome.error, unexpected, now);
    const slot_index slot = r.slot;
    const node_id node = r.node;
    std::vector<slot_waiter> waiting;
    if (const auto found = g.waiters.find(slot); found != g.waiters.end()) waiting = std::move(found->second);
    g.waiters.erase(slot);
    g.memory.release(slot);
    g.index.clear_memory(node);
    if (useless && g.index.storage_slot(node) == r.place)
      state_.drop_storage(g, node);
    else
      g.index.erase_if_unused(node);
    for (const slot_waiter& w : waiting) {
      // Somebody joined after the others had given the read up: it is read again for them.
      if (cancelled && !w.ticket->decided(w.entry))
        queue_.push_front(w);
      else
        refuse_from(w, errc::miss, now);
    }
  }

  state_type& state_;
  std::deque<slot_waiter> queue_;
  std::vector<std::shared_ptr<prefetch_state>> active_;
  std::vector<read*> reads_;
  std::uint64_t bytes_since_idle_ = 0;
};

}  // namespace kvx::detail
