// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/transfer.hpp>
#include <kvx/detail/direct_outcomes.hpp>
#include <kvx/detail/direct_passage.hpp>
#include <kvx/detail/group_state.hpp>
#include <kvx/direct_ticket.hpp>
#include <kvx/index.hpp>
#include <kvx/plan.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace kvx::detail {

/// Copies the blocks of loads past the arena into the engine's pages: what is in memory from there, the others from the
/// staging memory where they proved themselves.
/// Shape   State: core_state
/// Thread  the caller holds the cache's lock, but where it says otherwise
template <class State, class Layout, class Transfer>
class direct_copies {
 public:
  using group_type = typename State::group_type;
  using digest_type = typename State::digest_type;
  using passage = direct_passage<State, Transfer>;
  using order = typename passage::order;
  using clock = std::chrono::steady_clock;
  using operation = typename Transfer::operation;

  direct_copies(State& state, direct_outcomes<State>& outcomes, const Layout& layout, Transfer& transfer) noexcept
      : state_(state), outcomes_(outcomes), layout_(layout), transfer_(transfer) {}

  /// Blocks of one load that are in memory.
  struct pinned_blocks {
    std::vector<std::vector<block_copy>> copies;  // of each group
    std::vector<std::unique_ptr<passage>> held;
  };
  /// Pins a block that is in memory, for copy_pinned(). Returns whether it was there.
  bool pin(const std::shared_ptr<order>& of, std::size_t entry, pinned_blocks& with) {
    direct_state& ticket = *of->ticket;
    const direct_state::entry& wanted = ticket.wanted[entry];
    group_type& g = *state_.groups[wanted.group];
    const node_id node = g.index.find(from_block_key<digest_type>(ticket.what.keys[wanted.block]));
    const slot_index slot = node == no_node ? no_slot : g.index.memory_slot(node);
    if (slot == no_slot || g.index.memory_busy(node) || !g.holds_tokens(slot, ticket.what.block(wanted.block)))
      return false;
    g.memory.pin(slot);
    if (of->pinned++ == 0) ++state_.loads_under_way;
    ticket.wanted[entry].copying = true;
    auto made = std::make_unique<passage>();
    made->of = of;
    made->entry = entry;
    made->group = &g;
    made->pinned = slot;
    with.copies.resize(state_.groups.size());
    with.copies[wanted.group].push_back({g.payload(slot), of->pages_of(layout_, entry)});
    with.held.push_back(std::move(made));
    ++submitting_;
    return true;
  }
  /// Submits the copies of what is pinned. Caller does not hold the lock.
  void copy_pinned(pinned_blocks blocks, typename Transfer::stream_type stream) {
    if (blocks.held.empty()) return;
    std::vector<result<operation>> submitted;
    for (std::size_t g = 0; g < blocks.copies.size(); ++g)
      submitted.push_back(
          blocks.copies[g].empty()
              ? result<operation>(operation{})
              : transfer_.load(layout_, {g, state_.groups[g]->geometry.layer_offsets, blocks.copies[g]}, stream));
    const std::lock_guard lock(state_.mutex);
    const clock::time_point now = clock::now();
    submitting_ -= blocks.held.size();
    for (auto& each : blocks.held) {
      const auto& op = submitted[each->wanted().group];
      if (!op) {
        arrived(*each, op.status(), now);
        continue;
      }
      each->copy = *op;
      copying_.push_back(std::move(each));
    }
    state_.wake_pump();
  }

  /// Takes a block that proved itself in staging memory.
  void add(std::unique_ptr<passage> proved) { proved_.push_back(std::move(proved)); }
  /// Submits copies of what has been proved, one thread at a time: to submit one block takes the device as long as to
  /// copy it, so that what others prove meanwhile goes in one call. What is left after two calls is for the next whose
  /// read ends, since this reader may have another block to tell of; where nobody reads any more, all is taken. `lock`,
  /// the cache's, is let go meanwhile.
  template <class NobodyReads>
  void copy_proved(std::unique_lock<std::mutex>& lock, NobodyReads&& nobody_reads) noexcept {
    if (std::exchange(copier_, true)) return;
    for (int calls = 0; !proved_.empty() && (calls < 2 || nobody_reads()); ++calls) copy_batch(lock);
    copier_ = false;
  }

  /// Follows copies. Returns whether some are under way or to come.
  bool poll(clock::time_point now) {
    // Those of one stream end in their order, mostly, so that the oldest are asked about; and a few of the others in
    // turn. To ask a device about each, while readers want the lock, would cost more than to hear of one late.
    ask_from(0, now);
    next_asked_ = ask_from(next_asked_ < copying_.size() ? next_asked_ : 0, now);
    return !copying_.empty() || !proved_.empty() || !batch_.empty();
  }
  /// Blocks that are being copied, or will be.
  [[nodiscard]] std::size_t under_way() const noexcept {
    return submitting_ + proved_.size() + batch_.size() + copying_.size();
  }

 private:
  static constexpr std::size_t most_unended = 4;
  static constexpr std::size_t most_in_batch = 8;

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

  void copy_batch(std::unique_lock<std::mutex>& lock) noexcept {
    take_batch();
    if (batch_.empty()) return;
    const order& of = *batch_.front()->of;
    const group_type& g = *batch_.front()->group;
    const std::uint16_t group = batch_.front()->wanted().group;
    batch_copies_.clear();
    for (const auto& each : batch_) batch_copies_.push_back({each->staged, of.pages_of(layout_, each->entry)});
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
        each->leave_staging();
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
      p.leave_staging();
    }
    ticket.wanted[p.entry].copying = false;
    if (outcome.ok() && p.pinned == no_slot) ticket.storage_ready.fetch_add(1, std::memory_order_relaxed);
    if (outcome.ok()) return outcomes_.decide(ticket, p.entry, errc::ok, now);
    state_.metrics.memory.errors.add();
    outcomes_.refuse_from(ticket, p.entry, outcome.code(), now);
  }

  State& state_;
  direct_outcomes<State>& outcomes_;
  const Layout& layout_;
  Transfer& transfer_;
  std::size_t submitting_ = 0;                    // pinned, and not in `copying_` yet
  std::vector<std::unique_ptr<passage>> proved_;  // in the order of that, and to be copied
  bool copier_ = false;                           // a thread is about that
  std::vector<std::unique_ptr<passage>> batch_;   // that thread's
  std::vector<block_copy> batch_copies_;
  std::deque<std::unique_ptr<passage>> copying_;  // in the order of their submission
  std::size_t next_asked_ = 0;
};

}  // namespace kvx::detail
