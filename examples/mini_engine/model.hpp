// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "huge_array.hpp"
#include "matmul.hpp"

namespace mini_engine {

using token_id = std::uint32_t;

/// The shape of a Llama-architecture model.
struct model_config {
  std::size_t dim;
  std::size_t hidden_dim;
  std::size_t layers;
  std::size_t heads;
  std::size_t kv_heads;
  std::size_t vocabulary;
  std::size_t context_tokens;
  bool shared_classifier;
  std::size_t head_channels = 0;  // 0: dim / heads; a rank that has a share of the heads says how large they are

  std::size_t head_dim() const { return head_channels != 0 ? head_channels : dim / heads; }
  std::size_t query_dim() const { return heads * head_dim(); }
  std::size_t kv_dim() const { return kv_heads * head_dim(); }
  std::size_t group() const { return heads / kv_heads; }  // query heads that share one key/value head
};

struct model_layer {
  std::vector<float> attention_norm, feed_forward_norm;
  packed_matrix query, key_value,
      output;  // key_value: the rows of the key projection, then those of the value projection
  packed_matrix gate, up, down;
};

/// The weights, packed for multiply(), and the rotation tables.
class model {
 public:
  /// Reads a llama2.c checkpoint (version 0: seven int32, then float32 weights). Throws std::runtime_error if anything
  /// doesn't fit.
  static model load(const std::string& path);

  /// Makes up a model of a named shape, "tiny", "100m" or "1b": the same name and seed give the same weights.
  static model random(const std::string& shape, std::uint64_t seed);
  static model random(const model_config& shape, const std::string& name, std::uint64_t seed);

  model_config config;
  std::array<std::uint8_t, 16> digest{};  // of shape and weights: what a KV cache must be keyed by
  huge_array<float> embedding;            // [vocabulary, dim]
  std::vector<model_layer> layers;
  std::vector<float> final_norm;
  packed_matrix classifier;
  std::vector<float> rope_cos, rope_sin;  // [context_tokens, head_dim / 2]

  /// Parameters that take part in matrix products for every token, the classifier not among them.
  std::size_t matmul_parameters() const;

 private:
  explicit model(const model_config& shape);

  template <class Source>  // source(floats, count, fan_in) is called once per tensor, in the checkpoint's order
  void fill(const Source& source);
};

}  // namespace mini_engine
