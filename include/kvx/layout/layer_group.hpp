// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/layout/kv_shape.hpp>
#include <kvx/layout/paged_kv.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace kvx {

/// Engine memory that holds one tensor of one layer: page p is `rows` pieces of `row_bytes`, the first at
/// base + p * page_stride, the others row_stride apart.
/// Shape   axes: of the whole block, outermost first, in the order that pages, rows and bytes have
/// Units   strides, bytes: bytes; bytes: how much from `base` on belongs to the tensor
struct region {
  tensor_role role = tensor_role::key;
  std::vector<axis_extent> axes{};
  std::byte* base = nullptr;
  std::size_t bytes = 0;
  std::size_t page_stride = 0;
  std::size_t row_bytes = 0;
  std::size_t rows = 1;
  std::size_t row_stride = 0;  ///< without meaning for one row
};

/// One layer: its regions, in the order in which the slot holds them.
struct layer_regions {
  std::vector<region> regions{};
};

/// Layers that share one page table. Written by hand, field by field, or made from a description of paged_kv.hpp.
/// Errors  bad_argument, thrown: a description contradicts itself. The memory is checked by `layout`.
struct layer_group {
  attention_kind kind = attention_kind::full;
  std::uint32_t window_tokens = 0;  ///< of a sliding window, else 0
  element_type element = element_type::bf16;
  std::size_t page_count = 0;
  std::size_t pages_per_block = 1;
  std::vector<layer_regions> layers{};

  layer_group() = default;
  layer_group(const separate_kv& from) {
    use(from.shape, "separate_kv", from.page_count);
    require(from.keys.size() == from.shape.layers && from.values.size() == from.shape.layers, "separate_kv",
            "keys and values need one tensor per layer");
    for (std::size_t l = 0; l < from.shape.layers; ++l) {
      layers.push_back({{half(from.shape, tensor_role::key, from.keys[l], from.tensor_bytes, from.page_stride),
                         half(from.shape, tensor_role::value, from.values[l], from.tensor_bytes, from.page_stride)}});
    }
  }
  layer_group(const token_pool_kv& from) : layer_group(pages_of_one(from)) {}
  layer_group(const fused_kv& from) {
    use(from.shape, "fused_kv", from.page_count);
    require(from.tensors.size() == from.shape.layers, "fused_kv", "tensors needs one entry per layer");
    require(from.interleaving != kv_interleaving::per_token || from.shape.order == token_order::nhd, "fused_kv",
            "interleaving per_token has token order nhd; for hnd choose per_head");
    const std::size_t page = half_page_bytes(from.shape);
    const bool tensor_halves = from.interleaving == kv_interleaving::tensor_halves;
    const bool halves = tensor_halves || from.interleaving == kv_interleaving::page_halves;
    const std::size_t stride = from.page_stride != 0 ? from.page_stride : times(page, tensor_halves ? 1U : 2U);
    const std::size_t to_values = tensor_halves ? from.tensor_bytes / 2 : page;
    require(!halves || to_values <= from.tensor_bytes, "fused_kv", "tensor_bytes is less than one page");
    for (std::byte* const tensor : from.tensors) {
      if (!halves) {
        layers.push_back({{both(from, tensor, stride)}});
        continue;
      }
      const std::size_t key_bytes = tensor_halves ? to_values : from.tensor_bytes;
      std::byte* const values = tensor == nullptr ? nullptr : tensor + to_values;
      layers.push_back({{half(from.shape, tensor_role::key, tensor, key_bytes, stride),
                         half(from.shape, tensor_role::value, values, from.tensor_bytes - to_values, stride)}});
    }
  }
  layer_group(const cross_layer_kv& from) {
    use(from.shape, "cross_layer_kv", from.page_count);
    require(from.base != nullptr, "cross_layer_kv", "base is null");
    require(from.page_stride != 0, "cross_layer_kv", "page_stride is 0");
    for (std::size_t l = 0; l < from.shape.layers; ++l) {
      const std::size_t key_at = times(from.layer_stride, l);
      require(key_at < from.bytes && from.value_offset < from.bytes - key_at, "cross_layer_kv",
              "layer_stride and value_offset lead outside of bytes");
      const std::size_t value_at = key_at + from.value_offset;
      layers.push_back(
          {{half(from.shape, tensor_role::key, from.base + key_at, from.bytes - key_at, from.page_stride),
            half(from.shape, tensor_role::value, from.base + value_at, from.bytes - value_at, from.page_stride)}});
    }
  }
  layer_group(const mla_latents& from) {
    const kv_shape shape{from.block_tokens, from.page_tokens, from.tensors.size(), 1, from.latent_dim, from.element};
    use(shape, "mla_latents", from.page_count);
    for (std::byte* const tensor : from.tensors) {
      layers.push_back({{half(shape, tensor_role::latent, tensor, from.tensor_bytes, from.page_stride)}});
    }
  }

