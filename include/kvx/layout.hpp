// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/layout/kv_shape.hpp>
#include <kvx/layout/layer_group.hpp>
#include <kvx/layout/layout_check.hpp>
#include <kvx/layout/paged_kv.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace kvx {

/// One tensor of a layer, ready to be copied; neighbours that are one range in memory and in the slot are one.
/// Units   bytes; page p, row r begins at base + p * page_stride + r * row_stride
struct copy_run {
  std::byte* base = nullptr;
  std::size_t page_stride = 0;
  std::size_t row_bytes = 0;
  std::size_t rows = 1;
  std::size_t row_stride = 0;

  friend constexpr bool operator==(const copy_run&, const copy_run&) noexcept = default;
};

/// Calls `sink` with the fragments of one run of a block; returns the offset behind them.
/// Shape   pages: in block order; offset: bytes from the start of the layer in the slot
template <class Sink>
constexpr std::size_t for_each_fragment_of(const copy_run& run, std::span<const block_id> pages, std::size_t offset,
                                           Sink& sink) {
  // Pieces that touch are one fragment, but only inside a run: that is one allocation, so that one copy may
  // cover them.
  fragment pending{nullptr, 0, offset};
  for (const block_id page : pages) {
    std::byte* const first = run.base + page * run.page_stride;
    for (std::size_t row = 0; row < run.rows; ++row) {
      std::byte* const data = first + row * run.row_stride;
      if (pending.bytes != 0 && data == pending.data + pending.bytes) {
        pending.bytes += run.row_bytes;
        continue;
      }
      if (pending.bytes != 0) sink(std::as_const(pending));
      pending = {data, run.row_bytes, pending.offset + pending.bytes};
    }
  }
  if (pending.bytes != 0) sink(std::as_const(pending));
  return pending.offset + pending.bytes;
}

/// The engine's KV memory, described at run time.
///
///     kvx::layout layout{16, {kvx::separate_kv{.shape = {...}, .page_count = pages, .keys = k, .values = v, ...}}};
///
/// In a slot a layer holds its regions one after the other; a region's pages follow in block order and a page's
/// rows in row order. The fingerprint hashes kind, element, layers, and each region's role and axes: what decides
/// the meaning of those bytes, and nothing that an engine may change from run to run.
/// Shape   one entry per layer group; see `layer_group` for the ways to make one
/// Thread  const calls from any thread
/// Errors  bad_argument, thrown by the constructor: sizes, strides, bounds, overlap or axes do not fit together
/// Cost    about 50 bytes per region; for_each_fragment does not allocate
class layout {
 public:
  layout(std::uint32_t block_tokens, const std::vector<layer_group>& groups) : block_tokens_(block_tokens) {
    detail::layout_check(block_tokens, groups);
    for (const layer_group& from : groups) add(from);
  }

  [[nodiscard]] std::uint32_t block_tokens() const noexcept { return block_tokens_; }
  [[nodiscard]] std::size_t group_count() const noexcept { return groups_.size(); }
  [[nodiscard]] attention_kind kind(std::size_t group) const noexcept { return groups_[group].kind; }
  [[nodiscard]] std::uint32_t window_tokens(std::size_t group) const noexcept { return groups_[group].window_tokens; }
  [[nodiscard]] std::size_t layer_count(std::size_t group) const noexcept { return groups_[group].layers.size(); }
  [[nodiscard]] std::size_t layer_bytes(std::size_t group, std::size_t layer) const noexcept {
    return groups_[group].layers[layer].bytes;
  }
  [[nodiscard]] std::size_t pages_per_block(std::size_t group) const noexcept { return groups_[group].pages_per_block; }
  [[nodiscard]] std::size_t page_count(std::size_t group) const noexcept { return groups_[group].page_count; }
  [[nodiscard]] std::uint64_t fingerprint(std::size_t group) const noexcept { return groups_[group].fingerprint; }

