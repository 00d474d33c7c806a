// SPDX-License-Identifier: Apache-2.0
// What the bench runs on the device beside the copies; device.cu has the definitions.
#pragma once

#include <kvx/transfer/cuda/kernels.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>

namespace kvx_bench {

kvx::cuda_kernels kernels();

/// Reads and writes `bytes` of device memory once, as a kernel bound by memory does.
void scale(cudaStream_t stream, float* data, std::size_t bytes);

}  // namespace kvx_bench
