// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/admission.hpp>
#include <kvx/detail/count_min_sketch.hpp>
#include <kvx/detail/ghost_table.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvx {

/// Admits a block that was offered or used at least twice, however long ago, unless its fame has faded.
///
/// Counts are halved each time that sixteen blocks per slot were seen. What was used often is therefore admitted at
/// once long after it was evicted, where `second_touch` would have forgotten it. Counts are shared by chance: the
/// fuller the sketch, the more blocks are admitted that should not be.
/// Units   least: times that a block was seen, this one included; up to 15
/// Thread  one caller at a time
/// Cost    O(1); 16 to 32 bytes per slot
/// Source  Einziger et al., TinyLFU: a highly efficient cache admission policy, ACM TOS 2017
class frequency_sketch {
 public:
  explicit frequency_sketch(std::size_t slots, unsigned least = 2)
      : seen_(slots * words_per_slot, slots * period_per_slot), least_(least) {}

  [[nodiscard]] bool admit(const admission_candidate& block) noexcept {
    const std::uint32_t key = detail::ghost_table::shorten(block.key);
    seen_.add(key);
    return seen_.count(key) >= least_;
  }
  void used(std::span<const std::uint64_t> keys) noexcept {
    for (const std::uint64_t key : keys) seen_.add(detail::ghost_table::shorten(key));
  }

 private:
  static constexpr std::size_t words_per_slot = 2;
  static constexpr std::size_t period_per_slot = 16;

  detail::count_min_sketch seen_;
  unsigned least_;
};

static_assert(admission_policy<frequency_sketch> && usage_observer<frequency_sketch>);

}  // namespace kvx
