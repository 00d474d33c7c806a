// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/direct_reader.hpp>
#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>
#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/core_state.hpp>
#include <kvx/detail/staging_source.hpp>
#include <kvx/direct_ticket.hpp>
#include <kvx/plan.hpp>
#include <kvx/store/slot_format.hpp>

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
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

/// Brings blocks from storage through a reader's staging memory into the engine's pages, past the arena.
///
/// A block is proved in the staging memory, from its header and the checksums that the reader made of what lies there;
/// only then its copy into the pages is submitted. What is in memory is copied from there.
template <class Hasher, class Policies, class Io, class Layout, class Transfer>
class direct_loader {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;
  using stream_type = typename Transfer::stream_type;
  using operation = typename Transfer::operation;
  using ids_of_groups = std::span<const std::span<const block_id>>;

  direct_loader(state_type& state, const Layout& layout, Transfer& transfer, staging_sources& sources) noexcept
      : state_(state), layout_(layout), transfer_(transfer), known_(sources) {}

  /// Errors  bad_argument: the plan, the ids or the reader do not fit; then there is no state
  [[nodiscard]] result<std::shared_ptr<direct_state>> load(const plan& what, std::size_t first, ids_of_groups ids,
                                                           const std::shared_ptr<staging_source>& through,
                                                           stream_type stream) {
    state_.metrics.load.calls.add();
    const std::optional<std::size_t> asked = state_.blocks_asked(layout_, what, first, ids);
    if (!asked) return errc::bad_argument;
    for (const auto& g : state_.groups)
      if (g->geometry.stride > through->block_bytes()) return errc::bad_argument;
    if constexpr (takes_staging<Transfer>) {
      if (const status known = transfer_.register_staging(through->staging()); !known) return known;
    } else if (through->on_device()) {
      return errc::bad_argument;
    }

    const clock::time_point now = clock::now();
    const auto ticket = make_ticket(what, first, first + *asked, now);
    state_.metrics.load.blocks.add(ticket->entries());
    std::vector<std::vector<block_copy>> from_memory(state_.groups.size());
    std::vector<std::unique_ptr<passage>> held;
    std::vector<direct_request> requests;
    const auto job = std::make_shared<order>(order{ticket, nullptr, stream, {}, first, 0});
    for (const auto& of_group : ids) job->ids.emplace_back(of_group.begin(), of_group.end());
    const std::shared_ptr<staging_source> source = known_.keep(through);
    {
      const std::lock_guard lock(state_.mutex);
      if (ticket->entries() == 0) state_.complete(ticket->id(), completion::operation::load, {});
      job->source = use_of(source);
      active_.push_back(ticket);
      for (std::size_t i = 0; i < ticket->entries(); ++i)
        if (!take_from_memory(job, i, from_memory, held)) job->source->queue.push_back({job, i});
      ticket->from_storage = ticket->entries() - held.size();
      submitting_ += held.size();
      requests = admit(*job->source, now);
      state_.wake_pump();  // it watches the deadline
    }
    copy_from_memory(from_memory, std::move(held), stream);
    if (!requests.empty()) source->submit(requests);
    return ticket;
  }

  /// Gives up what is not being copied into the pages yet. Caller holds the lock.
  void give_up(const std::shared_ptr<direct_state>& ticket, errc why, clock::time_point now) {
    ticket->given_up.store(true, std::memory_order_relaxed);
    for (std::size_t i = 0; i < ticket->entries(); ++i)
      if (!ticket->wanted[i].copying) decide(*ticket, i, why, now);
  }

  /// Follows copies into the pages. Returns whether some are under way or to come. Caller holds the lock.
  bool poll(clock::time_point now) {
    // Those of one stream end in their order, mostly, so that the oldest are asked about; and a few of the others in
    // turn. To ask a device about each, while readers want the lock, would cost more than to hear of one late.
    ask_from(0, now);
    next_asked_ = ask_from(next_asked_ < copying_.size() ? next_asked_ : 0, now);
    return !copying_.empty() || !proved_.empty() || !batch_.empty();
  }

