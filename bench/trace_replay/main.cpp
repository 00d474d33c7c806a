// SPDX-License-Identifier: Apache-2.0
// Replays request traces and generated workloads through eviction policies: prefix hit ratio and token hit ratio for
// each capacity, next to what a clairvoyant cache would reach, and what a decision costs.
//
//   trace_replay requests.jsonl
//   trace_replay requests.jsonl.xz --policies lru,s3fifo,optimum --capacity 1,5,10 --json out.json --svg out.svg
//   trace_replay --generate all --seed 7 --policies lru,s3fifo --check 0.6
//   trace_replay requests.jsonl --two-tier lru:5,s3fifo:50
//   trace_replay requests.jsonl --data --root /var/tmp --memory 5 --storage 50 --clients 4
#include "compare.hpp"
#include "data_mode.hpp"
#include "policies.hpp"
#include "report.hpp"
#include "settings.hpp"
#include "workloads.hpp"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace kvx_replay;

struct chores {
  std::size_t call_slots = 0;
  bool data = false;
  data_settings with_data;
  bool list = false;
  std::string write_trace;
};

void add_options(CLI::App& app, settings& chosen, chores& also) {
  app.add_option("traces", chosen.traces, "JSON lines, plain or xz; - for the standard input");
  app.add_option("--generate", chosen.workloads, "Generated workloads, comma separated, or all")->delimiter(',');
  app.add_option("--seed", chosen.seed, "For the generated workloads");
  app.add_option("--requests", chosen.requests, "At most that many of a trace, about that many of a workload")
      ->check(CLI::PositiveNumber);
  app.add_option("--block-tokens", chosen.block_tokens, "Tokens of a block")->check(CLI::Range(1U, 1U << 20U));
  app.add_option("--capacity", chosen.capacities, "Percent of the distinct blocks, comma separated")
      ->delimiter(',')
      ->check(CLI::Range(1e-6, 100.0));
  app.add_option("--policies", chosen.policies, "Names, comma separated; all without")->delimiter(',');
  app.add_option(
         "--order", chosen.how.order,
         "How policies that do not see whole requests are shown one: its blocks one by one from the tail or from "
         "the head, or in batches as the cache does")
      ->transform(CLI::CheckedTransformer(std::map<std::string, access_order>{
          {"tail", access_order::tail_first}, {"head", access_order::head_first}, {"cache", access_order::as_cache}}));
  app.add_option("--parents-pinned", chosen.how.parents_pinned, "Whether a block with a cached child stays");
  app.add_option("--save-blocks", chosen.how.save_blocks,
                 "Tell policies as a cache does: of what a request loads, then of saves of so many blocks; 0: of whole "
                 "requests")
      ->check(CLI::Range(0U, 1U << 20U));
  app.add_flag("--hints", chosen.hints, "Tell policies that listen what an engine knows about sessions");
  app.add_option_function<double>(
         "--linger",
         [&chosen](double seconds) {
           chosen.sessions.linger = std::chrono::milliseconds(static_cast<long>(seconds * 1000));
         },
         "Seconds after its last response at which a client is gone (60)")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option_function<double>(
         "--tool-call",
         [&chosen](double seconds) {
           chosen.sessions.tool_call = std::chrono::milliseconds(static_cast<long>(seconds * 1000));
         },
         "A next request within so many seconds of the response answers a tool call (20)")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--silent", chosen.sessions.silent_percent, "Percent of the clients that never say that they are gone")
      ->check(CLI::Range(0U, 100U));
  app.add_option("--cost", chosen.cost_replays, "Time every call, over so many replays")->check(CLI::Range(1U, 100U));
  app.add_option("--calls", also.call_slots, "Time insert, touch and evict over so many slots in random order and stop")
      ->check(CLI::Range(64U, 100'000'000U));
  app.add_option("--check", chosen.check_percent,
                 "Fail where a policy is more than this percentage below tail-first LRU")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--two-tier", chosen.two_tier, "Memory and storage, like lru:5,s3fifo:50; may be given again");
  app.add_option("--bytes-per-block", chosen.bytes_per_block, "What is read and written for a block (64 KiB)");
  app.add_option("--json", chosen.json, "Write the results to this file");
  app.add_option("--svg", chosen.svg, "Write a plot to this file");
  app.add_option("--write-trace", also.write_trace, "Write the requests as JSON lines to this file and stop");
  app.add_flag("--data", also.data, "Replay through the real cache, which moves bytes");
  app.add_option("--root", also.with_data.root, "A directory for the storage tier; without there is none");
  app.add_option("--memory", also.with_data.memory_percent, "Memory tier, percent of the distinct blocks")
      ->check(CLI::Range(1e-6, 1e4));
  app.add_option("--storage", also.with_data.storage_percent, "Storage tier, percent of the distinct blocks")
      ->check(CLI::Range(1e-6, 1e4));
  app.add_option("--clients", also.with_data.clients, "Requests at a time")->check(CLI::Range(1U, 1024U));
  app.add_flag("--open-loop", also.with_data.open_loop,
               "Requests arrive at their timestamps, whatever the answers take");
  app.add_option("--time-scale", also.with_data.time_scale,
                 "Of the timestamps and of the prefill; 0.01 is a hundred times faster")
      ->check(CLI::Range(1e-9, 1e3));
  app.add_option("--prefill-rate", also.with_data.prefill_tokens_per_second,
                 "Tokens that the engine computes in a second; 0: it takes no time")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--list", also.list, "List policies and workloads and stop");
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  if (!file) throw std::runtime_error(path + ": cannot be written");
}

