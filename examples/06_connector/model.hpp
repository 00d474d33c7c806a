// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/layout.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace connector {

/// The shape that scheduler and ranks agree on. A block is two pages.
inline constexpr std::uint32_t page_tokens = 8;
inline constexpr std::uint32_t block_tokens = 16;
inline constexpr std::size_t pages_per_block = block_tokens / page_tokens;
inline constexpr std::size_t page_count = 640;
inline constexpr std::size_t layers = 2;

[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t value) noexcept {
  value = (value ^ (value >> 30U)) * 0xBF58'476D'1CE4'E5B9U;
  value = (value ^ (value >> 27U)) * 0x94D0'49BB'1331'11EBU;
  return value ^ (value >> 31U);
}

/// Stands for what a model makes of a token: it depends on every token before it, and on the adapter. kvx's keys play
/// no part in it, so that a block served to the wrong prompt shows.
[[nodiscard]] inline std::uint64_t state_before_first(std::string_view adapter) noexcept {
  std::uint64_t state = 0x9E37'79B9'7F4A'7C15U;
  for (const char c : adapter) state = mix(state + static_cast<unsigned char>(c) + 1);
  return state;
}
[[nodiscard]] constexpr std::uint64_t state_after(std::uint64_t before, kvx::token_id token) noexcept {
  return mix(before + 0x9E37'79B9'7F4A'7C15U * (std::uint64_t{token} + 1));
}

/// Keys and values of one token, and where they are.
struct token_place {
  kvx::block_id page = 0;
  std::uint32_t row = 0;
  std::uint64_t state = 0;
};

/// One rank's paged keys and values.
/// Shape   per layer two tensors [page_count][page_tokens][1 head][8 channels] of f32
class kv_memory {
 public:
  explicit kv_memory(std::uint64_t rank)
      : rank_(rank), tensors_(2 * layers, std::vector<std::uint64_t>(page_count * page_words)) {}

  [[nodiscard]] kvx::layout layout() {
    std::vector<std::byte*> keys;
    std::vector<std::byte*> values;
    for (std::size_t l = 0; l < layers; ++l) {
      keys.push_back(reinterpret_cast<std::byte*>(tensors_[2 * l].data()));
      values.push_back(reinterpret_cast<std::byte*>(tensors_[2 * l + 1].data()));
    }
    kvx::separate_kv group;
    group.shape = {.block_tokens = block_tokens,
                   .page_tokens = page_tokens,
                   .layers = layers,
                   .heads = 1,
                   .head_dim = row_words * 2,
                   .element = kvx::element_type::f32};
    group.page_count = page_count;
    group.keys = keys;
    group.values = values;
    group.tensor_bytes = page_count * page_words * sizeof(std::uint64_t);
    return kvx::layout(block_tokens, {group});
  }

  void compute(std::size_t layer, const token_place& at) {
    for (std::size_t half = 0; half < 2; ++half) {
      std::uint64_t* const row = row_of(layer, half, at);
      for (std::size_t i = 0; i < row_words; ++i) row[i] = word(layer, half, i, at.state);
    }
  }
  [[nodiscard]] std::uint64_t wrong_bytes(std::size_t layer, const token_place& at) {
    std::uint64_t wrong = 0;
    for (std::size_t half = 0; half < 2; ++half) {
      const std::uint64_t* const row = row_of(layer, half, at);
      for (std::size_t i = 0; i < row_words; ++i)
        for (std::uint64_t off = row[i] ^ word(layer, half, i, at.state); off != 0; off >>= 8U)
          wrong += (off & 0xFFU) != 0;
    }
    return wrong;
  }

 private:
  static constexpr std::size_t row_words = 4;
  static constexpr std::size_t page_words = page_tokens * row_words;

  [[nodiscard]] std::uint64_t* row_of(std::size_t layer, std::size_t half, const token_place& at) noexcept {
    return tensors_[2 * layer + half].data() + at.page * page_words + at.row * row_words;
  }
  [[nodiscard]] std::uint64_t word(std::size_t layer, std::size_t half, std::size_t i,
                                   std::uint64_t state) const noexcept {
    return mix(state + (((rank_ * layers + layer) * 2 + half) * row_words + i + 1) * 0x9E37'79B9'7F4A'7C15U);
  }

  std::uint64_t rank_;
  std::vector<std::vector<std::uint64_t>> tensors_;
};

}  // namespace connector