  /// Starts as many queued blocks as their readers have room for. Caller holds the lock, and submits after it let go.
  struct requests_of_source {
    staging_source* source = nullptr;
    std::vector<direct_request> requests;
  };
  [[nodiscard]] std::vector<requests_of_source> admit(clock::time_point now) {
    std::vector<requests_of_source> all;
    if (state_.stopping) return all;
    for (const auto& each : sources_)
      if (auto requests = admit(*each, now); !requests.empty())
        all.push_back({each->source.get(), std::move(requests)});
    return all;
  }

  /// Acts on deadlines. Returns when to look again. Caller holds the lock.
  [[nodiscard]] clock::time_point expire(clock::time_point now) {
    clock::time_point next = clock::time_point::max();
    std::erase_if(active_, [&](const std::shared_ptr<direct_state>& ticket) {
      if (!ticket->finished() && ticket->deadline <= now) {
        state_.count_late_reads(reading_, now);
        give_up(ticket, errc::timed_out, now);
      }
      if (!ticket->finished() && ticket->deadline > now) next = std::min(next, ticket->deadline);
      return ticket->finished();
    });
    return next;
  }

  /// Whether reads from these places are under way. Caller holds the lock.
  [[nodiscard]] bool uses(const group_type& g, std::size_t first, std::size_t count) const noexcept {
    return std::any_of(reading_.begin(), reading_.end(), [&](const passage* each) {
      return each->group == &g && each->place >= first && each->place - first < count;
    });
  }
  /// Nothing reads for this cache, and nothing is copied. Caller holds the lock.
  [[nodiscard]] bool idle() const noexcept { return under_way() == 0; }
  /// What readers and devices may still write. Caller holds the lock.
  [[nodiscard]] std::size_t under_way() const noexcept {
    return reading_.size() + submitting_ + proved_.size() + batch_.size() + copying_.size();
  }

  /// Ends every load; reads under way stay the readers'. Caller holds the lock.
  void shut_down(clock::time_point now) {
    for (const auto& ticket : active_) give_up(ticket, errc::closed, now);
    active_.clear();
    for (const auto& each : sources_) each->queue.clear();
  }

 private:
  static constexpr std::size_t most_unended = 4;
  static constexpr std::size_t most_in_batch = 8;

  struct used_source;
  /// What the blocks of one load share.
  struct order {
    std::shared_ptr<direct_state> ticket;
    used_source* source = nullptr;
    stream_type stream;
    std::vector<std::vector<block_id>> ids;
    std::size_t first = 0;
    std::size_t pinned = 0;  // blocks in memory that are being copied
  };
  struct waiting {
    std::shared_ptr<order> of;
    std::size_t entry = 0;
  };
  /// A reader, and how many of its places this cache has or waits for.
  struct used_source {
    std::shared_ptr<staging_source> source;
    std::size_t under_way = 0;
    std::deque<waiting> queue;
  };
  /// One block's way; lives until its read and its copy ended, whatever became of those who wanted it.
  struct passage {
    direct_loader* owner = nullptr;
    std::shared_ptr<order> of;
    std::size_t entry = 0;
    group_type* group = nullptr;
    slot_index place = no_slot;   // on storage, or
    slot_index pinned = no_slot;  // in memory
    aligned_buffer header;
    std::vector<std::uint64_t> page_values;
    std::byte* staged = nullptr;
    operation copy;
    int file = -1;
    std::uint64_t offset = 0;
    clock::time_point started{};
    bool late_counted = false;
  };

  // Follows copies from one on until some have not ended; returns where it stopped.
  std::size_t ask_from(std::size_t at, clock::time_point now) {
    for (std::size_t unended = 0; at < copying_.size() && unended != most_unended;) {
      if (!copying_[at]->copy.done()) {
        ++unended;
        ++at;
        continue;
      }
      arrived(*copying_[at], copying_[at]->copy.outcome(), now);
      copying_.erase(copying_.begin() + static_cast<std::ptrdiff_t>(at));
    }
    return at;
  }

