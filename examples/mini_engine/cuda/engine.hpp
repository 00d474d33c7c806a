// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/io/cufile.hpp>
#include <kvx/transfer/cuda.hpp>

#include <cstddef>
#include <memory>

#include "../prefill_cost.hpp"
#include "buffer.hpp"
#include "pages.hpp"
#include "transformer.hpp"
#include "weights.hpp"

namespace mini_engine::cuda {

/// Measures what prefill costs on this GPU: a few chunks, after which everything the engine uses is loaded.
prefill_cost measure_cost(transformer& compute, std::size_t chunk_tokens);

/// What moves blocks between this GPU and pinned memory; costs: what an earlier one measured, so that it need not do so
/// again.
kvx::cuda_transfer make_transfer(const kvx::cuda_transfer* measured = nullptr);

/// A model ready to compute on the GPU: its pages and activations, what prefill costs, and what copies over the link
/// cost.
struct engine {
  /// Units   pool_tokens: that fit the KV pool; max_rows: tokens of one step; max_sequences: of one step
  engine(const weights& w, cudaStream_t stream, std::size_t block_tokens, std::size_t pool_tokens, std::size_t max_rows,
         std::size_t max_sequences, std::size_t chunk_tokens)
      : of(w),
        kv(w.config(), block_tokens, (pool_tokens + block_tokens - 1) / block_tokens),
        compute(w, kv, stream, max_rows, max_sequences),
        cost(measure_cost(compute, chunk_tokens)),
        link(make_transfer()) {}

  const model_config& config() const noexcept { return of.config(); }
  std::size_t matmul_parameters() const { return of.matmul_parameters(); }
  std::size_t threads() const noexcept { return 1; }
  std::size_t kv_bytes_per_token() const noexcept { return kv.bytes_per_token(); }

  const weights& of;
  paged_kv kv;
  transformer compute;
  prefill_cost cost;
  kvx::cuda_transfer link;              // not used but to know its costs
  std::shared_ptr<kvx::cufile> reader;  // of blocks that go straight into the pages; null: they do not
};

}  // namespace mini_engine::cuda
