// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/layout/kv_shape.hpp>
#include <kvx/layout/layer_group.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace kvx::detail {

/// Refuses layer groups whose memory or meaning contradicts itself.
///
/// Overlap is looked for between the regions of one group only: groups may take turns on the same pool.
/// Errors  bad_argument, thrown by the constructor, which is all there is to it
class layout_check {
 public:
  layout_check(std::uint32_t block_tokens, const std::vector<layer_group>& groups) {
    require(block_tokens != 0, "block_tokens is 0");
    require(!groups.empty(), "there is no layer group");
    require(groups.size() <= std::numeric_limits<std::uint16_t>::max(), "there are more than 65535 layer groups");
    for (std::size_t g = 0; g < groups.size(); ++g) {
      check_group(block_tokens, groups[g], "group " + std::to_string(g));
    }
  }

 private:
  static constexpr std::size_t largest = static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max());

  void require(bool holds, const char* problem) const {
    if (holds) return;
    throw error(errc::bad_argument, "layout: " + (where_.empty() ? where_ : where_ + ": ") + problem);
  }

  [[nodiscard]] std::size_t product(std::size_t a, std::size_t b) const {
    std::size_t out = 0;
    require(!__builtin_mul_overflow(a, b, &out) && out <= largest, "sizes and strides multiply to more than memory");
    return out;
  }
  [[nodiscard]] std::size_t sum(std::size_t a, std::size_t b) const {
    std::size_t out = 0;
    require(!__builtin_add_overflow(a, b, &out) && out <= largest, "sizes and strides add up to more than memory");
    return out;
  }

  void check_group(std::uint32_t block_tokens, const layer_group& group, const std::string& name) {
    where_ = name;
    require(element_bytes(group.element) != 0, "element is not a value of element_type");
    require(group.page_count != 0, "page_count is 0");
    require(group.page_count <= null_block, "page_count is beyond what a block_id can number");
    require(group.pages_per_block != 0, "pages_per_block is 0");
    require(group.pages_per_block <= group.page_count, "page_count is less than one block needs");
    require(!group.layers.empty(), "there is no layer");
    if (group.kind == attention_kind::sliding_window) {
      require(group.window_tokens != 0, "window_tokens is 0; a sliding window needs its length in tokens");
    } else {
      require(group.window_tokens == 0, "window_tokens is set, but kind is not sliding_window");
    }

    std::size_t slot_bytes = 0;
    std::vector<placed> all;
    for (std::size_t l = 0; l < group.layers.size(); ++l) {
      where_ = name + ", layer " + std::to_string(l);
      require(!group.layers[l].regions.empty(), "there is no region");
      std::size_t layer_bytes = 0;
      for (std::size_t r = 0; r < group.layers[l].regions.size(); ++r) {
        where_ = name + ", layer " + std::to_string(l) + ", region " + std::to_string(r);
        layer_bytes = sum(layer_bytes, check_region(block_tokens, group, group.layers[l].regions[r], all));
      }
      slot_bytes = sum(slot_bytes, sum(layer_bytes, page_bytes));
    }
    where_ = name;
    check_overlap(group.page_count, all);
  }

  /// A region with what overlap needs to know about it.
  struct placed {
    std::uintptr_t begin = 0;
    std::size_t span = 0;         // from the first byte of any page to behind the last
    std::size_t page_stride = 0;  // 0: pages lie inside the rows, or there is one
    std::size_t extent = 0;       // of one page, or of everything where page_stride is 0
    std::size_t row_bytes = 0;
    std::size_t rows = 0;
    std::size_t row_stride = 0;
  };

  [[nodiscard]] std::size_t check_region(std::uint32_t block_tokens, const layer_group& group, const region& at,
                                         std::vector<placed>& all) const {
    require(at.base != nullptr, "base is null");
    require(at.row_bytes != 0 && at.rows != 0, "row_bytes or rows is 0");
    require(at.rows == 1 || at.row_stride >= at.row_bytes, "rows overlap: row_stride is less than row_bytes");
    const std::size_t row_span = at.rows == 1 ? 0 : product(at.row_stride, at.rows - 1);
    const std::size_t page_span = group.page_count == 1 ? 0 : product(at.page_stride, group.page_count - 1);
    const std::size_t extent = sum(row_span, at.row_bytes);
    const std::size_t run = sum(page_span, at.row_bytes);
    const std::size_t span = sum(row_span, run);
    const bool pages_outside = group.page_count > 1 && at.page_stride >= extent;
    const bool pages_inside =
        group.page_count == 1 || (at.page_stride >= at.row_bytes && (at.rows == 1 || run <= at.row_stride));
    require(pages_outside || pages_inside, "pages overlap: page_stride is less than what one page covers");
    require(span <= at.bytes, "bytes is less than page_count pages need");
    const auto begin = reinterpret_cast<std::uintptr_t>(at.base);
    require(at.bytes <= largest && at.bytes <= std::numeric_limits<std::uintptr_t>::max() - begin,
            "base + bytes is beyond the address space");
    if (pages_outside) {
      all.push_back({begin, span, at.page_stride, extent, at.row_bytes, at.rows, at.row_stride});
    } else {
      all.push_back({begin, span, 0, span, run, at.rows, at.row_stride});
    }

    std::size_t elements = 1;
    std::size_t tokens = 1;
    for (const axis_extent& axis : at.axes) {
      require(axis.extent != 0, "an axis has extent 0");
      elements = product(elements, axis.extent);
      if (axis.axis == axis::token) tokens = product(tokens, axis.extent);
    }
    const std::size_t bytes = product(product(at.row_bytes, at.rows), group.pages_per_block);
    require(product(elements, element_bytes(group.element)) == bytes,
            "axes and element describe another number of bytes than row_bytes * rows * pages_per_block");
    require(group.kind == attention_kind::recurrent || tokens == block_tokens,
            "the token axes do not multiply to the layout's block_tokens");
    return bytes;
  }

  void check_overlap(std::size_t page_count, std::vector<placed>& all) const {
    std::sort(all.begin(), all.end(), [](const placed& a, const placed& b) { return a.begin < b.begin; });
    for (std::size_t i = 0; i < all.size(); ++i) {
      for (std::size_t j = i + 1; j < all.size() && all[j].begin - all[i].begin < all[i].span; ++j) {
        require(all[i].page_stride == all[j].page_stride,
                "two regions share memory and have different page strides; describe them as separate ranges");
        require(disjoint(page_count, all[i], all[j]), "two regions overlap");
      }
    }
  }

  /// Precondition: b begins inside the span of a, and both have the same page_stride.
  [[nodiscard]] static bool disjoint(std::size_t page_count, const placed& a, const placed& b) {
    const auto apart = static_cast<std::ptrdiff_t>(b.begin - a.begin);
    if (a.page_stride == 0) return rows_disjoint(a, b, apart);
    // A page of b can only meet the page of a that it begins in, and the next one.
    const std::size_t first = static_cast<std::size_t>(apart) / a.page_stride;
    for (std::size_t ahead = first; ahead <= first + 1 && ahead < page_count; ++ahead) {
      const auto offset = apart - static_cast<std::ptrdiff_t>(ahead * a.page_stride);
      if (!rows_disjoint(a, b, offset)) return false;
    }
    return true;
  }

  [[nodiscard]] static bool rows_disjoint(const placed& a, const placed& b, std::ptrdiff_t b_offset) {
    std::ptrdiff_t at_a = 0;
    std::ptrdiff_t at_b = b_offset;
    for (std::size_t i = 0, j = 0; i < a.rows && j < b.rows;) {
      if (at_a + static_cast<std::ptrdiff_t>(a.row_bytes) <= at_b) {
        at_a += static_cast<std::ptrdiff_t>(a.row_stride);
        ++i;
      } else if (at_b + static_cast<std::ptrdiff_t>(b.row_bytes) <= at_a) {
        at_b += static_cast<std::ptrdiff_t>(b.row_stride);
        ++j;
      } else {
        return false;
      }
    }
    return true;
  }

  std::string where_;
};

}  // namespace kvx::detail
