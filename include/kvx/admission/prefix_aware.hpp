// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/admission.hpp>
#include <kvx/detail/ghost_table.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx {

/// Admits a block if blocks like it were used again often enough, judged by what a prefix cache knows.
///
/// Blocks are alike when they agree in: how often they were seen; whether they continue something that was seen
/// before, and how long that had been idle; whether another request has gone on from there too; their position in the
/// prompt; and whether the save ends with them. For each such class it counts what became of the blocks it has seen:
/// seen again in time, or later, or not while it remembered them. In time is before half as many blocks were written
/// as there are slots, so that the more it refuses, the longer it can wait. It learns from refused blocks as well,
/// adapts, and admits everything until it knows better.
///
/// A block is worth its write from one use per `writes_per_use` writes on: smaller numbers write less.
/// Thread  one caller at a time
/// Cost    O(1), one or two cache lines per block; 64 bytes per slot and 2 KiB
class prefix_aware {
 public:
  explicit prefix_aware(std::size_t slots, unsigned writes_per_use = 8)
      : buckets_(slots * remembered_per_slot / ways + 1),
        horizon_(static_cast<std::uint32_t>(slots / 2)),
        writes_per_use_(std::max(writes_per_use, 1U)) {}

  [[nodiscard]] bool admit(const admission_candidate& block) noexcept {
    if (block.block == 0 || block.parent != last_) begin(block);
    last_ = block.key;
    const std::uint32_t key = detail::ghost_table::shorten(block.key);
    entry* at = find(key);
    const std::uint8_t uses = at == nullptr ? 0 : seen_again(*at);
    if (at == nullptr) at = &replace(key);
    at->when = now_;
    at->writes = writes_;
    at->uses = uses;
    const auto position = static_cast<std::uint32_t>(std::bit_width(block.block)) / 2;
    at->kind = static_cast<std::uint8_t>(uses * 64U + run_ * 8U + std::min(position, 3U) * 2 + (block.behind == 0));
    refused_ |= !worth_it(at->kind);
    if (!refused_) ++writes_;
    return !refused_;
  }

  void used(std::span<const std::uint64_t> keys) noexcept {
    ++now_;
    for (const std::uint64_t key : keys) {
      entry* const at = find(detail::ghost_table::shorten(key));
      if (at == nullptr) continue;
      const std::uint8_t uses = seen_again(*at);
      at->idle = idle_class(now_ - at->when);
      at->when = now_;
      at->writes = writes_;
      at->uses = uses;
      at->kind = static_cast<std::uint8_t>((at->kind & 63U) + uses * 64U);
    }
  }

 private:
  static constexpr std::size_t remembered_per_slot = 4;
  static constexpr std::size_t ways = 4;
  static constexpr std::size_t kinds = 256;

  struct entry {
    std::uint32_t key = 0;  // 0: empty
    std::uint32_t when = 0;
    std::uint32_t writes = 0;  // those before it was seen last
    std::uint8_t kind = 0;
    std::uint8_t uses = 0;
    std::uint8_t idle = 0;   // before it was seen last
    std::uint8_t child = 0;  // a hash of the block seen after it; forked: of several
  };
  using bucket = std::array<entry, ways>;
  static constexpr std::uint8_t forked = 0xFF;

  struct outcome {
    std::uint16_t again = 0;
    std::uint16_t known = 0;
  };

  // A stretch of blocks starts: what is known of the one that it continues holds for all of it.
  void begin(const admission_candidate& block) noexcept {
    ++now_;
    run_ = 0;
    refused_ = false;
    if (block.block == 0) return;
    entry* const parent = find(detail::ghost_table::shorten(block.parent));
    if (parent == nullptr) return;
    const auto child = static_cast<std::uint8_t>(1 + detail::ghost_table::shorten(block.key) % 254);
    const bool other = parent->child != 0 && parent->child != child;
    parent->child = other ? forked : child;
    run_ = std::max(parent->idle, idle_class(now_ - parent->when)) * 2U + (other ? 1U : 0U);
  }
  // In calls: 1 to 3; 0 is for what continues nothing.
  [[nodiscard]] static std::uint8_t idle_class(std::uint32_t calls) noexcept {
    return calls < 32 ? 1 : calls < 512 ? 2 : 3;
  }

  std::uint8_t seen_again(const entry& at) noexcept {
    count(at.kind, writes_ - at.writes <= horizon_);
    return static_cast<std::uint8_t>(std::min(at.uses + 1, 3));
  }
  void count(std::uint8_t kind, bool again) noexcept {
    for (outcome* each : {&outcomes_[kind], &levels_[kind / 64]}) {
      each->again = static_cast<std::uint16_t>(each->again + (again ? 1 : 0));
      if (++each->known < 4096) continue;
      each->again /= 2;
      each->known /= 2;
    }
  }
  // Few outcomes of a kind count together with those of all that were seen as often; without any it is worth it.
  [[nodiscard]] bool worth_it(std::uint8_t kind) const noexcept {
    constexpr double doubt = 16;
    const outcome& of_level = levels_[kind / 64];
    const outcome& of_kind = outcomes_[kind];
    const double level = (of_level.again + doubt) / (of_level.known + doubt);
    return (of_kind.again + doubt * level) * writes_per_use_ >= of_kind.known + doubt;
  }

  [[nodiscard]] bucket& bucket_of(std::uint32_t key) noexcept {
    return buckets_[static_cast<std::size_t>((std::uint64_t{key} * buckets_.size()) >> 32U)];
  }
  [[nodiscard]] entry* find(std::uint32_t key) noexcept {
    for (entry& at : bucket_of(key))
      if (at.key == key && key != 0) return &at;
    return nullptr;
  }
  [[nodiscard]] entry& replace(std::uint32_t key) noexcept {
    bucket& all = bucket_of(key);
    entry* oldest = &all[0];
    for (entry& at : all) {
      if (at.key == 0) {
        oldest = &at;
        break;
      }
      if (now_ - at.when > now_ - oldest->when) oldest = &at;
    }
    if (oldest->key != 0) count(oldest->kind, false);
    *oldest = entry{key};
    return *oldest;
  }

  std::vector<bucket> buckets_;
  std::array<outcome, kinds> outcomes_{};
  std::array<outcome, 4> levels_{};
  std::uint32_t horizon_;
  unsigned writes_per_use_;
  std::uint32_t writes_ = 0;
  std::uint32_t now_ = 0;
  std::uint32_t run_ = 0;
  std::uint64_t last_ = 0;
  bool refused_ = false;  // a block before, so that none behind it is of use
};

static_assert(admission_policy<prefix_aware> && usage_observer<prefix_aware>);

/// `prefix_aware` with another price of a write, as a type of its own.
template <unsigned WritesPerUse>
class prefix_aware_at : public prefix_aware {
 public:
  explicit prefix_aware_at(std::size_t slots) : prefix_aware(slots, WritesPerUse) {}
};

static_assert(usage_observer<prefix_aware_at<2>>);

}  // namespace kvx
