// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <utility>

namespace kvx::detail {

/// Keeps one direction of one root from being asked while it fails.
///
/// Errors and deadlines in a row open it; absent, stale or damaged blocks never count. After a pause it is
/// half open: one probe decides.
/// Thread  closed(): any; the rest: one at a time
class breaker {
 public:
  using clock = std::chrono::steady_clock;
  enum class state : std::uint8_t { closed = 0, half_open = 1, open = 2 };

  breaker(unsigned failures, std::chrono::milliseconds pause) noexcept : limit_(failures), pause_(pause) {}

  [[nodiscard]] bool closed() const noexcept { return state_.load(std::memory_order_relaxed) == state::closed; }
  [[nodiscard]] state now() const noexcept { return state_.load(std::memory_order_relaxed); }

  /// Returns true when this closed it.
  bool succeeded() noexcept {
    in_a_row_ = 0;
    return state_.exchange(state::closed, std::memory_order_relaxed) != state::closed;
  }
  /// Returns true when this opened it.
  bool failed(clock::time_point at) noexcept {
    const bool was_closed = closed();
    if (was_closed && ++in_a_row_ < limit_) return false;
    opened_ = at;
    state_.store(state::open, std::memory_order_relaxed);
    return was_closed;
  }
  /// True once per pause: the caller sends a probe. One that never answered is followed by another.
  [[nodiscard]] bool wants_probe(clock::time_point at) noexcept {
    if (closed() || at < opened_ + pause_) return false;
    opened_ = at;
    probe_taken_ = false;
    state_.store(state::half_open, std::memory_order_relaxed);
    return true;
  }
  /// Half open, and the probe was not sent yet.
  [[nodiscard]] bool probe_wanted() const noexcept { return now() == state::half_open && !probe_taken_; }
  /// Half open: true for the one operation that is the probe.
  bool takes_probe() noexcept { return now() == state::half_open && !std::exchange(probe_taken_, true); }

 private:
  unsigned limit_;
  std::chrono::milliseconds pause_;
  unsigned in_a_row_ = 0;
  clock::time_point opened_{};
  bool probe_taken_ = false;
  std::atomic<state> state_{state::closed};
};

}  // namespace kvx::detail
