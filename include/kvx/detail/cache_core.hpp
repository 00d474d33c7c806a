// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/background.hpp>
#include <kvx/detail/block_writer.hpp>
#include <kvx/detail/checked_options.hpp>
#include <kvx/detail/core_state.hpp>
#include <kvx/detail/direct_loader.hpp>
#include <kvx/detail/fetcher.hpp>
#include <kvx/detail/loader.hpp>
#include <kvx/detail/matcher.hpp>
#include <kvx/detail/saver.hpp>
#include <kvx/detail/staging_source.hpp>
#include <kvx/hash/key_chain.hpp>

namespace kvx::detail {

/// The parts of a cache, put together. Tickets refer to it weakly; it is leaked whole when something outside
/// (the kernel, a device) may still write what it owns.
template <class Layout, class Hasher, class Policies, class Io, class Transfer>
struct cache_core final : ticket_owner, direct_owner {
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;
  using saver_type = saver<Hasher, Policies, Io, typename Transfer::operation>;
  using ids_of_groups = std::span<const std::span<const block_id>>;

  cache_core(const options& configured, Layout engine_layout, std::shared_ptr<kvx::runtime<Io>> shared,
             Transfer engine_transfer)
      : runtime(shared),
        carved(runtime->memory()),
        layout(std::move(engine_layout)),
        transfer(std::move(engine_transfer)),
        state(checked_options(configured, Hasher::collision_resistant), std::move(shared)),
        match(state, layout),
        fetch(state),
        load(state, layout, transfer),
        write(state),
        save(state, write),
        direct(state, layout, transfer, sources),
        threads(state, fetch, load, save, write, direct) {
    state.block_tokens = layout.block_tokens();
    make_groups();
    for (const auto& g : state.groups)
      if (g->storage) recover(*g);
  }

  ~cache_core() override = default;
  cache_core(const cache_core&) = delete;
  cache_core& operator=(const cache_core&) = delete;

  /// Parts of the arena; given back when nothing uses them any more, also where the constructor throws.
  struct carved_parts {
    explicit carved_parts(arena& owner) noexcept : from(owner) {}
    ~carved_parts() {
      for (const auto& part : parts) from.give_back(part);
    }
    carved_parts(const carved_parts&) = delete;
    carved_parts& operator=(const carved_parts&) = delete;

    arena& from;
    std::vector<std::span<std::byte>> parts;
  };

  // First, so that they outlive the transfer engine, which may have registered them with a device: only after it let go
  // may another cache have them.
  const std::shared_ptr<kvx::runtime<Io>> runtime;
  carved_parts carved;
  const Layout layout;
  Transfer transfer;
  staging_sources sources;  // told of files until the last is closed
  state_type state;
  matcher<Hasher, Policies, Io, Layout> match;
  fetcher<Hasher, Policies, Io> fetch;
  loader<Hasher, Policies, Io, Layout, Transfer> load;
  block_writer<Hasher, Policies, Io> write;
  saver_type save;
  direct_loader<Hasher, Policies, Io, Layout, Transfer> direct;
  background<Hasher, Policies, Io, Layout, Transfer> threads;

  [[nodiscard]] prefetch_ticket prefetch(plan what, std::size_t first, std::weak_ptr<ticket_owner> self) {
    state.metrics.prefetch.calls.add();
    if (!state.fits(what)) what = plan{};
    auto wanted = state.template blocks_needed<prefetch_state::entry>(layout, first, what.blocks());
    state.metrics.prefetch.blocks.add(wanted.size());
    const clock::time_point now = clock::now();
    auto ticket = std::make_shared<prefetch_state>(state.next_ticket.fetch_add(1, std::memory_order_relaxed),
                                                   std::make_shared<const plan>(std::move(what)), std::move(wanted),
                                                   first, now, now + state.opts.load_deadline);
    if (ticket->entries() == 0) {
      const std::lock_guard lock(state.mutex);
      state.complete(ticket->id(), completion::operation::prefetch, {});
      return {ticket, std::move(self)};
    }
    typename fetcher<Hasher, Policies, Io>::requests requests;
    {
      const std::lock_guard lock(state.mutex);
      fetch.enqueue(ticket);
      requests = fetch.admit(now);
      state.wake_pump();
    }
    if (!requests.empty()) state.runtime->io().submit(requests);
    return {std::move(ticket), std::move(self)};
  }

