// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "trace.hpp"

#include <kvx/concepts/eviction.hpp>
#include <kvx/types.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx_replay {

/// How requests reach a policy.
struct rules {
  /// Deepest block first, as the cache does; false: front first.
  bool tail_first = true;
  /// A block with a cached child stays, as in the cache; false: as the literature simulates it.
  bool parents_pinned = true;
};

struct outcome {
  std::uint64_t hit_blocks = 0;
  std::uint64_t hit_tokens = 0;
  std::uint64_t inserted = 0;
  std::uint64_t evicted = 0;
  std::uint64_t refused = 0;  ///< newcomers that were not taken in
  std::uint64_t nanoseconds = 0;  ///< in the policy and the bookkeeping around it
};

/// Nanoseconds of each call of a policy, in order; the same replay makes the same calls.
class call_times {
 public:
  void start() noexcept { began_ = std::chrono::steady_clock::now(); }
  void stop() {
    const auto took = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - began_);
    nanoseconds_.push_back(static_cast<std::uint32_t>(std::min<std::int64_t>(took.count(), UINT32_MAX)));
  }
  [[nodiscard]] std::vector<std::uint32_t>& nanoseconds() noexcept { return nanoseconds_; }

 private:
  std::chrono::steady_clock::time_point began_;
  std::vector<std::uint32_t> nanoseconds_;
};

/// Who is where in one simulated tier.
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
  [[nodiscard]] bool full() const noexcept { return free_.empty(); }
  [[nodiscard]] std::size_t capacity() const noexcept { return block_in_.size(); }

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

/// The key that a policy is shown for a block: 64 well mixed bits, as of a cache's key.
[[nodiscard]] constexpr std::uint64_t key_of(block_number block) noexcept {
  std::uint64_t x = (block + 1ULL) * 0x9e37'79b9'7f4a'7c15U;
  x = (x ^ (x >> 30U)) * 0xbf58'476d'1ce4'e5b9U;
  x = (x ^ (x >> 27U)) * 0x94d0'49bb'1331'11ebU;
  return x ^ (x >> 31U);
}

/// One tier under an eviction policy.
template <kvx::eviction_policy Policy>
class policy_tier {
 public:
  policy_tier(const trace& work, std::size_t slots, rules how, Policy policy)
      : here_(work, slots), policy_(std::move(policy)), last_request_(work.distinct()), how_(how) {}
  policy_tier(const trace& work, std::size_t slots, rules how) : policy_tier(work, slots, how, Policy(slots)) {}

  [[nodiscard]] bool holds(block_number block) const noexcept { return here_.holds(block); }

  /// All blocks of a request are used; those that are not here are newcomers.
  template <class Timer>
  void access(const request& now, std::size_t /*prefix*/, outcome& counts, Timer&& timed) {
    ++clock_;
    for (const block_number block : now.blocks) last_request_[block] = clock_;
    if (how_.tail_first) {
      for (std::size_t i = now.blocks.size(); i-- > 0;) access(now.blocks[i], counts, timed);
    } else {
      for (const block_number block : now.blocks) access(block, counts, timed);
    }
  }

 private:
  template <class Timer>
  void access(block_number block, outcome& counts, Timer&& timed) {
    kvx::slot_index slot = here_.slot_of(block);
    if (slot != kvx::no_slot) {
      timed([&] { policy_.touch(std::span(&slot, 1)); });
      return;
    }
    if (here_.full()) {
      kvx::slot_index victim = kvx::no_slot;
      timed([&] { victim = policy_.evict([this](kvx::slot_index candidate) { return pinned(candidate); }); });
      if (victim == kvx::no_slot) {
        ++counts.refused;
        return;
      }
      here_.drop(victim);
      ++counts.evicted;
    }
    slot = here_.put(block);
    ++counts.inserted;
    const kvx::eviction_entry entry{slot, key_of(block)};
    timed([&] { policy_.insert(std::span(&entry, 1)); });
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
};

/// Replays a trace through one tier: each request hits its longest prefix of present blocks, then all are accessed.
/// Shape   calls: null, or where to put the time of every call of the policy
template <class Tier>
outcome replay(const trace& work, Tier tier, call_times* calls = nullptr) {
  using clock = std::chrono::steady_clock;
  outcome counts;
  std::chrono::nanoseconds spent{0};
  for (std::size_t at = 0; at < work.size(); ++at) {
    const request now = work[at];
    std::size_t prefix = 0;
    while (prefix < now.blocks.size() && tier.holds(now.blocks[prefix])) ++prefix;
    counts.hit_blocks += prefix;
    counts.hit_tokens += work.tokens_in(now, prefix);
    if (calls != nullptr) {
      tier.access(now, prefix, counts, [calls](auto&& call) {
        calls->start();
        call();
        calls->stop();
      });
    } else {
      const auto began = clock::now();
      tier.access(now, prefix, counts, [](auto&& call) { call(); });
      spent += clock::now() - began;
    }
  }
  counts.nanoseconds = static_cast<std::uint64_t>(spent.count());
  return counts;
}

}  // namespace kvx_replay
