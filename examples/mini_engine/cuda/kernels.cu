// SPDX-License-Identifier: Apache-2.0
#include "kernels.hpp"

#include <algorithm>

namespace mini_engine::cuda {
namespace {

using bf16 = __nv_bfloat16;

constexpr unsigned threads = 256;

unsigned blocks_for(std::size_t items) { return static_cast<unsigned>((items + threads - 1) / threads); }

/// Eight numbers: what a thread reads or writes at once.
struct eight {
  float value[8];
};

__device__ __forceinline__ eight load_eight(const bf16* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
  eight all;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    all.value[2 * i] = pair.x;
    all.value[2 * i + 1] = pair.y;
  }
  return all;
}

__device__ __forceinline__ void store_eight(bf16* to, const eight& all) {
  uint4 raw;
  __nv_bfloat162* pairs = reinterpret_cast<__nv_bfloat162*>(&raw);
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = __floats2bfloat162_rn(all.value[2 * i], all.value[2 * i + 1]);
  *reinterpret_cast<uint4*>(to) = raw;
}

__device__ __forceinline__ void copy_row(const bf16* from, bf16* to, std::size_t dim) {
  for (std::size_t i = threadIdx.x; i < dim / 8; i += blockDim.x) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
}

__global__ void gather_embeddings_kernel(const bf16* table, const row_place* rows, std::size_t dim, bf16* to) {
  copy_row(table + rows[blockIdx.x].token * dim, to + blockIdx.x * dim, dim);
}

__global__ void gather_rows_kernel(const bf16* from, const std::uint32_t* rows, std::size_t dim, bf16* to) {
  copy_row(from + rows[blockIdx.x] * dim, to + blockIdx.x * dim, dim);
}

__global__ void __launch_bounds__(threads) normalize_kernel(const bf16* x, const bf16* weight, unsigned dim, bf16* to) {
  __shared__ float shared[threads / 32];
  const bf16* row = x + std::size_t{blockIdx.x} * dim;
  float squares = 0;
  for (unsigned i = threadIdx.x * 8; i < dim; i += threads * 8) {
    const eight v = load_eight(row + i);
#pragma unroll
    for (const float each : v.value) squares = fmaf(each, each, squares);
  }
  for (int i = 16; i > 0; i /= 2) squares += __shfl_xor_sync(~0u, squares, i);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = squares;
  __syncthreads();
  squares = 0;
#pragma unroll
  for (const float each : shared) squares += each;
  const float scale = rsqrtf(squares / static_cast<float>(dim) + 1e-5f);
  for (unsigned i = threadIdx.x * 8; i < dim; i += threads * 8) {
    eight v = load_eight(row + i);
    const eight w = load_eight(weight + i);
#pragma unroll
    for (int n = 0; n < 8; ++n) v.value[n] *= scale * w.value[n];
    store_eight(to + std::size_t{blockIdx.x} * dim + i, v);
  }
}

__global__ void rotate_and_store_kernel(bf16* qkv, const row_place* rows, unsigned heads, unsigned kv_heads,
                                        unsigned head_dim, unsigned page_tokens, const float2* angles, bf16* pages) {
  const row_place place = rows[blockIdx.x];
  const unsigned pairs = head_dim / 2, query_pairs = heads * pairs, kv_pairs = kv_heads * pairs;
  __nv_bfloat162* row = reinterpret_cast<__nv_bfloat162*>(qkv) + blockIdx.x * std::size_t{query_pairs + 2 * kv_pairs};
  const std::size_t page = place.slot / page_tokens, token = place.slot % page_tokens;
  __nv_bfloat162* keys = reinterpret_cast<__nv_bfloat162*>(pages) + (page * 2 * page_tokens + token) * kv_pairs;
  __nv_bfloat162* values = keys + std::size_t{page_tokens} * kv_pairs;
  const float2* turn = angles + place.position * std::size_t{pairs};
  for (unsigned i = threadIdx.x; i < query_pairs + 2 * kv_pairs; i += blockDim.x) {
    __nv_bfloat162 pair = row[i];
    if (i < query_pairs + kv_pairs) {
      const float2 v = __bfloat1622float2(pair), angle = turn[i % pairs];
      pair = __floats2bfloat162_rn(v.x * angle.x - v.y * angle.y, v.x * angle.y + v.y * angle.x);
    }
    if (i < query_pairs)
      row[i] = pair;
    else if (i < query_pairs + kv_pairs)
      keys[i - query_pairs] = pair;
    else
      values[i - query_pairs - kv_pairs] = pair;
  }
}

__global__ void gate_kernel(const bf16* gate_up, std::size_t count, unsigned hidden, bf16* to) {
  const std::size_t at = (std::size_t{blockIdx.x} * threads + threadIdx.x) * 8;
  if (at >= count * hidden) return;
  const bf16* from = gate_up + at / hidden * 2 * hidden + at % hidden;
  eight g = load_eight(from);
  const eight up = load_eight(from + hidden);
#pragma unroll
  for (int n = 0; n < 8; ++n) g.value[n] = g.value[n] / (1.0f + __expf(-g.value[n])) * up.value[n];
  store_eight(to + at, g);
}

__host__ __device__ inline std::uint64_t mix(std::uint64_t x) {  // SplitMix64
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

__global__ void fill_random_kernel(bf16* to, std::size_t count, std::uint64_t stream, float scale) {
  for (std::size_t i = std::size_t{blockIdx.x} * threads + threadIdx.x; i < count;
       i += std::size_t{gridDim.x} * threads) {
    const float uniform = static_cast<float>(mix(stream + i) >> 40) * 0x1p-23f - 1.0f;
    to[i] = __float2bfloat16(scale * uniform);
  }
}

__global__ void fill_kernel(bf16* to, std::size_t count, float value) {
  const std::size_t i = std::size_t{blockIdx.x} * threads + threadIdx.x;
  if (i < count) to[i] = __float2bfloat16(value);
}

__global__ void fill_angles_kernel(float2* to, std::size_t count, unsigned pairs, const float* frequencies) {
  const std::size_t i = std::size_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= count) return;
  const float angle = static_cast<float>(i / pairs) * frequencies[i % pairs];
  to[i] = {cosf(angle), sinf(angle)};
}

__global__ void __launch_bounds__(threads)
    digest_pages_kernel(const bf16* pool, const std::uint32_t* pages, std::size_t layer_elements,
                        std::size_t page_elements, std::uint64_t* to) {
  __shared__ unsigned long long total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  const std::uint64_t* words =
      reinterpret_cast<const std::uint64_t*>(pool + blockIdx.y * layer_elements + pages[blockIdx.x] * page_elements);
  std::uint64_t sum = 0;  // of integers, so that the order does not matter
  for (std::size_t i = threadIdx.x; i < page_elements / 4; i += threads) sum += mix(words[i] ^ mix(i));
  atomicAdd(&total, static_cast<unsigned long long>(sum));
  __syncthreads();
  if (threadIdx.x == 0) to[std::size_t{blockIdx.x} * gridDim.y + blockIdx.y] = total;
}

void launched(const char* what) { check(cudaGetLastError(), what); }

}  // namespace

