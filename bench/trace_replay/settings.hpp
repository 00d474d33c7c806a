// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sessions.hpp"
#include "tier.hpp"
#include "trace.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvx_replay {

/// The command line.
struct settings {
  std::vector<std::string> traces;
  std::vector<std::string> workloads;
  std::uint64_t seed = 1;
  std::size_t requests = 0;  ///< 0: all of a trace, 6000 of a workload
  std::uint32_t block_tokens = 512;
  std::vector<double> capacities{1, 5, 10, 25, 50};
  std::vector<std::string> policies;  ///< empty: all
  rules how;
  bool hints = false;
  session_model sessions;
  unsigned cost_replays = 0;
  double check_percent = -1;  ///< negative: no check
  std::vector<std::string> two_tier;
  std::uint64_t bytes_per_block = 64U << 10U;
  std::string json;
  std::string svg;
};

/// A trace and what its reports call it.
struct named_trace {
  std::string name;
  trace requests;
};

/// Reads or generates everything that was asked for.
[[nodiscard]] std::vector<named_trace> load(const settings& from);

/// The policies of the settings that exist.
[[nodiscard]] std::vector<std::string> chosen_policies(const settings& from);

/// Slots for a share of a trace's distinct blocks, at least one.
[[nodiscard]] std::size_t slots_for(const trace& work, double percent);

}  // namespace kvx_replay
