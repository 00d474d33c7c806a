// SPDX-License-Identifier: Apache-2.0
#include "compare.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "../other_process.hpp"
#include "../progress.hpp"
#include "../report.hpp"
#include "../sampler.hpp"
#include "../stopwatch.hpp"
#include "ceilings.hpp"
#include "kv_cache.hpp"
#include "monitor.hpp"

namespace mini_engine::cuda {
namespace {

/// A process that has one request to serve pins no more than keeps storage and the link busy: pinning takes time.
constexpr std::uint64_t passing_memory_bytes = std::uint64_t{256} << 20;
/// Nor more than the blocks to be saved, where what storage has passes by.
constexpr std::uint64_t saving_memory_bytes = std::uint64_t{64} << 20;
constexpr std::chrono::minutes patience{5};

std::size_t cached_part(std::size_t prompt_tokens, std::size_t block_tokens) {
  return (prompt_tokens - 1) / block_tokens * block_tokens;
}

request request_for(const options& o, const tokenizer& words, const std::vector<token_id>& prompt) {
  request made;
  made.prompt = prompt;
  made.tokens = o.tokens;
  made.choose = sampler(o.temperature, o.top_p, o.seed);
  made.ends = [&words](token_id token) { return words.ends(token); };
  made.chunk_end = cached_part(prompt.size(), o.block_tokens);
  return made;
}

cache_settings settings_for(const options& o, std::uint64_t memory_bytes, std::string directory) {
  cache_settings settings = o.cache;
  settings.directory = std::move(directory);
  settings.load_deadline = settings.save_deadline = patience;  // slow storage shall be measured, not given up
  if (settings.memory_bytes == 0) settings.memory_bytes = memory_bytes;
  return settings;
}

void add_activity(single_run& run, const std::optional<gpu_activity>& seen) {
  if (!seen) return;
  run.more.insert(run.more.end(), {{"sm_active", seen->sm_active},
                                   {"gpu_memory_active", seen->memory_active},
                                   {"pcie_received_bytes_per_second", seen->bytes_received_per_second},
                                   {"pcie_sent_bytes_per_second", seen->bytes_sent_per_second}});
}

/// The run in the middle, by its TTFT.
const single_run& median(std::vector<single_run>& runs) {
  std::sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) { return a.ttft_seconds < b.ttft_seconds; });
  return runs[runs.size() / 2];
}

/// What computing the rest takes when the cached part is in the pages: whatever is in them. Cut as a server does.
double measure_suffix(engine& e, const std::vector<token_id>& prompt, std::size_t from, std::size_t chunk,
                      std::size_t chunk_end) {
  sequence s;
  if (!e.kv.reserve(s.pages, prompt.size())) throw std::logic_error("pages were not given back");
  std::vector<double> seconds;
  constexpr int repeats = 7, least_repeats = 3;
  constexpr double long_enough = 2.0;
  const auto started = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats && (i < least_repeats || seconds_since(started) < long_enough); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    for (std::size_t at = from; at < prompt.size();) {
      const std::size_t end = at < chunk_end ? chunk_end : prompt.size();
      const step rest{&s, {prompt.data() + at, std::min(chunk, end - at)}, at};
      e.compute.forward({&rest, 1});
      at += rest.tokens.size();
    }
    seconds.push_back(seconds_since(begin));
  }
  e.kv.release(s.pages);
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

