// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "trace.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvx_replay {

/// A generated workload: the name for the command line and what it stands for.
struct workload_description {
  std::string name;
  std::string summary;
};

[[nodiscard]] const std::vector<workload_description>& all_workloads();

/// The same seed gives the same requests, on every machine.
/// Shape   requests: at least that many, but for workloads whose rounds have to be whole
/// Errors  throws std::runtime_error: no workload of that name
[[nodiscard]] trace generate(const std::string& name, std::size_t requests, std::uint64_t seed,
                             std::uint32_t block_tokens = 512);

}  // namespace kvx_replay
