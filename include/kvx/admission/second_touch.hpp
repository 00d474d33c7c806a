// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/admission.hpp>
#include <kvx/detail/ghost_table.hpp>

#include <cstddef>

namespace kvx {

/// Admits a block that was offered before, not long ago.
///
/// What is used once is never written. The price is that every block is computed twice before it is kept, unless a
/// tier above has it meanwhile. It remembers as many of the last blocks offered as eight times the slots.
/// Thread  one caller at a time
/// Cost    O(1); 32 bytes per slot
/// Source  Maggs, Sitaraman, Algorithmic nuggets in content delivery, CCR 2015: cache on second hit
class second_touch {
 public:
  explicit second_touch(std::size_t slots) : offered_(slots * remembered_per_slot) {}

  [[nodiscard]] bool admit(const admission_candidate& block) noexcept {
    const std::uint32_t key = detail::ghost_table::shorten(block.key);
    const bool before = offered_.forget(key);
    offered_.remember(key);
    return before;
  }

 private:
  static constexpr std::size_t remembered_per_slot = 8;

  detail::ghost_table offered_;
};

static_assert(admission_policy<second_touch>);

}  // namespace kvx