bool compare(const options& o, engine& e, const tokenizer& words, const std::vector<token_id>& prompt,
             std::size_t chunk, const std::vector<std::string>& arguments) {
  const cache_directory directory(o.cache.directory);
  const cache_settings settings = settings_for(o, 2 * memory_for(prompt.size() + o.tokens, e), directory.path());
  progress_bar progress("compare", 2 * o.pairs + 2, o.progress);
  std::optional<opening_cache> cache, none;
  monitor counters;
  const auto run = [&](const char* name, std::optional<opening_cache>& through, const cache_settings* to_open,
                       bool swap) {
    request from = request_for(o, words, prompt);
    single_run done =
        run_alone(name, e, from, through, to_open, {chunk, true, swap ? swapped_blocks(o.swap_block) : std::nullopt});
    progress.advance();
    return done;
  };
  // The same again and again, for the counters, which tell nothing of a tenth of a second.
  const auto observe = [&](std::optional<opening_cache>& through, single_run& to) {
    constexpr double long_enough = 1.0;
    const auto begin = std::chrono::steady_clock::now();
    std::uint64_t bytes = 0;
    counters.start();
    while (seconds_since(begin) < long_enough) {
      request from = request_for(o, words, prompt);
      from.tokens = 1;
      server one = make_server(e, through ? &*through : nullptr, chunk, true);
      one.submit(from);
      one.run();
      bytes += from.cached_tokens * e.kv_bytes_per_token();
    }
    add_activity(to, counters.stop());
    to.more.emplace_back("observed_loaded_bytes_per_second", static_cast<double>(bytes) / seconds_since(begin));
  };

  const link_rates link = measure_link(e.compute.stream());
  double plain = measure_plain_product(e.compute);
  run("warm-up", none, nullptr, false);
  std::vector<single_run> cold, memory;
  cold.push_back(run("cold", none, nullptr, false));
  single_run saved = run("save", cache, &settings, false);
  if (cache->wait_for(patience) == nullptr || !cache->get()->drain(patience)) {
    throw std::runtime_error("storage in '" + directory.path() + "' did not take the blocks in five minutes");
  }
  tell_what_was_not_saved(cache->get()->stats(), directory.path());
  for (std::size_t i = 0; i < o.pairs; ++i) {
    if (i > 0) cold.push_back(run("cold", none, nullptr, false));
    memory.push_back(run("memory", cache, nullptr, true));
  }
  plain = std::max(plain, measure_plain_product(e.compute));
  // What a run must have computed: where its hit ended early, it cut the rest of the prompt in other places.
  const std::size_t cached = cached_part(prompt.size(), o.block_tokens);
  std::map<std::size_t, evidence> behind_hits;
  const auto expect = [&](single_run& of) {
    if (of.cached_tokens == 0 || of.cached_tokens == cached) return;
    if (!behind_hits.contains(of.cached_tokens)) {
      request from = request_for(o, words, prompt);
      from.restart_at = of.cached_tokens;
      behind_hits[of.cached_tokens] =
          run_alone("reference", e, from, none, nullptr, {chunk, true, std::nullopt}).result;
    }
    of.expected = behind_hits[of.cached_tokens];
  };
  std::map<std::size_t, double> suffixes;
  const auto suffix_of = [&](const single_run& of) {
    const auto [found, unknown] = suffixes.try_emplace(of.cached_tokens);
    if (unknown) found->second = measure_suffix(e, prompt, of.cached_tokens, chunk, cached);
    return found->second;
  };
  const evidence first = cold.front().result;
  bool same = std::all_of(cold.begin(), cold.end(), [&](const single_run& each) { return each.result == first; });
  for (single_run& each : memory) {
    expect(each);
    same = same && each.result == (each.expected ? *each.expected : first);
  }
  expect(saved);
  single_run cold_median = median(cold), memory_median = median(memory);
  observe(none, cold_median);
  observe(cache, memory_median);
  cache.reset();

  report result;
  result.model = o.checkpoint.empty() ? o.model : o.checkpoint;
  result.threads = e.threads();
  result.chunk_tokens = chunk;
  result.block_tokens = o.block_tokens;
  result.kv_bytes_per_token = e.kv_bytes_per_token();
  result.plain_product_flops = plain;
  result.runs = {cold_median, saved, memory_median};
  result.prefill_flops =
      prefill_flops(e.config(), e.matmul_parameters(), 0, prompt.size()) / result.first().ttft_seconds;

  drop_page_cache(directory.path());
  const std::uint64_t bytes = cached * e.kv_bytes_per_token();
  double storage = measure_storage(directory.path(), bytes);
  drop_page_cache(directory.path());
  std::vector<std::string> again = arguments;
  again.insert(again.end(), {"--compare-child", "--cache-dir", directory.path(), "--chunk", std::to_string(chunk)});
  result.runs.push_back(deserialize(output_of_another(std::move(again))));
  expect(result.runs.back());
  drop_page_cache(directory.path());
  storage = (storage + measure_storage(directory.path(), bytes)) / 2;  // other tenants come and go: before and after
  // The server knows when copies were submitted, not when they ended.
  for (single_run& each : result.runs) {
    if (each.loaded_bytes == 0) continue;
    const double suffix = suffix_of(each);
    each.load_seconds = std::max(each.load_seconds, each.ttft_seconds - each.open_seconds - suffix);
    each.more.insert(each.more.end(), {{"suffix_tokens", static_cast<double>(prompt.size() - each.cached_tokens)},
                                       {"suffix_ms", suffix * 1e3}});
  }
  progress.finish();

  const single_run &from_memory = result.runs[2], &from_storage = result.last();
  constexpr double allowance = 1.10;
  const auto bound = [&](const single_run& of, double rate) {
    return allowance * static_cast<double>(of.loaded_bytes) / rate + suffix_of(of);
  };
  const double memory_bound = bound(from_memory, link.in);
  const double storage_bound = bound(from_storage, std::min(storage, link.in));
  result.more = {{"suffix_tokens", static_cast<double>(prompt.size() - from_storage.cached_tokens)},
                 {"suffix_ms", suffix_of(from_storage) * 1e3},
                 {"link_in_bytes_per_second", link.in},
                 {"link_out_bytes_per_second", link.out},
                 {"storage_bytes_per_second", storage},
                 {"memory_bound_ms", memory_bound * 1e3},
                 {"memory_over_bound", from_memory.ttft_seconds / memory_bound},
                 {"storage_bound_ms", storage_bound * 1e3},
                 {"storage_over_bound", from_storage.ttft_seconds / storage_bound},
                 {"pairs", static_cast<double>(o.pairs)},
                 {"cold_ttft_ms_least", cold.front().ttft_seconds * 1e3},
                 {"cold_ttft_ms_most", cold.back().ttft_seconds * 1e3},
                 {"memory_ttft_ms_least", memory.front().ttft_seconds * 1e3},
                 {"memory_ttft_ms_most", memory.back().ttft_seconds * 1e3}};
  print_table(result);
  std::printf("a suffix of %zu tokens takes %.1f ms; the link %.1f GB/s in, %.1f out; storage %.2f GB/s\n",
              prompt.size() - from_storage.cached_tokens, suffix_of(from_storage) * 1e3, link.in * 1e-9,
              link.out * 1e-9, storage * 1e-9);
  std::printf("from memory %.1f ms, at most %.1f allowed; from storage %.1f ms, at most %.1f allowed\n",
              from_memory.ttft_seconds * 1e3, memory_bound * 1e3, from_storage.ttft_seconds * 1e3, storage_bound * 1e3);
  for (const single_run& each : result.runs) {
    for (const auto& [name, value] : each.more) std::printf("%s: %s %.4g\n", each.name.c_str(), name.c_str(), value);
  }
  if (!o.json.empty()) write_json(result, o.json);
  return same && result.identical();
}

void compare_child(const options& o, engine& e, const tokenizer& words, const std::vector<token_id>& prompt,
                   std::size_t chunk) {
  read_straight(o.cache, true, e);  // a part of the engine, as its pages are
  const cache_settings settings =
      settings_for(o,
                   std::min(e.reader != nullptr ? saving_memory_bytes : passing_memory_bytes,
                            2 * memory_for(prompt.size() + o.tokens, e)),
                   o.cache.directory);
  request from = request_for(o, words, prompt);
  std::optional<opening_cache> cache;
  monitor counters;
  counters.start();
  single_run done = run_alone("storage", e, from, cache, &settings, {chunk, true, swapped_blocks(o.swap_block)});
  add_activity(done, counters.stop());
  std::puts(serialize(done).c_str());
}

}  // namespace mini_engine::cuda
