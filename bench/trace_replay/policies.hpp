// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "index_mode.hpp"
#include "trace.hpp"

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace kvx_replay {

/// A policy under the name that the command line and the reports use.
struct policy_entry {
  std::string name;
  std::function<outcome(const trace&, std::size_t slots, rules, call_times*)> replay;
};

/// Every policy, the optimum last.
[[nodiscard]] const std::vector<policy_entry>& all_policies();

/// Those of the names given, in that order.
/// Errors  throws std::runtime_error that lists what there is
[[nodiscard]] std::vector<policy_entry> policies_named(const std::vector<std::string>& names);

}  // namespace kvx_replay