  /// Calls sink(const fragment&) for every piece of one layer of a block, in slot order.
  /// Shape   pages: pages_per_block(group) ids, each below page_count(group)
  template <class Sink>
  void for_each_fragment(std::size_t group, std::size_t layer, std::span<const block_id> pages, Sink&& sink) const {
    std::size_t offset = 0;
    for (const copy_run& run : runs(group, layer)) offset = for_each_fragment_of(run, pages, offset, sink);
  }

  /// What for_each_fragment walks over, for engines that do so on a device.
  [[nodiscard]] std::span<const copy_run> runs(std::size_t group, std::size_t layer) const noexcept {
    const layer_place& at = groups_[group].layers[layer];
    return std::span<const copy_run>(runs_).subspan(at.first_run, at.runs);
  }

  /// The distance in bytes between the same fragment in one layer and the next, where it is the same for all
  /// fragments and layers: then one strided copy moves a fragment of every layer. May be negative; the layers
  /// need not be one allocation. With one layer, its layer_bytes.
  [[nodiscard]] std::optional<std::ptrdiff_t> constant_layer_stride(std::size_t group) const noexcept {
    if (layer_count(group) == 1) return static_cast<std::ptrdiff_t>(layer_bytes(group, 0));
    std::optional<std::ptrdiff_t> stride;
    for (std::size_t layer = 1; layer < layer_count(group); ++layer) {
      const std::span<const copy_run> before = runs(group, layer - 1);
      const std::span<const copy_run> now = runs(group, layer);
      if (before.size() != now.size()) return std::nullopt;
      for (std::size_t r = 0; r < now.size(); ++r) {
        copy_run moved = now[r];
        moved.base = before[r].base;
        if (moved != before[r]) return std::nullopt;
        const auto distance = static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(now[r].base) -
                                                          reinterpret_cast<std::uintptr_t>(before[r].base));
        if (stride.value_or(distance) != distance) return std::nullopt;
        stride = distance;
      }
    }
    return stride;
  }

 private:
  struct layer_place {
    std::size_t first_run = 0;
    std::size_t runs = 0;
    std::size_t bytes = 0;
  };
  struct group_place {
    attention_kind kind = attention_kind::full;
    std::uint32_t window_tokens = 0;
    std::size_t page_count = 0;
    std::size_t pages_per_block = 0;
    std::uint64_t fingerprint = 0;
    std::vector<layer_place> layers;
  };

  void add(const layer_group& from) {
    group_place to{from.kind, from.window_tokens, from.page_count, from.pages_per_block, 0, {}};
    fingerprint_hash hash;
    detail::begin_fingerprint(hash, from.kind, from.element, from.layers.size());
    for (const layer_regions& layer : from.layers) {
      layer_place place{runs_.size(), 0, 0};
      hash.add(layer.regions.size());
      std::size_t room = 0;  // bytes of the last run's allocation behind its first page
      for (const region& next : layer.regions) {
        hash.add(next.role, next.axes);
        place.bytes += next.row_bytes * next.rows * from.pages_per_block;
        copy_run run{next.base, next.page_stride, next.row_bytes, next.rows, next.row_stride};
        if (run.rows == 1 || run.row_stride == run.row_bytes)
          run = {run.base, run.page_stride, run.row_bytes * run.rows, 1, 0};
        if (runs_.size() > place.first_run && from.pages_per_block == 1 && joins(runs_.back(), run, room)) {
          runs_.back().row_bytes += run.row_bytes;
          room -= run.row_bytes;
          continue;
        }
        runs_.push_back(run);
        room = next.bytes - run.row_bytes;
      }
      place.runs = runs_.size() - place.first_run;
      to.layers.push_back(place);
    }
    to.fingerprint = hash.value();
    groups_.push_back(std::move(to));
  }

  /// Whether `next` continues `last` in every page, inside the memory that `last` is known to own.
  [[nodiscard]] static bool joins(const copy_run& last, const copy_run& next, std::size_t room) noexcept {
    return last.rows == 1 && next.rows == 1 && last.page_stride == next.page_stride &&
           next.base == last.base + last.row_bytes && next.row_bytes <= room;
  }

  std::uint32_t block_tokens_;
  std::vector<group_place> groups_;
  std::vector<copy_run> runs_;
};

static_assert(kv_layout<layout>);

}  // namespace kvx
