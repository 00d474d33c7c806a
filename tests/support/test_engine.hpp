// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/layout.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace kvx_test {

/// An engine's paged memory whose bytes are a function of (key, shard seed, layer, offset), so that a wrong byte is
/// decidable wherever it turns up.
class test_engine {
 public:
  struct shape {
    std::uint32_t block_tokens = 4;
    std::size_t layers = 3;
    std::size_t heads = 2;
    std::size_t head_dim = 32;
    std::size_t pages = 64;
  };

  explicit test_engine(const shape& with, std::uint64_t seed = 0)
      : shape_(with),
        seed_(seed),
        page_bytes_(with.block_tokens * with.heads * with.head_dim * 4),
        memory_(2 * with.layers, std::vector<std::byte>(with.pages * page_bytes_)) {}

  [[nodiscard]] kvx::layout layout() {
    std::vector<std::byte*> keys;
    std::vector<std::byte*> values;
    for (std::size_t l = 0; l < shape_.layers; ++l) {
      keys.push_back(memory_[2 * l].data());
      values.push_back(memory_[2 * l + 1].data());
    }
    kvx::separate_kv tensors;
    tensors.shape.block_tokens = shape_.block_tokens;
    tensors.shape.page_tokens = shape_.block_tokens;
    tensors.shape.layers = static_cast<std::uint32_t>(shape_.layers);
    tensors.shape.heads = static_cast<std::uint32_t>(shape_.heads);
    tensors.shape.head_dim = static_cast<std::uint32_t>(shape_.head_dim);
    tensors.shape.element = kvx::element_type::f32;
    tensors.page_count = shape_.pages;
    tensors.keys = keys;
    tensors.values = values;
    tensors.tensor_bytes = shape_.pages * page_bytes_;
    return kvx::layout(shape_.block_tokens, {tensors});
  }

  /// What a prefill would have computed for the block with this key.
  void fill(kvx::block_id page, const kvx::block_key& key) {
    for (std::size_t t = 0; t < memory_.size(); ++t) generate(key, t, at(t, page));
  }
  void poison(kvx::block_id page) {
    for (std::size_t t = 0; t < memory_.size(); ++t) std::memset(at(t, page), 0xA5, page_bytes_);
  }
  /// Whether the page holds exactly that block.
  [[nodiscard]] bool holds(kvx::block_id page, const kvx::block_key& key) const {
    std::vector<std::byte> expected(page_bytes_);
    for (std::size_t t = 0; t < memory_.size(); ++t) {
      generate(key, t, expected.data());
      if (std::memcmp(expected.data(), memory_[t].data() + page * page_bytes_, page_bytes_) != 0) return false;
    }
    return true;
  }
  [[nodiscard]] bool poisoned(kvx::block_id page) const {
    for (const auto& tensor : memory_)
      for (std::size_t i = 0; i < page_bytes_; ++i)
        if (tensor[page * page_bytes_ + i] != std::byte{0xA5}) return false;
    return true;
  }

  [[nodiscard]] const shape& geometry() const noexcept { return shape_; }

 private:
  [[nodiscard]] std::byte* at(std::size_t tensor, kvx::block_id page) noexcept {
    return memory_[tensor].data() + page * page_bytes_;
  }
  void generate(const kvx::block_key& key, std::size_t tensor, std::byte* out) const {
    std::uint64_t state = seed_ * 0x9E37'79B9'7F4A'7C15U + tensor;
    for (const std::byte b : key.bytes) state = (state ^ static_cast<std::uint64_t>(b)) * 0x100'0000'01b3U;
    for (std::size_t i = 0; i < page_bytes_; i += sizeof state) {
      state += 0x9E37'79B9'7F4A'7C15U;
      std::uint64_t z = (state ^ (state >> 30U)) * 0xBF58'476D'1CE4'E5B9U;
      z ^= z >> 27U;
      std::memcpy(out + i, &z, sizeof z);
    }
  }

  shape shape_;
  std::uint64_t seed_;
  std::size_t page_bytes_;
  std::vector<std::vector<std::byte>> memory_;
};

/// A prompt of its own for each seed.
[[nodiscard]] inline std::vector<kvx::token_id> tokens_of(std::uint64_t seed, std::size_t count) {
  std::vector<kvx::token_id> out(count);
  std::uint64_t state = seed * 0x9E37'79B9'7F4A'7C15U + 1;
  for (kvx::token_id& t : out) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    t = static_cast<kvx::token_id>(state >> 40U);
  }
  return out;
}

/// Page ids first, first + 1, ...
[[nodiscard]] inline std::vector<kvx::block_id> pages_from(kvx::block_id first, std::size_t count) {
  std::vector<kvx::block_id> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = first + static_cast<kvx::block_id>(i);
  return out;
}

}  // namespace kvx_test
