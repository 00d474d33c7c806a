// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.hpp"

#include <algorithm>
#include <string_view>
#include <vector>

#include "open_with.hpp"

namespace mini_engine {

bool has_uring() noexcept {
#ifdef MINI_ENGINE_URING
  return true;
#else
  return false;
#endif
}

kvx::layout describe(const model_config& config, paged_kv& kv) {
  std::vector<std::byte*> keys, values;
  for (std::size_t l = 0; l < config.layers; ++l) {
    keys.push_back(reinterpret_cast<std::byte*>(kv.k(l)));
    values.push_back(reinterpret_cast<std::byte*>(kv.v(l)));
  }
  const auto tokens = static_cast<std::uint32_t>(kv.block_tokens());
  const kvx::kv_shape shape{.block_tokens = tokens,
                            .page_tokens = tokens,
                            .layers = config.layers,
                            .heads = config.kv_heads,
                            .head_dim = config.head_dim(),
                            .element = kvx::element_type::f32};
  return {tokens,
          {kvx::separate_kv{.shape = shape,
                            .page_count = kv.pages(),
                            .keys = keys,
                            .values = values,
                            .tensor_bytes = kv.pages() * kv.page_bytes(),
                            .page_stride = kv.page_bytes()}}};
}

kvx::prefill_cost in_kvx_terms(const prefill_cost& cost, std::size_t prompt_tokens) {
  // Through the costs of the whole prompt and of its first half.
  const auto n = static_cast<double>(std::max<std::size_t>(2, prompt_tokens / 2 * 2));
  const double whole = cost.seconds(0, static_cast<std::size_t>(n)),
               half = cost.seconds(0, static_cast<std::size_t>(n / 2));
  const double linear = std::clamp(4 * half - whole, 0.0, whole);
  return {linear / n, 2 * (whole - linear) / (n * n)};
}

std::uint64_t memory_for(std::size_t tokens, std::size_t layers, std::size_t block_tokens, std::size_t layer_bytes) {
  constexpr std::uint64_t headers = 2 * kvx::page_bytes, spare_blocks = 16;
  return (tokens / block_tokens + spare_blocks) * (headers + layers * kvx::round_up(layer_bytes));
}

std::uint64_t memory_for(std::size_t tokens, const model_config& config, const paged_kv& kv) {
  return memory_for(tokens, config.layers, kv.block_tokens(), 2 * kv.page_bytes());
}

kvx::options options_for(const cache_settings& settings, const kv_identity& identity, const prefill_cost& cost,
                         std::size_t context_tokens) {
  constexpr std::string_view digits = "0123456789abcdef";
  kvx::options o;
  o.identity.model = "mini_engine";
  for (const std::uint8_t byte : identity.digest) {
    o.identity.revision += digits[byte >> 4];
    o.identity.revision += digits[byte & 15];
  }
  o.identity.dtype = identity.dtype;
  o.root = settings.directory;
  o.memory_bytes = settings.memory_bytes;
  o.storage_bytes = settings.storage_bytes;
  o.load_deadline = settings.load_deadline;
  o.save_deadline = settings.save_deadline;
  if (settings.io_threads != 0) o.io.threads = settings.io_threads;
  o.drain_deadline = std::chrono::milliseconds{2000};
  o.prompts_trusted = true;  // the prompts are the user's own, and so is the directory
  o.prefill = in_kvx_terms(cost, std::min<std::size_t>(4096, context_tokens));
  return o;
}

kvx::options options_for(const cache_settings& settings, const model& m, const prefill_cost& cost) {
  return options_for(settings, {m.digest, "f32"}, cost, m.config.context_tokens);
}

external_cache open_cache(const cache_settings& settings, const model& m, paged_kv& kv, const prefill_cost& cost,
                          const std::function<void()>& memory_is_there) {
  return open_with(settings.io, options_for(settings, m, cost), describe(m.config, kv), kvx::host_transfer{},
                   memory_is_there);
}

}  // namespace mini_engine
