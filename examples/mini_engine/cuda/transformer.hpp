// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "../transformer.hpp"
#include "attention.hpp"
#include "blas.hpp"
#include "buffer.hpp"
#include "kernels.hpp"
#include "pages.hpp"
#include "weights.hpp"

namespace mini_engine::cuda {

/// Runs tokens of several sequences through the model at once; prefill and decode are the same computation.
/// The KV and the logits of a step are, to the last bit, a function of the step (its tokens, and how it is cut and
/// batched) and of the KV bytes before it: not of the pages used. Unlike on the CPU another cut gives other bits, as
/// products of another size do. Thread  one caller at a time Stream  stream(): what is submitted there before a step is
/// seen by it
class transformer {
 public:
  /// At most max_rows tokens and max_sequences sequences per step.
  transformer(const weights& w, paged_kv& kv, cudaStream_t stream, std::size_t max_rows, std::size_t max_sequences);

  /// Logits of each step's last token: [steps.size(), vocabulary], with a row stride of logits_stride(), valid until
  /// the next call. The hook is called as layers are submitted: for work that the stream has to wait for before that
  /// layer reads earlier KV. Throws std::length_error if a step goes past the model's context, its sequence's pages,
  /// max_rows or max_sequences.
  const float* forward(std::span<const step> steps, const layer_hook& before_attention = {});

  std::size_t logits_stride() const noexcept { return config().vocabulary; }
  std::size_t max_rows() const noexcept { return max_rows_; }
  const model_config& config() const noexcept { return weights_.config(); }
  paged_kv& kv() noexcept { return kv_; }
  cudaStream_t stream() const noexcept { return stream_; }
  blas& products() noexcept { return products_; }

 private:
  void prepare(std::span<const step> steps);

  const weights& weights_;
  paged_kv& kv_;
  cudaStream_t stream_;
  std::size_t max_rows_, max_sequences_;
  blas products_;
  attention_plan plan_;
  attention attend_;
  device_buffer<__nv_bfloat16> x_, normed_, qkv_, attended_, gate_up_, hidden_, last_;
  device_buffer<float> logits_;
  pinned_buffer<float> host_logits_;
  // What a step is, as the kernels read it: built here, copied there.
  pinned_buffer<std::byte> host_step_;
  device_buffer<std::byte> step_;
  struct {
    const row_place* rows;
    const std::uint32_t *last, *tables;
    const attention_tile* tiles;
    const attention_merge* merges;
    std::size_t row_count;
  } of_step_{};
};

}  // namespace mini_engine::cuda
