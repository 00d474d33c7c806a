// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/concepts/hasher.hpp>
#include <kvx/concepts/io.hpp>
#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>
#include <kvx/detail/breaker.hpp>
#include <kvx/detail/group_state.hpp>
#include <kvx/metrics/counters.hpp>
#include <kvx/metrics/throughput.hpp>
#include <kvx/options.hpp>
#include <kvx/plan.hpp>
#include <kvx/runtime.hpp>
#include <kvx/store/slot_format.hpp>
#include <kvx/tickets.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace kvx::detail {

/// What the parts of a cache share. `mutex` guards everything that is not atomic or constant; it is never
/// held during I/O, copies or hashing.
template <class Hasher, class Policies, class Io>
struct core_state {
  using clock = std::chrono::steady_clock;
  using digest_type = typename Hasher::digest_type;
  using group_type = group_state<digest_type, Policies>;

  core_state(options configured, std::shared_ptr<kvx::runtime<Io>> shared)
      : opts(std::move(configured)),
        runtime(std::move(shared)),
        loads_breaker(opts.breaker_failures, opts.breaker_pause),
        saves_breaker(opts.breaker_failures, opts.breaker_pause) {}

  const options opts;
  const std::shared_ptr<kvx::runtime<Io>> runtime;
  std::uint32_t block_tokens = 0;
  std::vector<std::unique_ptr<group_type>> groups;

  std::mutex mutex;
  std::condition_variable pump_wanted;    // sealing, deadlines, copies: never touches storage itself
  std::condition_variable keeper_wanted;  // journal, extents, heartbeats: may wait for storage
  bool stopping = false;
  bool pump_signalled = false;
  bool keeper_signalled = false;

  kvx::metrics metrics;
  throughput storage_reads;
  std::atomic<clock::rep> last_storage_read{0};
  std::atomic<double> learned_seconds_per_token{0};
  breaker loads_breaker;
  breaker saves_breaker;
  std::atomic<std::uint64_t> next_ticket{1};
  // Plans and sequences go to other processes, whose own requests must not seem the same: it starts anywhere.
  std::atomic<std::uint64_t> next_request{random_word()};
  std::deque<completion> completions;
  std::vector<block_event> events;

  /// Loads whose blocks stay pinned until their copies are known to have ended.
  std::size_t loads_under_way = 0;
  /// Reads and writes that the backend holds; the arena must outlive them.
  std::size_t reads_under_way = 0;
  std::size_t writes_under_way = 0;
  std::uint64_t read_bytes_under_way = 0;
  std::uint64_t write_bytes_under_way = 0;

  // Leases are stamped in steps, so that readers rarely write to a node that others read.
  static constexpr std::chrono::milliseconds lease_step{256};
  const clock::time_point born = clock::now();
  [[nodiscard]] std::uint32_t lease_clock(clock::time_point at) const noexcept {
    return static_cast<std::uint32_t>((at - born) / lease_step) + 1;
  }

  /// What an engine orders now, for the tiers; they are told the time in the clock of leases.
  [[nodiscard]] block_orders orders(const hints& wanted, clock::time_point now) const noexcept {
    block_orders made{wanted.priority, wanted.pinned, 0};
    if (wanted.time_to_live <= std::chrono::milliseconds{0}) return made;
    const clock::duration most = std::chrono::hours{24 * 365};
    made.expires = lease_clock(now + std::min<clock::duration>(wanted.time_to_live, most)) + 1;
    return made;
  }

  void wake_pump() {
    pump_signalled = true;
    pump_wanted.notify_one();
  }
  void wake_keeper() {
    keeper_signalled = true;
    keeper_wanted.notify_one();
  }

  /// What computing costs: given, or learned from the engine's reports.
  [[nodiscard]] std::optional<prefill_cost> prefill() const noexcept {
    if (opts.prefill) return opts.prefill;
    const double learned = learned_seconds_per_token.load(std::memory_order_relaxed);
    if (learned <= 0) return std::nullopt;
    return prefill_cost{learned, 0};
  }
  /// What storage delivers, unless that is long ago: then it is worth finding out again.
  [[nodiscard]] std::optional<double> storage_rate() const noexcept {
    constexpr std::chrono::seconds still_true{10};
    const clock::time_point last{clock::duration(last_storage_read.load(std::memory_order_relaxed))};
    if (clock::now() - last > still_true) return std::nullopt;
    return storage_reads.bytes_per_second();
  }