  [[nodiscard]] std::shared_ptr<direct_state> make_ticket(const plan& what, std::size_t first, std::size_t end,
                                                          clock::time_point now) {
    std::vector<direct_state::entry> wanted;
    for (std::size_t b = first; b < end; ++b)
      for (std::size_t g = 0; g < state_.groups.size(); ++g)
        if (b >= state_type::first_needed(layout_, g, end))
          wanted.push_back({static_cast<std::uint32_t>(b), static_cast<std::uint16_t>(g)});
    const bool partial = state_.groups.size() == 1 && layout_.kind(0) == attention_kind::full;
    return std::make_shared<direct_state>(state_.next_ticket.fetch_add(1, std::memory_order_relaxed), what,
                                          std::move(wanted), end, partial, now, now + state_.opts.load_deadline);
  }

  [[nodiscard]] used_source* use_of(const std::shared_ptr<staging_source>& source) {
    for (const auto& each : sources_)
      if (each->source == source) return each.get();
    sources_.push_back(std::make_unique<used_source>(used_source{source, 0, {}}));
    return sources_.back().get();
  }

  [[nodiscard]] group_type& group_of(const direct_state& ticket, std::size_t entry) const noexcept {
    return *state_.groups[ticket.wanted[entry].group];
  }
  [[nodiscard]] std::span<const block_id> pages_of(const order& of, std::size_t entry) const noexcept {
    const direct_state::entry& wanted = of.ticket->wanted[entry];
    const std::size_t pages = layout_.pages_per_block(wanted.group);
    return std::span(of.ids[wanted.group]).subspan((wanted.block - of.first) * pages, pages);
  }

  // Pins a block that is in memory, for the copies that follow.
  bool take_from_memory(const std::shared_ptr<order>& of, std::size_t entry,
                        std::vector<std::vector<block_copy>>& copies, std::vector<std::unique_ptr<passage>>& held) {
    direct_state& ticket = *of->ticket;
    const direct_state::entry& wanted = ticket.wanted[entry];
    group_type& g = group_of(ticket, entry);
    const node_id node = g.index.find(from_block_key<digest_type>(ticket.what.keys[wanted.block]));
    const slot_index slot = node == no_node ? no_slot : g.index.memory_slot(node);
    if (slot == no_slot || g.index.memory_busy(node) || !g.holds_tokens(slot, ticket.what.block(wanted.block)))
      return false;
    g.memory.pin(slot);
    if (of->pinned++ == 0) ++state_.loads_under_way;
    ticket.wanted[entry].copying = true;
    auto made = std::make_unique<passage>();
    made->owner = this;
    made->of = of;
    made->entry = entry;
    made->group = &g;
    made->pinned = slot;
    copies[wanted.group].push_back({g.payload(slot), pages_of(*of, entry)});
    held.push_back(std::move(made));
    return true;
  }
  void copy_from_memory(const std::vector<std::vector<block_copy>>& copies, std::vector<std::unique_ptr<passage>> held,
                        stream_type stream) {
    if (held.empty()) return;
    std::vector<result<operation>> submitted;
    for (std::size_t g = 0; g < copies.size(); ++g)
      submitted.push_back(
          copies[g].empty()
              ? result<operation>(operation{})
              : transfer_.load(layout_, {g, state_.groups[g]->geometry.layer_offsets, copies[g]}, stream));
    const std::lock_guard lock(state_.mutex);
    const clock::time_point now = clock::now();
    submitting_ -= held.size();
    for (auto& each : held) {
      const auto& op = submitted[each->of->ticket->wanted[each->entry].group];
      if (!op) {
        arrived(*each, op.status(), now);
        continue;
      }
      each->copy = *op;
      copying_.push_back(std::move(each));
    }
    state_.wake_pump();
  }

  [[nodiscard]] std::vector<direct_request> admit(used_source& source, clock::time_point now) {
    std::vector<direct_request> out;
    while (!source.queue.empty() && source.under_way < source.source->capacity()) {
      const waiting next = std::move(source.queue.front());
      source.queue.pop_front();
      if (!next.of->ticket->decided(next.entry)) start(next, now, out);
    }
    return out;
  }

