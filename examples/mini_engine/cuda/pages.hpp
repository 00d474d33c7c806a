// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <cstddef>

#include "buffer.hpp"
#include "paged_kv.hpp"
#include "weights.hpp"

namespace mini_engine::cuda {

/// The engine's KV memory on the GPU: one range of addresses, layer after layer at a constant distance, so that kvx
/// moves a block of all layers with one copy. In a page the keys come first, and the values right behind them: one
/// fragment. Shape   layer(l): [pages, 2, block_tokens, kv_heads, head_dim], bfloat16
class paged_kv : public page_list {
 public:
  paged_kv(const model_config& config, std::size_t block_tokens, std::size_t pages)
      : page_list(block_tokens, pages),
        layers_(config.layers),
        page_elements_(2 * block_tokens * config.kv_dim()),
        memory_(config.layers * pages * page_elements_) {}

  __nv_bfloat16* layer(std::size_t l) const noexcept { return memory_.data() + l * layer_elements(); }
  std::size_t layers() const noexcept { return layers_; }
  std::size_t page_elements() const noexcept { return page_elements_; }
  std::size_t layer_elements() const noexcept { return pages() * page_elements_; }
  /// Of one layer, keys and values.
  std::size_t page_bytes() const noexcept { return page_elements_ * sizeof(__nv_bfloat16); }
  std::size_t bytes_per_token() const noexcept { return layers_ * page_bytes() / block_tokens(); }

 private:
  std::size_t layers_;
  std::size_t page_elements_;
  device_buffer<__nv_bfloat16> memory_;
};

}  // namespace mini_engine::cuda
