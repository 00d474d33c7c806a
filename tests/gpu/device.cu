// SPDX-License-Identifier: Apache-2.0
#include "device.hpp"

#include <kvx/transfer/cuda_kernels.cuh>

namespace kvx_gpu {

namespace {

__device__ void spin_for(std::uint64_t nanoseconds) {
  const auto now = [] {
    std::uint64_t time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
  };
  const std::uint64_t began = now();
  while (now() - began < nanoseconds) __nanosleep(200);
}

__global__ void spin_kernel(std::uint64_t nanoseconds) { spin_for(nanoseconds); }

__global__ void trap_kernel(std::uint64_t nanoseconds) {
  spin_for(nanoseconds);
  asm volatile("trap;");
}

__global__ void spin_and_fill_kernel(std::uint64_t nanoseconds, std::byte* to, std::byte value, std::size_t bytes) {
  if (threadIdx.x == 0) spin_for(nanoseconds);
  __syncthreads();
  for (std::size_t i = threadIdx.x; i < bytes; i += blockDim.x) to[i] = value;
}

__device__ std::uint64_t word_of(std::uint64_t number, std::uint64_t place) {
  std::uint64_t x = number * 0x9E3779B97F4A7C15U + place;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

// One thread block per piece.
template <class Each>
__device__ void each_word(std::uint32_t pieces_per_block, std::uint32_t piece_bytes, const std::uint64_t* numbers,
                          Each each) {
  const std::uint32_t block = blockIdx.x / pieces_per_block;
  const std::uint32_t piece = blockIdx.x % pieces_per_block;
  const std::uint32_t words = piece_bytes / 8;
  for (std::uint32_t i = threadIdx.x; i < words; i += blockDim.x) {
    each(i, word_of(numbers[block], static_cast<std::uint64_t>(piece) * words + i));
  }
}

__global__ void write_kernel(std::byte* const* pieces, const std::uint64_t* numbers, std::uint32_t pieces_per_block,
                             std::uint32_t piece_bytes) {
  auto* const to = reinterpret_cast<std::uint64_t*>(pieces[blockIdx.x]);
  each_word(pieces_per_block, piece_bytes, numbers, [&](std::uint32_t i, std::uint64_t word) { to[i] = word; });
}

__global__ void check_kernel(const std::byte* const* pieces, const std::uint64_t* numbers,
                             std::uint32_t pieces_per_block, std::uint32_t piece_bytes, unsigned long long* wrong) {
  const auto* const from = reinterpret_cast<const std::uint64_t*>(pieces[blockIdx.x]);
  unsigned long long mine = 0;
  each_word(pieces_per_block, piece_bytes, numbers,
            [&](std::uint32_t i, std::uint64_t word) { mine += from[i] != word ? 1 : 0; });
  if (mine != 0) atomicAdd(wrong, mine);
}

}  // namespace

kvx::cuda_kernels kernels() { return kvx::cuda_kernel_table(); }

void spin(cudaStream_t stream, std::uint64_t microseconds) { spin_kernel<<<1, 1, 0, stream>>>(microseconds * 1000); }

void trap(cudaStream_t stream, std::uint64_t microseconds) { trap_kernel<<<1, 1, 0, stream>>>(microseconds * 1000); }

void spin_and_fill(cudaStream_t stream, std::uint64_t microseconds, std::byte* to, std::byte value, std::size_t bytes) {
  spin_and_fill_kernel<<<1, 256, 0, stream>>>(microseconds * 1000, to, value, bytes);
}

void write_blocks(cudaStream_t stream, std::byte* const* pieces, const std::uint64_t* numbers, std::uint32_t blocks,
                  std::uint32_t pieces_per_block, std::uint32_t piece_bytes) {
  write_kernel<<<blocks * pieces_per_block, 128, 0, stream>>>(pieces, numbers, pieces_per_block, piece_bytes);
}

void check_blocks(cudaStream_t stream, const std::byte* const* pieces, const std::uint64_t* numbers,
                  std::uint32_t blocks, std::uint32_t pieces_per_block, std::uint32_t piece_bytes,
                  unsigned long long* wrong) {
  check_kernel<<<blocks * pieces_per_block, 128, 0, stream>>>(pieces, numbers, pieces_per_block, piece_bytes, wrong);
}

}  // namespace kvx_gpu
