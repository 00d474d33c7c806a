// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/direct_ticket.hpp>
#include <kvx/options.hpp>
#include <kvx/tickets.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <variant>

namespace kvx {

/// Decides, while a prefetch or a direct load runs, whether waiting for it still beats computing.
///
/// Storage that was fast yesterday may crawl today, and a fresh process knows nothing of it: so the engine
/// asks again as blocks arrive. Before the first one it waits `patience` (a share of the whole prefill); after
/// it, as long as the rest of the load takes clearly less time than computing what it brings would. What
/// loses should be cancelled; the pages of a direct load are its own until it is done().
///
///     kvx::load_race race{pre, cost, prompt.size(), cache.block_tokens()};
///     while (race.worth_waiting()) pre.wait_ready(pre.ready_blocks() + 1, race.look_again());
///     if (!pre.done()) pre.cancel();
///     // load pre.ready_blocks() blocks, compute the rest
///
/// Thread  one, that of the ticket
/// Cost    a few loads
class load_race {
 public:
  using clock = std::chrono::steady_clock;

  /// What waiting in vain may cost: 1 % of the prefill.
  static constexpr double default_patience = 0.01;
  /// The part of the time to compute the blocks still to come that their load may take. What prefill costs and what
  /// storage delivers are both estimates, and where they are close, the one that is wrong costs more than the other
  /// would have saved.
  static constexpr double largest_part = 0.85;

  load_race(const prefetch_ticket& ticket, const prefill_cost& cost, std::size_t prompt_tokens,
            std::uint32_t block_tokens, double patience = default_patience) noexcept
      : load_race(either(&ticket), cost, prompt_tokens, block_tokens, patience) {}
  load_race(const direct_load_ticket& ticket, const prefill_cost& cost, std::size_t prompt_tokens,
            std::uint32_t block_tokens, double patience = default_patience) noexcept
      : load_race(either(&ticket), cost, prompt_tokens, block_tokens, patience) {}

  /// The ticket is the caller's, and stays where it is.
  load_race(const prefetch_ticket&&, const prefill_cost&, std::size_t, std::uint32_t, double = 0) = delete;
  load_race(const direct_load_ticket&&, const prefill_cost&, std::size_t, std::uint32_t, double = 0) = delete;

  [[nodiscard]] bool worth_waiting() const noexcept {
    return std::visit([this](const auto* ticket) { return worth_waiting_for(*ticket); }, ticket_);
  }

  /// How long to wait before asking again.
  [[nodiscard]] std::chrono::nanoseconds look_again() const noexcept {
    constexpr double least_seconds = 50e-6;
    constexpr double most_seconds = 5e-3;
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
        std::chrono::duration<double>(std::clamp(patience_seconds_ / 4, least_seconds, most_seconds)));
  }

 private:
  using either = std::variant<const prefetch_ticket*, const direct_load_ticket*>;

  load_race(either ticket, const prefill_cost& cost, std::size_t prompt_tokens, std::uint32_t block_tokens,
            double patience) noexcept
      : ticket_(ticket),
        cost_(cost),
        prompt_tokens_(prompt_tokens),
        block_tokens_(block_tokens),
        patience_seconds_(patience * cost.seconds(0, prompt_tokens)) {}

  template <class Ticket>
  [[nodiscard]] bool worth_waiting_for(const Ticket& ticket) const noexcept {
    if (ticket.done()) return false;
    const auto remaining = ticket.projected_remaining();
    if (!remaining) return std::chrono::duration<double>(clock::now() - started_).count() < patience_seconds_;
    const double spared = compute_seconds(usable_blocks(ticket)) - compute_seconds(ticket.planned_blocks());
    return remaining->count() < largest_part * spared;
  }
  [[nodiscard]] static std::size_t usable_blocks(const prefetch_ticket& ticket) noexcept {
    return ticket.ready_blocks();
  }
  [[nodiscard]] static std::size_t usable_blocks(const direct_load_ticket& ticket) noexcept {
    return ticket.loaded_blocks();
  }

  // What is left to compute when the first `blocks` are there.
  [[nodiscard]] double compute_seconds(std::size_t blocks) const noexcept {
    const std::size_t past = std::min(blocks * block_tokens_, prompt_tokens_);
    return cost_.seconds(past, prompt_tokens_ - past);
  }

  either ticket_;
  prefill_cost cost_;
  std::size_t prompt_tokens_;
  std::uint32_t block_tokens_;
  double patience_seconds_;
  clock::time_point started_ = clock::now();
};

}  // namespace kvx
