// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx_test {

/// One layer group of a toy_layout: `regions` separate allocations per layer (2: keys and values), each
/// `page_count` pages of `fragment_bytes` that stand `stride` apart. Layer l's fragments are `growth * l`
/// bytes larger.
struct toy_group {
  std::size_t layers = 2;
  std::size_t regions = 2;
  std::size_t fragment_bytes = 256;
  std::size_t growth = 0;
  std::size_t gap = 0;
  std::size_t pages_per_block = 1;
  std::size_t page_count = 16;
  kvx::attention_kind kind = kvx::attention_kind::full;
  std::uint32_t window_tokens = 0;

  [[nodiscard]] std::size_t fragment(std::size_t layer) const { return fragment_bytes + growth * layer; }
  [[nodiscard]] std::size_t stride(std::size_t layer) const { return fragment(layer) + gap; }
  [[nodiscard]] std::size_t region_bytes(std::size_t layer) const { return page_count * stride(layer); }
};

/// The plainest kv_layout there is, so that a test of something else does not depend on kvx::layout.
class toy_layout {
 public:
  /// Shape   bases[group][layer * regions + region]: start of each allocation
  toy_layout(std::uint32_t block_tokens, std::vector<toy_group> groups, std::vector<std::vector<std::byte*>> bases)
      : block_tokens_(block_tokens), groups_(std::move(groups)), bases_(std::move(bases)) {}

  [[nodiscard]] std::uint32_t block_tokens() const { return block_tokens_; }
  [[nodiscard]] std::size_t group_count() const { return groups_.size(); }
  [[nodiscard]] kvx::attention_kind kind(std::size_t g) const { return groups_[g].kind; }
  [[nodiscard]] std::uint32_t window_tokens(std::size_t g) const { return groups_[g].window_tokens; }
  [[nodiscard]] std::size_t layer_count(std::size_t g) const { return groups_[g].layers; }
  [[nodiscard]] std::size_t layer_bytes(std::size_t g, std::size_t layer) const {
    return groups_[g].pages_per_block * groups_[g].regions * groups_[g].fragment(layer);
  }
  [[nodiscard]] std::size_t pages_per_block(std::size_t g) const { return groups_[g].pages_per_block; }
  [[nodiscard]] std::size_t page_count(std::size_t g) const { return groups_[g].page_count; }
  [[nodiscard]] std::uint64_t fingerprint(std::size_t g) const {
    std::uint64_t value = 0x9E37'79B9'7F4A'7C15U ^ g;
    const auto mix = [&value](std::uint64_t n) { value = (value ^ n) * 0x100'0000'01b3U; };
    mix(groups_[g].layers);
    mix(groups_[g].regions);
    mix(groups_[g].fragment_bytes);
    mix(groups_[g].growth);
    mix(groups_[g].pages_per_block);
    return value;
  }

  template <class Sink>
  void for_each_fragment(std::size_t g, std::size_t layer, std::span<const kvx::block_id> pages, Sink&& sink) const {
    const toy_group& group = groups_[g];
    std::size_t offset = 0;
    for (std::size_t region = 0; region < group.regions; ++region) {
      std::byte* const base = bases_[g][layer * group.regions + region];
      for (const kvx::block_id page : pages) {
        sink(kvx::fragment{base + page * group.stride(layer), group.fragment(layer), offset});
        offset += group.fragment(layer);
      }
    }
  }

 private:
  std::uint32_t block_tokens_;
  std::vector<toy_group> groups_;
  std::vector<std::vector<std::byte*>> bases_;
};

static_assert(kvx::kv_layout<toy_layout>);

}  // namespace kvx_test
