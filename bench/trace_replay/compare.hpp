// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "report.hpp"
#include "settings.hpp"

#include <string>
#include <vector>

namespace kvx_replay {

/// Every chosen policy at every capacity.
[[nodiscard]] sheet compare_policies(const settings& chosen, const named_trace& work);

/// LRU, tail first and without hints, at every capacity: what a policy must not trail.
[[nodiscard]] std::vector<cell> lru_baseline(const settings& chosen, const named_trace& work);

/// One pair of tiers.
struct two_tier_result {
  cell memory;
  cell storage;
};

/// Shape   pair: "policy:percent,policy:percent", memory first
/// Errors  throws std::runtime_error: the pair is malformed
[[nodiscard]] two_tier_result replay_two_tiers(const settings& chosen, const named_trace& work,
                                               const std::string& pair);

}  // namespace kvx_replay
