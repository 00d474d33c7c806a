// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "trace.hpp"

#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx_replay {

/// Which block is in which slot of one simulated tier.
class residents {
 public:
  residents(const trace& work, std::size_t slots)
      : work_(&work), slot_of_(work.distinct(), kvx::no_slot), block_in_(slots, no_block), children_(work.distinct()) {
    free_.reserve(slots);
    for (std::size_t i = slots; i-- > 0;) free_.push_back(static_cast<kvx::slot_index>(i));
  }

  [[nodiscard]] kvx::slot_index slot_of(block_number block) const noexcept { return slot_of_[block]; }
  [[nodiscard]] bool holds(block_number block) const noexcept { return slot_of_[block] != kvx::no_slot; }
  [[nodiscard]] block_number block_in(kvx::slot_index slot) const noexcept { return block_in_[slot]; }
  [[nodiscard]] bool has_children(block_number block) const noexcept { return children_[block] != 0; }
  /// Where the block in front of a slot's is, `no_slot` where it is not here.
  [[nodiscard]] kvx::slot_index parent_slot(kvx::slot_index slot) const noexcept {
    const block_number parent = work_->parent(block_in_[slot]);
    return parent == no_block ? kvx::no_slot : slot_of_[parent];
  }
  [[nodiscard]] bool full() const noexcept { return free_.empty(); }

  /// Precondition: not full, and the block is not here.
  kvx::slot_index put(block_number block) noexcept {
    const kvx::slot_index slot = free_.back();
    free_.pop_back();
    slot_of_[block] = slot;
    block_in_[slot] = block;
    if (const block_number parent = work_->parent(block); parent != no_block) ++children_[parent];
    return slot;
  }
  void drop(kvx::slot_index slot) {
    const block_number block = block_in_[slot];
    slot_of_[block] = kvx::no_slot;
    block_in_[slot] = no_block;
    if (const block_number parent = work_->parent(block); parent != no_block) --children_[parent];
    free_.push_back(slot);
  }

 private:
  const trace* work_;
  std::vector<kvx::slot_index> slot_of_;
  std::vector<block_number> block_in_;
  std::vector<std::uint32_t> children_;
  std::vector<kvx::slot_index> free_;
};

/// The key that a policy is shown for a block: 64 well mixed bits, like those of a cache's key.
[[nodiscard]] constexpr std::uint64_t key_of(block_number block) noexcept {
  std::uint64_t x = (block + 1ULL) * 0x9e37'79b9'7f4a'7c15U;
  x = (x ^ (x >> 30U)) * 0xbf58'476d'1ce4'e5b9U;
  x = (x ^ (x >> 27U)) * 0x94d0'49bb'1331'11ebU;
  return x ^ (x >> 31U);
}

}  // namespace kvx_replay
