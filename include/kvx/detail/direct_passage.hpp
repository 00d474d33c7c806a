// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/staging_source.hpp>
#include <kvx/direct_ticket.hpp>
#include <kvx/types.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

namespace kvx::detail {

/// What the blocks of one load past the arena share.
template <class Stream>
struct direct_order {
  struct waiting {
    std::shared_ptr<direct_order> of;
    std::size_t entry = 0;
  };
  /// A reader, and how many of its places this cache has or waits for.
  struct used_source {
    std::shared_ptr<staging_source> reader;
    std::size_t under_way = 0;
    std::deque<waiting> queue;
  };

  std::shared_ptr<direct_state> ticket;
  used_source* source = nullptr;
  Stream stream;
  std::vector<std::vector<block_id>> ids;
  std::size_t first = 0;
  std::size_t pinned = 0;  // blocks in memory that are being copied

  /// The pages that a block is to be in.
  template <class Layout>
  [[nodiscard]] std::span<const block_id> pages_of(const Layout& layout, std::size_t entry) const noexcept {
    const direct_state::entry& wanted = ticket->wanted[entry];
    const std::size_t pages = layout.pages_per_block(wanted.group);
    return std::span(ids[wanted.group]).subspan((wanted.block - first) * pages, pages);
  }
};

/// One block's way; lives until its read and its copy ended, whatever became of those who wanted it.
template <class State, class Transfer>
struct direct_passage {
  using order = direct_order<typename Transfer::stream_type>;

  std::shared_ptr<order> of;
  std::size_t entry = 0;
  typename State::group_type* group = nullptr;
  slot_index place = no_slot;   // on storage, or
  slot_index pinned = no_slot;  // in memory
  aligned_buffer header;
  std::vector<std::uint64_t> page_values;
  std::byte* staged = nullptr;
  typename Transfer::operation copy;
  int file = -1;
  std::uint64_t offset = 0;
  std::chrono::steady_clock::time_point started{};
  bool late_counted = false;

  [[nodiscard]] const direct_state::entry& wanted() const noexcept { return of->ticket->wanted[entry]; }
  /// Lets the reader have its place in the staging memory again. Caller holds the cache's lock.
  void leave_staging() {
    if (staged != nullptr) of->source->reader->give_back(staged);
    --of->source->under_way;
  }
};

}  // namespace kvx::detail
