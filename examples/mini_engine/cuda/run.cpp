// SPDX-License-Identifier: Apache-2.0
#include "run.hpp"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "../chat_users.hpp"
#include "../generate.hpp"
#include "../inputs.hpp"
#include "compare.hpp"
#include "engine.hpp"
#include "kv_cache.hpp"

namespace mini_engine::cuda {
namespace {

weights load_weights(const options& o, cudaStream_t stream) {
  constexpr std::string_view prefix = "random:";
  if (o.checkpoint.empty() && o.model.starts_with(prefix) && weights::knows(o.model.substr(prefix.size()))) {
    return {o.model.substr(prefix.size()), o.seed, stream};
  }
  return {load_model(o), stream};
}

void chat(const options& o, const weights& w, cudaStream_t stream, std::size_t chunk) {
  const std::size_t pool_tokens = chat_pool_tokens(o), conversations = o.users * (longest_chat(o) + o.block_tokens);
  engine e(w, stream, o.block_tokens, pool_tokens, chunk + o.users, o.users + 1, chunk);
  std::optional<opening_cache> cache;
  if (!o.no_cache) {
    cache_settings settings = o.cache;
    // Twice the conversations: half of the memory can be kept for requests that wait.
    if (settings.memory_bytes == 0) settings.memory_bytes = 2 * memory_for(conversations, e);
    cache.emplace(settings, e);
    if (cache->wait_for(std::chrono::minutes{1}) == nullptr)
      throw std::runtime_error("the cache did not open within a minute");
  }
  if (cache) read_straight(o.cache, false, e);
  server all = make_server(e, cache ? &*cache : nullptr, chunk, o.always_load);
  const chat_report result = chat_with(o, e.config(), all);
  print_table(result);
  if (!o.json.empty()) write_json(result, o.json);
}

}  // namespace

int run(const options& o, const std::vector<std::string>& arguments) {
  if (const kvx::cuda_probe found = kvx::cuda_transfer::probe(); !found.usable) throw no_device(found.text);
  if (o.profile)
    throw std::runtime_error("--profile measures the CPU; on a GPU, --compare reports what prefill and copies reach");
  const stream on;
  const weights w = load_weights(o, on);
  on.wait();
  const std::size_t chunk = std::min(o.chunk == 0 ? default_chunk : o.chunk, w.config().context_tokens);
  if (o.chat) {
    chat(o, w, on, chunk);
    return 0;
  }
  const tokenizer words = load_tokenizer(o, w.config());
  const std::vector<token_id> prompt = load_prompt(o, words, w.config());
  engine e(w, on, o.block_tokens, prompt.size() + o.tokens, std::min(chunk, prompt.size()), 1, chunk);
  if (o.compare_child) {
    compare_child(o, e, words, prompt, chunk);
  } else if (o.compare) {
    return compare(o, e, words, prompt, chunk, arguments) ? 0 : 1;
  } else {
    if (!o.no_cache) read_straight(o.cache, true, e);
    generate<opening_cache>(o, e, chunk, words, prompt);
  }
  return 0;
}

}  // namespace mini_engine::cuda
