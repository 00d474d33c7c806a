// SPDX-License-Identifier: Apache-2.0
// The list of policies that the replay knows: a new one is an include and a line.
#include "policies.hpp"

#include "optimum.hpp"

#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/eviction/s3fifo.hpp>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace kvx_replay {

namespace {

/// An eviction policy as `make(slots)` constructs it.
template <class Make>
policy_entry eviction(std::string name, Make make) {
  return {std::move(name), [make](const trace& work, std::size_t slots, rules how, call_times* calls) {
            return replay(work, policy_tier(work, slots, how, make(slots)), calls);
          }};
}

template <kvx::eviction_policy Policy>
policy_entry eviction(std::string name) {
  return eviction(std::move(name), [](std::size_t slots) { return Policy(slots); });
}

std::vector<policy_entry> make_policies() {
  return {
      eviction<kvx::lru>("lru"),
      eviction<kvx::fifo>("fifo"),
      eviction<kvx::s3fifo>("s3fifo"),
      eviction("s3fifo_10", [](std::size_t slots) { return kvx::s3fifo(slots, 10); }),
      {"optimum", [](const trace& work, std::size_t slots, rules, call_times* calls) {
         return replay(work, optimum_tier(work, slots), calls);
       }},
  };
}

}  // namespace

const std::vector<policy_entry>& all_policies() {
  static const std::vector<policy_entry> all = make_policies();
  return all;
}

std::vector<policy_entry> policies_named(const std::vector<std::string>& names) {
  std::vector<policy_entry> out;
  for (const std::string& name : names) {
    const auto& all = all_policies();
    const auto found = std::find_if(all.begin(), all.end(), [&](const policy_entry& p) { return p.name == name; });
    if (found == all.end()) {
      std::string known;
      for (const policy_entry& p : all) known.append(known.empty() ? "" : ", ").append(p.name);
      throw std::runtime_error("--policies " + name + ": there are " + known);
    }
    out.push_back(*found);
  }
  return out;
}

}  // namespace kvx_replay
