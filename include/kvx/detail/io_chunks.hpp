// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

namespace kvx::detail {

/// An arena in chunks that are pinned as they come into use.
///
/// Pinning faults in a whole chunk, so it waits until as many bytes as the chunk has went through it: what a process
/// hardly uses costs it nothing.
/// Thread  one caller at a time; pinned_bytes: any
class io_chunks {
 public:
  static constexpr std::size_t least_chunk_bytes = std::size_t{32} << 20U;
  static constexpr std::size_t most_chunk_bytes = std::size_t{1} << 30U;  // the kernel's limit for a buffer
  static constexpr std::size_t most_chunks = 1024;                        // some kernels' limit for a table

  [[nodiscard]] static std::size_t count_of(std::span<std::byte> arena) noexcept {
    return (arena.size() + size_for(arena) - 1) / size_for(arena);
  }
  void open(std::span<std::byte> arena) {
    arena_ = arena;
    chunk_bytes_ = size_for(arena);
    chunks_.assign(count_of(arena), {});
  }

  [[nodiscard]] std::size_t pinned_bytes() const noexcept { return pinned_bytes_.load(std::memory_order_relaxed); }

  /// How many of these bytes one request may move: those in one pinned chunk, or all.
  [[nodiscard]] std::size_t shorten(const std::byte* data, std::size_t bytes) const noexcept {
    if (!contains(data) || !chunks_[number_of(data)].pinned) return bytes;
    const std::span<std::byte> inside = chunk(number_of(data));
    return std::min(bytes, static_cast<std::size_t>(inside.data() + inside.size() - data));
  }

  /// The number of the pinned chunk that holds these bytes, or -1. Calls pin(number, chunk) when a chunk's time has
  /// come; once that was refused, for lack of lockable memory say, nothing more is pinned.
  template <std::predicate<std::size_t, std::span<std::byte>> Pin>
  [[nodiscard]] int use(const std::byte* data, std::size_t bytes, Pin&& pin) {
    if (!contains(data)) return -1;
    const std::size_t number = number_of(data);
    const std::span<std::byte> inside = chunk(number);
    state& one = chunks_[number];
    if (!one.pinned) {
      one.moved_bytes += bytes;
      if (refused_ || one.moved_bytes < inside.size()) return -1;
      one.pinned = pin(number, inside);
      refused_ = !one.pinned;
      if (refused_) return -1;
      pinned_bytes_.fetch_add(inside.size(), std::memory_order_relaxed);
    }
    // It may have been cut before the chunk was pinned.
    const bool whole = static_cast<std::size_t>(data - inside.data()) + bytes <= inside.size();
    return whole ? static_cast<int>(number) : -1;
  }

 private:
  [[nodiscard]] static std::size_t size_for(std::span<std::byte> arena) noexcept {
    std::size_t bytes = least_chunk_bytes;
    while (bytes < most_chunk_bytes && arena.size() / bytes >= most_chunks) bytes *= 2;
    return bytes;
  }

  struct state {
    std::size_t moved_bytes = 0;
    bool pinned = false;
  };

  [[nodiscard]] bool contains(const std::byte* data) const noexcept {
    return !chunks_.empty() && !std::less<>{}(data, arena_.data()) &&
           std::less<>{}(data, arena_.data() + arena_.size());
  }
  [[nodiscard]] std::size_t number_of(const std::byte* data) const noexcept {
    return static_cast<std::size_t>(data - arena_.data()) / chunk_bytes_;
  }
  [[nodiscard]] std::span<std::byte> chunk(std::size_t number) const noexcept {
    const std::size_t from = number * chunk_bytes_;
    return arena_.subspan(from, std::min(chunk_bytes_, arena_.size() - from));
  }

  std::span<std::byte> arena_;
  std::size_t chunk_bytes_ = 0;
  std::vector<state> chunks_;
  bool refused_ = false;
  std::atomic<std::size_t> pinned_bytes_{0};
};

}  // namespace kvx::detail
