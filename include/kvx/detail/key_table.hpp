// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/huge_page_allocator.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvx::detail {

/// Finds the entries of a history by their keys: buckets of a cache line, each ten entries and 16 bits of their hashes.
///
/// The hashes of a bucket are compared together: where in it something is, which no processor could predict, decides no
/// branch, and an entry is only looked at when it is the one. What a full bucket has no room for is in one behind it.
/// Of several entries with the same key it finds one, mostly the one that came last.
/// Cost    O(1): mostly one cache miss; 11 bytes per entry, allocation only in the constructor
class key_table {
 public:
  static constexpr std::uint32_t none = 0xFFFF'FFFFU;

  explicit key_table(std::size_t entries) : buckets_(entries / load + 2) {}

  [[nodiscard]] static std::uint32_t hash(std::uint64_t key) noexcept {
    key = (key ^ (key >> 32U)) * 0x9E37'79B9'7F4A'7C15U;
    return static_cast<std::uint32_t>(key ^ (key >> 32U));
  }
  void prefetch(std::uint32_t hash) const noexcept { __builtin_prefetch(&buckets_[home(hash)]); }

  /// The first entry of about this hash for which `is(entry)`, `none` where there is none.
  template <class Is>
  [[nodiscard]] std::uint32_t find(std::uint32_t hash, Is&& is) const noexcept {
    const std::size_t first = home(hash);
    for (std::size_t at = first;;) {
      const bucket& b = buckets_[at];
      for (std::uint32_t left = b.places_of(tag(hash)); left != 0; left &= left - 1)
        if (const std::uint32_t entry = b.entries[place(left)]; is(entry)) return entry;
      // One that was passed on long ago keeps a bucket from being an end, and all of them may have one.
      if (b.passed == 0 || (at = next(at)) == first) return none;
    }
  }
  void insert(std::uint32_t hash, std::uint32_t entry) noexcept {
    std::size_t at = home(hash);
    // Of two with one key the later one takes the place that is looked at first.
    std::uint32_t room = buckets_[at].places_of(0);
    if (const std::uint32_t same = buckets_[at].places_of(tag(hash)); same != 0)
      if (room == 0 || place(same) < place(room)) std::swap(buckets_[at].entries[place(same)], entry);
    for (; room == 0; room = buckets_[at].places_of(0)) {
      ++buckets_[at].passed;
      at = next(at);
    }
    buckets_[at].entries[place(room)] = entry;
    buckets_[at].tags[place(room)] = tag(hash);
  }
  /// Precondition: the entry is in it.
  void erase(std::uint32_t hash, std::uint32_t entry) noexcept {
    for (std::size_t at = home(hash);; at = next(at)) {
      bucket& b = buckets_[at];
      for (std::uint32_t left = b.places_of(tag(hash)); left != 0; left &= left - 1) {
        if (b.entries[place(left)] != entry) continue;
        b.tags[place(left)] = 0;
        return;
      }
      --b.passed;
    }
  }

 private:
  static constexpr std::size_t ways = 10;
  static constexpr std::size_t load = 6;

  struct alignas(64) bucket {
    std::array<std::uint16_t, ways> tags{};  // 0: no entry
    std::uint32_t passed = 0;                // entries that would be here if there had been room, here or before it
    std::array<std::uint32_t, ways> entries{};

    /// Every other bit stands for a place that has a tag: see place().
    [[nodiscard]] std::uint32_t places_of(std::uint16_t tag) const noexcept {
#if defined(__SSE2__)
      return (equal_words(0, tag) | equal_words(1, tag) << 16U) & 0x5'5555U;
#else
      std::uint32_t places = 0;
      for (std::size_t at = 0; at < ways; ++at) places |= (tags[at] == tag ? 1U : 0U) << 2 * at;
      return places;
#endif
    }

#if defined(__SSE2__)
    /// Two bits for each of eight words, from the first or from the ninth on; of those only two are tags.
    [[nodiscard]] std::uint32_t equal_words(std::size_t eight, std::uint16_t word) const noexcept {
      using words [[gnu::vector_size(16)]] = short;
      using bytes [[gnu::vector_size(16)]] = char;
      words these;
      __builtin_memcpy(&these, reinterpret_cast<const std::byte*>(this) + eight * sizeof these, sizeof these);
      const auto equal = these == static_cast<short>(word);
      return static_cast<std::uint32_t>(__builtin_ia32_pmovmskb128(reinterpret_cast<bytes>(equal)));
    }
#endif
  };
  static_assert(sizeof(bucket) == 64);

  [[nodiscard]] static std::size_t place(std::uint32_t places) noexcept {
    return static_cast<std::size_t>(std::countr_zero(places)) / 2;
  }
  [[nodiscard]] static std::uint16_t tag(std::uint32_t hash) noexcept {
    const std::uint32_t low = hash & 0xFFFFU;
    return static_cast<std::uint16_t>(low != 0 ? low : 1);  // so that none is taken for a free place
  }
  [[nodiscard]] std::size_t home(std::uint32_t hash) const noexcept {
    return static_cast<std::size_t>((std::uint64_t{hash} * buckets_.size()) >> 32U);
  }
  [[nodiscard]] std::size_t next(std::size_t at) const noexcept { return at + 1 != buckets_.size() ? at + 1 : 0; }

  std::vector<bucket, huge_page_allocator<bucket>> buckets_;
};

}  // namespace kvx::detail
