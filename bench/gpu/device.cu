// SPDX-License-Identifier: Apache-2.0
#include "device.hpp"

#include <kvx/transfer/cuda_kernels.cuh>

namespace kvx_bench {

namespace {

__global__ void scale_kernel(float4* data, std::size_t count) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    float4 v = data[i];
    v.x *= 0.5F;
    v.y *= 0.5F;
    v.z *= 0.5F;
    v.w *= 0.5F;
    data[i] = v;
  }
}

}  // namespace

kvx::cuda_kernels kernels() { return kvx::cuda_kernel_table(); }

void scale(cudaStream_t stream, float* data, std::size_t bytes) {
  scale_kernel<<<1056, 512, 0, stream>>>(reinterpret_cast<float4*>(data), bytes / sizeof(float4));
}

}  // namespace kvx_bench
