// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "residents.hpp"
#include "tier.hpp"
#include "trace.hpp"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <queue>
#include <span>
#include <vector>

namespace kvx_replay {

/// When each access of a trace is followed by another of the same block.
class future {
 public:
  static constexpr std::uint32_t never = std::numeric_limits<std::uint32_t>::max();

  explicit future(const trace& work) : next_(work.blocks(), never) {
    std::vector<std::uint32_t> seen(work.distinct(), never);
    std::size_t access = work.blocks();
    for (std::size_t at = work.size(); at-- > 0;) {
      const request r = work[at];
      for (std::size_t i = r.blocks.size(); i-- > 0;) {
        next_[--access] = seen[r.blocks[i]];
        seen[r.blocks[i]] = static_cast<std::uint32_t>(at);
      }
    }
  }

  /// The request that uses the block of the n-th access again.
  [[nodiscard]] std::uint32_t after(std::size_t access) const noexcept { return next_[access]; }

 private:
  std::vector<std::uint32_t> next_;
};

/// The clairvoyant tier with bypass: gives up the block whose next use is farthest away, and refuses a newcomer
/// whose own is not nearer. Blocks of the request under way stay.
class optimum_tier final : public tier {
 public:
  optimum_tier(const trace& work, std::size_t slots)
      : here_(work, slots), future_(work), next_use_(work.distinct(), future::never), last_request_(work.distinct()) {}

  [[nodiscard]] bool holds(block_number block) const noexcept override { return here_.holds(block); }

  void access(const request& now, kvx::session_state, std::span<const arrival> arrivals) override {
    timed([&] {
      ++clock_;
      for (const block_number block : now.blocks) {
        last_request_[block] = clock_;
        next_use_[block] = future_.after(access_++);
      }
      // A prefix is used whenever its suffix is, so from the front on the newcomers become less useful.
      for (std::size_t i = 0; i < now.blocks.size(); ++i) {
        const block_number block = now.blocks[i];
        const bool may_enter = arrivals.empty() || arrivals[i] != arrival::not_at_all;
        if (!here_.holds(block) && !(may_enter && admit(block))) continue;
        farthest_.push({next_use_[block], static_cast<std::uint32_t>(i), block});
      }
      for (const entry& kept : kept_) farthest_.push(kept);
      kept_.clear();
    });
  }

  void advise(const request&, kvx::session_state) override {}

 private:
  struct entry {
    std::uint32_t next_use;
    std::uint32_t depth;
    block_number block;
    [[nodiscard]] friend bool operator<(const entry& a, const entry& b) noexcept {
      return a.next_use != b.next_use ? a.next_use < b.next_use : a.depth < b.depth;
    }
  };

  [[nodiscard]] bool admit(block_number block) {
    if (here_.full()) {
      const block_number victim = farther_than(next_use_[block]);
      if (victim == no_block) {
        ++counts.refused;
        return false;
      }
      here_.drop(here_.slot_of(victim));
      ++counts.evicted;
    }
    here_.put(block);
    ++counts.inserted;
    return true;
  }

  [[nodiscard]] block_number farther_than(std::uint32_t next_use) {
    while (!farthest_.empty() && farthest_.top().next_use > next_use) {
      const entry top = farthest_.top();
      farthest_.pop();
      if (!here_.holds(top.block) || next_use_[top.block] != top.next_use) continue;  // out of date
      if (last_request_[top.block] != clock_) return top.block;
      kept_.push_back(top);
    }
    return no_block;
  }

  residents here_;
  future future_;
  std::vector<std::uint32_t> next_use_;
  std::vector<std::uint64_t> last_request_;
  std::priority_queue<entry> farthest_;
  std::vector<entry> kept_;
  std::size_t access_ = 0;
  std::uint64_t clock_ = 0;
};

}  // namespace kvx_replay
