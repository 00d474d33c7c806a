// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/plan.hpp>
#include <kvx/result.hpp>
#include <kvx/tickets.hpp>
#include <kvx/types.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace kvx {

namespace detail {

/// Blocks on their way into engine memory, from wherever they are.
struct direct_state : ticket_state {
  struct entry {
    std::uint32_t block = 0;
    std::uint16_t group = 0;
    bool copying = false;  // into the engine's pages: only the copy's end decides it; guarded by the cache's lock
  };

  direct_state(std::uint64_t id, plan from_plan, std::vector<entry> entries, std::size_t until_block, bool any_prefix,
               clock::time_point now, clock::time_point until)
      : ticket_state(id, entries.size(), until),
        what(std::move(from_plan)),
        wanted(std::move(entries)),
        end(until_block),
        partial(any_prefix),
        started(now) {}

  const plan what;
  std::vector<entry> wanted;  // ascending by block; its shape is constant
  const std::size_t end;      // of the blocks that were asked for
  const bool partial;         // a shorter prefix than the plan's is of use
  const clock::time_point started;
  std::size_t from_storage = 0;  // entries; constant once somebody has the ticket
  std::atomic<std::size_t> storage_ready{0};
  std::atomic<bool> given_up{false};
};

struct direct_owner {
  virtual ~direct_owner() = default;
  virtual void cancel(const std::shared_ptr<direct_state>& which) noexcept = 0;
};

}  // namespace detail

/// Follows blocks on their way from storage, and from memory where they are there, into the engine's pages.
///
/// The pages stay the operation's until done(). Dropping the ticket detaches; the operation goes on.
/// Thread  one at a time; the copies are submitted by the cache's and the reader's threads
class direct_load_ticket {
 public:
  direct_load_ticket() = default;
  direct_load_ticket(std::shared_ptr<detail::direct_state> state, std::weak_ptr<detail::direct_owner> owner) noexcept
      : state_(std::move(state)), owner_(std::move(owner)) {}
  explicit direct_load_ticket(status refused) noexcept : refused_(refused) {}

  [[nodiscard]] std::uint64_t id() const noexcept { return state_ ? state_->id() : 0; }
  /// Every block is in the pages, or known not to come; nothing writes the pages any more.
  [[nodiscard]] bool done() const noexcept { return !state_ || state_->finished(); }
  [[nodiscard]] bool destination_released() const noexcept { return done(); }
  /// Blocks of the plan, counted from its start, that are in the pages without a gap; more may follow until done().
  /// Whatever is submitted from now on sees them.
  /// Cost    linear in the blocks that came since the last call
  [[nodiscard]] std::size_t loaded_blocks() const noexcept {
    if (!state_) return 0;
    while (prefix_ < state_->entries() && state_->outcome(prefix_) == errc::ok) ++prefix_;
    if (prefix_ == state_->entries()) return state_->end;
    return state_->partial ? state_->wanted[prefix_].block : 0;
  }
  /// Blocks of the plan that were asked for, those before `first` included.
  [[nodiscard]] std::size_t planned_blocks() const noexcept { return state_ ? state_->end : 0; }
  /// When the rest will be here if storage goes on as it did for this load; nothing before a first block came from it.
  [[nodiscard]] std::optional<std::chrono::duration<double>> projected_remaining() const noexcept {
    using seconds = std::chrono::duration<double>;
    if (done()) return seconds{0};
    const auto came = static_cast<double>(state_->storage_ready.load(std::memory_order_relaxed));
    const auto all = static_cast<double>(state_->from_storage);
    if (came <= 0) return std::nullopt;
    return seconds(detail::ticket_state::clock::now() - state_->started) * (all > came ? (all - came) / came : 0.0);
  }
  /// `ok` when in the pages, the reason when it will not be, nothing while it is under way.
  [[nodiscard]] std::optional<errc> outcome(std::size_t block, std::size_t group = 0) const noexcept {
    if (!refused_.ok()) return refused_.code();
    if (!state_) return errc::ok;
    for (std::size_t i = 0; i < state_->entries(); ++i)
      if (state_->wanted[i].block == block && state_->wanted[i].group == group) return state_->outcome(i);
    return errc::ok;
  }
  /// ok: all are in the pages; else the first block's reason. Meaningful once done().
  [[nodiscard]] status outcome() const noexcept {
    if (!refused_.ok()) return refused_;
    return state_ ? state_->overall() : status{};
  }
  /// Waits until done, at most for `limit`. Returns done().
  bool wait_for(std::chrono::nanoseconds limit) const {
    return done() || state_->wait(limit, [this] { return state_->finished(); });
  }
  /// Waits until `blocks` are in the pages, or the rest is decided, at most for `limit`. Returns whether it is so.
  bool wait_loaded(std::size_t blocks, std::chrono::nanoseconds limit) const {
    const auto enough = [&] { return done() || loaded_blocks() >= blocks; };
    return enough() || state_->wait(limit, enough);
  }
  /// Gives up what is not on its way into the pages yet. Its buffers stay the cache's until reads end.
  void cancel() noexcept {
    if (!state_) return;
    if (const auto owner = owner_.lock()) owner->cancel(state_);
  }

 private:
  std::shared_ptr<detail::direct_state> state_;
  std::weak_ptr<detail::direct_owner> owner_;
  status refused_{};
  mutable std::size_t prefix_ = 0;
};

}  // namespace kvx
