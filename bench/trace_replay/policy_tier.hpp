// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "residents.hpp"
#include "tier.hpp"
#include "trace.hpp"

#include <kvx/concepts/eviction.hpp>
#include <kvx/concepts/hints.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvx_replay {

/// A tier under an eviction policy of kvx. Pinned are the blocks of the request under way and, by the rules, the
/// parents of present blocks; a newcomer for which nothing may go is refused.
template <kvx::eviction_policy Policy>
class policy_tier final : public tier {
 public:
  policy_tier(const trace& work, std::size_t slots, rules how, Policy policy)
      : here_(work, slots), policy_(std::move(policy)), last_request_(work.distinct()), how_(how) {}

  [[nodiscard]] bool holds(block_number block) const noexcept override { return here_.holds(block); }

  void access(const request& now, kvx::session_state session, std::span<const char> barred) override {
    ++clock_;
    for (const block_number block : now.blocks) last_request_[block] = clock_;
    const auto enters = [barred](std::size_t i) { return barred.empty() || barred[i] == 0; };
    if constexpr (kvx::request_eviction<Policy>) {
      entries_.clear();
      for (std::size_t i = now.blocks.size(); i-- > 0;) {
        entries_.push_back({here_.slot_of(now.blocks[i]), key_of(now.blocks[i])});
      }
      kvx::eviction_request whole;
      whole.blocks = entries_;
      whole.session = session;
      timed([&] { policy_.access(whole); });
      bring_in(now, enters);
    } else if (how_.order == access_order::as_cache) {
      touched_.clear();
      for (std::size_t i = now.blocks.size(); i-- > 0;) {
        if (holds(now.blocks[i])) touched_.push_back(here_.slot_of(now.blocks[i]));
      }
      timed([&] { policy_.touch(touched_); });
      bring_in(now, enters);
    } else if (how_.order == access_order::tail_first) {
      for (std::size_t i = now.blocks.size(); i-- > 0;) access_one(now.blocks[i], enters(i));
    } else {
      for (std::size_t i = 0; i < now.blocks.size(); ++i) access_one(now.blocks[i], enters(i));
    }
  }

  void advise(const request& last, kvx::session_state session) override {
    if constexpr (kvx::hint_eviction<Policy>) {
      keys_.clear();
      for (std::size_t i = last.blocks.size(); i-- > 0;) keys_.push_back(key_of(last.blocks[i]));
      kvx::hints news;
      news.session = session;
      timed([&] { policy_.advise(keys_, news); });
    }
  }

 private:
  void access_one(block_number block, bool may_enter) {
    kvx::slot_index slot = here_.slot_of(block);
    if (slot != kvx::no_slot) {
      timed([&] { policy_.touch(std::span(&slot, 1)); });
      return;
    }
    if (!may_enter || !make_room(block)) return;
    const kvx::eviction_entry entry{here_.put(block), key_of(block)};
    ++counts.inserted;
    timed([&] { policy_.insert(std::span(&entry, 1)); });
  }

  /// Front first, and what is behind a refused block is refused too: it would be of no use.
  template <class Enters>
  void bring_in(const request& now, Enters enters) {
    entries_.clear();
    bool refusing = false;
    for (std::size_t i = 0; i < now.blocks.size(); ++i) {
      const block_number block = now.blocks[i];
      if (holds(block) || !enters(i)) continue;
      if (refusing || !make_room(block)) {
        if (refusing) ++counts.refused;
        refusing = true;
        continue;
      }
      entries_.push_back({here_.put(block), key_of(block)});
      ++counts.inserted;
    }
    if (entries_.empty()) return;
    std::reverse(entries_.begin(), entries_.end());
    timed([&] { policy_.insert(entries_); });
  }

  [[nodiscard]] bool make_room(block_number block) {
    if (!here_.full()) return true;
    kvx::slot_index victim = kvx::no_slot;
    if (admits(block)) {
      timed([&] { victim = policy_.evict([this](kvx::slot_index candidate) { return pinned(candidate); }); });
    }
    if (victim == kvx::no_slot) {
      ++counts.refused;
      return false;
    }
    here_.drop(victim);
    ++counts.evicted;
    return true;
  }

  [[nodiscard]] bool admits(block_number block) {
    bool admitted = true;
    if constexpr (kvx::request_eviction<Policy>) timed([&] { admitted = policy_.admits(key_of(block)); });
    return admitted;
  }

  [[nodiscard]] bool pinned(kvx::slot_index slot) const noexcept {
    const block_number block = here_.block_in(slot);
    return last_request_[block] == clock_ || (how_.parents_pinned && here_.has_children(block));
  }

  residents here_;
  Policy policy_;
  std::vector<std::uint64_t> last_request_;
  std::uint64_t clock_ = 0;
  rules how_;
  std::vector<kvx::eviction_entry> entries_;
  std::vector<kvx::slot_index> touched_;
  std::vector<std::uint64_t> keys_;
};

}  // namespace kvx_replay
