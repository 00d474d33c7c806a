// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>

namespace kvx::detail {

/// Decides, hit by hit, whether a policy of one's own or LRU is followed.
///
/// Both are simulated, so that either can be compared at any time. The own one is left as soon as it trails LRU by
/// 0.2 % of LRU's hits and a request, less what it was ahead lately (up to 10 %), and taken up again when it led by
/// more than chance explains since it was last behind; each time it disappointed, more is asked of it. A cache of a
/// few requests starts with LRU: there, chance is all that the first hits show.
class policy_duel {
 public:
  explicit policy_duel(std::size_t slots) noexcept : slots_(static_cast<double>(slots)) {}

  [[nodiscard]] bool follows_lru() const noexcept { return follows_lru_; }

  /// Units   blocks of a request's prefix that the own policy, LRU, and the cache itself have; mean_request: blocks
  void request(double own, double lru, double held, double mean_request) noexcept {
    constexpr double keep = 1 - 1.0 / 2000;  // requests
    constexpr double credit = 0.1;
    constexpr double patience = 0.002;
    constexpr double patience_requests = 1;
    constexpr double least_lead = 0.003;
    constexpr double few_requests = 5;
    const double lead = own - lru;
    if (lead != 0 && spread_ == 0 && slots_ < few_requests * mean_request) {
      follows_lru_ = true;
      doubt_ = 2;
    }
    balance_ = std::min(balance_ * keep + held - lru, credit * hits_ + 2 * mean_request);
    hits_ = hits_ * keep + lru;
    lead_ = std::max(0.0, lead_ * keep + lead);
    spread_ = spread_ * keep + lead * lead;
    if (!follows_lru_) {
      if (balance_ >= -patience * hits_ - patience_requests * mean_request) return;
      follows_lru_ = true;
      lead_ = 0;
      doubt_ = std::min(doubt_ + 0.7, 6.0);
    } else if (lead_ > least_lead * hits_ && lead_ * lead_ > doubt_ * doubt_ * spread_) {
      follows_lru_ = false;
      balance_ = 0;
    }
  }

 private:
  double slots_;
  bool follows_lru_ = false;
  double balance_ = 0;  // of the cache against LRU
  double hits_ = 0;     // of LRU
  double lead_ = 0;     // of the own policy since it was last behind
  double spread_ = 0;   // squares of what one request decides
  double doubt_ = 1.2;  // standard deviations of lead that are asked for
};

}  // namespace kvx::detail
