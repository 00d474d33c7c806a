// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "residents.hpp"
#include "tier.hpp"
#include "trace.hpp"

#include <kvx/admission/always.hpp>
#include <kvx/concepts/admission.hpp>
#include <kvx/concepts/eviction.hpp>
#include <kvx/concepts/hints.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvx_replay {

/// A tier under an eviction policy of kvx. Pinned are the blocks of the request under way and, by the rules, the
/// parents of present blocks; a newcomer for which nothing may go is refused. An admission policy is asked about every
/// computed block that is not here, front first, and what is behind a refused one is refused too.
template <kvx::eviction_policy Policy, kvx::admission_policy Admission = kvx::always>
class policy_tier final : public tier {
 public:
  policy_tier(const trace& work, std::size_t slots, rules how, Policy policy)
      : here_(work, slots),
        policy_(std::move(policy)),
        admission_(slots),
        last_request_(work.distinct()),
        block_tokens_(work.block_tokens()),
        how_(how) {}

  [[nodiscard]] bool holds(block_number block) const noexcept override { return here_.holds(block); }

  void access(const request& now, kvx::session_state session, std::span<const arrival> arrivals) override {
    ++clock_;
    nothing_may_go_ = false;
    request_keys_.resize(now.blocks.size());
    for (std::size_t i = 0; i < now.blocks.size(); ++i) {
      last_request_[now.blocks[i]] = clock_;
      request_keys_[i] = key_of(now.blocks[i]);
    }
    choose_newcomers(now, arrivals);
    if (how_.save_blocks != 0) {
      access_in_parts(now, session, arrivals);
    } else if constexpr (kvx::request_eviction<Policy>) {
      tell(now, 0, now.blocks.size(), 0, session);
      bring_in(now, 0, now.blocks.size());
    } else if (how_.order == access_order::as_cache) {
      touched_.clear();
      for (std::size_t i = now.blocks.size(); i-- > 0;) {
        if (holds(now.blocks[i])) touched_.push_back(here_.slot_of(now.blocks[i]));
      }
      timed([&] { policy_.touch(touched_); });
      bring_in(now, 0, now.blocks.size());
    } else if (how_.order == access_order::tail_first) {
      for (std::size_t i = now.blocks.size(); i-- > 0;) access_one(now, i);
    } else {
      for (std::size_t i = 0; i < now.blocks.size(); ++i) access_one(now, i);
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
  /// A block that is not here and may come in. What is read back needs its slot for the I/O: nobody is asked.
  enum newcomer : char { none, saved, read_back };

  /// Marks the blocks that are not here and may come in.
  void choose_newcomers(const request& now, std::span<const arrival> arrivals) {
    newcomer_.assign(now.blocks.size(), none);
    if constexpr (kvx::usage_observer<Admission>) {
      keys_.clear();
      for (std::size_t i = 0; i < now.blocks.size() && holds(now.blocks[i]); ++i) keys_.push_back(request_keys_[i]);
      std::reverse(keys_.begin(), keys_.end());
      timed([&] { admission_.used(keys_); });
    }
    bool refusing = false;
    for (std::size_t i = 0; i < now.blocks.size(); ++i) {
      const arrival how = arrivals.empty() ? arrival::computed : arrivals[i];
      if (holds(now.blocks[i]) || how == arrival::not_at_all) continue;
      if constexpr (!std::same_as<Admission, kvx::always>) {
        if (how == arrival::computed) {
          kvx::admission_candidate asked;
          asked.key = request_keys_[i];
          asked.parent = i == 0 ? key_of(no_block) : request_keys_[i - 1];
          asked.block = static_cast<std::uint32_t>(i);
          asked.behind = static_cast<std::uint32_t>(now.blocks.size() - 1 - i);
          timed([&] { refusing = !admission_.admit(asked) || refusing; });
          if (refusing) {
            ++counts.refused;
            continue;
          }
        }
      }
      newcomer_[i] = how == arrival::read_back ? read_back : saved;
    }
  }

  [[nodiscard]] kvx::eviction_entry entry(std::size_t i, kvx::slot_index slot) const noexcept {
    return {slot, request_keys_[i], static_cast<std::uint32_t>(i) * block_tokens_};
  }

  /// Tells a policy that learns from requests of the blocks [first, end).
  void tell(const request& now, std::size_t first, std::size_t end, std::uint64_t id, kvx::session_state session) {
    if constexpr (kvx::request_eviction<Policy>) {
      entries_.resize(end - first);
      for (std::size_t i = first; i < end; ++i) entries_[end - 1 - i] = entry(i, here_.slot_of(now.blocks[i]));
      kvx::eviction_request told;
      told.blocks = entries_;
      told.before = first;
      if (first != 0) told.parent = request_keys_[first - 1];
      told.id = id;
      told.session = session;
      timed([&] { policy_.access(told); });
    }
  }

  /// As a cache does: what is here, or comes from below, is loaded; the rest is saved a few blocks at a time.
  void access_in_parts(const request& now, kvx::session_state session, std::span<const arrival> arrivals) {
    std::size_t loaded = 0;
    while (loaded < now.blocks.size() &&
           (holds(now.blocks[loaded]) || (!arrivals.empty() && arrivals[loaded] == arrival::read_back)))
      ++loaded;
    bring_in(now, 0, loaded);
    while (loaded != 0 && !holds(now.blocks[loaded - 1])) --loaded;
    if constexpr (kvx::request_eviction<Policy>) {
      if (loaded != 0) tell(now, 0, loaded, clock_, session);
    } else {
      touched_.clear();
      for (std::size_t i = loaded; i-- > 0;) touched_.push_back(here_.slot_of(now.blocks[i]));
      timed([&] { policy_.touch(touched_); });
    }
    for (std::size_t first = loaded; first < now.blocks.size(); first += how_.save_blocks) {
      const std::size_t end = std::min(now.blocks.size(), first + how_.save_blocks);
      tell(now, first, end, clock_, session);
      bring_in(now, first, end);
    }
  }

  void access_one(const request& now, std::size_t i) {
    const block_number block = now.blocks[i];
    kvx::slot_index slot = here_.slot_of(block);
    if (slot != kvx::no_slot) {
      timed([&] { policy_.touch(std::span(&slot, 1)); });
      return;
    }
    if (newcomer_[i] == none || !make_room(request_keys_[i], newcomer_[i])) return;
    const kvx::eviction_entry made = entry(i, here_.put(block));
    ++counts.inserted;
    timed([&] { policy_.insert(std::span(&made, 1)); });
  }

  /// Front first, and what is behind a refused block is refused too: it would be of no use.
  void bring_in(const request& now, std::size_t first, std::size_t end) {
    entries_.clear();
    bool refusing = false;
    for (std::size_t i = first; i < end; ++i) {
      if (newcomer_[i] == none) continue;
      if (refusing || !make_room(request_keys_[i], newcomer_[i])) {
        if (refusing) ++counts.refused;
        refusing = true;
        continue;
      }
      entries_.push_back(entry(i, here_.put(now.blocks[i])));
      ++counts.inserted;
    }
    if (entries_.empty()) return;
    if constexpr (kvx::chained_eviction<Policy>) {
      // What an earlier part brought in is continued. What was here before is of another age.
      if (first != 0 && newcomer_[first - 1] != none && holds(now.blocks[first - 1])) {
        for (const kvx::eviction_entry& e : entries_) insert_behind_parent(e);
        return;
      }
    }
    std::reverse(entries_.begin(), entries_.end());
    timed([&] { policy_.insert(entries_); });
  }
  void insert_behind_parent(const kvx::eviction_entry& behind) {
    const kvx::slot_index parent = here_.parent_slot(behind.slot);
    if (parent == kvx::no_slot)
      timed([&] { policy_.insert(std::span(&behind, 1)); });
    else
      timed([&] { policy_.insert_behind(behind, parent); });
  }

  [[nodiscard]] bool make_room(std::uint64_t key, newcomer how) {
    if (!here_.full()) return true;
    kvx::slot_index victim = kvx::no_slot;
    // Pins only grow while a request lasts: a policy that found no victim need not look again.
    if (!nothing_may_go_ && (how == read_back || admits(key))) {
      timed([&] { victim = policy_.evict([this](kvx::slot_index candidate) { return pinned(candidate); }); });
      nothing_may_go_ = victim == kvx::no_slot;
    }
    if (victim == kvx::no_slot) {
      ++counts.refused;
      return false;
    }
    here_.drop(victim);
    ++counts.evicted;
    return true;
  }

  [[nodiscard]] bool admits(std::uint64_t key) {
    bool admitted = true;
    if constexpr (kvx::request_eviction<Policy>) timed([&] { admitted = policy_.admits(key); });
    return admitted;
  }

  [[nodiscard]] bool pinned(kvx::slot_index slot) const noexcept {
    const block_number block = here_.block_in(slot);
    return last_request_[block] == clock_ || (how_.parents_pinned && here_.has_children(block));
  }

  residents here_;
  Policy policy_;
  Admission admission_;
  std::vector<std::uint64_t> last_request_;
  std::uint64_t clock_ = 0;
  std::uint32_t block_tokens_;
  rules how_;
  bool nothing_may_go_ = false;
  std::vector<newcomer> newcomer_;
  std::vector<kvx::eviction_entry> entries_;
  std::vector<kvx::slot_index> touched_;
  std::vector<std::uint64_t> keys_;
  std::vector<std::uint64_t> request_keys_;  // of the request under way, front first
};

}  // namespace kvx_replay
