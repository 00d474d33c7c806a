// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>

namespace kvx {

/// How fast a tier moves bytes: bytes over the time in which it was busy, recent work weighing more.
///
/// Busy is while at least one operation is under way, so concurrent operations count their time once and
/// idle time not at all. Idle time does not age what was learned either.
/// Units   bytes, time
/// Thread  any, concurrently
/// Cost    start, finish: one short lock; bytes_per_second: one load
class throughput {
 public:
  using clock = std::chrono::steady_clock;

  struct options {
    /// Work this much busy time ago weighs half.
    std::chrono::nanoseconds half_life = std::chrono::seconds{5};
    /// No answer before this many bytes were moved: the first operations pay for cold caches.
    std::uint64_t least_bytes = 64U << 20U;
  };

  throughput() noexcept = default;
  explicit throughput(const options& with) noexcept : options_(with) {}

  /// An operation starts.
  void start(clock::time_point now = clock::now()) noexcept {
    const std::lock_guard lock{mutex_};
    account(now);
    ++running_;
  }

  /// An operation that was started ends; what failed moved 0 bytes.
  void finish(std::uint64_t bytes, clock::time_point now = clock::now()) noexcept {
    const std::lock_guard lock{mutex_};
    account(now);
    --running_;
    bytes_ += static_cast<double>(bytes);
    seen_bytes_ += bytes;
    if (seen_bytes_ >= options_.least_bytes && busy_seconds_ > 0) {
      rate_.store(bytes_ / busy_seconds_, std::memory_order_relaxed);
    }
  }

  /// Nothing before enough was moved to tell.
  [[nodiscard]] std::optional<double> bytes_per_second() const noexcept {
    const double rate = rate_.load(std::memory_order_relaxed);
    if (rate < 0) return std::nullopt;
    return rate;
  }

 private:
  void account(clock::time_point now) noexcept {
    // Callers may take `now` before the lock and arrive out of order.
    if (running_ == 0) {
      last_ = now;
      return;
    }
    if (now <= last_) return;
    const double seconds = std::chrono::duration<double>(now - last_).count();
    const double kept = std::exp2(-seconds / std::chrono::duration<double>(options_.half_life).count());
    bytes_ *= kept;
    busy_seconds_ = busy_seconds_ * kept + seconds;
    last_ = now;
  }

  options options_{};
  std::mutex mutex_;
  clock::time_point last_{};
  std::size_t running_ = 0;
  double bytes_ = 0;
  double busy_seconds_ = 0;
  std::uint64_t seen_bytes_ = 0;
  std::atomic<double> rate_{-1.0};
};

}  // namespace kvx
