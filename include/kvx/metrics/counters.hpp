// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/metrics/histogram.hpp>
#include <kvx/metrics/snapshot.hpp>
#include <kvx/types.hpp>

#include <atomic>
#include <cstdint>

namespace kvx {

/// A number that only grows.
/// Thread  any, concurrently
/// Cost    one relaxed addition
class counter {
 public:
  void add(std::uint64_t n = 1) noexcept { value_.fetch_add(n, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t snapshot() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

/// A number that goes up and down and is never negative once all threads are done.
/// Thread  any, concurrently
/// Cost    one relaxed addition or store
class gauge {
 public:
  void add(std::uint64_t n = 1) noexcept { value_.fetch_add(n, std::memory_order_relaxed); }
  void sub(std::uint64_t n = 1) noexcept { value_.fetch_sub(n, std::memory_order_relaxed); }
  void set(std::uint64_t n) noexcept { value_.store(n, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t snapshot() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

/// What one cache counts while it runs.
/// Thread  any, concurrently; cells are independent, so a snapshot is not one instant of all of them
/// Cost    about 9 KiB, no allocation
struct metrics : basic_metrics<counter, gauge, histogram> {
  metrics() = default;
  metrics(const metrics&) = delete;
  metrics& operator=(const metrics&) = delete;

  /// The counters of a tier that holds blocks.
  /// Shape   where: memory or storage
  [[nodiscard]] tier_metrics& of(tier where) noexcept { return where == tier::memory ? memory : storage; }

  [[nodiscard]] metrics_snapshot snapshot() const noexcept {
    metrics_snapshot out{};
    for_each_metric([](const metric_description&, const auto& live, auto& plain) { plain = live.snapshot(); }, *this,
                    out);
    return out;
  }
};

}  // namespace kvx
