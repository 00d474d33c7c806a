// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "inputs.hpp"
#include "options.hpp"
#include "report.hpp"
#include "sampler.hpp"
#include "serve.hpp"
#include "single_run.hpp"
#include "stopwatch.hpp"
#include "tokenizer.hpp"

namespace mini_engine {

/// Continues the prompt, and says on standard error how long it took.
/// Shape   chunk: tokens per step; Opening: the opening_cache that goes with the Engine
template <class Opening, class Engine>
void generate(const options& o, Engine& e, std::size_t chunk, const tokenizer& words,
              const std::vector<token_id>& prompt) {
  cache_settings settings = o.cache;
  if (settings.memory_bytes == 0) settings.memory_bytes = memory_for(prompt.size() + o.tokens, e);

  request from;
  from.prompt = prompt;
  from.tokens = o.tokens;
  from.choose = sampler(o.temperature, o.top_p, o.seed);
  from.ends = [&](token_id token) { return words.ends(token); };
  token_id previous = prompt.back();
  bool first = true;
  from.on_token = [&](token_id token) {
    if (std::exchange(first, false) && o.prompt_file.empty()) print(o.prompt);
    print(words.decode(previous, token));
    previous = token;
  };
  // A cache that forgets with the process is of no use to a single request.
  const bool use_cache = !o.no_cache && !settings.directory.empty();
  std::optional<Opening> cache;
  const auto begin = std::chrono::steady_clock::now();
  report result = {.model = model_name(o),
                   .threads = e.threads(),
                   .chunk_tokens = chunk,
                   .block_tokens = o.block_tokens,
                   .kv_bytes_per_token = e.kv_bytes_per_token(),
                   .runs = {run_alone("generate", e, from, cache, use_cache ? &settings : nullptr,
                                      {chunk, o.always_load, std::nullopt})},
                   .more = {}};
  const double seconds = seconds_since(begin);
  std::printf("\n");
  const single_run& run = result.first();
  result.prefill_flops =
      prefill_flops(e.config(), e.matmul_parameters(), run.cached_tokens, prompt.size() - run.cached_tokens) /
      (run.ttft_seconds - run.load_seconds);
  std::fprintf(
      stderr,
      "prompt: %zu tokens, %zu of them cached, first token after %.1f ms; generated: %zu tokens in %.1f ms more\n",
      prompt.size(), run.cached_tokens, run.ttft_seconds * 1e3, run.result.logits.size(),
      (seconds - run.ttft_seconds) * 1e3);
  if (!o.json.empty()) write_json(result, o.json);
  constexpr std::chrono::seconds patience{10};
  if (cache && (cache->wait_for(patience) == nullptr || !cache->get()->drain(patience)))
    std::fputs("mini_engine: storage did not take all blocks in ten seconds\n", stderr);
}

}  // namespace mini_engine