  void start(const waiting& next, clock::time_point now, std::vector<direct_request>& out) {
    direct_state& ticket = *next.of->ticket;
    const std::size_t block = ticket.wanted[next.entry].block;
    group_type& g = group_of(ticket, next.entry);
    const node_id node = g.index.find(from_block_key<digest_type>(ticket.what.keys[block]));
    const slot_index place = node == no_node ? no_slot : g.index.storage_slot(node);
    if (place == no_slot || g.index.storage_busy(node) || !state_.loads_breaker.closed())
      return refuse_from(ticket, next.entry, errc::miss, now);
    const auto from = g.storage->store().place_for_read(place);
    if (!from) {
      state_.drop_storage(g, node);
      return refuse_from(ticket, next.entry, errc::miss, now);
    }
    auto* made = new passage;
    made->owner = this;
    made->of = next.of;
    made->entry = next.entry;
    made->group = &g;
    made->place = place;
    made->header = aligned_buffer(g.geometry.header_bytes);
    made->page_values.resize(g.geometry.payload_bytes / page_bytes);
    made->file = from->file;
    made->offset = from->offset;
    made->started = now;
    reading_.push_back(made);
    ++next.of->source->under_way;
    state_.metrics.storage.in_flight_read_bytes.add(g.geometry.stride);
    state_.storage_reads.start(now);
    direct_request request;
    request.file = from->file;
    request.offset = from->offset;
    request.payload_bytes = g.geometry.payload_bytes;
    request.header = made->header.span();
    request.page_values = made->page_values;
    request.cancelled = &ticket.given_up;
    request.context = made;
    request.done = [](void* context, const io_result& outcome, std::byte* payload) noexcept {
      passage* const self = static_cast<passage*>(context);
      self->owner->read(std::unique_ptr<passage>(self), outcome, payload);
    };
    out.push_back(request);
  }

  // Behind a block that will not come, the group's later ones are of no use to a resume.
  void refuse_from(direct_state& ticket, std::size_t entry, errc why, clock::time_point now) {
    const std::uint16_t group = ticket.wanted[entry].group;
    for (std::size_t i = entry; i < ticket.entries(); ++i)
      if (ticket.wanted[i].group == group && !ticket.wanted[i].copying) decide(ticket, i, why, now);
  }

  // A read ended; on a thread of the reader.
  void read(std::unique_ptr<passage> ended, const io_result& outcome, std::byte* payload) noexcept {
    passage& p = *ended;
    order& of = *p.of;
    const group_type& g = *p.group;
    p.staged = payload;
    const clock::time_point came = clock::now();
    auto verdict = store::slot_verdict::not_a_slot;
    const direct_state::entry wanted = of.ticket->wanted[p.entry];
    if (outcome.error == 0) {
      const plan& what = of.ticket->what;
      store::slot_expectation expected;
      expected.key = what.keys[wanted.block];
      expected.parent = what.parent(wanted.block);
      expected.tokens = what.block(wanted.block);
      expected.extra = what.extra(wanted.block);
      expected.slot_number = store::block_store::slot_number(p.place);
      verdict = store::verify_slot(p.header.span(), p.page_values, g.geometry, g.identity, expected);
      state_.metrics.latency.verify.record(clock::now() - came);
      // What the page cache holds may be what is damaged; the next read shall ask the device.
      if (verdict != store::slot_verdict::ok)
        ::posix_fadvise(p.file, static_cast<off_t>(p.offset), static_cast<off_t>(g.geometry.stride),
                        POSIX_FADV_DONTNEED);
    }
    std::vector<requests_of_source> more;
    {
      std::unique_lock lock(state_.mutex);
      ++submitting_;  // what is under way keeps the cache alive, and with it this
      if (settle_read(p, outcome, verdict, came)) {
        proved_.push_back(std::move(ended));
      } else {
        give_back(p);
        state_.wake_pump();  // for what is to be told
      }
      copy_proved(lock);
      more = admit(clock::now());
      if (more.empty()) {
        --submitting_;
        return;
      }
    }
    for (const requests_of_source& each : more) each.source->submit(each.requests);
    const std::lock_guard lock(state_.mutex);
    --submitting_;
  }

