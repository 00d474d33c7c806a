// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>
#include <kvx/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <span>
#include <vector>

namespace kvx_bench {

inline void must(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
  std::exit(1);
}

/// Keys and values of each layer in regions of their own, a page per block: what paged engines have.
class paged_device_layout {
 public:
  paged_device_layout(std::vector<std::byte*> regions, std::size_t fragment_bytes, std::size_t pages)
      : regions_(std::move(regions)), fragment_bytes_(fragment_bytes), pages_(pages) {}

  [[nodiscard]] std::uint32_t block_tokens() const { return 16; }
  [[nodiscard]] std::size_t group_count() const { return 1; }
  [[nodiscard]] kvx::attention_kind kind(std::size_t) const { return kvx::attention_kind::full; }
  [[nodiscard]] std::uint32_t window_tokens(std::size_t) const { return 0; }
  [[nodiscard]] std::size_t layer_count(std::size_t) const { return regions_.size() / 2; }
  [[nodiscard]] std::size_t layer_bytes(std::size_t, std::size_t) const { return 2 * fragment_bytes_; }
  [[nodiscard]] std::size_t pages_per_block(std::size_t) const { return 1; }
  [[nodiscard]] std::size_t page_count(std::size_t) const { return pages_; }
  [[nodiscard]] std::uint64_t fingerprint(std::size_t) const { return fragment_bytes_; }
  template <class Sink>
  void for_each_fragment(std::size_t, std::size_t layer, std::span<const kvx::block_id> pages, Sink&& sink) const {
    const std::size_t at = pages[0] * fragment_bytes_;
    sink(kvx::fragment{regions_[2 * layer] + at, fragment_bytes_, 0});
    sink(kvx::fragment{regions_[2 * layer + 1] + at, fragment_bytes_, fragment_bytes_});
  }

 private:
  std::vector<std::byte*> regions_;
  std::size_t fragment_bytes_;
  std::size_t pages_;
};

/// A pool of pages in device memory, slots in the arena given, and batches of random pages and slots.
class workload {
 public:
  /// Shape   constant_stride: all regions in one range at equal distances, else in allocations of their own
  workload(std::span<std::byte> arena, std::size_t layers, std::size_t fragment_bytes, std::size_t blocks,
           bool constant_stride)
      : pages_(2 * blocks), block_bytes_(2 * layers * fragment_bytes) {
    const std::size_t region_bytes = pages_ * fragment_bytes;
    std::vector<std::byte*> regions;
    if (constant_stride) {
      std::byte* const base = allocate(2 * layers * region_bytes);
      for (std::size_t r = 0; r < 2 * layers; ++r) regions.push_back(base + r * region_bytes);
    } else {
      for (std::size_t r = 0; r < 2 * layers; ++r) regions.push_back(allocate(region_bytes));
      // The allocator may have laid them at equal distances, one after the other.
      std::shuffle(regions.begin(), regions.end(), std::mt19937_64{3});
    }
    layout_.emplace_back(std::move(regions), fragment_bytes, pages_);
    ids_.resize(pages_);
    std::iota(ids_.begin(), ids_.end(), kvx::block_id{0});
    std::shuffle(ids_.begin(), ids_.end(), std::mt19937_64{1});
    std::vector<std::size_t> slots(std::min(arena.size() / block_bytes_, 2 * blocks));
    std::iota(slots.begin(), slots.end(), std::size_t{0});
    std::shuffle(slots.begin(), slots.end(), std::mt19937_64{2});
    for (std::size_t l = 0; l < layers; ++l) offsets_.push_back(l * 2 * fragment_bytes);
    for (std::size_t i = 0; i < 2 * blocks; ++i) {
      copies_.push_back({arena.data() + slots[i % slots.size()] * block_bytes_, std::span(ids_).subspan(i, 1)});
    }
  }
  ~workload() {
    for (std::byte* at : allocations_) static_cast<void>(cudaFree(at));
  }
  workload(const workload&) = delete;
  workload& operator=(const workload&) = delete;

  [[nodiscard]] const paged_device_layout& layout() const { return layout_[0]; }
  /// The first half of the blocks, or the second, which has other pages and, where the arena has room, other slots.
  [[nodiscard]] kvx::transfer_batch batch(bool second = false) const {
    const std::size_t half = copies_.size() / 2;
    return {0, offsets_, std::span(copies_).subspan(second ? half : 0, half)};
  }
  [[nodiscard]] std::size_t bytes() const { return copies_.size() / 2 * block_bytes_; }
  [[nodiscard]] std::byte* device() const { return allocations_[0]; }

 private:
  std::byte* allocate(std::size_t bytes) {
    void* at = nullptr;
    must(cudaMalloc(&at, bytes), "device memory for the pool");
    allocations_.push_back(static_cast<std::byte*>(at));
    return allocations_.back();
  }

  std::size_t pages_;
  std::size_t block_bytes_;
  std::vector<std::byte*> allocations_;
  std::vector<paged_device_layout> layout_;
  std::vector<kvx::block_id> ids_;
  std::vector<std::size_t> offsets_;
  std::vector<kvx::block_copy> copies_;
};

}  // namespace kvx_bench
