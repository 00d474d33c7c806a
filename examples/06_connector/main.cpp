// SPDX-License-Identifier: Apache-2.0
// c++ -std=c++20 -O2 -I../../include main.cpp -pthread -o 06_connector && ./06_connector --requests 100000
//
// What an engine's connector to kvx looks like: a scheduler in one process, tensor-parallel ranks in others, with
// chunked prefill, speculative decoding, preemption and cancellation.
//
//   scheduler.hpp  decides: matches through rank 0, truncates to what every rank has, hands out pages, takes them back.
//   worker.hpp     does: one rank with its shard of the memory, its cache and its stream.
//   protocol.hpp   carries plans and steps between them.
//   launch.hpp     makes the processes, before there is any cache.
//   model.hpp      stands for the model, and knows what every byte has to be.
//
// The copies are late and in random order, as a GPU's may be, so that a missing wait shows without one. Every byte that
// is loaded is compared. --plant makes one of the mistakes that are easy to make; the program then ends with 3.

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <string>

#include "launch.hpp"

namespace {

using namespace connector;

constexpr int wrong_bytes_found = 3;

double hit_rate(const totals& t) {
  return static_cast<double>(t.loaded_tokens) / static_cast<double>(std::max<std::uint64_t>(1, t.prompt_tokens));
}

int run(const launch_options& with) {
  using clock = std::chrono::steady_clock;
  const clock::time_point began = clock::now();
  clock::time_point shown = began;
  const totals all = launch(with, [&](const totals& now) {
    if (clock::now() - shown < std::chrono::seconds(1)) return;
    shown = clock::now();
    std::fprintf(stderr, "%llu of %llu requests, hit rate %.2f, %llu wrong bytes\n",
                 static_cast<unsigned long long>(now.finished), static_cast<unsigned long long>(with.requests),
                 hit_rate(now), static_cast<unsigned long long>(now.wrong_bytes));
  });
  const double seconds = std::chrono::duration<double>(clock::now() - began).count();
  const auto count = [](const char* what, std::uint64_t n) {
    std::printf("%-28s %llu\n", what, static_cast<unsigned long long>(n));
  };
  count("requests", all.finished);
  std::printf("%-28s %.0f\n", "requests/s", static_cast<double>(all.finished) / seconds);
  std::printf("%-28s %.3f\n", "hit rate (prompt tokens)", hit_rate(all));
  count("steps", all.steps);
  count("preempted", all.preempted);
  count("cancelled", all.cancelled);
  count("draft tokens rolled back", all.rejected_drafts);
  count("plans cut to another rank's", all.ranks_disagreed);
  count("plans cut after the match", all.lost_after_match);
  count("slept past their lease", all.overslept);
  count("wrong bytes", all.wrong_bytes);
  return all.wrong_bytes == 0 ? 0 : wrong_bytes_found;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"A scheduler and two tensor-parallel ranks over kvx, every loaded byte compared"};
  launch_options with;
  app.add_option("--requests", with.requests, "Requests to finish")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--seed", with.seed, "Of the workload")->capture_default_str();
  app.add_option("--dir", with.directory, "Storage root that both ranks share; a temporary one where it is not given");
  const std::map<std::string, planted> mistakes{{"early-reuse", planted::early_reuse},
                                                {"unscoped-save", planted::unscoped_save},
                                                {"rank-mismatch", planted::rank_mismatch}};
  app.add_option("--plant", with.mistake, "Make a mistake: early-reuse, unscoped-save or rank-mismatch")
      ->transform(CLI::CheckedTransformer(mistakes));
  CLI11_PARSE(app, argc, argv);
  try {
    return run(with);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "06_connector: %s\n", failure.what());
    return 1;
  }
}