  // Returns whether the block proved itself.
  bool settle_read(passage& p, const io_result& outcome, store::slot_verdict verdict, clock::time_point came) {
    group_type& g = *p.group;
    direct_state& ticket = *p.of->ticket;
    const clock::time_point now = clock::now();
    std::erase(reading_, &p);
    state_.metrics.storage.in_flight_read_bytes.sub(g.geometry.stride);
    state_.storage_reads.finish(outcome.error == 0 ? g.geometry.stride : 0, came);
    state_.last_storage_read.store(now.time_since_epoch().count(), std::memory_order_relaxed);
    // One that came after its deadline proves nothing.
    if (outcome.error == 0 && !p.late_counted && state_.loads_breaker.succeeded())
      state_.metrics.breaker_load.closed.add();
    const direct_state::entry& wanted = ticket.wanted[p.entry];
    if (outcome.error == 0 && verdict == store::slot_verdict::ok) {
      state_.metrics.storage.read_bytes.add(g.geometry.stride);
      return true;
    }
    const block_key& key = ticket.what.keys[wanted.block];
    const bool unexpected = outcome.error == 0 && state_type::is_unexpected(g, verdict, p.header.span(), key);
    const bool cancelled = outcome.error == ECANCELED;
    if (!cancelled && state_.count_failed_read(outcome.error, unexpected, now)) {
      const node_id node = g.index.find(from_block_key<digest_type>(key));
      if (node != no_node && g.index.storage_slot(node) == p.place && !g.index.storage_busy(node))
        state_.drop_storage(g, node);
    }
    refuse_from(ticket, p.entry, errc::miss, now);
    return false;
  }

  // Submits copies of what has been proved, one thread at a time: to submit one block takes the device as long as to
  // copy it, so that what others prove meanwhile goes in one call. What is left after two calls is for the next whose
  // read ends, since this reader may have another block to tell of; where nobody reads any more, all is taken. `lock`
  // is let go meanwhile.
  void copy_proved(std::unique_lock<std::mutex>& lock) noexcept {
    if (std::exchange(copier_, true)) return;
    for (int calls = 0; !proved_.empty() && (calls < 2 || reading_.empty()); ++calls) copy_batch(lock);
    copier_ = false;
  }
  void copy_batch(std::unique_lock<std::mutex>& lock) noexcept {
    take_batch();
    if (batch_.empty()) return;
    const order& of = *batch_.front()->of;
    const group_type& g = *batch_.front()->group;
    const std::uint16_t group = of.ticket->wanted[batch_.front()->entry].group;
    batch_copies_.clear();
    for (const auto& each : batch_) batch_copies_.push_back({each->staged, pages_of(of, each->entry)});
    lock.unlock();
    const auto op = transfer_.load(layout_, {group, g.geometry.layer_offsets, batch_copies_}, of.stream);
    lock.lock();
    const clock::time_point now = clock::now();
    // The pump looks again by itself while there are some.
    if (copying_.empty() || !op) state_.wake_pump();
    for (auto& each : batch_) {
      if (op) {
        each->copy = *op;
        copying_.push_back(std::move(each));
      } else {
        arrived(*each, op.status(), now);
      }
    }
    batch_.clear();
  }
  // The oldest that was proved, and what else goes with it into one call; what nobody waits for any more goes nowhere.
  void take_batch() {
    const std::shared_ptr<order> of = proved_.front()->of;
    const group_type* const group = proved_.front()->group;
    std::size_t kept = 0;
    for (auto& each : proved_) {
      direct_state& ticket = *each->of->ticket;
      if (ticket.decided(each->entry)) {
        give_back(*each);
        each.reset();
        state_.wake_pump();  // a place is free
      } else if (each->of == of && each->group == group && batch_.size() != most_in_batch) {
        ticket.wanted[each->entry].copying = true;
        batch_.push_back(std::move(each));
      } else {
        proved_[kept++] = std::move(each);
      }
    }
    proved_.resize(kept);
  }

