// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tier.hpp"
#include "trace.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace kvx_replay {

[[nodiscard]] constexpr double ratio(double part, double whole) noexcept { return whole == 0 ? 0 : part / whole; }

/// What the single calls of a policy took, from several replays that make the same calls: the least time of each call
/// is its own, what is above it came from the machine.
struct call_costs {
  std::size_t calls = 0;
  double p50_ns = 0;
  double p99_ns = 0;
  double p999_ns = 0;
  double longest_ns = 0;
  double longest_of_any_replay_ns = 0;  ///< interruptions by the machine included
};

/// Shape   replays: the times of each replay, all of one length, at least one
[[nodiscard]] call_costs summarize(const std::vector<call_times>& replays);

/// One policy at one capacity.
struct cell {
  std::string policy;
  double percent = 0;  ///< of the distinct blocks
  std::size_t slots = 0;
  tier_counts counts;
  double ns_per_block = 0;
  std::optional<call_costs> costs;
};

/// What was replayed on one trace.
struct sheet {
  std::string name;
  std::size_t requests = 0;
  std::size_t blocks = 0;
  std::size_t distinct = 0;
  std::uint64_t input_tokens = 0;
  std::vector<double> capacities;
  std::vector<std::string> policies;
  std::vector<cell> cells;  ///< all capacities of a policy, then the next policy's

  [[nodiscard]] const cell* find(const std::string& policy, double percent) const;
  [[nodiscard]] double hit_ratio(const cell& of) const {
    return ratio(static_cast<double>(of.counts.hit_blocks), static_cast<double>(blocks));
  }
  [[nodiscard]] double token_hit_ratio(const cell& of) const {
    return ratio(static_cast<double>(of.counts.hit_tokens), static_cast<double>(input_tokens));
  }
};

/// Tables for people, on the standard output.
void print(const sheet& of);

/// How far each policy is from the baseline, in percent of the baseline's prefix hit ratio; the least of all.
/// Shape   baseline: its cells, one for each capacity
double print_distances(const sheet& of, const std::vector<cell>& baseline);

/// Units   bytes_per_block: for the bytes of each tier
[[nodiscard]] std::string to_json(const std::vector<sheet>& sheets, std::uint64_t bytes_per_block);

/// Prefix hit ratio over capacity, a panel for each trace and a line for each policy, the optimum on top.
[[nodiscard]] std::string to_svg(const std::vector<sheet>& sheets);

}  // namespace kvx_replay
