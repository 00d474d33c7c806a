// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "trace.hpp"

#include <kvx/concepts/hints.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx_replay {

/// How the blocks of a request reach a policy that does not see whole requests.
enum class access_order : std::uint8_t {
  tail_first,  ///< one by one, the deepest first; that is also who gets room first
  head_first,  ///< one by one, the first block first
  as_cache,    ///< room is made front first, then the policy is shown the newcomers in one batch, deepest first
};

struct rules {
  access_order order = access_order::tail_first;
  /// A block with a cached child stays, as in the cache; false: as the literature simulates it.
  bool parents_pinned = true;
  /// Blocks of a save. Then policies are told as a cache tells them: of what a request loads, and of each save. 0: of
  /// whole requests.
  std::size_t save_blocks = 0;
};

/// How a block that a tier lacks would come into it.
enum class arrival : std::uint8_t {
  computed,   ///< a save: an admission policy is asked
  read_back,  ///< from the tier below, since the request needs it here
  not_at_all,
};

/// What one tier did.
struct tier_counts {
  std::uint64_t hit_blocks = 0;
  std::uint64_t hit_tokens = 0;
  std::uint64_t inserted = 0;
  std::uint64_t evicted = 0;
  std::uint64_t refused = 0;      ///< newcomers that were not taken in
  std::uint64_t nanoseconds = 0;  ///< in the policy and in the bookkeeping around it
};

/// Nanoseconds of each call of a policy, in order; the same replay makes the same calls.
class call_times {
 public:
  template <class Call>
  void time(Call&& call) {
    const auto began = std::chrono::steady_clock::now();
    call();
    add(std::chrono::steady_clock::now() - began);
  }
  /// A call that took that long.
  void add(std::chrono::nanoseconds took) {
    nanoseconds_.push_back(static_cast<std::uint32_t>(std::min<std::int64_t>(took.count(), UINT32_MAX)));
  }
  [[nodiscard]] const std::vector<std::uint32_t>& nanoseconds() const noexcept { return nanoseconds_; }

 private:
  std::vector<std::uint32_t> nanoseconds_;
};

/// A simulated tier under some policy.
class tier {
 public:
  tier() = default;
  virtual ~tier() = default;
  tier(const tier&) = delete;
  tier& operator=(const tier&) = delete;

  [[nodiscard]] virtual bool holds(block_number block) const noexcept = 0;

  /// All blocks of a request are used; those that are not here are newcomers.
  /// Shape   arrivals: for each block; empty: all are computed
  virtual void access(const request& now, kvx::session_state session, std::span<const arrival> arrivals) = 0;

  /// News about the session whose last request this was.
  virtual void advise(const request& last, kvx::session_state session) = 0;

  tier_counts counts;
  /// Who keeps the time of every call of the policy; null: nobody.
  call_times* times = nullptr;

 protected:
  /// Every call of the policy goes through here.
  template <class Call>
  void timed(Call&& call) {
    if (times == nullptr) {
      call();
    } else {
      times->time(call);
    }
  }
};

}  // namespace kvx_replay