  /// Most bytes that may be stuck in I/O, per direction: an eighth of the memory each.
  [[nodiscard]] std::uint64_t io_window_bytes() const noexcept {
    return std::max<std::uint64_t>(opts.memory_bytes / 8, 1);
  }
  [[nodiscard]] std::size_t pin_limit(const group_type& g) const noexcept { return g.memory.capacity() / 2; }

  static constexpr std::chrono::milliseconds no_victim_pause{5};

  static constexpr std::size_t most_completions = 4096;
  void complete(std::uint64_t ticket, completion::operation kind, status outcome) {
    // Nobody is obliged to poll: the oldest go, tickets themselves still know.
    if (completions.size() == most_completions) completions.pop_front();
    completions.push_back({ticket, kind, outcome});
  }
  void tell(block_event::what happened, tier where, const group_type& g, node_id node) {
    if (!opts.on_event) return;
    events.push_back({happened, where, g.identity.shard.group, to_block_key(g.index.key(node))});
  }

  /// Counts how a block of an operation ended.
  template <class OperationMetrics>
  static void count_outcome(OperationMetrics& of, errc code) noexcept {
    switch (code) {
      case errc::ok:
        break;
      case errc::timed_out:
        of.timed_out_blocks.add();
        break;
      case errc::dropped:
        of.dropped_blocks.add();
        break;
      case errc::refused:
        of.refused_blocks.add();
        break;
      case errc::cancelled:
        of.cancelled_blocks.add();
        break;
      default:
        of.failed_blocks.add();
        break;
    }
  }
  /// One failure per ticket that waited in vain while the device sat on a read for as long as that.
  template <class Reads>
  void count_late_reads(const Reads& reads, clock::time_point now) {
    bool stuck = false;
    for (auto* each : reads) {
      if (now - each->started < opts.load_deadline) continue;
      stuck = true;
      if (!each->late_counted) metrics.storage.timeouts.add();
      each->late_counted = true;
    }
    if (stuck && loads_breaker.failed(now)) metrics.breaker_load.opened.add();
  }

  /// Decides one block of a prefetch; a ready one is pinned for its ticket.
  void decide(group_type& g, const slot_waiter& who, slot_index slot, errc code, clock::time_point now) {
    prefetch_state& ticket = *who.ticket;
    if (ticket.decided(who.entry)) return;
    prefetch_state::entry& wanted = ticket.wanted[who.entry];
    if (code == errc::ok && !ticket.pins_released) {
      g.memory.pin(slot);
      wanted.pinned = slot;
    }
    if (code == errc::ok && ticket.what->where(wanted.block, wanted.group) != tier::memory)
      ticket.bytes_ready.fetch_add(g.geometry.stride, std::memory_order_relaxed);
    count_outcome(metrics.prefetch, code);
    if (!ticket.decide(who.entry, code)) return;
    for (const auto& each : groups) each->memory.settle();
    ticket.pins_expire = now + opts.lease;
    metrics.latency.prefetch.record(now - ticket.started);
    complete(ticket.id(), completion::operation::prefetch, ticket.overall());
  }

  /// Decides one block of a save.
  void decide(save_state& ticket, std::size_t entry, errc code) {
    if (ticket.decided(entry)) return;
    count_outcome(metrics.save, code);
    if (!ticket.decide(entry, code)) return;
    for (const auto& g : groups)
      if (g->storage) g->storage->settle();
    complete(ticket.id(), completion::operation::save, ticket.overall());
  }
  void drop(save_state& ticket, std::size_t entry) {
    metrics.storage.dropped.add();
    decide(ticket, entry, errc::dropped);
  }

