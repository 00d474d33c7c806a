// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/transfer/cuda/kernels.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

// The kernels of `cuda_transfer`. One .cu file of the engine includes this and hands out the table:
//
//     kvx::cuda_kernels kernels() { return kvx::cuda_kernel_table(); }
//
// Everything has internal linkage, so that a second file may include it too.

namespace kvx::cuda {

/// Copies one piece with the threads of one warp, `Word` at a time.
template <class Word>
__device__ inline void copy_words(std::uint64_t to, std::uint64_t from, std::uint64_t bytes, unsigned lane) {
  // As many loads under way as the link has room for: 2 blocks of 32 warps hold 256 KiB.
  constexpr unsigned unrolled = sizeof(Word) == 16 ? 8 : 4;
  auto* const target = reinterpret_cast<Word*>(to);
  const auto* const source = reinterpret_cast<const Word*>(from);
  const auto count = static_cast<unsigned>(bytes / sizeof(Word));
  for (unsigned at = lane; at < count; at += 32 * unrolled) {
    Word held[unrolled];
#pragma unroll
    for (unsigned i = 0; i < unrolled; ++i) {
      if (at + 32 * i < count) held[i] = __ldcs(source + at + 32 * i);
    }
#pragma unroll
    for (unsigned i = 0; i < unrolled; ++i) {
      if (at + 32 * i < count) __stcs(target + at + 32 * i, held[i]);
    }
  }
}

/// A warp takes a piece at a time. The list may lie in host memory: the next entry is fetched ahead.
static __global__ void __launch_bounds__(cuda_kernels::copy_threads, 1)
    copy_pieces(const cuda_copy* copies, std::uint32_t count) {
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t warps = gridDim.x * (blockDim.x / 32);
  std::uint32_t index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (index >= count) return;
  cuda_copy now = copies[index];
  while (true) {
    const std::uint32_t following = index + warps;
    cuda_copy next{};
    if (following < count) next = copies[following];
    const std::uint64_t all = now.to | now.from | now.bytes;
    if (all % 16 == 0) {
      copy_words<uint4>(now.to, now.from, now.bytes, lane);
    } else if (all % 4 == 0) {
      copy_words<unsigned>(now.to, now.from, now.bytes, lane);
    } else {
      copy_words<unsigned char>(now.to, now.from, now.bytes, lane);
    }
    if (following >= count) return;
    now = next;
    index = following;
  }
}

namespace xxh3 {

// XXH3 with 64 bits and seed 0 (xxHash, BSD-2-Clause, describes the algorithm): its secret in words, and the words that
// start at its odd offsets for the last stripe (121) and for merging (11).
static __constant__ const std::uint64_t secret[24] = {
    0xbe4ba423396cfeb8U, 0x1cad21f72c81017cU, 0xdb979083e96dd4deU, 0x1f67b3b7a4a44072U, 0x78e5c0cc4ee679cbU,
    0x2172ffcc7dd05a82U, 0x8e2443f7744608b8U, 0x4c263a81e69035e0U, 0xcb00c391bb52283cU, 0xa32e531b8b65d088U,
    0x4ef90da297486471U, 0xd8acdea946ef1938U, 0x3f349ce33f76faa8U, 0x1d4f0bc7c7bbdcf9U, 0x3159b4cd4be0518aU,
    0x647378d9c97e9fc8U, 0xc3ebd33483acc5eaU, 0xeb6313faffa081c5U, 0x49daf0b751dd0d17U, 0x9e68d429265516d3U,
    0xfca1477d58be162bU, 0xce31d07ad1b8f88fU, 0x280416958f3acb45U, 0x7e404bbbcafbd7afU,
};
static __constant__ const std::uint64_t secret_of_last_stripe[8] = {
    0xea647378d9c97e9fU, 0xc5c3ebd33483acc5U, 0x17eb6313faffa081U, 0xd349daf0b751dd0dU,
    0x2b9e68d429265516U, 0x8ffca1477d58be16U, 0x45ce31d07ad1b8f8U, 0xaf280416958f3acbU,
};
static __constant__ const std::uint64_t secret_of_merge[8] = {
    0x6dd4de1cad21f72cU, 0xa44072db979083e9U, 0xe679cb1f67b3b7a4U, 0xd05a8278e5c0cc4eU,
    0x4608b82172ffcc7dU, 0x9035e08e2443f774U, 0x52283c4c263a81e6U, 0x65d088cb00c391bbU,
};
static __constant__ const std::uint64_t first_state[8] = {
    0x00000000C2B2AE3DU, 0x9E3779B185EBCA87U, 0xC2B2AE3D27D4EB4FU, 0x165667B19E3779F9U,
    0x85EBCA77C2B2AE63U, 0x0000000085EBCA77U, 0x27D4EB2F165667C5U, 0x000000009E3779B1U,
};

constexpr unsigned page_bytes = 4096;
constexpr unsigned lanes_per_page = 4;

__device__ inline std::uint64_t product(std::uint64_t keyed) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(keyed)) * (keyed >> 32U);
}