  [[nodiscard]] save_ticket save_blocks(const sequence& from, std::size_t first, ids_of_groups ids,
                                        typename Transfer::stream_type stream) {
    state.metrics.save.calls.add();
    const std::size_t groups = state.groups.size();
    if (ids.size() != groups || from.block_tokens() != state.block_tokens) return {nullptr, errc::bad_argument};
    const std::size_t blocks = ids[0].size() / layout.pages_per_block(0);
    for (std::size_t g = 0; g < groups; ++g)
      if (ids[g].size() != blocks * layout.pages_per_block(g)) return {nullptr, errc::bad_argument};
    if (first > from.blocks() || blocks > from.blocks() - first) return {nullptr, errc::bad_argument};

    const clock::time_point now = clock::now();
    const auto ticket = std::make_shared<save_state>(state.next_ticket.fetch_add(1, std::memory_order_relaxed),
                                                     blocks * groups, now + state.opts.save_deadline);
    state.metrics.save.blocks.add(blocks * groups);
    // Each piece is sealed and written while the next is copied; small pieces also keep a device's copy engine from
    // being blocked for long.
    const std::size_t pieces = (blocks + blocks_per_piece() - 1) / blocks_per_piece();
    {
      const std::lock_guard lock(state.mutex);
      ticket->pieces_copying = pieces;
      if (pieces == 0) {
        saver_type::release_source(*ticket);
        state.complete(ticket->id(), completion::operation::save, {});
      }
      for (std::size_t g = 0; g < groups; ++g) {
        const std::size_t per_block = layout.pages_per_block(g);
        save.announce(static_cast<std::uint16_t>(g), from, first, blocks, [&](std::size_t b) {
          const auto block_pages = ids[g].subspan(b * per_block, per_block);
          return std::find(block_pages.begin(), block_pages.end(), null_block) == block_pages.end();
        });
      }
    }
    for (std::size_t b = 0; b < blocks; b += blocks_per_piece())
      save_piece(ticket, from, first, ids, b, std::min(blocks, b + blocks_per_piece()), stream, now);
    return {ticket, {}};
  }

  void hint(std::span<const block_key> keys, const hints& news) {
    std::vector<std::uint64_t> deepest_first(keys.size());
    std::transform(keys.rbegin(), keys.rend(), deepest_first.begin(),
                   [](const block_key& key) { return group_type::bits_of(key); });
    const clock::time_point now = clock::now();
    const std::lock_guard lock(state.mutex);
    const block_orders orders = state.orders(news, now);
    for (const auto& g : state.groups) {
      g->memory.advise(deepest_first, news);
      if (g->storage) g->storage->advise(deepest_first, news);
      for (const block_key& key : keys) {
        const node_id node = g->index.find(from_block_key<digest_type>(key));
        if (node == no_node) continue;
        const slot_index slot = g->index.memory_slot(node);
        if (slot != no_slot) g->memory.order(slot, orders);
        if (const slot_index place = g->own_place(node); place != no_slot) g->storage->order(place, orders);
      }
    }
  }

  [[nodiscard]] std::size_t erase(std::span<const block_key> keys) {
    const std::lock_guard lock(state.mutex);
    std::size_t erased = 0;
    // Tail first: a parent's node outlives its children's.
    for (std::size_t i = keys.size(); i-- > 0;) {
      for (const auto& g : state.groups) {
        const digest_type key = from_block_key<digest_type>(keys[i]);
        node_id node = g->index.find(key);
        if (node == no_node || g->index.memory_busy(node) || g->index.storage_busy(node)) continue;
        const slot_index slot = g->index.memory_slot(node);
        if (slot != no_slot && g->memory.pins(slot) != 0) continue;
        const bool stored = g->index.storage_slot(node) != no_slot;
        if (slot == no_slot && !stored) continue;  // kept for its children alone
        if (slot != no_slot) state.drop_memory(*g, slot);
        node = g->index.find(key);
        if (stored) state.drop_storage(*g, node);
        ++erased;
      }
    }
    state.wake_keeper();
    return erased;
  }

  [[nodiscard]] bool drain(clock::time_point until) {
    // Polled: draining is for tests and shutdown, and a condition would cost every completion.
    constexpr std::chrono::microseconds look_again{200};
    for (;;) {
      {
        const std::lock_guard lock(state.mutex);
        if (!save.copying() && write.idle() && direct.idle() && state.reads_under_way == 0 &&
            state.writes_under_way == 0 && !load.poll(clock::now()))
          return true;
      }
      if (clock::now() >= until) return false;
      std::this_thread::sleep_for(look_again);
    }
  }

  /// Returns false when something may still write what this owns.
  [[nodiscard]] bool shut_down() {
    const clock::time_point until = clock::now() + state.opts.drain_deadline;
    {
      const std::lock_guard lock(state.mutex);
      fetch.shut_down(clock::now());
      direct.shut_down(clock::now());
    }
    static_cast<void>(drain(until));
    const bool ended = threads.stop(std::max(until, clock::now() + std::chrono::milliseconds{100}));
    const std::lock_guard lock(state.mutex);
    save.close();
    write.close();
    static_cast<void>(direct.poll(clock::now()));
    const std::size_t buffers = state.reads_under_way + state.writes_under_way + direct.under_way();
    const bool whole = ended && buffers == 0 && !load.poll(clock::now()) && !save.copying();
    if (!whole) state.runtime->count_leak(buffers, state.opts.memory_bytes);
    return whole;
  }

