// SPDX-License-Identifier: Apache-2.0
#include "compare.hpp"

#include "index_mode.hpp"
#include "policies.hpp"
#include "workloads.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace kvx_replay {

std::vector<named_trace> load(const settings& from) {
  std::vector<named_trace> out;
  for (const std::string& path : from.traces) {
    const std::size_t all = std::numeric_limits<std::size_t>::max();
    out.push_back({path, read_trace(path, from.block_tokens, from.requests == 0 ? all : from.requests)});
    if (const std::size_t split = out.back().requests.split_ids(); split != 0) {
      std::fprintf(stderr, "%s: %zu ids follow more than one parent; each counts as several blocks\n", path.c_str(),
                   split);
    }
  }
  std::vector<std::string> names = from.workloads;
  if (names == std::vector<std::string>{"all"}) {
    names.clear();
    for (const workload_description& w : all_workloads()) names.push_back(w.name);
  }
  for (const std::string& name : names) {
    const std::size_t requests = from.requests == 0 ? 6000 : from.requests;
    out.push_back(
        {name + ", seed " + std::to_string(from.seed), generate(name, requests, from.seed, from.block_tokens)});
  }
  return out;
}

std::vector<std::string> chosen_policies(const settings& from) {
  std::vector<std::string> out = from.policies;
  for (const std::string& name : out) (void)policy_named(name);
  if (out.empty()) {
    for (const policy_entry& p : all_policies()) out.push_back(p.name);
  }
  return out;
}

std::size_t slots_for(const trace& work, double percent) {
  const double slots = std::floor(static_cast<double>(work.distinct()) * percent / 100 + 1e-9);
  return std::max<std::size_t>(1, static_cast<std::size_t>(slots));
}

namespace {

session_news news_for(const settings& chosen, const trace& work) {
  return chosen.hints ? derive_news(work, chosen.sessions) : session_news{};
}

cell result_of(const tier& after, const std::string& policy, double percent, std::size_t slots, const trace& work) {
  cell out;
  out.policy = policy;
  out.percent = percent;
  out.slots = slots;
  out.counts = after.counts;
  out.ns_per_block = ratio(static_cast<double>(after.counts.nanoseconds), static_cast<double>(work.blocks()));
  return out;
}

cell replay_one(const trace& work, const session_news& news, const policy_entry& policy, double percent, rules how,
                unsigned cost_replays) {
  const std::size_t slots = slots_for(work, percent);
  const std::unique_ptr<tier> only = policy.make(work, slots, how);
  replay(work, news, *only);
  cell out = result_of(*only, policy.name, percent, slots, work);
  std::vector<call_times> times(cost_replays);
  for (call_times& one : times) {
    const std::unique_ptr<tier> again = policy.make(work, slots, how);
    again->times = &one;
    replay(work, news, *again);
  }
  if (cost_replays != 0) out.costs = summarize(times);
  return out;
}

}  // namespace

sheet compare_policies(const settings& chosen, const named_trace& work) {
  sheet out;
  out.name = work.name;
  out.requests = work.requests.size();
  out.blocks = work.requests.blocks();
  out.distinct = work.requests.distinct();
  out.input_tokens = work.requests.input_tokens();
  out.capacities = chosen.capacities;
  out.policies = chosen_policies(chosen);
  const session_news news = news_for(chosen, work.requests);
  for (const std::string& name : out.policies) {
    for (const double percent : chosen.capacities) {
      out.cells.push_back(
          replay_one(work.requests, news, policy_named(name), percent, chosen.how, chosen.cost_replays));
    }
  }
  return out;
}

std::vector<cell> lru_baseline(const settings& chosen, const named_trace& work) {
  std::vector<cell> out;
  for (const double percent : chosen.capacities) {
    out.push_back(replay_one(work.requests, {}, policy_named("lru"), percent, rules{}, 0));
  }
  return out;
}

two_tier_result replay_two_tiers(const settings& chosen, const named_trace& work, const std::string& pair) {
  const auto malformed = [&] {
    return std::runtime_error("--two-tier " + pair +
                              ": not like lru:5,s3fifo:50 (memory's policy and percent, storage's)");
  };
  std::vector<std::pair<std::string, double>> halves;
  for (std::string_view rest = pair; !rest.empty();) {
    const std::string_view half = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(half.size() + 1, rest.size()));
    const std::size_t colon = half.find(':');
    if (colon == std::string_view::npos) throw malformed();
    double percent = 0;
    const char* const end = half.data() + half.size();
    const auto [stop, problem] = std::from_chars(half.data() + colon + 1, end, percent);
    if (problem != std::errc{} || stop != end || !(percent > 0)) throw malformed();
    halves.emplace_back(half.substr(0, colon), percent);
  }
  if (halves.size() != 2) throw malformed();

  const trace& requests = work.requests;
  const auto make = [&](const std::pair<std::string, double>& half) {
    if (half.first == "optimum") throw std::runtime_error("--two-tier " + pair + ": the optimum is one tier's");
    return policy_named(half.first).make(requests, slots_for(requests, half.second), chosen.how);
  };
  const std::unique_ptr<tier> memory = make(halves[0]);
  const std::unique_ptr<tier> storage = make(halves[1]);
  replay(requests, news_for(chosen, requests), *memory, *storage);
  const auto result = [&](const tier& after, const std::pair<std::string, double>& half) {
    return result_of(after, half.first, half.second, slots_for(requests, half.second), requests);
  };
  return {result(*memory, halves[0]), result(*storage, halves[1])};
}

}  // namespace kvx_replay
