// SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace mini_engine {
namespace {

using json = nlohmann::ordered_json;

std::string hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string hex_digest(const evidence& of) {
  std::uint64_t hash = XXH3_64bits(of.tokens.data(), of.tokens.size() * sizeof(token_id));
  hash = XXH3_64bits_withSeed(of.logits.data(), of.logits.size() * sizeof(std::uint64_t), hash);
  hash = XXH3_64bits_withSeed(of.pages.data(), of.pages.size() * sizeof(std::uint64_t), hash);
  return hex(hash);
}

void write(const json& all, const std::string& path) {
  std::ofstream file(path);
  file << all.dump(2) << '\n';
  if (!file.flush()) throw std::runtime_error("--json '" + path + "' cannot be written");
}

json to_json(const report& from, const single_run& run) {
  json to = {{"run", run.name},
             {"prompt_tokens", run.prompt_tokens},
             {"cached_tokens", run.cached_tokens},
             {"generated_tokens", run.result.logits.size()},
             {"ttft_ms", run.ttft_seconds * 1e3},
             {"open_ms", run.open_seconds * 1e3},
             {"load_ms", run.load_seconds * 1e3},
             {"loaded_bytes", run.loaded_bytes},
             {"bytes_per_second", run.bytes_per_second()},
             {"reduction", from.reduction(run)},
             {"identical", from.identical(run)},
             {"digest", hex_digest(run.result)}};
  for (const auto& [name, value] : run.more) to[name] = value;
  return to;
}

}  // namespace

bool report::identical() const {
  return std::all_of(runs.begin(), runs.end(), [this](const single_run& run) { return identical(run); });
}

void write_json(const report& from, const std::string& path) {
  json all = {{"model", from.model},
              {"threads", from.threads},
              {"chunk_tokens", from.chunk_tokens},
              {"block_tokens", from.block_tokens},
              {"kv_bytes_per_token", from.kv_bytes_per_token},
              {"plain_product_gflops", from.plain_product_flops * 1e-9},
              {"prefill_gflops", from.prefill_flops * 1e-9},
              {"prefill_share", from.prefill_share()}};
  for (const char* name : {"prompt_tokens", "cached_tokens", "ttft_ms", "reduction"})
    all[name] = to_json(from, from.last())[name];
  all["identical"] = from.identical();
  for (const auto& [name, value] : from.more) all[name] = value;
  for (const single_run& run : from.runs) all["runs"].push_back(to_json(from, run));
  write(all, path);
}

void print_table(const report& from) {
  std::printf("%-8s %8s %8s %10s %10s %8s %10s %8s  %s\n", "run", "prompt", "cached", "TTFT ms", "reduction", "open ms",
              "MB loaded", "GB/s", "identical");
  for (const single_run& run : from.runs) {
    std::printf("%-8s %8zu %8zu %10.1f %9.1f%% %8.1f %10.1f %8.2f  %s\n", run.name.c_str(), run.prompt_tokens,
                run.cached_tokens, run.ttft_seconds * 1e3, from.reduction(run) * 100, run.open_seconds * 1e3,
                static_cast<double>(run.loaded_bytes) * 1e-6, run.bytes_per_second() * 1e-9,
                from.identical(run) ? "yes" : "NO");
  }
  std::printf(
      "prefill without the cache, in chunks of %zu: %.0f GFLOP/s, %.0f %% of the faster plain product (%.0f GFLOP/s)\n",
      from.chunk_tokens, from.prefill_flops * 1e-9, from.prefill_share() * 100, from.plain_product_flops * 1e-9);
  std::printf(
      "storage is worth reading from %.0f MB/s on\n",
      static_cast<double>(from.kv_bytes_per_token * from.first().prompt_tokens) / from.first().ttft_seconds * 1e-6);
  std::printf("identical: %s\n", from.identical() ? "true" : "false");
}

void tell_what_was_not_saved(const kvx::metrics_snapshot& stats, const std::string& directory) {
  const auto& save = stats.save;
  if (save.dropped_blocks + save.timed_out_blocks + save.failed_blocks == 0) return;
  std::fprintf(stderr,
               "mini_engine: storage in '%s' did not take all blocks: %llu dropped, %llu too late, %llu failed; only "
               "part of the prompt will come from it\n",
               directory.c_str(), static_cast<unsigned long long>(save.dropped_blocks),
               static_cast<unsigned long long>(save.timed_out_blocks),
               static_cast<unsigned long long>(save.failed_blocks));
}