 private:
  static void require(bool holds, const char* what, const char* problem) {
    if (!holds) throw error(errc::bad_argument, std::string(what) + ": " + problem);
  }

  // Products saturate: nothing is that large, so that `layout` refuses whatever contains one.
  [[nodiscard]] static std::size_t times(std::size_t a, std::size_t b) noexcept {
    std::size_t product = 0;
    return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<std::size_t>::max() : product;
  }

  [[nodiscard]] static std::size_t half_page_bytes(const kv_shape& shape) noexcept {
    return times(times(times(shape.page_tokens, shape.heads), shape.head_dim), element_bytes(shape.element));
  }

  void use(const kv_shape& shape, const char* what, std::size_t pages) {
    require(shape.layers != 0 && shape.heads != 0 && shape.head_dim != 0, what,
            "layers, heads and head_dim (latent_dim) must not be 0");
    require(shape.page_tokens != 0 && shape.block_tokens != 0, what, "block_tokens and page_tokens must not be 0");
    require(shape.block_tokens % shape.page_tokens == 0, what,
            "block_tokens is not a multiple of page_tokens; choose a block of one or several whole pages");
    require(element_bytes(shape.element) != 0, what, "element is not a value of element_type");
    kind = shape.kind;
    window_tokens = shape.window_tokens;
    element = shape.element;
    page_count = pages;
    pages_per_block = shape.block_tokens / shape.page_tokens;
  }

  [[nodiscard]] static region half(const kv_shape& shape, tensor_role role, std::byte* base, std::size_t bytes,
                                   std::size_t page_stride) {
    const auto axes = detail::half_axes(shape);
    const std::size_t page = half_page_bytes(shape);
    return {role, {axes.begin(), axes.end()}, base, bytes, page_stride != 0 ? page_stride : page, page, 1, 0};
  }

  [[nodiscard]] static region both(const fused_kv& from, std::byte* base, std::size_t page_stride) {
    const auto half = detail::half_axes(from.shape);
    std::vector<axis_extent> axes(half.begin(), half.end());
    const std::ptrdiff_t at = from.interleaving == kv_interleaving::per_token ? 2 : 3;
    axes.insert(axes.begin() + at, axis_extent{axis::key_value, 2});
    const std::size_t page = times(half_page_bytes(from.shape), 2);
    return {tensor_role::key_value, std::move(axes), base, from.tensor_bytes, page_stride, page, 1, 0};
  }

  [[nodiscard]] static separate_kv pages_of_one(const token_pool_kv& from) {
    require(from.shape.page_tokens <= 1, "token_pool_kv", "a page is one token; leave page_tokens 0");
    separate_kv pool{from.shape, from.token_count, from.keys, from.values, from.tensor_bytes, from.token_stride};
    pool.shape.page_tokens = 1;
    return pool;
  }
};

}  // namespace kvx
