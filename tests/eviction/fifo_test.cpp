// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/fifo.hpp>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::fifo);

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