  [[nodiscard]] metrics_snapshot stats() {
    {
      const std::lock_guard lock(state.mutex);
      std::uint64_t memory = 0;
      std::uint64_t storage = 0;
      for (const auto& g : state.groups) {
        memory += g->memory.capacity();
        if (g->storage) storage += g->storage->capacity();
      }
      state.metrics.memory.capacity.set(memory);
      state.metrics.storage.capacity.set(storage);
      state.metrics.breaker_load.state.set(static_cast<std::uint64_t>(state.loads_breaker.now()));
      state.metrics.breaker_save.state.set(static_cast<std::uint64_t>(state.saves_breaker.now()));
    }
    state.metrics.storage_read_bytes_per_second.set(
        static_cast<std::uint64_t>(state.storage_reads.bytes_per_second().value_or(0)));
    metrics_snapshot seen = state.metrics.snapshot();
    // Of earlier caches on the same runtime; a cache cannot tell of its own end.
    seen.leaked_buffers = state.runtime->leaked_buffers();
    seen.leaked_bytes = state.runtime->leaked_bytes();
    return seen;
  }

  void cancel(const std::shared_ptr<prefetch_state>& which) noexcept override {
    const std::lock_guard lock(state.mutex);
    fetch.give_up(which, errc::cancelled, clock::now());
    state.wake_pump();
  }
  void cancel(const std::shared_ptr<direct_state>& which) noexcept override {
    const std::lock_guard lock(state.mutex);
    direct.give_up(which, errc::cancelled, clock::now());
    state.wake_pump();
  }
  void release(const std::shared_ptr<prefetch_state>& which) noexcept override {
    const std::lock_guard lock(state.mutex);
    fetch.unpin(*which);
    state.wake_pump();
  }

 private:
  [[nodiscard]] std::size_t blocks_per_piece() const noexcept {
    constexpr std::size_t piece_bytes = 8U << 20U;
    std::size_t block_bytes = 0;
    for (const auto& g : state.groups) block_bytes += g->geometry.payload_bytes;
    return std::max<std::size_t>(1, piece_bytes / block_bytes);
  }

  // Copies the blocks [begin, end) of a save out of the engine.
  void save_piece(const std::shared_ptr<save_state>& ticket, const sequence& from, std::size_t first, ids_of_groups ids,
                  std::size_t begin, std::size_t end, typename Transfer::stream_type stream, clock::time_point now) {
    const std::size_t groups = state.groups.size();
    typename saver_type::job job;
    job.ticket = ticket;
    job.started = clock::now();
    std::vector<std::vector<block_copy>> copies(groups);
    {
      const std::lock_guard lock(state.mutex);
      for (std::size_t b = begin; b < end; ++b) {
        for (std::size_t g = 0; g < groups; ++g) {
          const std::size_t pages = layout.pages_per_block(g);
          const std::span<const block_id> block_pages = ids[g].subspan(b * pages, pages);
          const std::size_t entry = b * groups + g;
          if (std::find(block_pages.begin(), block_pages.end(), null_block) != block_pages.end()) {
            save.skip(*ticket, entry);
            continue;
          }
          auto copy = save.admit(ticket, entry, static_cast<std::uint16_t>(g), from, first + b, now);
          if (!copy) continue;
          if constexpr (digesting_transfer<Transfer, Layout>)
            if (state.groups[g]->storage)
              copy->page_checksums.resize(state.groups[g]->geometry.payload_bytes / page_bytes);
          copies[g].push_back({state.groups[g]->payload(copy->slot), block_pages, copy->page_checksums});
          job.copies.push_back(std::move(*copy));
        }
      }
    }
    status submitted;
    for (std::size_t g = 0; g < groups && submitted.ok(); ++g) {
      if (copies[g].empty()) continue;
      const auto op = transfer.save(layout, {g, state.groups[g]->geometry.layer_offsets, copies[g]}, stream);
      if (op)
        job.operations.push_back(*op);
      else
        submitted = op.status();
    }
    // Slots that a copy still writes cannot be given back.
    if (!submitted.ok())
      for (const auto& op : job.operations) op.wait();
    const std::lock_guard lock(state.mutex);
    if (submitted.ok()) {
      save.follow(std::move(job));
    } else {
      save.abandon(*ticket, job.copies, submitted.code(), now);
      if (--ticket->pieces_copying == 0) saver_type::release_source(*ticket);
    }
    static_cast<void>(save.poll_copies(clock::now()));
    state.wake_pump();
  }

