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

namespace kvx_test {

/// A policy and the plainest account of what it must hold; every answer is checked against the account.
template <kvx::eviction_policy Policy>
class checked_policy {
 public:
  explicit checked_policy(std::size_t slots) : policy_(slots), held_(slots, false), pinned_(slots, false) {}

  /// Slots in batch order, deepest first; keys are made up, or given by the caller's numbering.
  void insert(const std::vector<kvx::slot_index>& slots, std::uint64_t first_key = 0) {
    std::vector<kvx::eviction_entry> entries;
    for (const kvx::slot_index slot : slots) {
      REQUIRE_FALSE(held_[slot]);
      held_[slot] = true;
      ++size_;
      entries.push_back({slot, first_key == 0 ? next_key_++ : first_key++});
    }
    policy_.insert(entries);
    check_size();
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

}  // namespace kvx_test

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
