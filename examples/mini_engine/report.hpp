// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "single_run.hpp"

namespace mini_engine {

/// What --compare and --json tell. README.md describes the JSON.
struct report {
  std::string model;
  std::size_t threads = 0;
  std::size_t chunk_tokens = 0;
  std::size_t block_tokens = 0;
  std::size_t kv_bytes_per_token = 0;
  double plain_product_flops = 0;                    // per second; 0: not measured
  double prefill_flops = 0;                          // per second, of the first run
  std::vector<single_run> runs;                      // the first is what the others are compared with
  std::vector<std::pair<std::string, double>> more;  // further figures, by their name in the JSON

  const single_run& first() const { return runs.front(); }
  const single_run& last() const { return runs.back(); }
  bool identical(const single_run& run) const { return run.result == (run.expected ? *run.expected : first().result); }
  bool identical() const;
  double reduction(const single_run& run) const { return 1 - run.ttft_seconds / first().ttft_seconds; }
  double prefill_share() const { return plain_product_flops > 0 ? prefill_flops / plain_product_flops : 0; }
};

/// Writes the report to a file, or throws std::runtime_error.
void write_json(const report& from, const std::string& path);

/// One line per run, and what the prefill it is compared with is worth.
void print_table(const report& from);

/// Says in one line on standard error if blocks were given up: what comes after finds only part of the prompt.
void tell_what_was_not_saved(const kvx::metrics_snapshot& stats, const std::string& directory);

/// What --chat tells, turn by turn.
struct chat_report {
  struct turn {
    std::size_t answers = 0, prompt_tokens = 0, cached_tokens = 0;
    double ttft_seconds = 0;  // the sum of all answers'
    double worst_ttft_seconds = 0;

    double mean_ttft_seconds() const { return answers == 0 ? 0 : ttft_seconds / static_cast<double>(answers); }
    double hit_rate() const {
      return prompt_tokens == 0 ? 0 : static_cast<double>(cached_tokens) / static_cast<double>(prompt_tokens);
    }
  };

  std::size_t users = 0;
  std::vector<turn> turns;
  double seconds = 0;         // from the first request to the last answer
  std::vector<double> ttfts;  // seconds, of every answer
  serving_figures served;

  double requests_per_second() const { return seconds > 0 ? static_cast<double>(ttfts.size()) / seconds : 0; }
  /// The TTFT that a share of all answers did not exceed.
  double ttft_seconds_of(double share) const;
  std::uint64_t answers_digest = 0;

  turn total() const;
};

void write_json(const chat_report& from, const std::string& path);
void print_table(const chat_report& from);

/// A run as text for another process, evidence included, and back. Throws std::runtime_error if it is none.
std::string serialize(const single_run& run);
single_run deserialize(const std::string& text);

}  // namespace mini_engine
