// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/types.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "allocations.hpp"

// What every eviction policy promises, whatever its order. A new policy is tested by three lines:
//
//   #include "conformance.hpp"
//   #include <kvx/eviction/my_policy.hpp>
//   TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::my_policy);
//
// One with an order that a block can be put into, `chained_eviction`, has a fourth:
//
//   TEST_CASE_TEMPLATE_INVOKE(chained_conformance, kvx::my_policy);

namespace kvx_test {

/// A policy and the plainest account of what it must hold; every answer is checked against the account.
template <kvx::eviction_policy Policy>
class checked_policy {
 public:
  explicit checked_policy(std::size_t slots) : policy_(slots), held_(slots, false), pinned_(slots, false) {}

  /// Slots in batch order, deepest first; keys are made up, or numbered from the caller's first.
  void insert(const std::vector<kvx::slot_index>& slots, std::uint64_t first_key = 0, std::uint64_t key_step = 1) {
    std::vector<kvx::eviction_entry> entries;
    for (const kvx::slot_index slot : slots) {
      REQUIRE_FALSE(held_[slot]);
      held_[slot] = true;
      ++size_;
      entries.push_back({slot, first_key == 0 ? next_key_++ : std::exchange(first_key, first_key + key_step)});
    }
    policy_.insert(entries);
    check_size();
  }
  /// Slots in the order of the prompt, each behind the one before it, the first behind `front`.
  void insert_behind(const std::vector<kvx::slot_index>& slots, kvx::slot_index front, std::uint64_t first_key = 0) {
    static_assert(noexcept(policy_.insert_behind(kvx::eviction_entry{}, kvx::slot_index{})));
    for (const kvx::slot_index slot : slots) {
      REQUIRE(held_[front]);
      REQUIRE_FALSE(held_[slot]);
      held_[slot] = true;
      ++size_;
      policy_.insert_behind({slot, first_key == 0 ? next_key_++ : first_key++}, front);
      front = slot;
      check_size();
    }
  }
  void touch(const std::vector<kvx::slot_index>& slots) {
    policy_.touch(slots);
    check_size();
  }
  void erase(kvx::slot_index slot) {
    REQUIRE(held_[slot]);
    policy_.erase(slot);
    held_[slot] = false;
    --size_;
    check_size();
  }
  kvx::slot_index evict() {
    const std::size_t asked_before = asked_;
    const kvx::slot_index slot = policy_.evict([this](kvx::slot_index asked) {
      REQUIRE(asked < held_.size());
      CHECK(held_[asked]);
      ++asked_;
      return bool{pinned_[asked]};
    });
    most_asked_ = std::max(most_asked_, asked_ - asked_before);
    if (slot == kvx::no_slot) {
      for (std::size_t i = 0; i < held_.size(); ++i) CHECK_FALSE((held_[i] && !pinned_[i]));
    } else {
      REQUIRE(slot < held_.size());
      REQUIRE(held_[slot]);
      REQUIRE_FALSE(pinned_[slot]);
      held_[slot] = false;
      --size_;
    }
    check_size();
    return slot;
  }
  void pin(kvx::slot_index slot, bool pinned) { pinned_[slot] = pinned; }
  void pin_all(bool pinned) { std::fill(pinned_.begin(), pinned_.end(), pinned); }

  [[nodiscard]] bool held(kvx::slot_index slot) const { return held_[slot]; }
  [[nodiscard]] bool pinned(kvx::slot_index slot) const { return pinned_[slot]; }
  [[nodiscard]] std::size_t size() const { return size_; }
  /// How often `pinned` was asked, in all and by the most curious evict().
  [[nodiscard]] std::size_t asked() const { return asked_; }
  [[nodiscard]] std::size_t most_asked() const { return most_asked_; }

  std::vector<kvx::slot_index> evict_all() {
    std::vector<kvx::slot_index> out;
    for (kvx::slot_index slot = evict(); slot != kvx::no_slot; slot = evict()) out.push_back(slot);
    return out;
  }

 private:
  void check_size() { REQUIRE(policy_.size() == size_); }

