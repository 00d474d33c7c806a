// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/block_writer.hpp>
#include <kvx/detail/core_state.hpp>
#include <kvx/detail/direct_loader.hpp>
#include <kvx/detail/fetcher.hpp>
#include <kvx/detail/loader.hpp>
#include <kvx/detail/saver.hpp>

#include <cerrno>
#include <system_error>
#include <thread>

namespace kvx::detail {

/// The two threads of a cache.
///
/// The pump seals and submits writes, follows copies, acts on deadlines and delivers events; it never waits
/// for storage. The keeper flushes journals, claims and reclaims extents, beats the heart and probes a
/// breaker that is open; it may wait for storage, and nobody waits for it but tickets that ask for `stored`.
template <class Hasher, class Policies, class Io, class Layout, class Transfer>
class background {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using clock = std::chrono::steady_clock;

  using fetcher_type = fetcher<Hasher, Policies, Io>;
  using loader_type = loader<Hasher, Policies, Io, Layout, Transfer>;
  using saver_type = saver<Hasher, Policies, Io, typename Transfer::operation>;
  using writer_type = block_writer<Hasher, Policies, Io>;
  using direct_type = direct_loader<Hasher, Policies, Io, Layout, Transfer>;

  background(state_type& state, fetcher_type& fetch, loader_type& load, saver_type& save, writer_type& write,
             direct_type& direct)
      : state_(state), fetch_(fetch), load_(load), save_(save), write_(write), direct_(direct) {}

  /// Errors  throws unsupported: the system starts no more threads
  void start() {
    try {
      pump_ = std::thread([this] { pump(); });
      if (has_storage()) keeper_ = std::thread([this] { keep(); });
    } catch (const std::system_error& refused) {
      static_cast<void>(stop(clock::now()));
      throw error(errc::unsupported, std::string("the cache cannot start its threads (") + refused.what() +
                                         "); raise the process's or the container's limit of threads");
    }
  }

  /// Ends both threads. Copies may never end and the keeper may hang in a system call: then false is returned,
  /// and whatever they still touch must stay.
  [[nodiscard]] bool stop(clock::time_point until) {
    {
      const std::lock_guard lock(state_.mutex);
      state_.stopping = true;
      stop_by_ = until;
      state_.wake_pump();
      state_.wake_keeper();
    }
    if (pump_.joinable()) pump_.join();
    if (!keeper_.joinable()) return !copies_left_;
    {
      std::unique_lock lock(state_.mutex);
      if (!ended_.wait_until(lock, until, [this] { return keeper_ended_; })) {
        keeper_.detach();
        return false;
      }
    }
    keeper_.join();
    return !copies_left_;
  }

