// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "toy_layout.hpp"

namespace kvx_test {

/// SplitMix64's finaliser.
[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t value) noexcept {
  value = (value ^ (value >> 30U)) * 0xBF58'476D'1CE4'E5B9U;
  value = (value ^ (value >> 27U)) * 0x94D0'49BB'1331'11EBU;
  return value ^ (value >> 31U);
}

/// What the pages of the block with this key hold.
[[nodiscard]] inline std::uint64_t content_of(const kvx::block_key& key) noexcept {
  std::uint64_t value = 0;
  std::memcpy(&value, key.bytes.data(), sizeof value);
  return value | 1U;
}

/// An engine's paged memory; a page's bytes are a function of one number, its content, so that whoever owns it can tell
/// at any time whether somebody else wrote to it.
/// Thread  pages are independent
class owned_pages {
 public:
  static constexpr std::size_t layers = 2;
  static constexpr std::size_t words = 48;

  explicit owned_pages(std::size_t pages) : pages_(pages), memory_(layers, std::vector<std::uint64_t>(pages * words)) {}

  [[nodiscard]] toy_layout layout(std::uint32_t block_tokens) {
    toy_group group;
    group.layers = layers;
    group.regions = 1;
    group.fragment_bytes = words * sizeof(std::uint64_t);
    group.page_count = pages_;
    std::vector<std::byte*> bases;
    for (auto& layer : memory_) bases.push_back(reinterpret_cast<std::byte*>(layer.data()));
    return toy_layout(block_tokens, {group}, {bases});
  }

  void write(kvx::block_id page, std::size_t layer, std::uint64_t content) {
    std::uint64_t* const at = memory_[layer].data() + page * words;
    for (std::size_t i = 0; i < words; ++i) at[i] = word(content, layer, i);
  }
  void write(kvx::block_id page, std::uint64_t content) {
    for (std::size_t l = 0; l < layers; ++l) write(page, l, content);
  }
  [[nodiscard]] bool holds(kvx::block_id page, std::size_t layer, std::uint64_t content) const {
    const std::uint64_t* const at = memory_[layer].data() + page * words;
    for (std::size_t i = 0; i < words; ++i)
      if (at[i] != word(content, layer, i)) return false;
    return true;
  }
  [[nodiscard]] bool holds(kvx::block_id page, std::uint64_t content) const {
    for (std::size_t l = 0; l < layers; ++l)
      if (!holds(page, l, content)) return false;
    return true;
  }

 private:
  [[nodiscard]] static std::uint64_t word(std::uint64_t content, std::size_t layer, std::size_t i) noexcept {
    return mix(content + (layer * words + i + 1) * 0x9E37'79B9'7F4A'7C15U);
  }

  std::size_t pages_;
  std::vector<std::vector<std::uint64_t>> memory_;
};

/// The free pages of one engine thread. Pages that come back go to another owner at once, who writes them; they are
/// free again only after he found them unchanged, as late as possible.
/// Shape   pages [first, first + count) of the memory
class page_pool {
 public:
  page_pool(owned_pages& memory, kvx::block_id first, std::size_t count) : memory_(memory), serial_(first) {
    for (std::size_t i = 0; i < count; ++i) free_.push_back(first + static_cast<kvx::block_id>(i));
  }

  /// Empty when there are not as many.
  [[nodiscard]] std::vector<kvx::block_id> take(std::size_t count) {
    while (free_.size() < count && !others_.empty()) take_back();
    if (free_.size() < count) return {};
    std::vector<kvx::block_id> out(free_.end() - static_cast<std::ptrdiff_t>(count), free_.end());
    free_.resize(free_.size() - count);
    return out;
  }
  /// Nothing of kvx may write or read these pages any more.
  void hand_over(std::span<const kvx::block_id> pages) {
    for (const kvx::block_id page : pages) {
      serial_ += 0x1'0000'0000U;
      memory_.write(page, mix(serial_) & ~std::uint64_t{1});
      others_.push_back({page, mix(serial_) & ~std::uint64_t{1}});
    }
    handed_over_ += pages.size();
  }
  void take_all_back() {
    while (!others_.empty()) take_back();
  }

  [[nodiscard]] std::uint64_t handed_over() const noexcept { return handed_over_; }
  /// Pages that did not hold what their owner wrote.
  [[nodiscard]] std::uint64_t changed() const noexcept { return changed_; }
  [[nodiscard]] std::size_t free_pages() const noexcept { return free_.size(); }

 private:
  struct other {
    kvx::block_id page = 0;
    std::uint64_t content = 0;
  };

  void take_back() {
    const other oldest = others_.front();
    others_.pop_front();
    if (!memory_.holds(oldest.page, oldest.content)) ++changed_;
    free_.push_back(oldest.page);
  }

  owned_pages& memory_;
  std::vector<kvx::block_id> free_;
  std::deque<other> others_;
  std::uint64_t serial_;
  std::uint64_t handed_over_ = 0;
  std::uint64_t changed_ = 0;
};

}  // namespace kvx_test
