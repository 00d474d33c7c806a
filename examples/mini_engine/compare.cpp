// SPDX-License-Identifier: Apache-2.0
#include "compare.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <utility>

#include "engine.hpp"
#include "other_process.hpp"
#include "plain_product.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "single_run.hpp"

namespace mini_engine {
namespace {

request request_for(const options& o, const tokenizer& words, const std::vector<token_id>& prompt) {
  request made;
  made.prompt = prompt;
  made.tokens = o.tokens;
  made.choose = sampler(o.temperature, o.top_p, o.seed);
  made.ends = [&words](token_id token) { return words.ends(token); };
  return made;
}

cache_settings settings_for(const options& o, engine& e, std::size_t tokens, std::string directory) {
  cache_settings settings = o.cache;
  settings.directory = std::move(directory);
  if (settings.memory_bytes == 0) settings.memory_bytes = memory_for(tokens, e.weights.config, e.kv);
  return settings;
}

}  // namespace

bool compare(const options& o, model m, const tokenizer& words, const std::vector<token_id>& prompt,
             const std::vector<std::string>& arguments) {
  const cache_directory directory(o.cache.directory);
  const std::vector<std::size_t> chunks =
      o.chunk != 0 ? std::vector{o.chunk} : std::vector<std::size_t>{512, 1024, 2048};
  engine e(std::move(m), o.threads, o.block_tokens, prompt.size() + o.tokens, std::min(chunks.back(), prompt.size()),
           chunks.back());
  const cache_settings settings = settings_for(o, e, prompt.size() + o.tokens, directory.path());
  progress_bar progress("compare", chunks.size() + 4, o.progress);
  std::optional<opening_cache> cache;
  const auto run = [&](const char* name, std::size_t chunk, const cache_settings* to_open, bool swap) {
    request from = request_for(o, words, prompt);
    single_run done = run_alone(name, e, from, cache, to_open,
                                {chunk, o.always_load, swap ? swapped_blocks(o.swap_block) : std::nullopt});
    progress.advance();
    return done;
  };

  report result;
  result.model = o.checkpoint.empty() ? o.model : o.checkpoint;
  result.threads = o.threads;
  result.block_tokens = o.block_tokens;
  result.kv_bytes_per_token = e.weights.config.layers * 2 * e.kv.token_floats() * sizeof(float);

  // The baseline is the fastest of several, measured beside the plain product, so that what the cache saves is no straw
  // man.
  plain_product plain(e.pool);
  run("warm-up", chunks.front(), nullptr, false);
  std::vector<single_run> cold;
  for (const std::size_t chunk : chunks) {
    plain.measure();
    cold.push_back(run("cold", chunk, nullptr, false));
    if (cold.back().result != cold.front().result)
      throw std::logic_error("the engine's own results depend on the chunk size");
  }
  plain.measure();
  const auto best = std::min_element(cold.begin(), cold.end(),
                                     [](const auto& a, const auto& b) { return a.ttft_seconds < b.ttft_seconds; });
  result.chunk_tokens = chunks[static_cast<std::size_t>(best - cold.begin())];
  result.plain_product_flops = plain.best();
  result.prefill_flops =
      prefill_flops(e.weights.config, e.weights.matmul_parameters(), 0, prompt.size()) / best->ttft_seconds;
  result.runs.push_back(*best);

  constexpr std::chrono::minutes patience{5};
  result.runs.push_back(run("save", result.chunk_tokens, &settings, false));
  if (!cache->wait_for(patience)->drain(patience))
    throw std::runtime_error("storage in '" + directory.path() + "' did not take the blocks in five minutes");
  tell_what_was_not_saved(cache->get()->stats(), directory.path());
  result.runs.push_back(run("memory", result.chunk_tokens, nullptr, true));
  cache.reset();

  drop_page_cache(directory.path());
  std::vector<std::string> again = arguments;
  again.insert(again.end(),
               {"--compare-child", "--cache-dir", directory.path(), "--chunk", std::to_string(result.chunk_tokens)});
  result.runs.push_back(deserialize(output_of_another(std::move(again))));
  progress.finish();

  print_table(result);
  if (!o.json.empty()) write_json(result, o.json);
  return result.identical();
}

void compare_child(const options& o, model m, const tokenizer& words, const std::vector<token_id>& prompt) {
  engine e(std::move(m), o.threads, o.block_tokens, prompt.size() + o.tokens, std::min(o.chunk, prompt.size()),
           o.chunk);
  const cache_settings settings = settings_for(o, e, prompt.size() + o.tokens, o.cache.directory);
  request from = request_for(o, words, prompt);
  std::optional<opening_cache> cache;
  const single_run done =
      run_alone("storage", e, from, cache, &settings, {o.chunk, o.always_load, swapped_blocks(o.swap_block)});
  std::puts(serialize(done).c_str());
}

}  // namespace mini_engine
