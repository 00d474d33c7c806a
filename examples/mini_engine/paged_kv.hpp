// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "huge_array.hpp"
#include "model.hpp"

namespace mini_engine {

using page_id = std::uint32_t;

/// Which pages of a KV pool are free.
class page_list {
 public:
  page_list(std::size_t block_tokens, std::size_t pages);

  /// Gives a block table the pages that `tokens` tokens need. False, and nothing taken, if too few are free.
  [[nodiscard]] bool reserve(std::vector<page_id>& table, std::size_t tokens);

  /// Takes all pages of a block table back.
  void release(std::vector<page_id>& table);

  std::size_t block_tokens() const noexcept { return block_tokens_; }
  std::size_t pages() const noexcept { return pages_; }
  std::size_t free_pages() const noexcept { return free_.size(); }

 private:
  std::size_t block_tokens_;
  std::size_t pages_;
  std::vector<page_id> free_;
};

/// The engine's KV memory: per layer one array of K pages and one of V pages, float32, and the list of free pages.
/// Shape   k(l), v(l): [pages, block_tokens, kv_heads, head_dim]
class paged_kv : public page_list {
 public:
  paged_kv(const model_config& config, std::size_t block_tokens, std::size_t pages);

  std::size_t token_floats() const noexcept { return token_floats_; }
  std::size_t page_bytes() const noexcept { return block_tokens() * token_floats_ * sizeof(float); }

  float* k(std::size_t layer) noexcept { return memory_.data() + 2 * layer * array_floats(); }
  float* v(std::size_t layer) noexcept { return memory_.data() + (2 * layer + 1) * array_floats(); }

  /// Where a token's [kv_heads, head_dim] lies within k(layer) and v(layer).
  std::size_t offset(const std::vector<page_id>& table, std::size_t position) const {
    return (table[position / block_tokens()] * block_tokens() + position % block_tokens()) * token_floats_;
  }

 private:
  std::size_t array_floats() const noexcept { return pages() * block_tokens() * token_floats_; }

  std::size_t token_floats_;
  huge_array<float> memory_;
};

/// One request's place in the engine: its tokens are the caller's, its pages are here.
struct sequence {
  std::vector<page_id> pages;  // page i holds the tokens from i * block_tokens on
};

}  // namespace mini_engine
