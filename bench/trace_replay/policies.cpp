// SPDX-License-Identifier: Apache-2.0
// The list of policies that the replay knows: a new one is an include and a line.
#include "policies.hpp"

#include "optimum.hpp"
#include "policy_tier.hpp"
#include "strict_lru.hpp"

#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/eviction/s3fifo.hpp>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace kvx_replay {

namespace {

/// An eviction policy as `construct(slots)` makes it.
template <class Construct>
policy_entry eviction(std::string name, Construct construct) {
  using policy = decltype(construct(std::size_t{}));
  return {std::move(name),
          [construct](const trace& work, std::size_t slots, rules how) -> std::unique_ptr<tier> {
            return std::make_unique<policy_tier<policy>>(work, slots, how, construct(slots));
          },
          [construct](std::size_t slots) { return time_single_calls(construct(slots), slots); }};
}

template <kvx::eviction_policy Policy>
policy_entry eviction(std::string name) {
  return eviction(std::move(name), [](std::size_t slots) { return Policy(slots); });
}

policy_entry clairvoyant() {
  return {"optimum",
          [](const trace& work, std::size_t slots, rules) -> std::unique_ptr<tier> {
            return std::make_unique<optimum_tier>(work, slots);
          },
          {}};
}

/// LRU to the letter, for published figures. Its cost is not what a user would pay.
policy_entry reference() {
  policy_entry made = eviction<strict_lru>("strict_lru");
  made.time_calls = {};
  return made;
}

std::vector<policy_entry> make_policies() {
  return {
      eviction<kvx::lru>("lru"),
      eviction<kvx::fifo>("fifo"),
      eviction<kvx::s3fifo>("s3fifo"),
      eviction("s3fifo_10", [](std::size_t slots) { return kvx::s3fifo(slots, 10); }),
      reference(),
      clairvoyant(),
  };
}

}  // namespace

const std::vector<policy_entry>& all_policies() {
  static const std::vector<policy_entry> all = make_policies();
  return all;
}

const policy_entry& policy_named(const std::string& name) {
  std::string known;
  for (const policy_entry& p : all_policies()) {
    if (p.name == name) return p;
    known.append(known.empty() ? "" : ", ").append(p.name);
  }
  throw std::runtime_error(name + " is no policy: there are " + known);
}

}  // namespace kvx_replay
