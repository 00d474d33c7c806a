// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>

#include "model.hpp"
#include "paged_kv.hpp"
#include "prefill_cost.hpp"
#include "thread_pool.hpp"
#include "transformer.hpp"

namespace mini_engine {

/// A model ready to compute: its threads, pages and activations, and what prefill costs on this machine.
struct engine {
  /// Units   pool_tokens: that fit the KV pool; max_rows: tokens of one step
  engine(model m, std::size_t threads, std::size_t block_tokens, std::size_t pool_tokens, std::size_t max_rows,
         std::size_t chunk_tokens)
      : weights(std::move(m)),
        pool(threads),
        kv(weights.config, block_tokens, (pool_tokens + block_tokens - 1) / block_tokens),
        compute(weights, kv, pool, max_rows),
        cost(compute, chunk_tokens) {}

  const model_config& config() const noexcept { return weights.config; }
  std::size_t matmul_parameters() const { return weights.matmul_parameters(); }
  std::size_t threads() const noexcept { return pool.size(); }
  std::size_t kv_bytes_per_token() const noexcept {
    return weights.config.layers * 2 * kv.token_floats() * sizeof(float);
  }

  const model weights;
  thread_pool pool;
  paged_kv kv;
  transformer compute;
  prefill_cost cost;
};

}  // namespace mini_engine
