// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace kvx {

/// Counts of a latency histogram at one moment, as plain values.
///
/// Buckets are log-linear: four to each power of two, so a bucket is at most a quarter of its values wide.
/// Bucket 0 holds 0 and 1 ns; the last one holds everything above `limit_ns`.
/// Units   nanoseconds
struct histogram_snapshot {
  static constexpr unsigned sub_bucket_bits = 2;
  static constexpr unsigned sub_buckets = 1U << sub_bucket_bits;
  /// 2^41 ns, about 37 minutes.
  static constexpr unsigned limit_bits = 41;
  static constexpr std::uint64_t limit_ns = std::uint64_t{1} << limit_bits;
  static constexpr std::size_t bucket_count = (limit_bits - sub_bucket_bits + 1) * sub_buckets + 1;

  std::array<std::uint64_t, bucket_count> counts{};
  std::uint64_t sum_ns = 0;
  std::uint64_t max_ns = 0;

  /// The bucket of a value.
  [[nodiscard]] static constexpr std::size_t bucket_of(std::uint64_t ns) noexcept {
    if (ns > limit_ns) return bucket_count - 1;
    // Upper edges are inclusive, as Prometheus wants them: shift by one.
    const std::uint64_t v = ns == 0 ? 0 : ns - 1;
    if (v < sub_buckets) return static_cast<std::size_t>(v);
    const unsigned exponent = static_cast<unsigned>(std::bit_width(v)) - 1;
    const std::uint64_t sub = (v >> (exponent - sub_bucket_bits)) & (sub_buckets - 1);
    return (exponent - sub_bucket_bits + 1) * sub_buckets + static_cast<std::size_t>(sub);
  }

  /// Largest value of a bucket.
  /// Shape   bucket: below bucket_count - 1, the last one has no upper edge
  [[nodiscard]] static constexpr std::uint64_t upper_ns(std::size_t bucket) noexcept {
    const std::size_t next = bucket + 1;
    if (next < sub_buckets) return next;
    const std::uint64_t mantissa = sub_buckets + next % sub_buckets;
    return mantissa << (next / sub_buckets - 1);
  }

  [[nodiscard]] std::uint64_t count() const noexcept {
    std::uint64_t total = 0;
    for (const std::uint64_t c : counts) total += c;
    return total;
  }

  /// The value that a share `q` of all values does not exceed, interpolated in its bucket; 0 when empty.
  /// Shape   q: 0 to 1
  /// Errors  off by the width of its bucket at most, a quarter of the value
  [[nodiscard]] std::chrono::nanoseconds percentile(double q) const noexcept {
    const std::uint64_t total = count();
    if (total == 0) return std::chrono::nanoseconds{0};
    const double wanted = std::clamp(q, 0.0, 1.0) * static_cast<double>(total);
    auto rank = static_cast<std::uint64_t>(wanted);
    if (static_cast<double>(rank) < wanted) ++rank;
    rank = std::clamp<std::uint64_t>(rank, 1, total);

    std::uint64_t before = 0;
    std::size_t bucket = 0;
    while (before + counts[bucket] < rank) before += counts[bucket++];
    const std::uint64_t low = bucket == 0 ? 0 : upper_ns(bucket - 1);
    // max_ns may lag behind the counts of a snapshot taken under load: never go below the bucket for it.
    const std::uint64_t edge = bucket + 1 < bucket_count ? upper_ns(bucket) : max_ns;
    const std::uint64_t high = std::max(low, max_ns > low ? std::min(edge, max_ns) : edge);
    const double part = static_cast<double>(rank - before) / static_cast<double>(counts[bucket]);
    return std::chrono::nanoseconds{
        static_cast<std::int64_t>(static_cast<double>(low) + part * static_cast<double>(high - low))};
  }

  /// Adds what another histogram counted.
  void merge(const histogram_snapshot& other) noexcept {
    for (std::size_t i = 0; i < bucket_count; ++i) counts[i] += other.counts[i];
    sum_ns += other.sum_ns;
    max_ns = std::max(max_ns, other.max_ns);
  }

  friend bool operator==(const histogram_snapshot&, const histogram_snapshot&) noexcept = default;
};

/// Latency histogram that any number of threads record into.
/// Thread  any, concurrently; a snapshot taken meanwhile holds some prefix of each thread's records
/// Cost    record: two relaxed additions and, for a new maximum, an exchange; about 1.3 KiB
class histogram {
 public:
  /// A negative duration counts as 0.
  void record(std::chrono::nanoseconds value) noexcept {
    const auto ns = static_cast<std::uint64_t>(std::max<std::int64_t>(value.count(), 0));
    counts_[histogram_snapshot::bucket_of(ns)].fetch_add(1, std::memory_order_relaxed);
    sum_ns_.fetch_add(ns, std::memory_order_relaxed);
    std::uint64_t seen = max_ns_.load(std::memory_order_relaxed);
    while (ns > seen && !max_ns_.compare_exchange_weak(seen, ns, std::memory_order_relaxed)) {
    }
  }

  [[nodiscard]] histogram_snapshot snapshot() const noexcept {
    histogram_snapshot out;
    for (std::size_t i = 0; i < counts_.size(); ++i) out.counts[i] = counts_[i].load(std::memory_order_relaxed);
    out.sum_ns = sum_ns_.load(std::memory_order_relaxed);
    out.max_ns = max_ns_.load(std::memory_order_relaxed);
    return out;
  }

 private:
  std::array<std::atomic<std::uint64_t>, histogram_snapshot::bucket_count> counts_{};
  std::atomic<std::uint64_t> sum_ns_{0};
  std::atomic<std::uint64_t> max_ns_{0};
};

}  // namespace kvx
