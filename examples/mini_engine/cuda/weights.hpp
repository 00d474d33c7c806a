// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention.hpp"
#include "buffer.hpp"
#include "model.hpp"

namespace mini_engine::cuda {

/// The weights on the GPU, in bfloat16, and the rotation tables.
class weights {
 public:
  /// Each matrix [outputs, inputs]; those that share their input are one.
  struct layer {
    __nv_bfloat16 *attention_norm, *qkv, *output, *feed_forward_norm, *gate_up, *down;
  };

  /// Rounds what another engine has in float32.
  weights(const model& from, cudaStream_t stream);

  /// Makes up weights, on the GPU: the same name and seed give the same weights. "llama-8b" is that model's shape,
  /// "llama-70b-tp8" the share of one of eight tensor-parallel ranks, without the sums over ranks, and with that rank's
  /// share of the vocabulary.
  weights(const std::string& shape, std::uint64_t seed, cudaStream_t stream);
  static bool knows(const std::string& shape) { return shape_of(shape).has_value(); }

  const model_config& config() const noexcept { return config_; }
  const std::array<std::uint8_t, 16>& digest() const noexcept { return digest_; }
  /// hidden_dim, rounded up so that rows are aligned; what is added is zero.
  std::size_t hidden() const noexcept { return (config_.hidden_dim + 7) / 8 * 8; }
  attention_shape attention_of(std::size_t page_tokens) const;

  const __nv_bfloat16* embedding() const noexcept { return embedding_; }
  const std::vector<layer>& layers() const noexcept { return layers_; }
  const __nv_bfloat16* final_norm() const noexcept { return final_norm_; }
  const __nv_bfloat16* classifier() const noexcept { return classifier_; }
  const float2* angles() const noexcept { return angles_.data(); }

  /// Parameters that take part in matrix products for every token, the classifier not among them.
  std::size_t matmul_parameters() const;

 private:
  static std::optional<model_config> shape_of(const std::string& name);
  void place();
  void make_angles(cudaStream_t stream);

  model_config config_{};
  std::array<std::uint8_t, 16> digest_{};
  device_buffer<__nv_bfloat16> memory_;
  __nv_bfloat16 *embedding_ = nullptr, *final_norm_ = nullptr, *classifier_ = nullptr;
  std::vector<layer> layers_;
  device_buffer<float2> angles_;  // [context_tokens, head_dim / 2]
};

}  // namespace mini_engine::cuda