  void make_groups() {
    const std::size_t count = layout.group_count();
    if (count == 0 || count > most_groups)
      throw error(errc::bad_argument, "layout: it has " + std::to_string(count) + " groups; 1 to " +
                                          std::to_string(most_groups) + " are supported");
    const options& o = state.opts;
    std::vector<store::slot_geometry> shapes;
    std::size_t all = 0;
    for (std::size_t g = 0; g < count; ++g) {
      std::vector<std::size_t> layers(layout.layer_count(g));
      for (std::size_t l = 0; l < layers.size(); ++l) layers[l] = layout.layer_bytes(g, l);
      shapes.push_back(store::slot_geometry::make(state.block_tokens, o.extra_bytes, layers));
      all += shapes.back().stride;
    }
    const block_key who = key_chain<Hasher>::identity_digest(o.identity, state.block_tokens);
    for (std::size_t g = 0; g < count; ++g) {
      // Each group gets memory for as many blocks as the others, for they are saved together.
      const std::size_t slots = static_cast<std::size_t>(o.memory_bytes) / all;
      constexpr std::size_t least_slots = 4;
      if (slots < least_slots)
        throw error(errc::bad_argument, "memory_bytes: " + std::to_string(o.memory_bytes) + " holds " +
                                            std::to_string(slots) + " blocks of " + std::to_string(all) +
                                            " bytes; give at least " + std::to_string(least_slots * all));
      const auto memory_part = runtime->memory().carve(slots * shapes[g].stride);
      if (!memory_part)
        throw error(errc::no_space, "memory_bytes: the runtime's arena has no " +
                                        std::to_string(slots * shapes[g].stride) +
                                        " bytes left for this cache; enlarge the runtime or lower memory_bytes");
      carved.parts.push_back(*memory_part);
      if (const status s = transfer.register_arena(*memory_part); !s.ok())
        throw error(s.code(), "memory_bytes: the transfer engine refused the arena (" +
                                  std::string(to_string(s.code())) +
                                  "); copies would silently be slow, so free host memory or lower memory_bytes");
      const shard where{static_cast<std::uint16_t>(g), o.tensor_rank, o.tensor_size, o.pipeline_rank, o.pipeline_size,
                        layout.fingerprint(g)};
      store::store_options at;
      at.root = o.root;
      at.capacity_bytes = o.storage_bytes;
      at.extent_bytes = o.extent_bytes;
      at.dead_after = o.writer_dead_after;
      at.digest_bytes = digest_type::size();
      state.groups.push_back(std::make_unique<group_type>(shapes[g], store::slot_identity{who, where, Hasher::id},
                                                          *memory_part, o.root.empty() ? nullptr : &at));
      state.groups.back()->chained = layout.kind(g) == attention_kind::full;
    }
  }

  // A child's write may have ended before its parent's, and was logged before it: such links are made at the end.
  void recover(group_type& g) {
    constexpr std::size_t most_slots = std::size_t{1} << 28U;  // what a place in the index can say
    if (g.storage->capacity() >= most_slots || g.memory.capacity() >= most_slots)
      throw error(errc::bad_argument, "storage_bytes: " + std::to_string(g.storage->capacity()) + " blocks of " +
                                          std::to_string(g.geometry.stride) + " bytes; at most " +
                                          std::to_string(most_slots) +
                                          " can be indexed, so lower it or raise the layout's block_tokens");
    g.storage->store().on_files([this](int file, bool open) {
      if (open) return state.runtime->io().attach(file);
      state.runtime->io().detach(file);
      sources.detach(file);
    });
    std::vector<std::pair<node_id, digest_type>> orphans;
    const status recovered = g.storage->store().recover([&](const store::recovered_block& block) {
      const digest_type key = from_block_key<digest_type>(block.key);
      const digest_type parent_key = from_block_key<digest_type>(block.parent);
      const node_id parent = g.index.find(parent_key);
      const node_id node = g.index.insert(key, parent);
      if (node == no_node) return;
      if (parent == no_node) orphans.emplace_back(node, parent_key);
      // Later records are newer, and the oldest writers' extents are reclaimed first.
      const slot_index older = g.index.storage_slot(node);
      if (older != no_slot)
        g.storage->forget(older);
      else
        state.metrics.storage.blocks.add();
      g.storage->assign(block.where, node);
      g.index.set_storage(node, block.where, false);
    });
    for (const auto& [node, parent_key] : orphans)
      if (const node_id parent = g.index.find(parent_key); parent != no_node) g.index.adopt(node, parent);
    if (!recovered.ok())
      throw error(recovered.code(), "root '" + state.opts.root + "' cannot be read; check its permissions and mount");
  }
};

}  // namespace kvx::detail
