// SPDX-License-Identifier: Apache-2.0
#include "attention.hpp"

#include <algorithm>
#include <cmath>

namespace mini_engine::cuda {
namespace {

using bf16 = __nv_bfloat16;

// The tensor-core kernel: a block of two warpgroups takes `tile_rows` rows, each a query of one token and head, through
// tiles of `key_tile` keys. In shared memory a tile of queries, keys or values is two halves of 64 channels, each a row
// of 128 bytes per query or key whose 16-byte chunks are exchanged by (row mod 8): what wgmma calls 128-byte swizzle,
// and free of bank conflicts for ldmatrix.
constexpr unsigned head_dim = 128;
constexpr unsigned tile_rows = 128, key_tile = 128, threads = 256;
constexpr unsigned half_bytes = 128 * 128, tile_bytes = 2 * half_bytes;
constexpr std::size_t shared_bytes =
    5 * tile_bytes + 1024;  // queries, two tiles of keys, two of values; aligned to 1024

struct arguments {
  const bf16* qkv;
  const bf16* pages;
  const std::uint32_t* tables;
  const attention_tile* tiles;
  bf16* out;
  float* parts;
  float2* part_rows;
  std::uint32_t heads, kv_heads, group, page_tokens, page_shift, dim;
  float scale_log2;  // of scores, for exp2
};

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// Copies 16 bytes, or writes zeros.
__device__ __forceinline__ void copy_chunk(std::uint32_t to, const void* from, bool valid) {
  const unsigned bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ std::uint32_t chunk_offset(unsigned row, unsigned chunk) {
  return (chunk >> 3) * half_bytes + row * 128 + (((chunk & 7) ^ (row & 7)) << 4);
}

__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(both);
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The two products of a warpgroup's 64 rows. Both back ends leave the results where a thread's rows are lane / 4 and
// that + 8 of its warp's 16, and register 4 * n + {0, 1} and {2, 3} are columns 8 * n + 2 * (lane % 4) + {0, 1} of
// those rows.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void fence_operands(float (&r)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
/// What was written by ordinary means is seen by the tensor cores after this and a barrier.
__device__ __forceinline__ void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Describes a matrix in shared memory with 128-byte swizzle: groups of eight rows follow each other, halves of 64
/// channels are half_bytes apart.
__device__ __forceinline__ std::uint64_t descriptor(std::uint32_t address) {
  constexpr std::uint64_t swizzle_128 = std::uint64_t{1} << 62, group_stride = std::uint64_t{1024 >> 4} << 32,
                          half_stride = std::uint64_t{half_bytes >> 4} << 16;
  return swizzle_128 | group_stride | half_stride | ((address & 0x3FFFF) >> 4);
}

#define ACCUMULATORS                                                                                                \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, "                                                                                                      \
  "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
  "%48, %49, "                                                                                                      \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define OPERANDS(d)                                                                                           \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
      "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),  \
      "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), \
      "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), \
      "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), \
      "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), \
      "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), \
      "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

/// scores = queries * transpose(keys), 64 x 128.
__device__ __forceinline__ void multiply_keys(float (&scores)[64], std::uint32_t queries, std::uint32_t keys) {
#pragma unroll
  for (unsigned k = 0; k < head_dim / 16; ++k) {
    const std::uint32_t at = (k / 4) * half_bytes + (k % 4) * 32;
    const int accumulate = k != 0;
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACCUMULATORS ", %64, %65, p, 1, 1, 0, 0;\n}\n"
        : OPERANDS(scores)
        : "l"(descriptor(queries + at)), "l"(descriptor(keys + at)), "r"(accumulate));
  }
}

