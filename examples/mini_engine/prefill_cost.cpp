// SPDX-License-Identifier: Apache-2.0
#include "prefill_cost.hpp"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

namespace mini_engine {
namespace {

double pairs(std::size_t past, std::size_t n) {
  const auto p = static_cast<double>(past), tokens = static_cast<double>(n);
  return tokens * p + tokens * (tokens + 1) / 2;
}

}  // namespace

double prefill_flops(const model_config& config, std::size_t matmul_parameters, std::size_t past, std::size_t n) {
  return 2.0 * static_cast<double>(matmul_parameters) * static_cast<double>(n) +
         4.0 * static_cast<double>(config.layers * config.query_dim()) * pairs(past, n);
}

prefill_cost::prefill_cost(transformer& engine, std::size_t chunk_tokens)
    : chunk_tokens_(chunk_tokens), tiling_(engine.tiling()) {
  const model_config& config = engine.weights().config;
  paged_kv& kv = engine.kv();
  const std::size_t room = std::min(config.context_tokens, kv.free_pages() * kv.block_tokens());
  const std::size_t many = std::min({chunk_tokens, engine.max_rows(), room, std::size_t{384}});
  const std::size_t few = std::min(tiling_.largest, std::max<std::size_t>(1, many / 2));
  const std::size_t past = std::min<std::size_t>(1536, room - few);
  // As many layers as overflow the caches: one small layer repeated would never read its weights from memory.
  const std::size_t layer_bytes = engine.weights().matmul_parameters() / config.layers * sizeof(float);
  const std::size_t layers = std::clamp<std::size_t>((std::size_t{64} << 20) / layer_bytes, 1, config.layers);

  sequence scratch;
  if (room < 2 || !kv.reserve(scratch.pages, std::max(past + few, many)))
    return;  // no room to measure: every prefill is free
  const std::vector<token_id> tokens(many, 0);
  const auto measure = [&](std::size_t start, std::size_t n) {
    const step s{&scratch, {tokens.data(), n}, start};
    double best = std::numeric_limits<double>::max();
    for (int repeat = 0; repeat < 2; ++repeat) {
      const auto begin = std::chrono::steady_clock::now();
      engine.run_layers({&s, 1}, layers);
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return best * static_cast<double>(config.layers) / static_cast<double>(layers);
  };
  const double few_alone = measure(0, few), many_alone = measure(0, many);
  const double few_after = measure(past, few) - few_alone, one_after = measure(past, 1) - measure(0, 1);
  kv.release(scratch.pages);

  const auto keys = static_cast<double>(past), queries = static_cast<double>(few);
  per_pair_ = few > 1 ? std::max(0.0, (few_after - one_after) / ((queries - 1) * keys)) : 0;
  per_key_ = std::max(0.0, one_after / keys - per_pair_);
  const auto without_attention = [&](double seconds, std::size_t n) {
    return seconds - per_pair_ * pairs(0, n) - per_key_ * keys_packed(0, n);
  };
  const double few_base = without_attention(few_alone, few), many_base = without_attention(many_alone, many);
  per_token_ = many > few ? std::max(0.0, (many_base - few_base) / static_cast<double>(many - few)) : 0;
  per_chunk_ = std::max(0.0, few_base - per_token_ * queries);
}

double prefill_cost::keys_packed(std::size_t past, std::size_t n) const {
  double keys = 0;
  const std::size_t tile = tiling_.tokens(n);
  for (std::size_t t = 0; t < n; t += tile) keys += static_cast<double>(past + std::min(n, t + tile));
  return keys;
}

double prefill_cost::chunk_seconds(std::size_t past, std::size_t n) const {
  return per_chunk_ + per_token_ * static_cast<double>(n) + per_pair_ * pairs(past, n) +
         per_key_ * keys_packed(past, n);
}

double prefill_cost::seconds(std::size_t past, std::size_t n) const {
  double total = 0;
  for (std::size_t t = 0; t < n; t += chunk_tokens_) total += chunk_seconds(past + t, std::min(chunk_tokens_, n - t));
  return total;
}

}  // namespace mini_engine
