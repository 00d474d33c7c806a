// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/layout/kv_shape.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvx {

// The common ways to keep keys and values in pages, each a description with named fields that turns into a
// `layer_group`. Spans are read when it does, and may die then. A page_stride of 0 means that pages follow each
// other without a gap.

/// Keys and values in tensors of their own, one pair per layer: [pages][page], order as in `shape`.
/// Shape   keys, values: shape.layers first bytes each
/// Units   tensor_bytes: of each tensor; page_stride: bytes
struct separate_kv {
  kv_shape shape{};
  std::size_t page_count = 0;
  std::span<std::byte* const> keys{};
  std::span<std::byte* const> values{};
  std::size_t tensor_bytes = 0;
  std::size_t page_stride = 0;
};

/// Like `separate_kv` with pages of one token: any free token of the pool can follow any other.
/// Shape   shape.page_tokens: left 0, or 1; token_count: pages of the pool
struct token_pool_kv {
  kv_shape shape{};
  std::size_t token_count = 0;
  std::span<std::byte* const> keys{};
  std::span<std::byte* const> values{};
  std::size_t tensor_bytes = 0;
  std::size_t token_stride = 0;
};

/// Where keys and values alternate in a tensor that holds both.
enum class kv_interleaving : std::uint8_t {
  tensor_halves,  ///< [2][pages][page]
  page_halves,    ///< [pages][2][page]
  per_token,      ///< [pages][N][2][H][D], token order nhd only
  per_head,       ///< [pages][N][H][2][D], or [pages][H][N][2][D]
};

/// Keys and values in one tensor per layer.
///
/// Halves become keys then values in the slot, like `separate_kv`, and have the same fingerprint; the finer
/// interleavings stay as they are, for the sake of large fragments, and have fingerprints of their own.
/// Shape   tensors: shape.layers first bytes
/// Units   tensor_bytes: of each tensor; page_stride: bytes from page to page
struct fused_kv {
  kv_shape shape{};
  kv_interleaving interleaving = kv_interleaving::page_halves;
  std::size_t page_count = 0;
  std::span<std::byte* const> tensors{};
  std::size_t tensor_bytes = 0;
  std::size_t page_stride = 0;
};

/// All layers in one allocation, at constant distances: covers [pages][layers][2][page],
/// [layers][2][pages][page], [layers][pages][2][page] and whatever else strides can say.
/// Units   all bytes; value_offset: from a page's keys to its values
struct cross_layer_kv {
  kv_shape shape{};
  std::size_t page_count = 0;
  std::byte* base = nullptr;
  std::size_t bytes = 0;
  std::size_t page_stride = 0;  ///< here 0 is an error: pages seldom follow each other
  std::size_t layer_stride = 0;
  std::size_t value_offset = 0;
};

/// Multi-head latent attention: one vector per token, one tensor per layer, [pages][N][latent_dim].
/// Shape   tensors: one first byte per layer
/// Units   tensor_bytes: of each tensor; latent_dim: elements, the rotary part included
struct mla_latents {
  std::uint32_t block_tokens = 0;
  std::uint32_t page_tokens = 0;
  std::size_t latent_dim = 0;
  element_type element = element_type::bf16;
  std::size_t page_count = 0;
  std::span<std::byte* const> tensors{};
  std::size_t tensor_bytes = 0;
  std::size_t page_stride = 0;
};

}  // namespace kvx