/// sums += weights * values, 64 x 128.
__device__ __forceinline__ void multiply_values(float (&sums)[64], const std::uint32_t (&weights)[32],
                                                std::uint32_t values) {
#pragma unroll
  for (unsigned k = 0; k < key_tile / 16; ++k) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACCUMULATORS
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
                 : OPERANDS(sums)
                 : "r"(weights[4 * k]), "r"(weights[4 * k + 1]), "r"(weights[4 * k + 2]), "r"(weights[4 * k + 3]),
                   "l"(descriptor(values + k * 16 * 128)));
  }
}

#undef ACCUMULATORS
#undef OPERANDS

#else  // any GPU from Ampere on

__device__ __forceinline__ void fence_operands(float (&)[64]) {}
__device__ __forceinline__ void begin_products() {}
__device__ __forceinline__ void commit_products() {}
template <int>
__device__ __forceinline__ void wait_products() {}
__device__ __forceinline__ void publish_copies() {}

__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void multiply_16x8x16(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_keys(float (&scores)[64], std::uint32_t queries, std::uint32_t keys) {
  const unsigned lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane % 16;
  const unsigned key = lane % 8 + lane / 16 * 8, key_chunk = lane / 8 % 2;
#pragma unroll
  for (int i = 0; i < 64; ++i) scores[i] = 0;
#pragma unroll
  for (unsigned k = 0; k < head_dim / 16; ++k) {
    std::uint32_t a[4];
    load_matrices(a, queries + chunk_offset(row, 2 * k + lane / 16));
#pragma unroll
    for (unsigned n = 0; n < key_tile / 16; ++n) {
      std::uint32_t b[4];
      load_matrices(b, keys + chunk_offset(16 * n + key, 2 * k + key_chunk));
      multiply_16x8x16(scores + 8 * n, a, b[0], b[1]);
      multiply_16x8x16(scores + 8 * n + 4, a, b[2], b[3]);
    }
  }
}

__device__ __forceinline__ void multiply_values(float (&sums)[64], const std::uint32_t (&weights)[32],
                                                std::uint32_t values) {
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (unsigned k = 0; k < key_tile / 16; ++k) {
#pragma unroll
    for (unsigned n = 0; n < head_dim / 16; ++n) {
      std::uint32_t b[4];
      load_matrices_transposed(b, values + chunk_offset(16 * k + lane % 16, 2 * n + lane / 16));
      multiply_16x8x16(sums + 8 * n, weights + 4 * k, b[0], b[1]);
      multiply_16x8x16(sums + 8 * n + 4, weights + 4 * k, b[2], b[3]);
    }
  }
}

#endif

/// The running maximum and sum of a thread's two rows. The sums are the thread's own columns' until the end.
struct row_state {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};
};

/// Scores become weights; returns by how much earlier sums shrink.
__device__ __forceinline__ void softmax_step(float (&scores)[64], row_state& rows, float (&shrink)[2],
                                             float scale_log2) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float highest = rows.maximum[r];
#pragma unroll
    for (int n = 0; n < 16; ++n) highest = fmaxf(highest, fmaxf(scores[4 * n + 2 * r], scores[4 * n + 2 * r + 1]));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
    // A row may have no key here yet: then the reference is anything finite.
    const float reference = highest == -INFINITY ? 0.0f : highest * scale_log2;
    shrink[r] = exp2_fast(rows.maximum[r] * scale_log2 - reference);
    rows.maximum[r] = highest;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& s = scores[4 * n + 2 * r + c];
        s = exp2_fast(fmaf(s, scale_log2, -reference));
        sum += s;
      }
    }
    rows.sum[r] = rows.sum[r] * shrink[r] + sum;
  }
}

__device__ __forceinline__ void mask_keys(float (&scores)[64], unsigned first_key, const unsigned (&key_count)[2]) {
  const unsigned column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < 16; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first_key + 8 * n + column + i % 2 >= key_count[i / 2]) scores[4 * n + i] = -INFINITY;
    }
  }
}

__device__ __forceinline__ void pack_weights(std::uint32_t (&weights)[32], const float (&scores)[64]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
}

