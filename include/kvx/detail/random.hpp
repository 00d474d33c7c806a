// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

namespace kvx::detail {

/// 128 bits from the kernel's generator: an id that no other process, machine or restart draws.
/// Errors  io_failed: the kernel has no generator
/// Source  getrandom(2)
inline result<digest<16>> random_id() noexcept {
  digest<16> id;
  if (const status failure = fill_random(id.bytes); !failure) return failure;
  return id;
}

}  // namespace kvx::detail
