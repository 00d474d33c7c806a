// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "transformer.hpp"

namespace mini_engine {

/// Floating-point operations that prefilling n tokens after `past` others takes at least: products with the weights,
/// and attention of every token to itself and its predecessors.
double prefill_flops(const model_config& config, std::size_t matmul_parameters, std::size_t past, std::size_t n);

/// Estimates how long a prefill takes, from a few measured milliseconds of it.
class prefill_cost {
 public:
  /// Times a few layers of `engine`, with scratch pages taken from its pool: at most about 2,000 tokens' worth, given
  /// back after. Cost    under 100 ms for a model of 100 million parameters
  prefill_cost(transformer& engine, std::size_t chunk_tokens);

  /// What another engine measured.
  /// Units   seconds per chunk, per token, and per pair of a token and one that it attends to
  prefill_cost(std::size_t chunk_tokens, double per_chunk, double per_token, double per_pair)
      : chunk_tokens_(chunk_tokens),
        tiling_{chunk_tokens, chunk_tokens, 1, 1},
        per_chunk_(per_chunk),
        per_token_(per_token),
        per_pair_(per_pair) {}

  /// Seconds to prefill n tokens, in chunks, when the KV of `past` tokens is there.
  double seconds(std::size_t past, std::size_t n) const;

 private:
  double chunk_seconds(std::size_t past, std::size_t n) const;
  double keys_packed(std::size_t past, std::size_t n) const;

  std::size_t chunk_tokens_;
  attention_tiling tiling_;
  double per_chunk_ = 0;  // seconds: reading the weights, waking the threads
  double per_token_ = 0;
  double per_pair_ = 0;  // of a token and one that it attends to
  double per_key_ = 0;   // made ready for a tile of queries
};

}  // namespace mini_engine
