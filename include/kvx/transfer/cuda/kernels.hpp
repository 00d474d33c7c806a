// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvx {

/// One copy as kernels read it.
/// Units   bytes: at most cuda_kernels::piece_bytes
struct cuda_copy {
  std::uint64_t to = 0;
  std::uint64_t from = 0;
  std::uint64_t bytes = 0;
};

/// The kernels that an engine built for its GPU; host code passes them on and launches them.
///
/// `cuda_kernel_table()` of kvx/transfer/cuda_kernels.cuh, called in one .cu file of the engine, fills it. With
/// NVRTC, give cudaKernel_t handles of the same kernels. A null entry is a kernel that is not used.
struct cuda_kernels {
  /// Largest piece of one cuda_copy, so that a warp gets no more than a share of the work.
  static constexpr std::size_t piece_bytes = 16384;
  static constexpr unsigned copy_threads = 1024;
  static constexpr unsigned digest_threads = 256;

  /// void(const cuda_copy* copies, std::uint32_t count): gather, scatter and copies over the link alike.
  const void* copy = nullptr;
  /// void(const std::byte* pages, std::uint64_t count, std::uint64_t* values): XXH3-64 of each 4 KiB page.
  const void* page_values = nullptr;
  /// void(const std::byte* pages, std::uint64_t count, const std::uint64_t* values, std::uint32_t* wrong): adds the
  /// number of pages that do not have the value expected.
  const void* check_pages = nullptr;
};

}  // namespace kvx
