// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>

namespace kvx::detail {

/// Decides, hit by hit, whether a policy of one's own or LRU is followed.
///
/// Both are simulated, so that either can be compared at any time. LRU comes first. The own one is taken up when it
/// led by more than chance explains since it was last behind: by 1.5 standard deviations of what single requests decide
/// where the cache could lose a request's hits and still be well within what is allowed it; by 2.3 and by twelve
/// requests where it could not, since a few lucky ones say little. It is left as soon as the cache trails LRU by 0.2 %
/// of LRU's hits and a request, less what it was ahead lately (up to 10 % of the hits); each time it disappointed, more
/// is asked of it.
class policy_duel {
 public:
  [[nodiscard]] bool follows_lru() const noexcept { return follows_lru_; }

  /// Shape   hits: blocks of a request's prefix that the own policy, LRU, and the cache itself have
  /// Units   mean_request: blocks; lead: the own policy's with the earlier parts of the request, where it goes on
  void request(const std::array<double, 3>& hits, double mean_request, double& lead_so_far, bool goes_on) noexcept {
    constexpr double keep = 1 - 1.0 / 2000;  // requests
    constexpr double credit = 0.1;
    constexpr double patience = 0.002;
    constexpr double patience_requests = 1;
    constexpr double least_lead = 0.003;
    const auto [own, lru, held] = hits;
    const double aged = goes_on ? 1 : keep;
    const double before = lead_so_far;
    const double lead = own - lru;
    lead_so_far += lead;
    if (!goes_on) ++requests_;
    total_ += held - lru;
    lru_total_ += lru;
    balance_ = std::min(balance_ * aged + held - lru, credit * hits_ + 2 * mean_request);
    hits_ = hits_ * aged + lru;
    lead_ = std::max(0.0, lead_ * aged + lead);
    spread_ = spread_ * aged + lead_so_far * lead_so_far - before * before;
    if (!follows_lru_) {
      if (balance_ >= -patience * hits_ - patience_requests * mean_request) return;
      follows_lru_ = true;
      lead_ = 0;
      doubt_ = std::min(doubt_ + 0.7, 6.0);
      asked_ = least_lead;
      return;
    }
    const bool affordable = total_ + stake * expected_hits() >= patience_requests * mean_request;
    const double doubt = affordable ? doubt_ : std::max(doubt_, certain);
    if (lead_ >= asked_ * hits_ && lead_ * lead_ >= doubt * doubt * spread_ &&
        (affordable || lead_ > certain_requests * mean_request)) {
      follows_lru_ = false;
      balance_ = 0;
    }
  }

 private:
  static constexpr double stake = 0.003;
  static constexpr double certain = 2.3;
  static constexpr double certain_requests = 12;

  // Of LRU, so far or in the beginning's worth of requests, once there are some to go by.
  [[nodiscard]] double expected_hits() const noexcept {
    constexpr double beginning = 2000;
    constexpr double soonest = 16;
    return requests_ < soonest ? 0 : lru_total_ * std::max(1.0, beginning / requests_);
  }

  bool follows_lru_ = true;
  double requests_ = 0;
  double total_ = 0;      // of the cache against LRU
  double lru_total_ = 0;  // hits of LRU
  double balance_ = 0;    // of the cache against LRU, lately
  double hits_ = 0;       // of LRU, lately
  double lead_ = 0;       // of the own policy since it was last behind
  double spread_ = 0;     // squares of what one request decides
  double doubt_ = 1.5;    // standard deviations of lead that are asked for
  double asked_ = 0;      // part of the hits that it must lead by
};

}  // namespace kvx::detail
