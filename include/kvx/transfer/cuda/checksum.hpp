// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/transfer/cuda/kernels.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvx {

/// Blocks of threads that reach the speed of the device's memory; 2 leave the engine's kernels alone.
inline constexpr unsigned cuda_digest_blocks = 1024;

namespace cuda {

[[nodiscard]] inline status launch_digest(const void* kernel, std::uint64_t pages, unsigned blocks, void** arguments,
                                          cudaStream_t stream) noexcept {
  if (kernel == nullptr) return errc::unsupported;
  if (pages == 0) return {};
  constexpr std::uint64_t pages_per_block = cuda_kernels::digest_threads / 4;
  const auto most =
      static_cast<unsigned>(std::min<std::uint64_t>(blocks, (pages + pages_per_block - 1) / pages_per_block));
  const cudaError_t e =
      ::cudaLaunchKernel(kernel, dim3(most), dim3(cuda_kernels::digest_threads), arguments, 0, stream);
  if (e == cudaSuccess) return {};
  static_cast<void>(::cudaGetLastError());
  return errc::device_failed;
}

}  // namespace cuda

/// XXH3-64 of each page, the values that store/slot_format.hpp folds into a layer's digest.
/// Shape   pages: count pages of 4 KiB, aligned to 16 bytes; values: count; both where the device reads and writes
/// Stream  submitted to `stream`, nothing waits
/// Errors  unsupported: there is no such kernel; device_failed: nothing was submitted
/// Cost    one pass at the speed of the memory that holds the pages
[[nodiscard]] inline status cuda_page_values(const cuda_kernels& kernels, const std::byte* pages, std::uint64_t count,
                                             std::uint64_t* values, cudaStream_t stream,
                                             unsigned blocks = cuda_digest_blocks) noexcept {
  void* arguments[] = {&pages, &count, &values};
  return cuda::launch_digest(kernels.page_values, count, blocks, arguments, stream);
}

/// Adds to `wrong` the number of pages whose XXH3-64 is not the one expected.
/// Shape   wrong: one counter, where the device writes
/// Stream  as cuda_page_values
[[nodiscard]] inline status cuda_check_pages(const cuda_kernels& kernels, const std::byte* pages, std::uint64_t count,
                                             const std::uint64_t* expected, std::uint32_t* wrong, cudaStream_t stream,
                                             unsigned blocks = cuda_digest_blocks) noexcept {
  void* arguments[] = {&pages, &count, &expected, &wrong};
  return cuda::launch_digest(kernels.check_pages, count, blocks, arguments, stream);
}

}  // namespace kvx