void list() {
  std::printf("policies:");
  for (const policy_entry& p : all_policies()) std::printf(" %s", p.name.c_str());
  std::printf("\nworkloads:\n");
  for (const workload_description& w : all_workloads()) std::printf("  %-16s %s\n", w.name.c_str(), w.summary.c_str());
}

void time_calls(const settings& chosen, std::size_t slots) {
  std::printf("ns per slot, %zu slots in random order\n%-24s  %8s  %8s  %14s  %12s\n", slots, "", "insert", "touch",
              "evict + insert", "half pinned");
  for (const std::string& name : chosen_policies(chosen)) {
    const policy_entry& policy = policy_named(name);
    if (!policy.time_calls) continue;
    const single_calls got = policy.time_calls(slots);
    std::printf("%-24s  %8.1f  %8.1f  %14.1f  %12.1f\n", name.c_str(), got.insert, got.touch, got.replace,
                got.replace_half_pinned);
    std::fflush(stdout);
  }
}

void print_two_tiers(const settings& chosen, const named_trace& work) {
  std::printf("%-34s  %8s  %8s  %8s  %12s  %12s\n", "memory, storage", "memory", "storage", "together", "GB read",
              "GB written");
  for (const std::string& pair : chosen.two_tier) {
    const two_tier_result got = replay_two_tiers(chosen, work, pair);
    const auto blocks = static_cast<double>(work.requests.blocks());
    const auto part = [&](std::uint64_t count) { return ratio(static_cast<double>(count), blocks); };
    const auto gigabytes = [&](std::uint64_t count) {
      return static_cast<double>(count) * static_cast<double>(chosen.bytes_per_block) * 1e-9;
    };
    const tier_counts& memory = got.memory.counts;
    const tier_counts& storage = got.storage.counts;
    std::printf("%-34s  %8.4f  %8.4f  %8.4f  %12.1f  %12.1f\n", pair.c_str(), part(memory.hit_blocks),
                part(storage.hit_blocks), part(memory.hit_blocks + storage.hit_blocks), gigabytes(storage.hit_blocks),
                gigabytes(storage.inserted));
  }
  std::printf("(GB of the storage tier, at %llu bytes per block)\n\n",
              static_cast<unsigned long long>(chosen.bytes_per_block));
}

int run_data(const settings& chosen, const data_settings& how) {
  std::string json;
  std::uint64_t wrong = 0;
  for (const named_trace& work : load(chosen)) {
    std::printf("\n%s: %zu requests, %zu blocks, %zu distinct\n\n", work.name.c_str(), work.requests.size(),
                work.requests.blocks(), work.requests.distinct());
    std::vector<data_result> results;
    for (const cache_entry& with : all_caches()) {
      const auto& names = chosen.policies;
      if (!names.empty() && std::find(names.begin(), names.end(), with.policy) == names.end()) continue;
      results.push_back(replay_data(work.requests, with, how));
      wrong += results.back().wrong_blocks;
    }
    if (results.empty()) throw std::runtime_error("--policies: none of them is a policy of a real cache");
    print(work.requests, results, how);
    json.append(json.empty() ? "[" : ",\n").append(to_json(work.name, work.requests, results, how));
  }
  if (!chosen.json.empty()) write_file(chosen.json, json + "]\n");
  return wrong == 0 ? 0 : 1;
}

int run(const settings& chosen) {
  const std::vector<named_trace> traces = load(chosen);
  std::vector<sheet> sheets;
  double least = std::numeric_limits<double>::infinity();
  for (const named_trace& work : traces) {
    if (!chosen.two_tier.empty()) {
      std::printf("\n%s\n", work.name.c_str());
      print_two_tiers(chosen, work);
      continue;
    }
    sheets.push_back(compare_policies(chosen, work));
    print(sheets.back());
    if (chosen.check_percent >= 0) least = std::min(least, print_distances(sheets.back(), lru_baseline(chosen, work)));
    std::fflush(stdout);
  }
  if (!chosen.json.empty()) write_file(chosen.json, to_json(sheets, chosen.bytes_per_block));
  if (!chosen.svg.empty()) write_file(chosen.svg, to_svg(sheets));
  if (chosen.check_percent < 0) return 0;
  const bool good = least >= -chosen.check_percent;
  std::printf("worst: %+.2f %% from tail-first LRU, allowed %+.2f %%: %s\n", least, -chosen.check_percent,
              good ? "held" : "NOT HELD");
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  settings chosen;
  chores also;
  CLI::App app("Replays request traces through eviction policies.", "trace_replay");
  add_options(app, chosen, also);
  CLI11_PARSE(app, argc, argv);
  try {
    if (also.list) {
      list();
      return 0;
    }
    if (also.call_slots != 0) {
      time_calls(chosen, also.call_slots);
      return 0;
    }
    if (chosen.traces.empty() && chosen.workloads.empty()) {
      throw std::runtime_error("nothing to replay: name a trace, or --generate all");
    }
    if (also.data) {
      also.with_data.bytes_per_block = chosen.bytes_per_block;
      return run_data(chosen, also.with_data);
    }
    if (also.write_trace.empty()) return run(chosen);
    const std::vector<named_trace> traces = load(chosen);
    if (traces.size() != 1) throw std::runtime_error("--write-trace takes one trace or workload");
    write_file(also.write_trace, to_json_lines(traces.front().requests));
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "trace_replay: %s\n", problem.what());
    return 1;
  }
  return 0;
}