__global__ void __launch_bounds__(threads, 1) attend_128(const arguments p) {
  extern __shared__ std::uint8_t raw[];
  const std::uint32_t queries = (shared_address(raw) + 1023) / 1024 * 1024;
  const std::uint32_t keys = queries + tile_bytes, values = keys + 2 * tile_bytes;
  const attention_tile tile = p.tiles[blockIdx.x / p.kv_heads];
  const unsigned kv_head = blockIdx.x % p.kv_heads;
  const unsigned thread = threadIdx.x, chunk = thread % 16;
  const std::size_t qkv_width = std::size_t{p.heads + 2 * p.kv_heads} * head_dim;

#pragma unroll
  for (unsigned i = 0; i < tile_rows / 16; ++i) {
    const unsigned row = thread / 16 + 16 * i, token = row / p.group;
    const bool valid = token < tile.tokens;
    const bf16* from = p.qkv + (tile.row + (valid ? token : 0)) * qkv_width +
                       (kv_head * p.group + row % p.group) * head_dim + chunk * 8;
    copy_chunk(queries + chunk_offset(row, chunk), from, valid);
  }
  const std::uint32_t* table = p.tables + tile.table;
  const std::size_t token_stride = std::size_t{p.kv_heads} * head_dim, page_stride = 2 * p.page_tokens * token_stride;
  const bf16* from_head = p.pages + kv_head * head_dim + chunk * 8;
  const auto load_tile = [&](std::uint32_t to, unsigned first, std::size_t offset) {
#pragma unroll
    for (unsigned i = 0; i < key_tile / 16; ++i) {
      const unsigned row = thread / 16 + 16 * i, key = first + row;
      const bool valid = key < tile.end_key;
      const std::size_t page = valid ? table[key >> p.page_shift] : 0;
      const bf16* from = from_head + page * page_stride + offset + (key & (p.page_tokens - 1)) * token_stride;
      copy_chunk(to + chunk_offset(row, chunk), from, valid);
    }
  };
  const auto load_keys = [&](unsigned t) { load_tile(keys + t % 2 * tile_bytes, tile.first_key + t * key_tile, 0); };
  const auto load_values = [&](unsigned t) {
    load_tile(values + t % 2 * tile_bytes, tile.first_key + t * key_tile, p.page_tokens * token_stride);
  };
  const unsigned steps = (tile.end_key - tile.first_key + key_tile - 1) / key_tile;
  load_keys(0);
  commit_copies();
  wait_copies();
  publish_copies();
  __syncthreads();
  if (steps > 1) load_keys(1);
  load_values(0);
  commit_copies();

  const unsigned lane = thread % 32, first_row = thread / 32 * 16 + lane / 4;
  const std::uint32_t my_queries = queries + thread / 128 * 64 * 128;
  unsigned key_count[2];  // of each row: no key from this one on
#pragma unroll
  for (int r = 0; r < 2; ++r) key_count[r] = min(tile.end_key, tile.position + (first_row + 8 * r) / p.group + 1);

  float scores[64], sums[64];
  std::uint32_t weights[32];
  row_state rows;
  float shrink[2];
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i] = 0;
  // Every row of the tile sees the keys before this one.
  const unsigned seen_by_all = min(tile.end_key, tile.position + 1);
  const auto mask = [&](unsigned t) {
    const unsigned first = tile.first_key + t * key_tile;
    if (first + key_tile > seen_by_all) mask_keys(scores, first, key_count);
  };

  fence_operands(scores);
  begin_products();
  multiply_keys(scores, my_queries, keys);
  commit_products();
  wait_products<0>();
  fence_operands(scores);
  mask(0);
  softmax_step(scores, rows, shrink, p.scale_log2);
  pack_weights(weights, scores);

  // While the values of one tile are added up, the next tile's scores become weights.
  for (unsigned t = 0; t + 1 < steps; ++t) {
    wait_copies();
    publish_copies();
    __syncthreads();
    if (t + 2 < steps) load_keys(t + 2);
    load_values(t + 1);
    commit_copies();
    fence_operands(scores);
    fence_operands(sums);
    begin_products();
    multiply_keys(scores, my_queries, keys + (t + 1) % 2 * tile_bytes);
    commit_products();
    multiply_values(sums, weights, values + t % 2 * tile_bytes);
    commit_products();
    wait_products<1>();
    fence_operands(scores);
    mask(t + 1);
    softmax_step(scores, rows, shrink, p.scale_log2);
    wait_products<0>();
    fence_operands(sums);
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[i] *= shrink[i / 2 % 2];
    pack_weights(weights, scores);
  }
  wait_copies();
  publish_copies();
  __syncthreads();
  fence_operands(sums);
  begin_products();
  multiply_values(sums, weights, values + (steps - 1) % 2 * tile_bytes);
  commit_products();
  wait_products<0>();
  fence_operands(sums);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const unsigned row = first_row + 8 * r, token = row / p.group;
    if (token >= tile.tokens) continue;
    if (tile.part < 0) {
      bf16* to =
          p.out + (tile.row + token) * std::size_t{p.heads} * head_dim + (kv_head * p.group + row % p.group) * head_dim;
      const float normalization = 1.0f / sum;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        *reinterpret_cast<std::uint32_t*>(to + 8 * n + lane % 4 * 2) =
            pack(sums[4 * n + 2 * r] * normalization, sums[4 * n + 2 * r + 1] * normalization);
      }
    } else {
      const std::size_t at = (static_cast<std::size_t>(tile.part) * p.kv_heads + kv_head) * tile_rows + row;
      float* to = p.parts + at * head_dim;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        *reinterpret_cast<float2*>(to + 8 * n + lane % 4 * 2) = {sums[4 * n + 2 * r], sums[4 * n + 2 * r + 1]};
      }
      if (lane % 4 == 0) p.part_rows[at] = {rows.maximum[r], sum};
    }
  }
}

