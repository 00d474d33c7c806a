// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/group_state.hpp>
#include <kvx/direct_ticket.hpp>
#include <kvx/index.hpp>
#include <kvx/result.hpp>
#include <kvx/tickets.hpp>
#include <kvx/types.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx::detail {

/// Says what became of the blocks of loads past the arena; of a load that ended it tells the tiers' policies which
/// blocks the request used.
/// Shape   State: core_state
/// Thread  the caller holds the cache's lock
template <class State>
class direct_outcomes {
 public:
  using group_type = typename State::group_type;
  using digest_type = typename State::digest_type;
  using clock = std::chrono::steady_clock;

  explicit direct_outcomes(State& state) noexcept : state_(state) {}

  void decide(direct_state& ticket, std::size_t entry, errc code, clock::time_point now) {
    if (ticket.decided(entry)) return;
    State::count_outcome(state_.metrics.load, code);
    if (!ticket.decide(entry, code)) return;
    use(ticket);
    state_.metrics.latency.load.record(now - ticket.started);
    state_.complete(ticket.id(), completion::operation::load, ticket.overall());
  }
  /// Behind a block that will not come, the group's later ones are of no use to a resume.
  void refuse_from(direct_state& ticket, std::size_t entry, errc why, clock::time_point now) {
    const std::uint16_t group = ticket.wanted[entry].group;
    for (std::size_t i = entry; i < ticket.entries(); ++i)
      if (ticket.wanted[i].group == group && !ticket.wanted[i].copying) decide(ticket, i, why, now);
  }
  /// Gives up what is not being copied into the pages yet.
  void give_up(direct_state& ticket, errc why, clock::time_point now) {
    ticket.given_up.store(true, std::memory_order_relaxed);
    for (std::size_t i = 0; i < ticket.entries(); ++i)
      if (!ticket.wanted[i].copying) decide(ticket, i, why, now);
  }

 private:
  // Storage's policy hears of all of them, memory's of those that memory has, since the others do not come there.
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

  State& state_;
};

}  // namespace kvx::detail