  /// A slot stopped being busy: tells everybody who waited for it.
  void resolve(group_type& g, slot_index slot, errc code, clock::time_point now) {
    const auto found = g.waiters.find(slot);
    if (found == g.waiters.end()) return;
    const std::vector<slot_waiter> waiting = std::move(found->second);
    g.waiters.erase(found);
    for (const slot_waiter& w : waiting) decide(g, w, slot, code, now);
  }

  /// What a save wants a memory slot for.
  struct slot_use {
    node_id front = no_node;  // a block that stays, since the saved one continues it
    bool to_storage = false;
  };
  /// A free memory slot, if need be by eviction; `no_slot` when everything is in use. Only for loads, blocks that
  /// still wait to be saved are given up, then blocks that are leased, and then parents that storage holds as well: of
  /// a prompt longer than memory only the tail has no children here, and that is in use. The last also for saves that
  /// only pass through memory.
  [[nodiscard]] slot_index take_memory_slot(group_type& g, io_class purpose, clock::time_point now,
                                            const slot_use& with = {}) {
    // A save adds a node. Parents that are gone, but kept by their cached children, may have taken those left.
    const bool needs_node = purpose == io_class::save && !g.has_node();
    if (g.memory.free_slots() == 0 || needs_node) {
      if (purpose == io_class::save && now < g.no_slot_before) return no_slot;
      const std::uint32_t today = lease_clock(now);
      const auto evict = [&](bool keep_unsaved, bool keep_leased) {
        return g.memory.evict(today, [&](slot_index slot) {
          const node_id node = g.memory.node_of(slot);
          // Where a node is needed, giving up a block that keeps its node would gain nothing.
          if (needs_node && (g.index.storage_slot(node) != no_slot || g.index.has_children_in_storage(node)))
            return true;
          return node == with.front || g.index.has_children_in_memory(node) || (keep_unsaved && g.memory.dirty(slot)) ||
                 (keep_leased && g.index.lease(node) > today);
        });
      };
      const auto evict_parent = [&](auto&& kept) {
        return g.memory.evict(today, [&](slot_index slot) {
          const node_id node = g.memory.node_of(slot);
          return g.index.storage_slot(node) == no_slot || g.index.storage_busy(node) || kept(node);
        });
      };
      slot_index victim = evict(true, true);
      if (victim == no_slot && purpose == io_class::load) victim = evict(false, true);
      if (victim == no_slot && purpose == io_class::load) victim = evict(false, false);
      if (victim == no_slot && purpose == io_class::load) victim = evict_parent([](node_id) { return false; });
      if (victim == no_slot && with.to_storage && !needs_node)
        victim = evict_parent([&](node_id node) { return g.index.lease(node) > today; });
      if (victim == no_slot) {
        // What only this save must leave alone, others may have at once.
        if (purpose == io_class::save && with.front == no_node) g.no_slot_before = now + no_victim_pause;
        return no_slot;
      }
      drop_memory(g, victim);
      metrics.memory.evicted.add();
    }
    return g.memory.take();
  }

  /// Whether a slot is whole and of the block that was asked for, but has other tokens or another parent.
  [[nodiscard]] static bool is_unexpected(const group_type& g, store::slot_verdict verdict,
                                          std::span<const std::byte> header, const block_key& key) {
    if (verdict == store::slot_verdict::other_tokens) return true;
    store::parsed_header found;
    return verdict == store::slot_verdict::other_key &&
           store::parse_header(header, g.geometry, g.identity, found) == store::slot_verdict::ok && found.key == key;
  }
  /// Counts a read from storage that begins.
  void read_started(std::size_t bytes, clock::time_point now) {
    metrics.storage.in_flight_read_bytes.add(bytes);
    storage_reads.start(now);
  }
  /// Counts one that ended, whatever it brought.
  /// Shape   came: when it ended; late: it counted as failed already, so that it proves nothing
  void read_ended(std::size_t bytes, int error, bool late, clock::time_point came, clock::time_point now) {
    metrics.storage.in_flight_read_bytes.sub(bytes);
    storage_reads.finish(error == 0 ? bytes : 0, came);
    last_storage_read.store(now.time_since_epoch().count(), std::memory_order_relaxed);
    if (error == 0 && !late && loads_breaker.succeeded()) metrics.breaker_load.closed.add();
  }

