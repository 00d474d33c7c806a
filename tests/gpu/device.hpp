// SPDX-License-Identifier: Apache-2.0
// What tests need of a device: the library's kernels, and work that takes a while. device.cu has the definitions.
#pragma once

#include <kvx/transfer/cuda/kernels.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace kvx_gpu {

kvx::cuda_kernels kernels();

/// Keeps one thread busy for about so many microseconds.
void spin(cudaStream_t stream, std::uint64_t microseconds);
/// Spins, then brings the device down for this process.
void trap(cudaStream_t stream, std::uint64_t microseconds);
/// Spins, then writes.
void spin_and_fill(cudaStream_t stream, std::uint64_t microseconds, std::byte* to, std::byte value, std::size_t bytes);

/// Blocks as the round trip has them: each 8-byte word of a block is a function of the block's number and its place.
/// Shape   piece_of: addresses of `pieces` pieces of `piece_bytes` per block, in the order of the payload
void write_blocks(cudaStream_t stream, std::byte* const* pieces, const std::uint64_t* numbers, std::uint32_t blocks,
                  std::uint32_t pieces_per_block, std::uint32_t piece_bytes);
/// Adds the number of words that are not what they should be.
void check_blocks(cudaStream_t stream, const std::byte* const* pieces, const std::uint64_t* numbers,
                  std::uint32_t blocks, std::uint32_t pieces_per_block, std::uint32_t piece_bytes,
                  unsigned long long* wrong);

}  // namespace kvx_gpu
