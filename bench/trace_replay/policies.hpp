// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "single_calls.hpp"
#include "tier.hpp"
#include "trace.hpp"

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace kvx_replay {

/// A policy under the name that the command line and the reports use.
struct policy_entry {
  std::string name;
  std::function<std::unique_ptr<tier>(const trace&, std::size_t slots, rules)> make;
  std::function<single_calls(std::size_t slots)> time_calls;  ///< empty where there are no calls to time
};

/// Every policy, the optimum last.
[[nodiscard]] const std::vector<policy_entry>& all_policies();

/// Errors  throws std::runtime_error that lists what there is
[[nodiscard]] const policy_entry& policy_named(const std::string& name);

}  // namespace kvx_replay
