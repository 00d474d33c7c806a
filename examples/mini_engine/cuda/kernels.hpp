// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "attention.hpp"

// What the model does beside products and attention. Everything is submitted to the stream given, works row by row and
// gives the same bits for a row whatever rows are beside it.
namespace mini_engine::cuda {

/// Where a row of a step belongs.
struct row_place {
  std::uint32_t token;
  std::uint32_t position;
  std::uint32_t slot;  // page * page_tokens + place in the page
};

/// to[r] = table[rows[r].token].
/// Shape   dim: a multiple of 8
void gather_embeddings(const __nv_bfloat16* table, const row_place* rows, std::size_t count, std::size_t dim,
                       __nv_bfloat16* to, cudaStream_t stream);

/// to[i] = from[rows[i]].
void gather_rows(const __nv_bfloat16* from, const std::uint32_t* rows, std::size_t count, std::size_t dim,
                 __nv_bfloat16* to, cudaStream_t stream);

/// Root mean square normalisation.
/// Shape   dim: a multiple of 8
void normalize(const __nv_bfloat16* x, const __nv_bfloat16* weight, std::size_t count, std::size_t dim,
               __nv_bfloat16* to, cudaStream_t stream);

/// Rotates queries in place, and keys on their way into the pages; values go there as they are.
/// Shape   angles: [context, head_dim / 2], cosine and sine
void rotate_and_store(__nv_bfloat16* qkv, const row_place* rows, std::size_t count, const attention_shape& shape,
                      const float2* angles, __nv_bfloat16* pages, cudaStream_t stream);

/// to = silu(gate) * up.
/// Shape   gate_up: [count, 2 * hidden], the gate first; hidden: a multiple of 8
void gate(const __nv_bfloat16* gate_up, std::size_t count, std::size_t hidden, __nv_bfloat16* to, cudaStream_t stream);

/// Uniform numbers of a seed, in [-scale, scale).
void fill_random(__nv_bfloat16* to, std::size_t count, std::uint64_t seed, float scale, cudaStream_t stream);
/// One number everywhere.
void fill(__nv_bfloat16* to, std::size_t count, float value, cudaStream_t stream);

/// The rotations of every position, in float32 as the CPU engine computes them.
void fill_angles(float2* to, std::size_t context, std::size_t pairs, const float* frequencies, cudaStream_t stream);

/// A digest of each page, layer by layer: of every byte and its place, for telling whether pages are equal.
/// Shape   pages: ids; to: [count, layers]; layer_elements: distance of layers
void digest_pages(const __nv_bfloat16* pool, const std::uint32_t* pages, std::size_t count, std::size_t layers,
                  std::size_t layer_elements, std::size_t page_elements, std::uint64_t* to, cudaStream_t stream);

}  // namespace mini_engine::cuda