chat_report::turn chat_report::total() const {
  turn sum;
  for (const turn& t : turns) {
    sum.answers += t.answers;
    sum.prompt_tokens += t.prompt_tokens;
    sum.cached_tokens += t.cached_tokens;
    sum.ttft_seconds += t.ttft_seconds;
    sum.worst_ttft_seconds = std::max(sum.worst_ttft_seconds, t.worst_ttft_seconds);
  }
  return sum;
}

double chat_report::ttft_seconds_of(double share) const {
  if (ttfts.empty()) return 0;
  std::vector<double> sorted = ttfts;
  std::sort(sorted.begin(), sorted.end());
  return sorted[std::min(sorted.size() - 1, static_cast<std::size_t>(share * static_cast<double>(sorted.size())))];
}

void write_json(const chat_report& from, const std::string& path) {
  const auto figures = [](const chat_report::turn& t) {
    return json{{"answers", t.answers},
                {"prompt_tokens", t.prompt_tokens},
                {"cached_tokens", t.cached_tokens},
                {"hit_rate", t.hit_rate()},
                {"ttft_ms", t.mean_ttft_seconds() * 1e3},
                {"worst_ttft_ms", t.worst_ttft_seconds * 1e3}};
  };
  json all = {{"users", from.users}};
  all.update(figures(from.total()));
  all.update({{"seconds", from.seconds},
              {"requests_per_second", from.requests_per_second()},
              {"ttft_p50_ms", from.ttft_seconds_of(0.5) * 1e3},
              {"ttft_p99_ms", from.ttft_seconds_of(0.99) * 1e3},
              {"prefilled_tokens", from.served.prefilled_tokens},
              {"largest_batch", from.served.largest_batch},
              {"mean_batch", from.served.mean_batch()}});
  all["digest"] = hex(from.answers_digest);
  for (const chat_report::turn& t : from.turns) all["turns"].push_back(figures(t));
  write(all, path);
}

void print_table(const chat_report& from) {
  std::printf("%-6s %8s %8s %8s %9s %10s %14s\n", "turn", "answers", "prompt", "cached", "hit rate", "TTFT ms",
              "worst TTFT ms");
  const auto line = [](const char* name, const chat_report::turn& t) {
    std::printf("%-6s %8zu %8zu %8zu %8.1f%% %10.1f %14.1f\n", name, t.answers, t.prompt_tokens, t.cached_tokens,
                t.hit_rate() * 100, t.mean_ttft_seconds() * 1e3, t.worst_ttft_seconds * 1e3);
  };
  for (std::size_t i = 0; i < from.turns.size(); ++i) line(std::to_string(i + 1).c_str(), from.turns[i]);
  line("all", from.total());
  std::printf(
      "%.2f requests/s, TTFT p50 %.1f ms, p99 %.1f ms; %zu tokens of prompts computed; %.1f answers at a time, at most "
      "%zu\n",
      from.requests_per_second(), from.ttft_seconds_of(0.5) * 1e3, from.ttft_seconds_of(0.99) * 1e3,
      from.served.prefilled_tokens, from.served.mean_batch(), from.served.largest_batch);
  std::printf("digest of all answers: %s\n", hex(from.answers_digest).c_str());
}

std::string serialize(const single_run& run) {
  return json{{"name", run.name},
              {"prompt_tokens", run.prompt_tokens},
              {"cached_tokens", run.cached_tokens},
              {"open_seconds", run.open_seconds},
              {"load_seconds", run.load_seconds},
              {"ttft_seconds", run.ttft_seconds},
              {"loaded_bytes", run.loaded_bytes},
              {"tokens", run.result.tokens},
              {"logits", run.result.logits},
              {"pages", run.result.pages},
              {"more", run.more}}
      .dump();
}

single_run deserialize(const std::string& text) {
  try {
    const json from = json::parse(text);
    single_run run;
    from.at("name").get_to(run.name);
    from.at("prompt_tokens").get_to(run.prompt_tokens);
    from.at("cached_tokens").get_to(run.cached_tokens);
    from.at("open_seconds").get_to(run.open_seconds);
    from.at("load_seconds").get_to(run.load_seconds);
    from.at("ttft_seconds").get_to(run.ttft_seconds);
    from.at("loaded_bytes").get_to(run.loaded_bytes);
    from.at("tokens").get_to(run.result.tokens);
    from.at("logits").get_to(run.result.logits);
    from.at("pages").get_to(run.result.pages);
    from.at("more").get_to(run.more);
    return run;
  } catch (const json::exception& e) {
    throw std::runtime_error(std::string("the other process did not report its run: ") + e.what());
  }
}

}  // namespace mini_engine
