// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/clock.hpp>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::clock);
TEST_CASE_TEMPLATE_INVOKE(chained_conformance, kvx::clock);

TEST_CASE("clock: one use buys one round, however often it was used") {
  kvx_test::checked_policy<kvx::clock> policy(4);
  policy.insert({0, 1, 2, 3});
  policy.touch({0, 0, 0});
  policy.touch({0, 1});
  CHECK(policy.evict() == 2);
  policy.insert({2});
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{3, 0, 1, 2});
}

TEST_CASE("clock: a use moves nothing") {
  kvx_test::checked_policy<kvx::clock> policy(4);
  policy.insert({0, 1, 2, 3});
  policy.touch({2});
  policy.touch({0});
  CHECK(policy.evict() == 1);
  CHECK(policy.evict() == 3);
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{0, 2});
}

TEST_CASE("clock: pinned slots that were passed over go first once they are free, unless they were used") {
  kvx_test::checked_policy<kvx::clock> policy(6);
  policy.insert({0, 1, 2, 3, 4, 5});
  for (const kvx::slot_index slot : {0U, 1U, 2U}) policy.pin(slot, true);
  CHECK(policy.evict() == 3);
  policy.touch({1});
  policy.pin_all(false);
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{0, 2, 4, 5, 1});
}
