// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "buffer.hpp"

namespace mini_engine::cuda {

/// The shape of one layer's attention and where its numbers lie.
/// Shape   a row of qkv: [heads + 2 * kv_heads, head_dim]; a page: [2, page_tokens, kv_heads, head_dim], keys first
struct attention_shape {
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t page_tokens = 0;

  std::uint32_t group() const { return heads / kv_heads; }
  std::size_t qkv_width() const { return std::size_t{heads + 2 * kv_heads} * head_dim; }
  std::size_t out_width() const { return std::size_t{heads} * head_dim; }
  std::size_t page_elements() const { return std::size_t{2} * page_tokens * kv_heads * head_dim; }
};

/// Consecutive tokens of one sequence, and the keys they are compared with.
struct attention_tile {
  std::uint32_t row;  // of the first token, in the step's activations
  std::uint32_t tokens;
  std::uint32_t position;  // of the first token
  std::uint32_t first_key, end_key;
  std::uint32_t table;  // where the sequence's page table starts, in the step's tables
  std::int32_t part;    // -1: the tile has all its keys and writes the result; else where its share of it goes
};

/// The shares of one tile's result.
struct attention_merge {
  std::uint32_t row, tokens, first_part, parts;
};

/// How a step's attention is cut into blocks of threads, the longest first. A function of the step alone, so that the
/// same step gives the same bits.
class attention_plan {
 public:
  /// Shape   multiprocessors: of the device; most_parts: that the workspace holds
  attention_plan(const attention_shape& shape, std::uint32_t multiprocessors, std::uint32_t most_parts);

  void clear();
  /// Shape   row: of the sequence's first token in the step; position: of that token; table: see attention_tile
  void add(std::uint32_t row, std::uint32_t tokens, std::uint32_t position, std::uint32_t table);
  /// Call after the last add().
  void finish();

  std::span<const attention_tile> tiles() const { return tiles_; }
  std::span<const attention_merge> merges() const { return merges_; }
  /// Tiles that tokens of so many steps' sequences can come to: for whoever provides the memory.
  std::size_t most_tiles(std::size_t rows, std::size_t sequences) const;

 private:
  std::uint32_t tile_tokens_, kv_heads_, multiprocessors_, most_parts_;
  bool splits_;
  std::vector<attention_tile> whole_, tiles_;
  std::vector<attention_merge> merges_;
};

/// Causal attention of a step's queries to the keys and values in the pages, in bfloat16 with sums in float32.
///
/// Heads of 128 channels in pages of a power of two tokens run on the tensor cores in the manner of FlashAttention, the
/// query heads that share a key head in one tile; other shapes run a plain kernel that is made to be right, not fast.
/// Stream  everything is submitted to the stream given
class attention {
 public:
  explicit attention(const attention_shape& shape, std::uint32_t most_parts);

  /// Shape   tiles, merges: in device memory, as many as the plan has
  void run(const __nv_bfloat16* qkv, const __nv_bfloat16* pages, const std::uint32_t* tables,
           const attention_tile* tiles, std::size_t tile_count, const attention_merge* merges, std::size_t merge_count,
           __nv_bfloat16* out, cudaStream_t stream);

  bool on_tensor_cores() const { return tensor_; }
  const attention_shape& shape() const { return shape_; }

 private:
  attention_shape shape_;
  bool tensor_;
  device_buffer<float> parts_;       // [most_parts, kv_heads, tile rows, 128]
  device_buffer<float2> part_rows_;  // [most_parts, kv_heads, tile rows]: maximum and sum
};

/// Whether this shape runs on the tensor cores.
bool fits_tensor_cores(const attention_shape& shape);

}  // namespace mini_engine::cuda
