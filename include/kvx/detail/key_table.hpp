// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/huge_page_allocator.hpp>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvx::detail {

/// Finds the entries of a history by their keys: open addressing, with 32 bits of each key's hash beside the number of
/// its entry, so that an entry is only looked at when it is the one.
///
/// Of several entries with the same key it finds the one that came last.
/// Cost    O(1): mostly one cache miss; 12 bytes per entry, allocation only in the constructor
class key_table {
 public:
  static constexpr std::uint32_t none = 0xFFFF'FFFFU;

  explicit key_table(std::size_t entries) : cells_(entries + entries / 2 + 1) {}

  [[nodiscard]] static std::uint32_t hash(std::uint64_t key) noexcept {
    key = (key ^ (key >> 32U)) * 0x9E37'79B9'7F4A'7C15U;
    return static_cast<std::uint32_t>(key ^ (key >> 32U));
  }
  void prefetch(std::uint32_t hash) const noexcept { __builtin_prefetch(&cells_[home(hash)]); }

  /// The first entry of this hash for which `is(entry)`, `none` where there is none.
  template <class Is>
  [[nodiscard]] std::uint32_t find(std::uint32_t hash, Is&& is) const noexcept {
    for (std::size_t at = home(hash); cells_[at].entry != none; at = next(at))
      if (cells_[at].hash == hash && is(cells_[at].entry)) return cells_[at].entry;
    return none;
  }
  void insert(std::uint32_t hash, std::uint32_t entry) noexcept {
    cell made{hash, entry};
    std::size_t at = home(hash);
    for (; cells_[at].entry != none; at = next(at))
      if (cells_[at].hash == hash) std::swap(cells_[at], made);  // the last one comes first
    cells_[at] = made;
  }
  /// Precondition: the entry is in it.
  void erase(std::uint32_t hash, std::uint32_t entry) noexcept {
    std::size_t hole = home(hash);
    while (cells_[hole].entry != entry) hole = next(hole);
    // What is behind the hole moves up, unless it would come to be in front of its home.
    for (std::size_t at = next(hole); cells_[at].entry != none; at = next(at)) {
      if (distance(home(cells_[at].hash), at) < distance(hole, at)) continue;
      cells_[hole] = cells_[at];
      hole = at;
    }
    cells_[hole].entry = none;
  }

 private:
  struct cell {
    std::uint32_t hash = 0;
    std::uint32_t entry = none;
  };

  [[nodiscard]] std::size_t home(std::uint32_t hash) const noexcept {
    return static_cast<std::size_t>((std::uint64_t{hash} * cells_.size()) >> 32U);
  }
  [[nodiscard]] std::size_t next(std::size_t at) const noexcept { return at + 1 != cells_.size() ? at + 1 : 0; }
  [[nodiscard]] std::size_t distance(std::size_t from, std::size_t to) const noexcept {
    return to >= from ? to - from : to + cells_.size() - from;
  }

  std::vector<cell, huge_page_allocator<cell>> cells_;
};

}  // namespace kvx::detail
