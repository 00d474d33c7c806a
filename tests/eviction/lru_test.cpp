// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/lru.hpp>

#include <algorithm>
#include <list>
#include <random>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::lru);
TEST_CASE_TEMPLATE_INVOKE(chained_conformance, kvx::lru);

TEST_CASE("lru: exactly the order of the last use") {
  constexpr std::size_t slots = 50;
  std::mt19937 random(1);
  kvx_test::checked_policy<kvx::lru> policy(slots);
  std::list<kvx::slot_index> expected;  // oldest first
  for (int step = 0; step < 20'000; ++step) {
    const auto slot = static_cast<kvx::slot_index>(random() % slots);
    const unsigned action = random() % 16;
    if (action == 0) {
      CHECK(policy.evict() == (expected.empty() ? kvx::no_slot : expected.front()));
      if (!expected.empty()) expected.pop_front();
    } else if (!policy.held(slot)) {
      const auto front = std::find(expected.begin(), expected.end(), static_cast<kvx::slot_index>(random() % slots));
      if (front == expected.end())
        policy.insert({slot});
      else
        policy.insert_behind({slot}, *front);
      expected.insert(front, slot);
    } else if (action == 1) {
      policy.erase(slot);
      expected.remove(slot);
    } else {
      policy.touch({slot});
      expected.remove(slot);
      expected.push_back(slot);
    }
  }
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>(expected.begin(), expected.end()));
}

TEST_CASE("lru: a touched batch is newer than what was not touched, its prefix newest") {
  kvx_test::checked_policy<kvx::lru> policy(6);
  policy.insert({0, 1, 2, 3, 4, 5});
  policy.touch({2, 0});
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{1, 3, 4, 5, 2, 0});
}

TEST_CASE("lru: pinned slots that were passed over go first once they are free, unless they were used") {
  kvx_test::checked_policy<kvx::lru> policy(6);
  policy.insert({0, 1, 2, 3, 4, 5});
  for (const kvx::slot_index slot : {0U, 1U, 2U}) policy.pin(slot, true);
  CHECK(policy.evict() == 3);
  policy.touch({1});
  policy.pin_all(false);
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{0, 2, 4, 5, 1});
}
