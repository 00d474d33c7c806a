// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/sieve.hpp>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::sieve);
TEST_CASE_TEMPLATE_INVOKE(chained_conformance, kvx::sieve);

TEST_CASE("sieve: what was used stays where it is, and the hand goes on from there") {
  // The example of the paper: A to G, oldest first; A, B and G were used.
  enum : kvx::slot_index { a, b, c, d, e, f, g };
  kvx_test::checked_policy<kvx::sieve> policy(7);
  policy.insert({a, b, c, d, e, f, g});
  policy.touch({a, b, g});
  CHECK(policy.evict() == c);  // the hand passed A and B, and stands at D
  policy.insert({c});          // as H, the newest
  policy.touch({a, d});
  CHECK(policy.evict() == e);  // D was used
  policy.insert({e});          // as I
  policy.touch({b});
  CHECK(policy.evict() == f);
  // Past G, which was used; then H and I, newest; then round again from A: it and B were used, D was not.
  CHECK(policy.evict() == c);
  CHECK(policy.evict() == e);
  CHECK(policy.evict() == d);
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{g, a, b});
}

TEST_CASE("sieve: a scan of newcomers leaves what is used now and then") {
  constexpr std::size_t slots = 100;
  kvx_test::checked_policy<kvx::sieve> policy(slots);
  policy.insert(kvx_test::slots_from(0, slots));
  std::vector<kvx::slot_index> used = kvx_test::slots_from(0, 40);
  for (int newcomer = 0; newcomer < 3000; ++newcomer) {
    if (newcomer % 50 == 0) policy.touch(used);
    const kvx::slot_index slot = policy.evict();
    REQUIRE(slot >= 40);
    policy.insert({slot});
  }
}

TEST_CASE("sieve: a pinned slot that is used goes back behind the hand, and is spared for a round") {
  kvx_test::checked_policy<kvx::sieve> policy(6);
  policy.insert({0, 1, 2, 3, 4, 5});
  policy.pin(0, true);
  policy.pin(1, true);
  CHECK(policy.evict() == 2);
  policy.touch({1});
  policy.pin_all(false);
  CHECK(policy.evict() == 0);
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{3, 4, 5, 1});
}

TEST_CASE("sieve: the hand survives the slot it stands at") {
  kvx_test::checked_policy<kvx::sieve> policy(5);
  policy.insert({0, 1, 2, 3, 4});
  policy.touch({0});
  CHECK(policy.evict() == 1);
  policy.erase(2);
  CHECK(policy.evict() == 3);
  policy.erase(4);
  policy.insert({2});
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{0, 2});
}