void gather_embeddings(const bf16* table, const row_place* rows, std::size_t count, std::size_t dim, bf16* to,
                       cudaStream_t stream) {
  gather_embeddings_kernel<<<static_cast<unsigned>(count), threads, 0, stream>>>(table, rows, dim, to);
  launched("embeddings cannot be gathered");
}

void gather_rows(const bf16* from, const std::uint32_t* rows, std::size_t count, std::size_t dim, bf16* to,
                 cudaStream_t stream) {
  gather_rows_kernel<<<static_cast<unsigned>(count), threads, 0, stream>>>(from, rows, dim, to);
  launched("rows cannot be gathered");
}

void normalize(const bf16* x, const bf16* weight, std::size_t count, std::size_t dim, bf16* to, cudaStream_t stream) {
  normalize_kernel<<<static_cast<unsigned>(count), threads, 0, stream>>>(x, weight, static_cast<unsigned>(dim), to);
  launched("the normalisation cannot be launched");
}

void rotate_and_store(bf16* qkv, const row_place* rows, std::size_t count, const attention_shape& shape,
                      const float2* angles, bf16* pages, cudaStream_t stream) {
  rotate_and_store_kernel<<<static_cast<unsigned>(count), threads, 0, stream>>>(
      qkv, rows, shape.heads, shape.kv_heads, shape.head_dim, shape.page_tokens, angles, pages);
  launched("the rotation cannot be launched");
}

void gate(const bf16* gate_up, std::size_t count, std::size_t hidden, bf16* to, cudaStream_t stream) {
  gate_kernel<<<blocks_for(count * hidden / 8), threads, 0, stream>>>(gate_up, count, static_cast<unsigned>(hidden),
                                                                      to);
  launched("the gate cannot be launched");
}

void fill_random(bf16* to, std::size_t count, std::uint64_t seed, float scale, cudaStream_t stream) {
  fill_random_kernel<<<std::min(4096u, blocks_for(count)), threads, 0, stream>>>(to, count, mix(seed), scale);
  launched("weights cannot be made up");
}

void fill(bf16* to, std::size_t count, float value, cudaStream_t stream) {
  fill_kernel<<<blocks_for(count), threads, 0, stream>>>(to, count, value);
  launched("weights cannot be set");
}

void fill_angles(float2* to, std::size_t context, std::size_t pairs, const float* frequencies, cudaStream_t stream) {
  fill_angles_kernel<<<blocks_for(context * pairs), threads, 0, stream>>>(to, context * pairs,
                                                                          static_cast<unsigned>(pairs), frequencies);
  launched("rotations cannot be computed");
}

void digest_pages(const bf16* pool, const std::uint32_t* pages, std::size_t count, std::size_t layers,
                  std::size_t layer_elements, std::size_t page_elements, std::uint64_t* to, cudaStream_t stream) {
  if (count == 0) return;
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(layers));
  digest_pages_kernel<<<grid, threads, 0, stream>>>(pool, pages, layer_elements, page_elements, to);
  launched("pages cannot be digested");
}

}  // namespace mini_engine::cuda
