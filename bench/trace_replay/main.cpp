// SPDX-License-Identifier: Apache-2.0
// Replays request traces through eviction policies: prefix hit ratio and token hit ratio for each capacity, and what
// a decision costs.
#include "policies.hpp"
#include "trace.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <limits>
#include <string>
#include <vector>

namespace {

using namespace kvx_replay;

struct settings {
  std::string trace;
  std::size_t requests = std::numeric_limits<std::size_t>::max();
  std::uint32_t block_tokens = 512;
  std::vector<double> capacities{1, 5, 10, 25, 50};
  std::vector<std::string> policies;
  std::string order = "tail";
  std::string parents = "pinned";
  bool cost = false;
};

std::size_t slots_for(const trace& work, double percent) {
  const double slots = std::floor(static_cast<double>(work.distinct()) * percent / 100 + 1e-9);
  return std::max<std::size_t>(1, static_cast<std::size_t>(slots));
}

double ratio(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

void replay_all(const settings& chosen, const trace& work) {
  const rules how{chosen.order == "tail", chosen.parents == "pinned"};
  const std::vector<policy_entry> policies =
      chosen.policies.empty() ? all_policies() : policies_named(chosen.policies);
  std::printf("%-24s", "prefix hit ratio");
  for (const double percent : chosen.capacities) std::printf("  %5g%%", percent);
  std::printf("   ns per block\n");
  for (const policy_entry& policy : policies) {
    std::printf("%-24s", policy.name.c_str());
    std::uint64_t nanoseconds = 0;
    for (const double percent : chosen.capacities) {
      const outcome got = policy.replay(work, slots_for(work, percent), how, nullptr);
      std::printf("  %.4f", ratio(got.hit_blocks, work.blocks()));
      std::fflush(stdout);
      nanoseconds = std::max(nanoseconds, got.nanoseconds);
    }
    std::printf("  %12.1f\n", ratio(nanoseconds, work.blocks()));
  }
}

}  // namespace

int main(int argc, char** argv) {
  settings chosen;
  CLI::App app("Replays request traces through eviction policies.", "trace_replay");
  app.add_option("trace", chosen.trace, "JSON lines, plain or xz; - for the standard input")->required();
  app.add_option("--requests", chosen.requests, "Read at most that many");
  app.add_option("--block-tokens", chosen.block_tokens, "Tokens of a block")->check(CLI::PositiveNumber);
  app.add_option("--capacity", chosen.capacities, "Percent of the distinct blocks")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--policies", chosen.policies, "Names, comma separated; all without")->delimiter(',');
  app.add_option("--order", chosen.order, "Within a request: tail first or head first")
      ->check(CLI::IsMember({"tail", "head"}));
  app.add_option("--parents", chosen.parents, "Whether a block with a cached child stays")
      ->check(CLI::IsMember({"pinned", "free"}));
  CLI11_PARSE(app, argc, argv);
  try {
    const trace work = read_trace(chosen.trace, chosen.block_tokens, chosen.requests);
    std::printf("%s: %zu requests, %zu blocks, %zu distinct\n", chosen.trace.c_str(), work.size(), work.blocks(),
                work.distinct());
    if (work.split_ids() != 0) std::printf("%zu ids follow more than one parent and count as several blocks\n", work.split_ids());
    replay_all(chosen, work);
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "trace_replay: %s\n", problem.what());
    return 1;
  }
  return 0;
}