/// One warp per row of a tile: the shares of its result become one, in their order.
__global__ void merge_parts(const arguments p, const attention_merge* merges) {
  const attention_merge merge = merges[blockIdx.x / p.kv_heads];
  const unsigned kv_head = blockIdx.x % p.kv_heads, lane = threadIdx.x % 32;
  for (unsigned row = threadIdx.x / 32; row < merge.tokens * p.group; row += blockDim.x / 32) {
    const auto at = [&](unsigned part) {
      return (std::size_t{merge.first_part + part} * p.kv_heads + kv_head) * tile_rows + row;
    };
    float highest = -INFINITY;
    for (unsigned i = 0; i < merge.parts; ++i) highest = fmaxf(highest, p.part_rows[at(i)].x);
    float4 total = {0, 0, 0, 0};
    float weight = 0;
    for (unsigned i = 0; i < merge.parts; ++i) {
      const float2 state = p.part_rows[at(i)];
      const float share = exp2f((state.x - highest) * p.scale_log2);
      const float4 sums = reinterpret_cast<const float4*>(p.parts + at(i) * head_dim)[lane];
      total.x = fmaf(sums.x, share, total.x);
      total.y = fmaf(sums.y, share, total.y);
      total.z = fmaf(sums.z, share, total.z);
      total.w = fmaf(sums.w, share, total.w);
      weight = fmaf(state.y, share, weight);
    }
    const float normalization = 1.0f / weight;
    bf16* to = p.out + (merge.row + row / p.group) * std::size_t{p.heads} * head_dim +
               (kv_head * p.group + row % p.group) * head_dim;
    reinterpret_cast<uint2*>(to)[lane] = {pack(total.x * normalization, total.y * normalization),
                                          pack(total.z * normalization, total.w * normalization)};
  }
}

constexpr unsigned most_channels = 256;