  /// Counts a read from storage that brought no block, one that nobody gave up. Returns whether there is nothing of use
  /// at its place any more.
  ///
  /// A file that is gone or short is a reclaimed or damaged slab; any other error is the device's, and the block may be
  /// well. What is whole but not what was expected says more of the plan than of the block.
  /// Shape   unexpected: it is whole, but of other tokens or behind another parent
  bool count_failed_read(int error, bool unexpected, clock::time_point now) {
    const bool gone = error == ESTALE || error == ENOENT || error == ENODATA;
    if (error != 0) {
      metrics.storage.errors.add();
      if (!gone && loads_breaker.failed(now)) metrics.breaker_load.opened.add();
    } else if (!unexpected) {
      metrics.storage.damaged.add();
    }
    return gone || (error == 0 && !unexpected);
  }

  /// Takes a block that is not in use out of memory.
  void drop_memory(group_type& g, slot_index slot) {
    const node_id node = g.memory.node_of(slot);
    tell(block_event::what::evicted, tier::memory, g, node);
    g.memory.release(slot);
    g.index.clear_memory(node);
    g.index.erase_if_unused(node);
    metrics.memory.blocks.sub();
  }

  /// Takes a block off storage: own slots are logged and freed, other writers' are only forgotten.
  void drop_storage(group_type& g, node_id node) {
    const slot_index place = g.index.storage_slot(node);
    tell(block_event::what::evicted, tier::storage, g, node);
    g.storage->forget(place);
    g.storage->free(place);
    g.index.clear_storage(node);
    g.index.erase_if_unused(node);
    metrics.storage.blocks.sub();
  }

  /// Whether a plan, perhaps from another process, is one for this cache.
  [[nodiscard]] bool fits(const plan& what) const noexcept {
    return what.groups == groups.size() && (what.empty() || what.block_tokens == block_tokens) &&
           what.tiers.size() == groups.size() * what.blocks() &&
           (what.tokens.empty() || what.tokens.size() == what.matched_tokens());
  }

  /// How many of a plan's blocks from `first` on are to be loaded; nothing where plan and ids do not fit each other.
  /// Shape   ids: per group
  template <class Layout>
  [[nodiscard]] std::optional<std::size_t> blocks_asked(const Layout& layout, const plan& what, std::size_t first,
                                                        std::span<const std::span<const block_id>> ids) const {
    if (!fits(what) || ids.size() != groups.size() || first > what.blocks()) return std::nullopt;
    const std::size_t asked = ids[0].size() / layout.pages_per_block(0);
    if (asked > what.blocks() - first) return std::nullopt;
    for (std::size_t g = 0; g < ids.size(); ++g)
      if (ids[g].size() != asked * layout.pages_per_block(g)) return std::nullopt;
    return asked;
  }

  /// Blocks of a plan that group g needs for a resume at block `boundary`, as [first, boundary).
  template <class Layout>
  [[nodiscard]] static std::size_t first_needed(const Layout& layout, std::size_t group,
                                                std::size_t boundary) noexcept {
    if (boundary == 0) return 0;
    switch (layout.kind(group)) {
      case attention_kind::full:
        return 0;
      case attention_kind::recurrent:
        return boundary - 1;
      case attention_kind::sliding_window:
        break;
    }
    const std::size_t tokens = layout.block_tokens();
    const std::size_t window = (layout.window_tokens(group) + tokens - 1) / tokens;
    return boundary - std::min(boundary, window);
  }
  /// The blocks from `first` on that a resume at block `boundary` needs, ascending, of every group.
  /// Shape   Entry: begins with a block and a group
  template <class Entry, class Layout>
  [[nodiscard]] std::vector<Entry> blocks_needed(const Layout& layout, std::size_t first, std::size_t boundary) const {
    std::vector<Entry> needed;
    for (std::size_t b = first; b < boundary; ++b)
      for (std::size_t g = 0; g < groups.size(); ++g)
        if (b >= first_needed(layout, g, boundary))
          needed.push_back({static_cast<std::uint32_t>(b), static_cast<std::uint16_t>(g)});
    return needed;
  }
};

}  // namespace kvx::detail