  Policy policy_;
  std::vector<bool> held_;
  std::vector<bool> pinned_;
  std::size_t size_ = 0;
  std::size_t asked_ = 0;
  std::size_t most_asked_ = 0;
  std::uint64_t next_key_ = 1;
};

inline std::vector<kvx::slot_index> slots_from(kvx::slot_index first, std::size_t count) {
  std::vector<kvx::slot_index> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = first + static_cast<kvx::slot_index>(i);
  return out;
}

/// Random inserts, touches, erasures, pins and evictions from a seed; returns every slot that was evicted.
template <kvx::eviction_policy Policy>
std::vector<kvx::slot_index> run_randomly(std::uint32_t seed, std::size_t slots, std::size_t steps) {
  std::mt19937 random(seed);
  checked_policy<Policy> policy(slots);
  std::vector<kvx::slot_index> evicted;
  const auto any = [&] { return static_cast<kvx::slot_index>(random() % slots); };
  for (std::size_t step = 0; step < steps; ++step) {
    switch (random() % 8) {
      case 0:
      case 1: {
        std::set<kvx::slot_index> batch;
        for (std::size_t i = random() % 5; i-- > 0;) {
          if (const kvx::slot_index slot = any(); !policy.held(slot)) batch.insert(slot);
        }
        // Few keys, so that some come back while the policy still remembers them.
        policy.insert({batch.begin(), batch.end()}, 1 + random() % (2 * slots));
        break;
      }
      case 2:
      case 3: {
        std::vector<kvx::slot_index> batch;
        for (std::size_t i = random() % 5; i-- > 0;) {
          if (const kvx::slot_index slot = any(); policy.held(slot)) batch.push_back(slot);
        }
        policy.touch(batch);
        break;
      }
      case 4:
        if (const kvx::slot_index slot = any(); policy.held(slot)) policy.erase(slot);
        break;
      case 5: {
        const kvx::slot_index slot = any();
        policy.pin(slot, random() % 3 != 0);
        break;
      }
      default:
        evicted.push_back(policy.evict());
        break;
    }
    if (random() % 200 == 0) policy.pin_all(random() % 2 == 0);
  }
  policy.pin_all(false);
  const std::size_t left = policy.size();
  const std::vector<kvx::slot_index> rest = policy.evict_all();
  CHECK(rest.size() == left);
  CHECK(policy.size() == 0);
  evicted.insert(evicted.end(), rest.begin(), rest.end());
  return evicted;
}

/// Two policies of one type, in step: to one a prompt comes in one batch, to the other in parts, head first.
template <kvx::chained_eviction Policy>
class whole_and_in_parts {
 public:
  explicit whole_and_in_parts(std::size_t slots) : slots_(slots), whole_(slots), parts_(slots) {}

  /// Random prompts, touches, erasures, pins and evictions, of which every one must be the same.
  void run(std::uint32_t seed) {
    std::mt19937 random(seed);
    for (std::size_t step = 0; step < 8 * slots_; ++step) {
      const auto any = static_cast<kvx::slot_index>(random() % slots_);
      switch (random() % 8) {
        case 0:
        case 1:
          add(1 + random() % (slots_ / 4 + 1), random);
          break;
        case 2:
        case 3: {
          if (prompts_.empty()) break;
          std::vector<kvx::slot_index> used = prompts_[random() % prompts_.size()];
          std::reverse(used.begin(), used.end());
          std::erase_if(used, [this](kvx::slot_index slot) { return !whole_.held(slot); });
          whole_.touch(used);
          parts_.touch(used);
          break;
        }
        case 4:
          if (!whole_.held(any)) break;
          whole_.erase(any);
          parts_.erase(any);
          break;
        case 5: {
          const bool pinned = random() % 3 != 0;
          whole_.pin(any, pinned);
          parts_.pin(any, pinned);
          break;
        }
        default:
          (void)evict();
          break;
      }
      if (random() % 100 == 0) unpin();
    }
    unpin();
    CHECK(whole_.evict_all() == parts_.evict_all());
  }

