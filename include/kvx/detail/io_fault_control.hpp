// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace kvx {

template <io_backend Inner>
class fault;

/// What can go wrong below a cache.
enum class fault_kind : std::uint8_t {
  error,            ///< nothing moves; ends as `fault_rule::error`
  short_transfer,   ///< a prefix moves; ends as ENODATA (read) or ENOSPC (write) with the prefix's bytes
  short_continued,  ///< the layer below stops after a prefix and goes on: success
  torn_write,       ///< some pages of a write never arrive: success
  stale_read,       ///< what the range held before its last write, as far as `keep_shadows` kept it: success
  misdirected,      ///< another place of the same file is read or written: success
  bit_flip,         ///< one bit arrives changed: success
  late,             ///< moves and ends `fault_rule::delay` later
  never,            ///< moves and ends only after `release_all`
};
inline constexpr std::size_t fault_kinds = 9;

enum class fault_scope : std::uint8_t { any, reads, writes };

/// Which operations a fault hits: `count` of them from the `first` on, each with probability `rate`.
/// Units   first: number of the operation within the scope, 1 is the next one after arming
struct fault_rule {
  static constexpr std::uint64_t for_ever = std::numeric_limits<std::uint64_t>::max();

  fault_kind kind = fault_kind::error;
  fault_scope scope = fault_scope::any;
  std::uint64_t first = 1;
  std::uint64_t count = 1;
  double rate = 1.0;
  int error = EIO;
  std::chrono::microseconds delay{0};
};

/// The handle through which a test arms, counts and releases the faults of one or more `fault` backends.
///
/// The same seed, rules and order of submission give the same faults, whatever the threads do.
/// Thread  any
class fault_control {
 public:
  explicit fault_control(std::uint64_t seed = 0) : seed_(seed) {}

  /// Adds a rule; where several hit one operation, the first one armed counts.
  void arm(const fault_rule& rule) {
    const std::lock_guard lock(mutex_);
    armed rule_now{rule, 0};
    if (rule.kind == fault_kind::torn_write) rule_now.rule.scope = fault_scope::writes;
    if (rule.kind == fault_kind::stale_read) rule_now.rule.scope = fault_scope::reads;
    rules_.push_back(rule_now);
  }
  /// Forgets all rules. What is withheld stays withheld.
  void disarm() {
    const std::lock_guard lock(mutex_);
    rules_.clear();
  }
  /// Makes every transfer take at least `latency` plus its share of a link of `bytes_per_second`; 0: no limit.
  void throttle(std::uint64_t bytes_per_second, std::chrono::microseconds latency = {}) {
    const std::lock_guard lock(mutex_);
    bytes_per_second_ = bytes_per_second;
    latency_ = latency;
  }
  /// Keeps what writes replace, the newest `bytes` of it, for `stale_read`. Every write then costs a read before it.
  void keep_shadows(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    shadow_limit_bytes_ = bytes;
    drop_old_shadows();
  }
  /// Lets everything withheld so far move and end.
  void release_all() {
    const std::lock_guard lock(mutex_);
    ++releases_;
    changed_.notify_all();
  }

  /// Requests submitted so far.
  [[nodiscard]] std::uint64_t operations() const {
    const std::lock_guard lock(mutex_);
    return operations_;
  }
  /// Faults that took effect; a rule without a target (nothing stale to be had, nowhere to misdirect to) has none.
  [[nodiscard]] std::uint64_t injected(fault_kind kind) const {
    const std::lock_guard lock(mutex_);
    return injected_[static_cast<std::size_t>(kind)];
  }
  /// Operations held back by `never` and not released.
  [[nodiscard]] std::size_t withheld() const {
    const std::lock_guard lock(mutex_);
    return withheld_;
  }

 private:
  template <io_backend Inner>
  friend class fault;

  using clock = std::chrono::steady_clock;

  struct armed {
    fault_rule rule;
    std::uint64_t seen = 0;
  };
  struct decision {
    std::optional<fault_rule> rule;
    std::uint64_t random = 0;
  };
  struct shadow {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    std::uint64_t offset = 0;
    std::vector<std::byte> bytes;
  };