/// Any shape: a warp takes one query through 32 keys at a time.
__global__ void __launch_bounds__(threads) attend_any(const arguments p) {
  __shared__ float shared_query[threads / 32][most_channels];
  const attention_tile tile = p.tiles[blockIdx.x / p.kv_heads];
  const unsigned kv_head = blockIdx.x % p.kv_heads, lane = threadIdx.x % 32;
  float* const query = shared_query[threadIdx.x / 32];
  const std::size_t token_stride = std::size_t{p.kv_heads} * p.dim,
                    qkv_width = std::size_t{p.heads + 2 * p.kv_heads} * p.dim;
  const auto key_at = [&](unsigned key) {
    return p.pages + p.tables[tile.table + key / p.page_tokens] * (2 * p.page_tokens * token_stride) +
           key % p.page_tokens * token_stride + kv_head * p.dim;
  };
  for (unsigned row = threadIdx.x / 32; row < tile.tokens * p.group; row += threads / 32) {
    const unsigned token = row / p.group, head = kv_head * p.group + row % p.group, end = tile.position + token + 1;
    for (unsigned i = lane; i < p.dim; i += 32)
      query[i] = __bfloat162float(p.qkv[(tile.row + token) * qkv_width + head * p.dim + i]);
    __syncwarp();
    float highest = -INFINITY, sum = 0, sums[most_channels / 32] = {};
    for (unsigned first = 0; first < end; first += 32) {
      float score = -INFINITY;
      if (first + lane < end) {
        const bf16* key = key_at(first + lane);
        float dot = 0;
        for (unsigned i = 0; i < p.dim; ++i) dot = fmaf(query[i], __bfloat162float(key[i]), dot);
        score = dot * p.scale_log2;
      }
      float maximum = fmaxf(highest, score);
      for (int i = 16; i > 0; i /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, i));
      const float shrink = exp2f(highest - maximum), weight = exp2f(score - maximum);
      highest = maximum;
      sum *= shrink;
      for (float& s : sums) s *= shrink;
      for (unsigned k = 0; k < min(32u, end - first); ++k) {
        const float w = __shfl_sync(~0u, weight, k);
        sum += w;
        const bf16* value = key_at(first + k) + p.page_tokens * token_stride;
#pragma unroll
        for (unsigned i = 0; i < most_channels / 32; ++i) {
          if (lane + 32 * i < p.dim) sums[i] = fmaf(w, __bfloat162float(value[lane + 32 * i]), sums[i]);
        }
      }
    }
    bf16* to = p.out + ((tile.row + token) * std::size_t{p.heads} + head) * p.dim;
#pragma unroll
    for (unsigned i = 0; i < most_channels / 32; ++i) {
      if (lane + 32 * i < p.dim) to[lane + 32 * i] = __float2bfloat16(sums[i] / sum);
    }
    __syncwarp();
  }
}

}  // namespace

bool fits_tensor_cores(const attention_shape& shape) {
  return shape.head_dim == head_dim && (shape.page_tokens & (shape.page_tokens - 1)) == 0 && shape.group() <= tile_rows;
}

attention_plan::attention_plan(const attention_shape& shape, std::uint32_t multiprocessors, std::uint32_t most_parts)
    : tile_tokens_(std::max(1u, tile_rows / shape.group())),
      kv_heads_(shape.kv_heads),
      multiprocessors_(multiprocessors),
      most_parts_(most_parts),
      splits_(fits_tensor_cores(shape)) {}

void attention_plan::clear() {
  whole_.clear();
  tiles_.clear();
  merges_.clear();
}

std::size_t attention_plan::most_tiles(std::size_t rows, std::size_t sequences) const {
  return rows / tile_tokens_ + sequences + most_parts_;
}

void attention_plan::add(std::uint32_t row, std::uint32_t tokens, std::uint32_t position, std::uint32_t table) {
  for (std::uint32_t t = 0; t < tokens; t += tile_tokens_) {
    const std::uint32_t n = std::min(tile_tokens_, tokens - t);
    whole_.push_back({row + t, n, position + t, 0, position + t + n, table, -1});
  }
}