 private:
  kvx::slot_index evict() {
    const kvx::slot_index slot = whole_.evict();
    REQUIRE(parts_.evict() == slot);
    return slot;
  }
  void unpin() {
    whole_.pin_all(false);
    parts_.pin_all(false);
  }
  void add(std::size_t blocks, std::mt19937& random) {
    while (whole_.size() + blocks > slots_)
      if (evict() == kvx::no_slot) return;
    std::vector<kvx::slot_index> prompt;  // front first
    for (kvx::slot_index slot = 0; prompt.size() < blocks; ++slot)
      if (!whole_.held(slot)) prompt.push_back(slot);
    std::shuffle(prompt.begin(), prompt.end(), random);
    // One key for all of them, since what policies learn from keys depends on their order.
    const std::uint64_t key = prompts_.size() + 1;
    whole_.insert({prompt.rbegin(), prompt.rend()}, key, 0);
    const std::size_t first_part = 1 + random() % blocks;
    parts_.insert({prompt.rend() - static_cast<std::ptrdiff_t>(first_part), prompt.rend()}, key, 0);
    for (std::size_t i = first_part; i < blocks; ++i) parts_.insert_behind({prompt[i]}, prompt[i - 1], key);
    prompts_.push_back(std::move(prompt));
  }

  std::size_t slots_;
  checked_policy<Policy> whole_;
  checked_policy<Policy> parts_;
  std::vector<std::vector<kvx::slot_index>> prompts_;
};

/// A slot's block stays while so many others come and go.
template <class Policy>
void require_outlives(checked_policy<Policy>& policy, kvx::slot_index kept, int newcomers) {
  for (int newcomer = 0; newcomer < newcomers; ++newcomer) {
    const kvx::slot_index slot = policy.evict();
    REQUIRE(slot != kept);
    policy.insert({slot});
  }
}

}  // namespace kvx_test

TEST_CASE_TEMPLATE_DEFINE("chained eviction policy", Policy, chained_conformance) {
  using namespace kvx_test;
  static_assert(kvx::chained_eviction<Policy>);

  SUBCASE("a prompt in parts is given up like one that came in one batch") {
    for (std::uint32_t seed = 0; seed < 60; ++seed) {
      CAPTURE(seed);
      whole_and_in_parts<Policy>(2 + 5 * (seed % 40)).run(seed);
    }
  }
  SUBCASE("a later part goes before the block that it continues, whatever others did meanwhile") {
    // Slots 0 to 9 are the first part, 10 to 19 the second; others have the rest.
    constexpr std::size_t slots = 80;
    std::size_t set_aside = 0;
    for (std::uint32_t seed = 0; seed < 100; ++seed) {
      CAPTURE(seed);
      std::mt19937 random(seed);
      checked_policy<Policy> policy(slots);
      const std::size_t older = random() % 60;
      policy.insert(slots_from(20, older));
      policy.insert({9, 8, 7, 6, 5, 4, 3, 2, 1, 0});
      policy.insert(slots_from(20 + static_cast<kvx::slot_index>(older), 60 - older));
      for (kvx::slot_index slot = 0; slot < 10; ++slot) policy.pin(slot, true);
      const std::size_t asked = policy.asked();
      for (std::size_t step = random() % 100; step-- > 0;) {
        if (random() % 2 == 0) {
          const kvx::slot_index slot = policy.evict();
          REQUIRE(slot != kvx::no_slot);
          policy.insert({slot});
        } else {
          const auto slot = static_cast<kvx::slot_index>(20 + random() % 60);
          if (policy.held(slot)) policy.touch({slot});
        }
      }
      if (policy.asked() > asked) ++set_aside;
      policy.insert_behind(slots_from(10, 10), 9);
      policy.pin_all(false);
      std::vector<kvx::slot_index> order = policy.evict_all();
      CHECK(order.size() == slots);
      std::erase_if(order, [](kvx::slot_index slot) { return slot < 9 || slot >= 20; });
      CHECK(order == std::vector<kvx::slot_index>{19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9});
    }
    CHECK(set_aside > 0);
  }
  SUBCASE("a block behind one that was used, set aside or erased from behind is held like any other") {
    checked_policy<Policy> policy(8);
    policy.insert({1, 0});
    policy.touch({1, 0});
    policy.insert_behind({2}, 1);
    policy.pin_all(true);
    CHECK(policy.evict() == kvx::no_slot);
    policy.insert_behind({3}, 2);
    policy.touch({3, 2});
    policy.insert_behind({4, 5}, 3);
    policy.erase(4);
    policy.erase(2);
    policy.pin_all(false);
    policy.insert_behind({6}, 5);
    std::vector<kvx::slot_index> all = policy.evict_all();
    std::sort(all.begin(), all.end());
    CHECK(all == std::vector<kvx::slot_index>{0, 1, 3, 5, 6});
  }
  SUBCASE("nothing is allocated for a later part") {
    constexpr std::size_t slots = 300;
    Policy policy(slots);
    const kvx::eviction_entry first{0, 1};
    policy.insert(std::span(&first, 1));
    const auto pinned = [](kvx::slot_index slot) { return slot % 3 == 0; };
    if (!counts_allocations) MESSAGE("SKIPPED: allocations are not counted under this sanitizer");
    const std::size_t before = allocations.load();
    for (kvx::slot_index slot = 1; slot < slots; ++slot) policy.insert_behind({slot, 1U + slot}, slot - 1);
    for (std::uint64_t key = 1; key < 5 * slots; ++key) {
      const kvx::slot_index slot = policy.evict(pinned);
      policy.insert_behind({slot, key % (2 * slots)}, slot - slot % 3);
    }
    const std::size_t after = allocations.load();
    CHECK(after == before);
    CHECK(policy.size() == slots);
  }
}

