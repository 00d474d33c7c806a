// SPDX-License-Identifier: Apache-2.0
// The list of policies that the replay knows: a new one is an include and a line.
#include "policies.hpp"

#include "optimum.hpp"
#include "policy_tier.hpp"
#include "strict_lru.hpp"

#include <kvx/admission/frequency_sketch.hpp>
#include <kvx/admission/prefix_aware.hpp>
#include <kvx/admission/second_touch.hpp>
#include <kvx/eviction/arc.hpp>
#include <kvx/eviction/clock.hpp>
#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/gdsf.hpp>
#include <kvx/eviction/learned_hazard.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/eviction/s3fifo.hpp>
#include <kvx/eviction/sieve.hpp>
#include <kvx/eviction/w_tinylfu.hpp>

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

/// An eviction policy behind an admission policy.
template <kvx::eviction_policy Policy, kvx::admission_policy Admission>
policy_entry admitted(std::string name) {
  return {std::move(name),
          [](const trace& work, std::size_t slots, rules how) -> std::unique_ptr<tier> {
            return std::make_unique<policy_tier<Policy, Admission>>(work, slots, how, Policy(slots));
          },
          {}};
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
      eviction<kvx::clock>("clock"),
      eviction<kvx::sieve>("sieve"),
      eviction<kvx::s3fifo>("s3fifo"),
      eviction<kvx::s3fifo_share<10>>("s3fifo_share<10>"),
      eviction<kvx::arc>("arc"),
      eviction<kvx::w_tinylfu>("w_tinylfu"),
      eviction<kvx::gdsf>("gdsf"),
      eviction<kvx::learned_hazard>("learned_hazard"),
      admitted<kvx::lru, kvx::prefix_aware>("lru+prefix_aware"),
      admitted<kvx::lru, kvx::prefix_aware_at<6>>("lru+prefix_aware_at<6>"),
      admitted<kvx::lru, kvx::prefix_aware_at<4>>("lru+prefix_aware_at<4>"),
      admitted<kvx::lru, kvx::second_touch>("lru+second_touch"),
      admitted<kvx::lru, kvx::frequency_sketch>("lru+frequency_sketch"),
      admitted<kvx::s3fifo, kvx::prefix_aware>("s3fifo+prefix_aware"),
      admitted<kvx::fifo, kvx::prefix_aware>("fifo+prefix_aware"),
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