void attention_plan::finish() {
  // A step of few queries over many keys would leave most of the GPU idle: its keys are shared out.
  constexpr std::uint32_t least_keys = 4 * key_tile;
  std::uint64_t keys = 0;
  for (const attention_tile& tile : whole_) keys += tile.end_key;
  const std::uint64_t wanted = multiprocessors_ / kv_heads_;  // tiles, to give every multiprocessor a block
  std::uint32_t next_part = 0;
  for (const attention_tile& tile : whole_) {
    std::uint64_t parts = 1;
    if (splits_ && whole_.size() < wanted) {
      parts = std::clamp<std::uint64_t>(wanted * tile.end_key / std::max<std::uint64_t>(1, keys), 1,
                                        (tile.end_key + least_keys - 1) / least_keys);
    }
    if (next_part + parts > most_parts_) parts = 1;
    if (parts == 1) {
      tiles_.push_back(tile);
      continue;
    }
    const auto share =
        static_cast<std::uint32_t>((tile.end_key + parts * key_tile - 1) / (parts * key_tile)) * key_tile;
    merges_.push_back({tile.row, tile.tokens, next_part, 0});
    for (std::uint32_t first = 0; first < tile.end_key; first += share) {
      attention_tile piece = tile;
      piece.first_key = first;
      piece.end_key = std::min(tile.end_key, first + share);
      piece.part = static_cast<std::int32_t>(next_part++);
      tiles_.push_back(piece);
      ++merges_.back().parts;
    }
  }
  std::stable_sort(tiles_.begin(), tiles_.end(),
                   [](const auto& a, const auto& b) { return a.end_key - a.first_key > b.end_key - b.first_key; });
}

attention::attention(const attention_shape& shape, std::uint32_t most_parts)
    : shape_(shape), tensor_(fits_tensor_cores(shape)) {
  if (shape.head_dim > most_channels)
    throw std::runtime_error("attention heads of more than 256 channels are not supported on the GPU");
  if (!tensor_) return;
  parts_ = device_buffer<float>(std::size_t{most_parts} * shape.kv_heads * tile_rows * head_dim);
  part_rows_ = device_buffer<float2>(std::size_t{most_parts} * shape.kv_heads * tile_rows);
  check(cudaFuncSetAttribute(attend_128, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "the attention kernel needs more shared memory than this GPU has");
}

void attention::run(const __nv_bfloat16* qkv, const __nv_bfloat16* pages, const std::uint32_t* tables,
                    const attention_tile* tiles, std::size_t tile_count, const attention_merge* merges,
                    std::size_t merge_count, __nv_bfloat16* out, cudaStream_t stream) {
  std::uint32_t shift = 0;
  while ((std::uint32_t{2} << shift) <= shape_.page_tokens) ++shift;
  const float scale_log2 = 1.4426950408889634f / std::sqrt(static_cast<float>(shape_.head_dim));
  const arguments with{qkv,
                       pages,
                       tables,
                       tiles,
                       out,
                       parts_.data(),
                       part_rows_.data(),
                       shape_.heads,
                       shape_.kv_heads,
                       shape_.group(),
                       shape_.page_tokens,
                       shift,
                       shape_.head_dim,
                       scale_log2};
  const auto blocks = static_cast<unsigned>(tile_count * shape_.kv_heads);
  if (blocks == 0) return;
  if (tensor_)
    attend_128<<<blocks, threads, shared_bytes, stream>>>(with);
  else
    attend_any<<<blocks, threads, 0, stream>>>(with);
  if (merge_count > 0)
    merge_parts<<<static_cast<unsigned>(merge_count * shape_.kv_heads), threads, 0, stream>>>(with, merges);
  check(cudaGetLastError(), "attention cannot be launched");
}

}  // namespace mini_engine::cuda