  // SplitMix64.
  static std::uint64_t mix(std::uint64_t value) noexcept {
    value += 0x9E3779B97F4A7C15U;
    value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9U;
    value = (value ^ (value >> 27U)) * 0x94D049BB133111EBU;
    return value ^ (value >> 31U);
  }

  decision decide(io_op op) {
    const std::lock_guard lock(mutex_);
    ++operations_;
    decision made{.rule = std::nullopt, .random = mix(seed_ ^ mix(operations_))};
    for (std::size_t i = 0; i < rules_.size(); ++i) {
      armed& each = rules_[i];
      const fault_rule& rule = each.rule;
      const fault_scope scope = op == io_op::read ? fault_scope::reads : fault_scope::writes;
      if (rule.scope != fault_scope::any && rule.scope != scope) continue;
      ++each.seen;
      const bool in_turn = each.seen >= rule.first && each.seen - rule.first < rule.count;
      const auto draw = static_cast<double>(mix(made.random + i) >> 11U) * 0x1.0p-53;
      if (in_turn && draw < rule.rate && !made.rule) made.rule = rule;
    }
    return made;
  }

  void count(fault_kind kind) {
    const std::lock_guard lock(mutex_);
    ++injected_[static_cast<std::size_t>(kind)];
  }

  // When a transfer of `bytes` that is complete now may be reported.
  clock::time_point reportable(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    clock::time_point when = clock::now();
    if (bytes_per_second_ != 0) {
      const auto taken = std::chrono::duration_cast<clock::duration>(
          std::chrono::duration<double>(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_)));
      link_free_ = std::max(link_free_, when) + taken;
      when = link_free_;
    }
    return when + latency_;
  }

  [[nodiscard]] bool shadowing() const {
    const std::lock_guard lock(mutex_);
    return shadow_limit_bytes_ != 0;
  }
  void remember(int file, std::uint64_t offset, std::span<const std::byte> replaced) {
    struct ::stat about {};
    if (::fstat(file, &about) != 0) return;
    const std::lock_guard lock(mutex_);
    shadows_.push_back({about.st_dev, about.st_ino, offset, {replaced.begin(), replaced.end()}});
    shadow_bytes_ += replaced.size();
    drop_old_shadows();
  }
  // Lays what was replaced over what was read; the newest replacement wins. False: there is none.
  bool make_stale(int file, std::uint64_t offset, std::span<std::byte> read) const {
    struct ::stat about {};
    if (::fstat(file, &about) != 0) return false;
    const std::lock_guard lock(mutex_);
    bool any = false;
    for (const shadow& each : shadows_) {
      const std::uint64_t begin = std::max(each.offset, offset);
      const std::uint64_t end = std::min(each.offset + each.bytes.size(), offset + read.size());
      if (each.device != about.st_dev || each.inode != about.st_ino || begin >= end) continue;
      std::memcpy(read.data() + (begin - offset), each.bytes.data() + (begin - each.offset), end - begin);
      any = true;
    }
    return any;
  }
  void drop_old_shadows() {
    while (shadow_bytes_ > shadow_limit_bytes_) {
      shadow_bytes_ -= shadows_.front().bytes.size();
      shadows_.pop_front();
    }
  }

  const std::uint64_t seed_;
  mutable std::mutex mutex_;  // also guards what the backends hold back
  std::condition_variable changed_;
  std::vector<armed> rules_;
  std::array<std::uint64_t, fault_kinds> injected_{};
  std::deque<shadow> shadows_;
  std::size_t shadow_bytes_ = 0;
  std::size_t shadow_limit_bytes_ = 0;
  std::uint64_t operations_ = 0;
  std::uint64_t releases_ = 0;
  std::size_t withheld_ = 0;
  std::uint64_t bytes_per_second_ = 0;
  std::chrono::microseconds latency_{0};
  clock::time_point link_free_{};
};

}  // namespace kvx