  // A copy ended, or none was submitted.
  void arrived(passage& p, status outcome, clock::time_point now) {
    direct_state& ticket = *p.of->ticket;
    if (p.pinned != no_slot) {
      p.group->memory.unpin(p.pinned);
      if (--p.of->pinned == 0) --state_.loads_under_way;
      state_.metrics.memory.read_bytes.add(p.group->geometry.payload_bytes);
    } else {
      give_back(p);
    }
    ticket.wanted[p.entry].copying = false;
    if (outcome.ok() && p.pinned == no_slot) ticket.storage_ready.fetch_add(1, std::memory_order_relaxed);
    if (outcome.ok()) return decide(ticket, p.entry, errc::ok, now);
    state_.metrics.memory.errors.add();
    refuse_from(ticket, p.entry, outcome.code(), now);
  }
  void give_back(const passage& p) {
    if (p.staged != nullptr) p.of->source->source->give_back(p.staged);
    --p.of->source->under_way;
  }

  void decide(direct_state& ticket, std::size_t entry, errc code, clock::time_point now) {
    if (ticket.decided(entry)) return;
    state_type::count_outcome(state_.metrics.load, code);
    if (!ticket.decide(entry, code)) return;
    use(ticket);
    state_.metrics.latency.load.record(now - ticket.started);
    state_.complete(ticket.id(), completion::operation::load, ticket.overall());
  }

  // Tells the tiers' policies of the blocks that a request used: storage of all, memory of those that it has, since the
  // others do not come there.
  void use(const direct_state& ticket) {
    for (std::size_t at = 0; at < state_.groups.size(); ++at) {
      group_type& g = *state_.groups[at];
      std::vector<eviction_entry> in_memory;
      std::vector<eviction_entry> on_storage;
      std::vector<std::uint64_t> keys;
      std::size_t first = 0;
      std::size_t first_in_memory = 0;
      for (std::size_t i = ticket.entries(); i-- > 0;) {
        const direct_state::entry& wanted = ticket.wanted[i];
        if (wanted.group != at || ticket.outcome(i) != errc::ok) continue;
        const digest_type key = from_block_key<digest_type>(ticket.what.keys[wanted.block]);
        const node_id node = g.index.find(key);
        const slot_index slot = node == no_node ? no_slot : g.index.memory_slot(node);
        const slot_index place = node == no_node ? no_slot : g.index.storage_slot(node);
        keys.push_back(group_type::bits_of(key));
        on_storage.push_back({place != no_slot && g.storage->published(place) ? place : no_slot, keys.back()});
        first = wanted.block;
        if (slot == no_slot || !g.memory.published(slot)) continue;
        in_memory.push_back({slot, keys.back()});
        first_in_memory = wanted.block;
      }
      g.memory_admission.used(keys);
      g.storage_admission.used(keys);
      if (!in_memory.empty()) g.memory.access(request_of(ticket, in_memory, first_in_memory));
      if (g.storage && !on_storage.empty()) g.storage->access(request_of(ticket, on_storage, first));
    }
  }
  [[nodiscard]] static eviction_request request_of(const direct_state& ticket, std::span<const eviction_entry> blocks,
                                                   std::size_t first) {
    eviction_request request;
    request.blocks = blocks;
    request.before = first;
    if (first != 0) request.parent = group_type::bits_of(ticket.what.keys[first - 1]);
    request.id = ticket.what.lease.id;
    return request;
  }

  state_type& state_;
  const Layout& layout_;
  Transfer& transfer_;
  staging_sources& known_;
  std::vector<std::unique_ptr<used_source>> sources_;
  std::vector<std::shared_ptr<direct_state>> active_;
  std::vector<passage*> reading_;
  std::size_t submitting_ = 0;
  std::vector<std::unique_ptr<passage>> proved_;  // in the order of that, and to be copied
  bool copier_ = false;                           // a thread is about that
  std::vector<std::unique_ptr<passage>> batch_;   // that thread's
  std::vector<block_copy> batch_copies_;
  std::deque<std::unique_ptr<passage>> copying_;  // in the order of their submission
  std::size_t next_asked_ = 0;
};

}  // namespace kvx::detail
