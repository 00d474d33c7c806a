// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/arc.hpp>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::arc);
TEST_CASE_TEMPLATE_INVOKE(chained_conformance, kvx::arc);

using kvx_test::slots_from;

TEST_CASE("arc: what was used twice outlives a scan of newcomers") {
  constexpr std::size_t slots = 100;
  kvx_test::checked_policy<kvx::arc> policy(slots);
  policy.insert(slots_from(0, slots));
  policy.touch(slots_from(0, 40));
  for (int newcomer = 0; newcomer < 1000; ++newcomer) {
    const kvx::slot_index slot = policy.evict();
    REQUIRE(slot >= 40);
    policy.insert({slot});
  }
}

TEST_CASE("arc: what comes back after it was given up counts as used twice") {
  constexpr std::size_t slots = 100;
  kvx_test::checked_policy<kvx::arc> policy(slots);
  policy.insert(slots_from(0, slots), 1000);  // slot s holds key 1000 + s
  policy.touch(slots_from(90, 10));           // so that something may be remembered of the others
  const kvx::slot_index first = policy.evict();
  REQUIRE(first == 0);
  policy.insert({first}, 1000);
  kvx_test::require_outlives(policy, first, 300);
}

TEST_CASE("arc: what comes back behind a newcomer counts as used twice all the same") {
  constexpr std::size_t slots = 100;
  kvx_test::checked_policy<kvx::arc> policy(slots);
  policy.insert(slots_from(0, slots), 1000);  // slot s holds key 1000 + s
  policy.touch(slots_from(90, 10));           // so that something may be remembered of the others
  REQUIRE(policy.evict() == 0);
  policy.insert_behind({0}, 1, 1000);
  kvx_test::require_outlives(policy, 0, 300);
}

TEST_CASE("arc: keys that come back from one half enlarge it at the other's cost") {
  kvx_test::checked_policy<kvx::arc> policy(10);
  policy.insert(slots_from(0, 10), 1000);  // slot s holds key 1000 + s
  policy.touch(slots_from(5, 5));
  // Those used once are given up first, and come back: each time they deserve one slot more.
  for (kvx::slot_index slot = 0; slot < 3; ++slot) {
    REQUIRE(policy.evict() == slot);
    policy.insert({slot}, 1000 + slot);
  }
  // Two are left of them, and three are deserved: now it is the turn of what was used more often.
  REQUIRE(policy.evict() == 5);
  // That one comes back too, which takes from what the others deserve: two now, which is what they have.
  policy.insert({5}, 1005);
  REQUIRE(policy.evict() == 6);
  policy.insert({6}, 1006);
  CHECK(policy.evict() == 3);
}

TEST_CASE("arc: the half whose turn it is gives up in the order of the last use") {
  kvx_test::checked_policy<kvx::arc> policy(6);
  policy.insert({0, 1, 2, 3, 4, 5});
  policy.touch({4, 1});
  policy.touch({4});
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{0, 2, 3, 5, 1, 4});
}

TEST_CASE("arc: a pinned slot that was passed over goes first once it is free, unless it was used") {
  kvx_test::checked_policy<kvx::arc> policy(6);
  policy.insert({0, 1, 2, 3, 4, 5});
  for (const kvx::slot_index slot : {0U, 1U}) policy.pin(slot, true);
  CHECK(policy.evict() == 2);
  policy.touch({1});
  policy.pin_all(false);
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{0, 3, 4, 5, 1});
}
