// SPDX-License-Identifier: Apache-2.0
#include "profile.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>
#include <vector>

#include "plain_product.hpp"
#include "prefill_cost.hpp"
#include "stopwatch.hpp"

namespace mini_engine {
void print_profile(const model& m, paged_kv& kv, thread_pool& pool, std::size_t prompt_tokens,
                   std::size_t chunk_tokens) {
  std::printf("threads %zu, %.1f million parameters in products, %zu tokens of prompt\n", pool.size(),
              static_cast<double>(m.matmul_parameters()) * 1e-6, prompt_tokens);
  plain_product plain(pool);

  sequence s;
  if (!kv.reserve(s.pages, prompt_tokens)) return;
  std::vector<token_id> tokens;
  for (std::size_t i = 0; i < prompt_tokens; ++i)
    tokens.push_back(static_cast<token_id>(i * 7919 % m.config.vocabulary));
  const auto prefill = [&](transformer& engine, std::size_t first, std::size_t n) {
    for (std::size_t t = first; t < first + n; t += engine.max_rows()) {
      engine.prefill_chunk(s, {tokens.data() + t, std::min(engine.max_rows(), first + n - t)}, t);
    }
  };
  const double flops = prefill_flops(m.config, m.matmul_parameters(), 0, prompt_tokens);
  std::vector<std::pair<std::size_t, double>> measured_chunks;
  for (std::size_t chunk = 128; chunk <= prompt_tokens; chunk *= 2) {
    plain.measure();
    transformer engine(m, kv, pool, chunk);
    measured_chunks.emplace_back(chunk, best_seconds(3, [&] { prefill(engine, 0, prompt_tokens); }));
  }
  plain.print();
  for (const auto& [chunk, seconds] : measured_chunks) {
    std::printf(
        "prefill in chunks of %4zu  %8.1f ms  %8.0f tokens/s  %7.1f GFLOP/s  %3.0f %% of the faster plain product\n",
        chunk, seconds * 1e3, static_cast<double>(prompt_tokens) / seconds, flops / seconds * 1e-9,
        flops / seconds / plain.best() * 100);
  }

  transformer engine(m, kv, pool, chunk_tokens);
  const double decode = best_seconds(5, [&] { prefill(engine, prompt_tokens - 1, 1); });
  std::printf("decode after %zu tokens   %8.1f ms per token\n", prompt_tokens - 1, decode * 1e3);

  kv.release(s.pages);  // the estimate measures in the same pages
  const auto begin = std::chrono::steady_clock::now();
  const prefill_cost cost(engine, chunk_tokens);
  std::printf("estimates from a calibration of %.0f ms:\n",
              std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  if (!kv.reserve(s.pages, prompt_tokens)) return;
  for (const std::size_t n : {prompt_tokens / 128, prompt_tokens / 16, prompt_tokens / 4, prompt_tokens}) {
    for (const std::size_t past : {std::size_t{0}, prompt_tokens - n}) {
      if (n == 0 || (past == 0 && n != prompt_tokens && n < 8)) continue;
      const double measured = best_seconds(3, [&] { prefill(engine, past, n); }), estimated = cost.seconds(past, n);
      std::printf("  %5zu tokens after %5zu  measured %8.1f ms  estimated %8.1f ms  %+4.0f %%\n", n, past,
                  measured * 1e3, estimated * 1e3, (estimated / measured - 1) * 100);
      if (n == prompt_tokens) break;
    }
  }
  kv.release(s.pages);
}

}  // namespace mini_engine
