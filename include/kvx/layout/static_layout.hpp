// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/layout.hpp>
#include <kvx/layout/kv_shape.hpp>
#include <kvx/layout/layer_group.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvx {

/// One group of attention layers whose shape the compiler knows; only addresses and the pool's size come later.
///
///     constexpr kvx::kv_shape llama{.block_tokens = 16, .page_tokens = 16, .layers = 80, .heads = 8, .head_dim = 128};
///     kvx::static_layout<llama> layout{kvx::separate_kv{.shape = llama, ...}};
///
/// Slots and fingerprints are those of a `layout` made from the same description.
/// Shape   Shape: keys, then values; from: any description that gives that, e.g. separate_kv, cross_layer_kv
/// Thread  const calls from any thread
/// Errors  bad_argument, thrown by the constructor: as `layout`, or `from` is not of this shape
/// Cost    32 bytes per layer, inside the object
template <kv_shape Shape>
class static_layout {
  static_assert(Shape.layers != 0 && Shape.heads != 0 && Shape.head_dim != 0);
  static_assert(Shape.page_tokens != 0 && Shape.block_tokens != 0 && Shape.block_tokens % Shape.page_tokens == 0);
  static_assert((Shape.kind == attention_kind::sliding_window) == (Shape.window_tokens != 0));

 public:
  explicit static_layout(const layer_group& from) : page_count_(from.page_count) {
    const layout checked(Shape.block_tokens, {from});
    if (checked.fingerprint(0) != fingerprint(0) || checked.window_tokens(0) != Shape.window_tokens ||
        checked.pages_per_block(0) != pages_per_block(0)) {
      throw error(errc::bad_argument,
                  "static_layout: the description is of another shape than the template argument; pass that "
                  "shape in it, or use kvx::layout");
    }
    for (std::size_t l = 0; l < Shape.layers; ++l) {
      for (std::size_t half = 0; half < 2; ++half) {
        const region& at = from.layers[l].regions[half];
        if (at.rows != 1) {
          throw error(errc::bad_argument,
                      "static_layout: a page's keys, or values, are not one piece; use kvx::layout");
        }
        places_[2 * l + half] = {at.base, at.page_stride};
      }
    }
  }

  [[nodiscard]] static constexpr kv_shape shape() noexcept { return Shape; }
  [[nodiscard]] static constexpr std::uint32_t block_tokens() noexcept { return Shape.block_tokens; }
  [[nodiscard]] static constexpr std::size_t group_count() noexcept { return 1; }
  [[nodiscard]] static constexpr attention_kind kind(std::size_t) noexcept { return Shape.kind; }
  [[nodiscard]] static constexpr std::uint32_t window_tokens(std::size_t) noexcept { return Shape.window_tokens; }
  [[nodiscard]] static constexpr std::size_t layer_count(std::size_t) noexcept { return Shape.layers; }
  [[nodiscard]] static constexpr std::size_t layer_bytes(std::size_t, std::size_t) noexcept {
    return 2 * half_page_bytes * pages_per_block(0);
  }
  [[nodiscard]] static constexpr std::size_t pages_per_block(std::size_t) noexcept {
    return Shape.block_tokens / Shape.page_tokens;
  }
  [[nodiscard]] static constexpr std::uint64_t fingerprint(std::size_t) noexcept { return fingerprint_of(Shape); }
  [[nodiscard]] std::size_t page_count(std::size_t) const noexcept { return page_count_; }

  /// Calls sink(const fragment&) for every piece of one layer of a block, in slot order.
  /// Shape   pages: pages_per_block(0) ids, each below page_count(0)
  template <class Sink>
  void for_each_fragment(std::size_t, std::size_t layer, std::span<const block_id> pages, Sink&& sink) const {
    std::size_t offset = 0;
    for (std::size_t half = 0; half < 2; ++half) {
      const place& at = places_[2 * layer + half];
      const copy_run run{at.base, at.page_stride, half_page_bytes, 1, 0};
      offset = for_each_fragment_of(run, pages.first(pages_per_block(0)), offset, sink);
    }
  }

 private:
  static constexpr std::size_t half_page_bytes =
      std::size_t{Shape.page_tokens} * Shape.heads * Shape.head_dim * element_bytes(Shape.element);

  struct place {
    std::byte* base = nullptr;
    std::size_t page_stride = 0;
  };

  std::size_t page_count_;
  std::array<place, 2 * Shape.layers> places_{};
};

static_assert(
    kv_layout<static_layout<kv_shape{.block_tokens = 16, .page_tokens = 16, .layers = 1, .heads = 1, .head_dim = 1}>>);

}  // namespace kvx