TEST_CASE_TEMPLATE_DEFINE("eviction policy", Policy, eviction_conformance) {
  using namespace kvx_test;

  SUBCASE("an empty policy evicts nothing") {
    for (const std::size_t slots : {0U, 1U, 8U}) {
      checked_policy<Policy> policy(slots);
      CHECK(policy.evict() == kvx::no_slot);
      policy.insert({});
      policy.touch({});
    }
  }
  SUBCASE("every slot comes back once, and can be used again") {
    for (const std::size_t slots : {1U, 2U, 3U, 100U}) {
      checked_policy<Policy> policy(slots);
      for (int round = 0; round < 5; ++round) {
        policy.insert(slots_from(0, slots));
        std::vector<kvx::slot_index> evicted = policy.evict_all();
        std::sort(evicted.begin(), evicted.end());
        CHECK(evicted == slots_from(0, slots));
      }
    }
  }
  SUBCASE("a pinned slot stays, and goes once it is free") {
    checked_policy<Policy> policy(64);
    policy.insert(slots_from(0, 64));
    for (kvx::slot_index slot = 0; slot < 64; slot += 2) policy.pin(slot, true);
    CHECK(policy.evict_all().size() == 32);
    CHECK(policy.evict() == kvx::no_slot);
    policy.pin(10, false);
    CHECK(policy.evict() == 10);
    policy.pin_all(false);
    CHECK(policy.evict_all().size() == 31);
  }
  SUBCASE("everything pinned: it terminates, and forgets nothing") {
    checked_policy<Policy> policy(1000);
    policy.insert(slots_from(0, 1000));
    for (int uses = 0; uses < 5; ++uses) policy.touch(slots_from(0, 1000));
    policy.pin_all(true);
    for (int tries = 0; tries < 10; ++tries) CHECK(policy.evict() == kvx::no_slot);
    CHECK(policy.most_asked() <= 16 * 1000);
    policy.touch(slots_from(500, 100));
    policy.pin_all(false);
    CHECK(policy.evict_all().size() == 1000);
  }
  SUBCASE("pins do not make eviction expensive") {
    constexpr std::size_t slots = 20'000;
    checked_policy<Policy> policy(slots);
    policy.insert(slots_from(0, slots));
    for (kvx::slot_index slot = 0; slot < slots / 2; ++slot) policy.pin(slot, true);
    for (std::size_t i = 0; i < slots; ++i) {
      const kvx::slot_index slot = policy.evict();
      REQUIRE(slot != kvx::no_slot);
      policy.insert({slot});
    }
    CHECK(policy.asked() <= 16 * slots);
  }
  SUBCASE("an erased slot is not evicted, pinned or not, looked at before or not") {
    checked_policy<Policy> policy(16);
    policy.insert(slots_from(0, 16));
    policy.pin(0, true);
    policy.pin(15, true);
    CHECK(policy.evict() != kvx::no_slot);
    policy.erase(0);
    policy.erase(15);
    policy.pin_all(false);
    const std::vector<kvx::slot_index> rest = policy.evict_all();
    CHECK(rest.size() == 13);
    CHECK(std::count(rest.begin(), rest.end(), 0U) == 0);
    CHECK(std::count(rest.begin(), rest.end(), 15U) == 0);
  }
  SUBCASE("batches are tail first: a prefix outlives its suffix") {
    checked_policy<Policy> policy(32);
    policy.insert(slots_from(0, 32));
    CHECK(policy.evict_all() == slots_from(0, 32));
    policy.insert(slots_from(0, 32));
    policy.touch(slots_from(0, 32));
    CHECK(policy.evict_all() == slots_from(0, 32));
  }
  SUBCASE("with parents pinned, a chain that grew in steps is given up from its end") {
    // Block i is in slot i; its parent is i - 1. Later blocks are inserted later, so that age alone is wrong.
    constexpr std::size_t blocks = 60;
    checked_policy<Policy> policy(blocks);
    for (kvx::slot_index first = 0; first < blocks; first += 10) {
      std::vector<kvx::slot_index> batch = slots_from(first, 10);
      std::reverse(batch.begin(), batch.end());
      policy.insert(batch);
      if (first % 20 == 0) policy.touch(batch);
    }
    for (kvx::slot_index slot = 0; slot + 1 < blocks; ++slot) policy.pin(slot, true);
    for (kvx::slot_index last = blocks; last-- > 0;) {
      CHECK(policy.evict() == last);
      if (last != 0) policy.pin(last - 1, false);
    }
  }
  SUBCASE("random operations against the account") {
    for (std::uint32_t seed = 0; seed < 60; ++seed) {
      CAPTURE(seed);
      (void)run_randomly<Policy>(seed, 1 + seed % 40, 3000);
    }
  }
  SUBCASE("the same operations give the same evictions") {
    for (std::uint32_t seed = 100; seed < 110; ++seed) {
      CHECK(run_randomly<Policy>(seed, 30, 2000) == run_randomly<Policy>(seed, 30, 2000));
    }
  }
  SUBCASE("nothing is allocated after the constructor") {
    constexpr std::size_t slots = 300;
    std::mt19937 random(5);
    std::vector<kvx::eviction_entry> entries;
    for (kvx::slot_index slot = 0; slot < slots; ++slot) entries.push_back({slot, 1'000U + slot});
    const std::vector<kvx::slot_index> all = slots_from(0, slots);
    Policy policy(slots);
    if (!counts_allocations) MESSAGE("SKIPPED: allocations are not counted under this sanitizer");
    const std::size_t before = allocations.load();
    policy.insert(entries);
    for (std::uint64_t step = 0; step < 5 * slots; ++step) {
      policy.touch(std::span(all).subspan(random() % slots, 1));
      const kvx::slot_index slot = policy.evict([step](kvx::slot_index asked) { return asked % 3 == step % 3; });
      if (slot == kvx::no_slot) continue;
      // Some keys come back, some soon and some after long.
      const kvx::eviction_entry entry{slot, 1'000U + random() % (4 * slots), static_cast<std::uint32_t>(step)};
      policy.insert(std::span(&entry, 1));
    }
    policy.erase(7);
    const std::size_t after = allocations.load();
    CHECK(after == before);
  }
  SUBCASE("a moved policy goes on where it was") {
    Policy from(4);
    const std::vector<kvx::eviction_entry> entries{{0, 1}, {1, 2}, {2, 3}};
    from.insert(entries);
    Policy to = std::move(from);
    const auto free = [](kvx::slot_index) { return false; };
    CHECK(to.size() == 3);
    CHECK(to.evict(free) == 0);
    CHECK(to.evict(free) == 1);
    CHECK(to.evict(free) == 2);
    CHECK(to.evict(free) == kvx::no_slot);
  }
}
