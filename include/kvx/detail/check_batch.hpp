// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <cstddef>

namespace kvx::detail {

/// Whether a batch fits the layout, so that a transfer engine may follow its pages without looking again.
/// Errors  bad_argument: unknown group, wrong number of layers or pages, a page outside the pool, no payload
/// Cost    a comparison per page
template <kv_layout Layout>
[[nodiscard]] status check_batch(const Layout& layout, const transfer_batch& batch) noexcept {
  if (batch.group >= static_cast<std::size_t>(layout.group_count())) return errc::bad_argument;
  if (batch.layer_offsets.size() != static_cast<std::size_t>(layout.layer_count(batch.group))) {
    return errc::bad_argument;
  }
  const auto pages_per_block = static_cast<std::size_t>(layout.pages_per_block(batch.group));
  const auto page_count = static_cast<std::size_t>(layout.page_count(batch.group));
  for (const block_copy& block : batch.blocks) {
    if (block.payload == nullptr || block.pages.size() != pages_per_block) return errc::bad_argument;
    for (const block_id page : block.pages) {
      // A pool may be so large that null_block would pass as a number.
      if (page == null_block || page >= page_count) return errc::bad_argument;
    }
  }
  return {};
}

}  // namespace kvx::detail
