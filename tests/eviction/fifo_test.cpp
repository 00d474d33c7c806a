// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/lru.hpp>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::fifo);
TEST_CASE_TEMPLATE_INVOKE(chained_conformance, kvx::fifo);

TEST_CASE("fifo: the order of insertion, whatever is touched or erased") {
  kvx_test::checked_policy<kvx::fifo> policy(5);
  policy.insert({3, 1});
  policy.insert({4, 0, 2});
  policy.touch({3, 1, 4});
  policy.erase(4);
  CHECK(policy.evict() == 3);
  policy.insert({3});
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{1, 0, 2, 3});
}

TEST_CASE("fifo: pinned slots that were passed over go first once they are free, in order") {
  kvx_test::checked_policy<kvx::fifo> policy(6);
  policy.insert({0, 1, 2, 3, 4, 5});
  policy.pin(0, true);
  policy.pin(1, true);
  CHECK(policy.evict() == 2);
  policy.touch({0, 1});
  policy.pin_all(false);
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{0, 1, 3, 4, 5});
}

TEST_CASE_TEMPLATE("slots that were all pinned for a while go in their order afterwards", Policy, kvx::fifo, kvx::lru) {
  constexpr kvx::slot_index slots = 50;
  Policy policy(slots);
  for (kvx::slot_index slot = 0; slot < slots; ++slot) {
    const kvx::eviction_entry entry{slot, slot};
    policy.insert({&entry, 1});
  }
  for (int tries = 0; tries < 7; ++tries) CHECK(policy.evict([](kvx::slot_index) { return true; }) == kvx::no_slot);
  for (kvx::slot_index slot = 0; slot < slots; ++slot)
    CHECK(policy.evict([](kvx::slot_index) { return false; }) == slot);
}
