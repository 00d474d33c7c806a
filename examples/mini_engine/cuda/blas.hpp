// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "buffer.hpp"

namespace mini_engine::cuda {

/// Matrix products by cuBLAS, in bfloat16 with sums in float32. Opened when it is used, not linked: the program starts
/// without it. The same product of the same size gives the same bits: one stream, and a workspace that is always there.
/// Thread  one
class blas {
 public:
  /// Throws std::runtime_error where cuBLAS cannot be opened, and names what to install.
  explicit blas(cudaStream_t stream);
  ~blas();
  blas(const blas&) = delete;
  blas& operator=(const blas&) = delete;

  /// y[rows, outputs] = x[rows, inputs] * transpose(w[outputs, inputs]), or += when accumulating.
  void multiply(const __nv_bfloat16* x, std::size_t rows, const __nv_bfloat16* w, std::size_t outputs,
                std::size_t inputs, __nv_bfloat16* y, bool accumulate = false);
  /// The same with results in float32.
  void multiply(const __nv_bfloat16* x, std::size_t rows, const __nv_bfloat16* w, std::size_t outputs,
                std::size_t inputs, float* y);

 private:
  struct library;
  void multiply(const void* x, std::size_t rows, const void* w, std::size_t outputs, std::size_t inputs, void* y,
                int type, float before);

  std::unique_ptr<library> library_;
  device_buffer<std::byte> workspace_;
};

}  // namespace mini_engine::cuda
