// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/plan.hpp>
#include <kvx/store/block_store.hpp>
#include <kvx/store/slot_format.hpp>
#include <kvx/types.hpp>

#include <fcntl.h>

#include <cstddef>
#include <cstdint>

namespace kvx::detail {

/// A slot that was read from storage for a block of a plan, for verify_slot().
struct slot_reading {
  const plan& what;
  std::size_t block = 0;
  slot_index place = no_slot;
  int file = -1;
  std::uint64_t offset = 0;
  std::size_t bytes = 0;

  /// What the plan says of the block.
  [[nodiscard]] store::slot_expectation expected() const {
    store::slot_expectation of_plan;
    of_plan.key = what.keys[block];
    of_plan.parent = what.parent(block);
    of_plan.tokens = what.block(block);
    of_plan.extra = what.extra(block);
    of_plan.slot_number = store::block_store::slot_number(place);
    return of_plan;
  }
  /// For one that did not prove itself: what the page cache holds may be what is damaged; the next read shall ask the
  /// device.
  void leave_page_cache() const noexcept {
    ::posix_fadvise(file, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
  }
};

}  // namespace kvx::detail
