// SPDX-License-Identifier: Apache-2.0
#include "chat.hpp"

#include <optional>
#include <utility>

#include "chat_users.hpp"
#include "engine.hpp"
#include "report.hpp"
#include "serve.hpp"
#include "single_run.hpp"

namespace mini_engine {

void chat(const options& o, model m) {
  const std::size_t chunk = o.chunk == 0 ? default_chunk : o.chunk, pool_tokens = chat_pool_tokens(o);
  engine e(std::move(m), o.threads, o.block_tokens, pool_tokens, chunk + o.users, chunk);
  std::optional<opening_cache> cache;
  if (!o.no_cache) {
    cache_settings settings = o.cache;
    // Twice the conversations: half of the memory can be kept for requests that wait.
    if (settings.memory_bytes == 0)
      settings.memory_bytes = 2 * memory_for(o.users * (longest_chat(o) + o.block_tokens), e);
    cache.emplace(settings, e.weights, e.kv, e.cost);
  }
  server all(e.compute, e.cost, cache ? &*cache : nullptr, chunk, o.always_load);
  const chat_report result = chat_with(o, e.config(), all);
  print_table(result);
  if (!o.json.empty()) write_json(result, o.json);
}

}  // namespace mini_engine
