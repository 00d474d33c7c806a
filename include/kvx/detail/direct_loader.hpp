// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/direct_reader.hpp>
#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>
#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/core_state.hpp>
#include <kvx/detail/direct_copies.hpp>
#include <kvx/detail/direct_outcomes.hpp>
#include <kvx/detail/direct_passage.hpp>
#include <kvx/detail/slot_reading.hpp>
#include <kvx/detail/staging_source.hpp>
#include <kvx/direct_ticket.hpp>
#include <kvx/plan.hpp>
#include <kvx/store/slot_format.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
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
/// only then direct_copies submits its copy into the pages. What is in memory is copied from there.
template <class Hasher, class Policies, class Io, class Layout, class Transfer>
class direct_loader {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;
  using stream_type = typename Transfer::stream_type;
  using copies_type = direct_copies<state_type, Layout, Transfer>;
  using passage = typename copies_type::passage;
  using order = typename copies_type::order;
  using used_source = typename order::used_source;
  using waiting = typename order::waiting;
  using ids_of_groups = std::span<const std::span<const block_id>>;

  direct_loader(state_type& state, const Layout& layout, Transfer& transfer, staging_sources& sources) noexcept
      : state_(state),
        layout_(layout),
        transfer_(transfer),
        known_(sources),
        outcomes_(state),
        copies_(state, outcomes_, layout, transfer) {}

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
    typename copies_type::pinned_blocks in_memory;
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
        if (!copies_.pin(job, i, in_memory)) job->source->queue.push_back({job, i});
      ticket->from_storage = ticket->entries() - in_memory.held.size();
      requests = admit(*job->source, now);
      state_.wake_pump();  // it watches the deadline
    }
    copies_.copy_pinned(std::move(in_memory), stream);
    if (!requests.empty()) source->submit(requests);
    return ticket;
  }

  /// Gives up what is not being copied into the pages yet. Caller holds the lock.
  void give_up(const std::shared_ptr<direct_state>& ticket, errc why, clock::time_point now) {
    outcomes_.give_up(*ticket, why, now);
  }

  /// Follows copies into the pages. Returns whether some are under way or to come. Caller holds the lock.
  bool poll(clock::time_point now) { return copies_.poll(now); }

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
        all.push_back({each->reader.get(), std::move(requests)});
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
  [[nodiscard]] std::size_t under_way() const noexcept { return reading_.size() + calling_ + copies_.under_way(); }

  /// Ends every load; reads under way stay the readers'. Caller holds the lock.
  void shut_down(clock::time_point now) {
    for (const auto& ticket : active_) give_up(ticket, errc::closed, now);
    active_.clear();
    for (const auto& each : sources_) each->queue.clear();
  }

 private:
  /// What a reader is given with a block, for its answer.
  struct read_context {
    direct_loader* owner = nullptr;
    std::unique_ptr<passage> block;
  };

  [[nodiscard]] std::shared_ptr<direct_state> make_ticket(const plan& what, std::size_t first, std::size_t end,
                                                          clock::time_point now) {
    auto wanted = state_.template blocks_needed<direct_state::entry>(layout_, first, end);
    const bool partial = state_.groups.size() == 1 && layout_.kind(0) == attention_kind::full;
    return std::make_shared<direct_state>(state_.next_ticket.fetch_add(1, std::memory_order_relaxed), what,
                                          std::move(wanted), end, partial, now, now + state_.opts.load_deadline);
  }

  [[nodiscard]] used_source* use_of(const std::shared_ptr<staging_source>& source) {
    for (const auto& each : sources_)
      if (each->reader == source) return each.get();
    sources_.push_back(std::make_unique<used_source>(used_source{source, 0, {}}));
    return sources_.back().get();
  }

  [[nodiscard]] group_type& group_of(const direct_state& ticket, std::size_t entry) const noexcept {
    return *state_.groups[ticket.wanted[entry].group];
  }

  [[nodiscard]] std::vector<direct_request> admit(used_source& source, clock::time_point now) {
    std::vector<direct_request> out;
    while (!source.queue.empty() && source.under_way < source.reader->capacity()) {
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
      return outcomes_.refuse_from(ticket, next.entry, errc::miss, now);
    const auto from = g.storage->store().place_for_read(place);
    if (!from) {
      state_.drop_storage(g, node);
      return outcomes_.refuse_from(ticket, next.entry, errc::miss, now);
    }
    // Whole before anybody counts on it: its memory may be what is missing.
    auto given = std::make_unique<read_context>(read_context{this, std::make_unique<passage>()});
    passage* const made = given->block.get();
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
    state_.read_started(g.geometry.stride, now);
    direct_request request;
    request.file = from->file;
    request.offset = from->offset;
    request.payload_bytes = g.geometry.payload_bytes;
    request.header = made->header.span();
    request.page_values = made->page_values;
    request.cancelled = &ticket.given_up;
    request.context = given.release();
    request.done = [](void* context, const io_result& outcome, std::byte* payload) noexcept {
      const std::unique_ptr<read_context> self(static_cast<read_context*>(context));
      self->owner->read(std::move(self->block), outcome, payload);
    };
    out.push_back(request);
  }

  // A read ended; on a thread of the reader.
  void read(std::unique_ptr<passage> ended, const io_result& outcome, std::byte* payload) noexcept {
    passage& p = *ended;
    const group_type& g = *p.group;
    p.staged = payload;
    const clock::time_point came = clock::now();
    auto verdict = store::slot_verdict::not_a_slot;
    if (outcome.error == 0) {
      const slot_reading reading{p.of->ticket->what, p.wanted().block, p.place, p.file, p.offset, g.geometry.stride};
      verdict = store::verify_slot(p.header.span(), p.page_values, g.geometry, g.identity, reading.expected());
      state_.metrics.latency.verify.record(clock::now() - came);
      if (verdict != store::slot_verdict::ok) reading.leave_page_cache();
    }
    std::vector<requests_of_source> more;
    {
      std::unique_lock lock(state_.mutex);
      ++calling_;  // what is under way keeps the cache alive, and with it this
      if (settle_read(p, outcome, verdict, came)) {
        copies_.add(std::move(ended));
      } else {
        p.leave_staging();
        state_.wake_pump();  // for what is to be told
      }
      copies_.copy_proved(lock, [this] { return reading_.empty(); });
      more = admit(clock::now());
      if (more.empty()) {
        --calling_;
        return;
      }
    }
    for (const requests_of_source& each : more) each.source->submit(each.requests);
    const std::lock_guard lock(state_.mutex);
    --calling_;
  }

  // Returns whether the block proved itself.
  bool settle_read(passage& p, const io_result& outcome, store::slot_verdict verdict, clock::time_point came) {
    group_type& g = *p.group;
    direct_state& ticket = *p.of->ticket;
    const clock::time_point now = clock::now();
    std::erase(reading_, &p);
    state_.read_ended(g.geometry.stride, outcome.error, p.late_counted, came, now);
    if (outcome.error == 0 && verdict == store::slot_verdict::ok) {
      state_.metrics.storage.read_bytes.add(g.geometry.stride);
      return true;
    }
    const block_key& key = ticket.what.keys[p.wanted().block];
    const bool unexpected = outcome.error == 0 && state_type::is_unexpected(g, verdict, p.header.span(), key);
    const bool cancelled = outcome.error == ECANCELED;
    if (!cancelled && state_.count_failed_read(outcome.error, unexpected, now)) {
      const node_id node = g.index.find(from_block_key<digest_type>(key));
      if (node != no_node && g.index.storage_slot(node) == p.place && !g.index.storage_busy(node))
        state_.drop_storage(g, node);
    }
    outcomes_.refuse_from(ticket, p.entry, errc::miss, now);
    return false;
  }

  state_type& state_;
  const Layout& layout_;
  Transfer& transfer_;
  staging_sources& known_;
  std::vector<std::unique_ptr<used_source>> sources_;
  std::vector<std::shared_ptr<direct_state>> active_;
  std::vector<passage*> reading_;
  std::size_t calling_ = 0;  // readers' threads that are in here
  direct_outcomes<state_type> outcomes_;
  copies_type copies_;
};

}  // namespace kvx::detail
