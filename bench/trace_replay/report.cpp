// SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>

namespace kvx_replay {

call_costs summarize(const std::vector<call_times>& replays) {
  call_costs out;
  std::vector<std::uint32_t> least = replays.front().nanoseconds();
  for (const call_times& one : replays) {
    for (std::size_t i = 0; i < least.size(); ++i) {
      least[i] = std::min(least[i], one.nanoseconds()[i]);
      out.longest_of_any_replay_ns = std::max<double>(out.longest_of_any_replay_ns, one.nanoseconds()[i]);
    }
  }
  out.calls = least.size();
  if (least.empty()) return out;
  std::sort(least.begin(), least.end());
  const auto at = [&](double share) {
    return static_cast<double>(least[static_cast<std::size_t>(share * static_cast<double>(least.size() - 1))]);
  };
  out.p50_ns = at(0.5);
  out.p99_ns = at(0.99);
  out.p999_ns = at(0.999);
  out.longest_ns = least.back();
  return out;
}

const cell* sheet::find(const std::string& policy, double percent) const {
  for (const cell& c : cells) {
    if (c.policy == policy && c.percent == percent) return &c;
  }
  return nullptr;
}

namespace {

void print_table(const sheet& of, const char* title, const std::function<std::string(const cell&)>& text) {
  std::printf("%-24s", title);
  for (const double percent : of.capacities) std::printf("  %7g%%", percent);
  std::printf("\n");
  for (const std::string& policy : of.policies) {
    std::printf("%-24s", policy.c_str());
    for (const double percent : of.capacities) {
      const cell* const c = of.find(policy, percent);
      std::printf("  %8s", c == nullptr ? "" : text(*c).c_str());
    }
    std::printf("\n");
  }
  std::printf("\n");
}

std::string number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string percent_of_gap(const sheet& of, const cell& c) {
  const cell* const low = of.find("lru", c.percent);
  const cell* const high = of.find("optimum", c.percent);
  const double gap = of.hit_ratio(*high) - of.hit_ratio(*low);
  if (gap < 5e-4) return "-";  // there is nothing to gain
  return number("%.1f", 100 * (of.hit_ratio(c) - of.hit_ratio(*low)) / gap);
}

bool has(const sheet& of, const char* policy) {
  return std::find(of.policies.begin(), of.policies.end(), policy) != of.policies.end();
}

}  // namespace

void print(const sheet& of) {
  std::printf("\n%s: %zu requests, %zu blocks, %zu distinct\n\n", of.name.c_str(), of.requests, of.blocks, of.distinct);
  print_table(of, "prefix hit ratio", [&](const cell& c) { return number("%.4f", of.hit_ratio(c)); });
  print_table(of, "token hit ratio", [&](const cell& c) { return number("%.4f", of.token_hit_ratio(c)); });
  if (has(of, "lru") && has(of, "optimum")) {
    print_table(of, "% of the way lru-optimum", [&](const cell& c) { return percent_of_gap(of, c); });
  }
  // A tier writes what it takes in: the wear of a drive.
  print_table(of, "blocks written/request", [&](const cell& c) {
    return number("%.1f", ratio(static_cast<double>(c.counts.inserted), static_cast<double>(of.requests)));
  });
  print_table(of, "ns per block", [](const cell& c) { return number("%.1f", c.ns_per_block); });
  if (std::any_of(of.cells.begin(), of.cells.end(), [](const cell& c) { return c.costs.has_value(); })) {
    print_table(of, "longest call, us",
                [](const cell& c) { return c.costs ? number("%.1f", c.costs->longest_ns / 1000) : ""; });
    print_table(of, "99.9 % of calls, us",
                [](const cell& c) { return c.costs ? number("%.2f", c.costs->p999_ns / 1000) : ""; });
  }
}

double print_distances(const sheet& of, const std::vector<cell>& baseline) {
  double least = std::numeric_limits<double>::infinity();
  const auto distance = [&](const cell& c) {
    const auto base =
        std::find_if(baseline.begin(), baseline.end(), [&](const cell& b) { return b.percent == c.percent; });
    const double reference = of.hit_ratio(*base);
    const double got = of.hit_ratio(c);
    // Where the baseline never hits, any hit is as good as twice as many.
    const double percent = reference > 0 ? 100 * (got - reference) / reference : got > 0 ? 100.0 : 0.0;
    least = std::min(least, percent);
    return percent;
  };
  print_table(of, "% from tail-first LRU", [&](const cell& c) { return number("%+.2f", distance(c)); });
  return least;
}

std::string to_json(const std::vector<sheet>& sheets, std::uint64_t bytes_per_block) {
  using json = nlohmann::ordered_json;
  json out = json::array();
  for (const sheet& of : sheets) {
    json results = json::array();
    for (const cell& c : of.cells) {
      json one{{"policy", c.policy},
               {"capacity_percent", c.percent},
               {"capacity_blocks", c.slots},
               {"prefix_hit_ratio", of.hit_ratio(c)},
               {"token_hit_ratio", of.token_hit_ratio(c)},
               {"hit_blocks", c.counts.hit_blocks},
               {"hit_tokens", c.counts.hit_tokens},
               {"inserted_blocks", c.counts.inserted},
               {"evicted_blocks", c.counts.evicted},
               {"refused_blocks", c.counts.refused},
               {"read_bytes", c.counts.hit_blocks * bytes_per_block},
               {"written_bytes", c.counts.inserted * bytes_per_block},
               {"ns_per_block", c.ns_per_block}};
      if (c.costs) {
        one["calls"] = {
            {"count", c.costs->calls},           {"p50_ns", c.costs->p50_ns},
            {"p99_ns", c.costs->p99_ns},         {"p999_ns", c.costs->p999_ns},
            {"longest_ns", c.costs->longest_ns}, {"longest_of_any_replay_ns", c.costs->longest_of_any_replay_ns}};
      }
      results.push_back(std::move(one));
    }
    out.push_back({{"trace", of.name},
                   {"requests", of.requests},
                   {"blocks", of.blocks},
                   {"distinct_blocks", of.distinct},
                   {"input_tokens", of.input_tokens},
                   {"bytes_per_block", bytes_per_block},
                   {"results", std::move(results)}});
  }
  return out.dump(2) + "\n";
}

}  // namespace kvx_replay