/// Two of the eight accumulators; four neighbouring threads have all of them.
struct accumulators {
  std::uint64_t first, second;

  __device__ void take(ulonglong2 data, std::uint64_t key_first, std::uint64_t key_second) {
    first += data.y + product(data.x ^ key_first);
    second += data.x + product(data.y ^ key_second);
  }
  __device__ void scramble(std::uint64_t key_first, std::uint64_t key_second) {
    constexpr std::uint64_t prime = 0x9E3779B1U;
    first = ((first ^ (first >> 47U)) ^ key_first) * prime;
    second = ((second ^ (second >> 47U)) ^ key_second) * prime;
  }
};

/// What a thread needs of the secret, in registers.
struct keys {
  std::uint64_t word[18];

  __device__ explicit keys(unsigned lane) {
#pragma unroll
    for (unsigned i = 0; i < 18; ++i) word[i] = secret[i + 2 * lane];
  }
};

/// XXH3-64 of one page, computed by four threads, all of which get it.
__device__ inline std::uint64_t page_value(const std::byte* page, unsigned lane, const keys& key) {
  constexpr unsigned stripe_bytes = 64;
  constexpr unsigned stripes_per_block = 16;
  constexpr unsigned blocks = page_bytes / (stripe_bytes * stripes_per_block);
  accumulators acc{first_state[2 * lane], first_state[2 * lane + 1]};
  const auto* data = reinterpret_cast<const ulonglong2*>(page) + lane;
  for (unsigned block = 0; block < blocks; ++block) {
    ulonglong2 held[stripes_per_block];
#pragma unroll
    for (unsigned s = 0; s < stripes_per_block; ++s) held[s] = __ldcs(data + s * (stripe_bytes / 16));
#pragma unroll
    for (unsigned s = 0; s < stripes_per_block - 1; ++s) acc.take(held[s], key.word[s], key.word[s + 1]);
    if (block + 1 < blocks) {
      acc.take(held[stripes_per_block - 1], key.word[stripes_per_block - 1], key.word[stripes_per_block]);
      acc.scramble(key.word[16], key.word[17]);
    } else {
      acc.take(held[stripes_per_block - 1], secret_of_last_stripe[2 * lane], secret_of_last_stripe[2 * lane + 1]);
    }
    data += stripes_per_block * (stripe_bytes / 16);
  }
  const std::uint64_t a = acc.first ^ secret_of_merge[2 * lane];
  const std::uint64_t b = acc.second ^ secret_of_merge[2 * lane + 1];
  std::uint64_t sum = (a * b) ^ __umul64hi(a, b);
  sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1, lanes_per_page);
  sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2, lanes_per_page);
  sum += page_bytes * 0x9E3779B185EBCA87U;
  sum ^= sum >> 37U;
  sum *= 0x165667919E3779F9U;
  return sum ^ (sum >> 32U);
}

/// Calls each(page index, value, whether this thread is the one to act) for every page. All threads of a warp come
/// along.
template <class Each>
__device__ inline void each_page(const std::byte* pages, std::uint64_t count, Each each) {
  const unsigned lane = threadIdx.x % lanes_per_page;
  const keys key(lane);
  const std::uint64_t step = static_cast<std::uint64_t>(gridDim.x) * (blockDim.x / lanes_per_page);
  const std::uint64_t mine =
      static_cast<std::uint64_t>(blockIdx.x) * (blockDim.x / lanes_per_page) + threadIdx.x / lanes_per_page;
  // The whole warp goes on while its first page exists; those past the end look at the last one again.
  for (std::uint64_t at = mine; at - (threadIdx.x % 32) / lanes_per_page < count; at += step) {
    const std::uint64_t page = at < count ? at : count - 1;
    const std::uint64_t value = page_value(pages + page * page_bytes, lane, key);
    each(page, value, at < count && lane == 0);
  }
}

}  // namespace xxh3

static __global__ void __launch_bounds__(cuda_kernels::digest_threads)
    page_values(const std::byte* pages, std::uint64_t count, std::uint64_t* values) {
  xxh3::each_page(pages, count, [&](std::uint64_t page, std::uint64_t value, bool acts) {
    if (acts) values[page] = value;
  });
}

static __global__ void __launch_bounds__(cuda_kernels::digest_threads)
    check_pages(const std::byte* pages, std::uint64_t count, const std::uint64_t* values, std::uint32_t* wrong) {
  xxh3::each_page(pages, count, [&](std::uint64_t page, std::uint64_t value, bool acts) {
    if (acts && values[page] != value) atomicAdd(wrong, 1U);
  });
}

}  // namespace kvx::cuda

namespace kvx {

/// The kernels as compiled into this file, for `cuda_transfer::options::kernels`.
[[nodiscard]] static inline cuda_kernels cuda_kernel_table() {
  return {reinterpret_cast<const void*>(&cuda::copy_pieces), reinterpret_cast<const void*>(&cuda::page_values),
          reinterpret_cast<const void*>(&cuda::check_pages)};
}

}  // namespace kvx