 private:
  // How often copies are looked at while some are under way: an event of a device costs a call to ask for.
  static constexpr std::chrono::microseconds copy_poll{50};
  static constexpr std::chrono::milliseconds maintenance_period{1'000};
  static constexpr std::chrono::milliseconds idle_period{1'000};
  // A journal that cannot be written, perhaps on a full disk, is not tried again at once.
  static constexpr std::chrono::milliseconds journal_pause{250};

  [[nodiscard]] bool has_storage() const noexcept {
    return std::any_of(state_.groups.begin(), state_.groups.end(), [](const auto& g) { return g->storage != nullptr; });
  }

  void pump() {
    for (;;) {
      while (write_.write_one()) {
      }
      std::vector<block_event> events;
      typename fetcher_type::requests more;
      std::vector<typename direct_type::requests_of_source> more_direct;
      {
        std::unique_lock lock(state_.mutex);
        const clock::time_point now = clock::now();
        const bool had_writes = write_.waiting();
        const bool saving = save_.poll_copies(now);
        // Those behind others are started when these are.
        const bool new_writes = !had_writes && write_.waiting();
        const bool loading = load_.poll(now);
        const bool copying = direct_.poll(now) || loading || saving;
        clock::time_point wake = std::min({fetch_.expire(now), write_.expire(now), direct_.expire(now)});
        more = fetch_.admit(now);
        more_direct = direct_.admit(now);
        events.swap(state_.events);
        if (more.empty() && more_direct.empty() && events.empty() && !new_writes) {
          if (state_.stopping && (!copying || now >= stop_by_)) {
            copies_left_ = copying;
            return;
          }
          wake = std::min(wake, copying ? now + copy_poll : now + idle_period);
          state_.pump_wanted.wait_until(lock, wake, [this] { return state_.pump_signalled; });
          state_.pump_signalled = false;
        }
      }
      if (!more.empty()) state_.runtime->io().submit(more);
      for (const auto& each : more_direct) each.source->submit(each.requests);
      for (const block_event& e : events) state_.opts.on_event(e);
    }
  }

  void keep() {
    clock::time_point next_maintenance = clock::now();
    clock::time_point next_flush{};  // as soon as there is something, unless the last one failed
    for (;;) {
      bool stopping = false;
      {
        std::unique_lock lock(state_.mutex);
        const clock::time_point wake =
            next_flush == clock::time_point{} ? next_maintenance : std::min(next_maintenance, next_flush);
        state_.keeper_wanted.wait_until(lock, wake, [this] { return state_.keeper_signalled; });
        state_.keeper_signalled = false;
        stopping = state_.stopping;
      }
      if (stopping || clock::now() >= next_flush)
        next_flush = flush_journals() ? clock::time_point{} : clock::now() + journal_pause;
      const clock::time_point now = clock::now();
      if (now >= next_maintenance && !stopping) {
        for (const auto& g : state_.groups)
          if (g->storage) maintain(*g, now);
        next_maintenance = now + std::min<clock::duration>(maintenance_period, state_.opts.writer_dead_after / 4);
        probe(now);
      }
      if (!stopping)
        for (const auto& g : state_.groups)
          if (g->storage) make_room(*g);
      const std::lock_guard lock(state_.mutex);
      if (state_.stopping && !write_.has_unlogged()) {
        keeper_ended_ = true;
        ended_.notify_all();
        return;
      }
    }
  }

  // Returns whether all went well.
  [[nodiscard]] bool flush_journals() {
    {
      const std::lock_guard lock(state_.mutex);
      write_.begin_logging();
    }
    bool well = true;
    for (const auto& g : state_.groups) {
      if (!g->storage) continue;
      std::unique_lock lock(state_.mutex);
      const std::size_t freeing = g->storage->freeing();
      lock.unlock();
      const bool flushed = flush_journal(*g);
      well &= flushed;
      lock.lock();
      if (flushed) g->storage->flushed(freeing);
    }
    const std::lock_guard lock(state_.mutex);
    write_.logged(well);
    // What was freed can be allocated now.
    if (well && write_.waiting()) state_.wake_pump();
    return well;
  }

  // Many small flushes fill a journal before maintenance is due: then its checkpoint cannot wait for that.
  [[nodiscard]] bool flush_journal(group_type& g) {
    store::block_store& store = g.storage->store();
    const status first = store.flush_journal();
    if (first != status{errc::no_space}) return first.ok();
    maintain(g, clock::now());
    return store.flush_journal().ok();
  }

  void maintain(group_type& g, clock::time_point now) {
    store::block_store& store = g.storage->store();
    static_cast<void>(store.maintain(now));
    while (const auto lost = store.take_lost()) forget(g, *lost);
    // The cap may have room again: somebody else's extent was reclaimed, or the root was enlarged.
    const std::lock_guard lock(state_.mutex);
    g.storage->may_grow(true);
  }

  // One extent ahead of need, from the first save on: a process that only reads takes no part of the cap. Where the cap
  // is reached, a dead writer's extent goes before any block of our own.
  void make_room(group_type& g) {
    store::block_store& store = g.storage->store();
    release_retired();
    {
      const std::lock_guard lock(state_.mutex);
      if (!g.storage->may_grow() || (store.own_slots() == 0 && !write_.waiting())) return;
    }
    if (store.free_slots() >= std::max<std::size_t>(1, store.slots_per_extent() / 4)) return;
    bool gained = store.grow().ok();
    if (!gained) {
      if (const auto range = store.reclaim_dead()) {
        forget(g, *range);
        release_retired();
        gained = store.grow().ok();
      }
    }
    const std::lock_guard lock(state_.mutex);
    g.storage->may_grow(gained);
    state_.wake_pump();
  }

  // Blocks that were there are misses from now on; the place itself waits for the I/O on it to end.
  void forget(group_type& g, const store::block_store::slot_range& range) {
    const std::lock_guard lock(state_.mutex);
    for (std::size_t i = range.first; i < range.first + range.count; ++i) {
      const node_id node = g.storage->node_of(static_cast<slot_index>(i));
      if (node != no_node && !g.index.storage_busy(node)) state_.drop_storage(g, node);
    }
    retired_.emplace_back(&g, range);
  }

  void release_retired() {
    std::erase_if(retired_, [this](const auto& each) {
      const auto& [group, range] = each;
      {
        const std::lock_guard lock(state_.mutex);
        if (fetch_.uses(*group, range.first, range.count) || write_.uses(*group, range.first, range.count) ||
            direct_.uses(*group, range.first, range.count) ||
            (probed_group_ == group && probed_place_ >= range.first && probed_place_ - range.first < range.count))
          return false;
        // Writes that ended meanwhile put blocks there once more.
        for (std::size_t i = range.first; i < range.first + range.count; ++i)
          if (const node_id node = group->storage->node_of(static_cast<slot_index>(i)); node != no_node)
            state_.drop_storage(*group, node);
      }
      group->storage->store().release(range);
      return true;
    });
  }

  /// What a probe reads into; it outlives the cache if the read never ends.
  struct probe_read {
    background* owner = nullptr;
    aligned_buffer buffer{page_bytes};
  };

  // One page of some slab decides whether storage answers again.
  void probe(clock::time_point now) {
    const std::lock_guard lock(state_.mutex);
    if (state_.saves_breaker.wants_probe(now)) {
      // The next block to be saved is the probe.
      state_.metrics.breaker_save.half_opened.add();
    }
    if (!state_.loads_breaker.wants_probe(now)) return;
    state_.metrics.breaker_load.half_opened.add();
    for (const auto& g : state_.groups) {
      if (!g->storage) continue;
      for (std::size_t place = 0; place < g->storage->capacity(); ++place) {
        if (g->storage->node_of(static_cast<slot_index>(place)) == no_node) continue;
        const auto from = g->storage->store().place_for_read(static_cast<slot_index>(place));
        if (!from) continue;
        auto* read = new probe_read{this};
        probed_group_ = g.get();
        probed_place_ = place;
        io_request request;
        request.file = from->file;
        request.offset = from->offset;
        request.data = read->buffer.data();
        request.bytes = page_bytes;
        request.context = read;
        request.done = [](void* context, const io_result& outcome) noexcept {
          const std::unique_ptr<probe_read> ended(static_cast<probe_read*>(context));
          // A slab that is gone or short says nothing against the device.
          const bool answered =
              outcome.error == 0 || outcome.error == ESTALE || outcome.error == ENOENT || outcome.error == ENODATA;
          ended->owner->probed(answered);
        };
        ++state_.reads_under_way;
        state_.runtime->io().submit({&request, 1});
        return;
      }
    }
    state_.loads_breaker.succeeded();  // nothing is stored, so nothing can fail
  }

  void probed(bool well) noexcept {
    const std::lock_guard lock(state_.mutex);
    probed_group_ = nullptr;
    --state_.reads_under_way;
    if (!well)
      static_cast<void>(state_.loads_breaker.failed(clock::now()));
    else if (state_.loads_breaker.succeeded())
      state_.metrics.breaker_load.closed.add();
    state_.wake_pump();
  }

  state_type& state_;
  fetcher_type& fetch_;
  loader_type& load_;
  saver_type& save_;
  writer_type& write_;
  direct_type& direct_;
  // Where the probe under way reads.
  const group_type* probed_group_ = nullptr;
  std::size_t probed_place_ = 0;
  std::vector<std::pair<group_type*, store::block_store::slot_range>> retired_;
  std::thread pump_;
  std::thread keeper_;
  std::condition_variable ended_;
  bool keeper_ended_ = false;
  bool copies_left_ = false;
  clock::time_point stop_by_{};
};

}  // namespace kvx::detail
