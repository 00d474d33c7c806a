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

/// A slot that was read from storage for a block of a plan.
struct slot_reading {
  const plan& what;
  std::size_t block = 0;
  slot_index place = no_slot;
  int file = -1;
  std::uint64_t offset = 0;
  std::size_t bytes = 0;
};

/// Compares what came with what the plan says of the block, by `verify(slot_expectation)`.
template <class Verify>
[[nodiscard]] store::slot_verdict verify_reading(const slot_reading& of, Verify&& verify) {
  store::slot_expectation expected;
  expected.key = of.what.keys[of.block];
  expected.parent = of.what.parent(of.block);
  expected.tokens = of.what.block(of.block);
  expected.extra = of.what.extra(of.block);
  expected.slot_number = store::block_store::slot_number(of.place);
  const store::slot_verdict verdict = verify(expected);
  // What the page cache holds may be what is damaged; the next read shall ask the device.
  if (verdict != store::slot_verdict::ok)
    ::posix_fadvise(of.file, static_cast<off_t>(of.offset), static_cast<off_t>(of.bytes), POSIX_FADV_DONTNEED);
  return verdict;
}

}  // namespace kvx::detail
