// SPDX-License-Identifier: Apache-2.0
#include <kvx/eviction/fifo.hpp>
#include <kvx/tier/newcomer_queue.hpp>

#include <doctest/doctest.h>

#include <vector>

TEST_CASE("newcomers reach the policy deepest first, in whatever order their copies and writes ended") {
  kvx::newcomer_queue<kvx::fifo> queue(8);
  for (const kvx::slot_index block : {2U, 0U, 3U, 1U, 4U}) queue.add({block, 100U + block, 16 * block});
  queue.settle();
  for (const kvx::slot_index deepest : {4U, 3U, 2U, 1U, 0U})
    CHECK(queue.evict(0, [](kvx::slot_index) { return false; }) == deepest);
}

TEST_CASE("newcomers that were not settled go when nothing else is left, deepest first as well") {
  kvx::newcomer_queue<kvx::fifo> queue(8);
  queue.add({7, 1, 0});
  queue.settle();
  queue.add({1, 2, 16});
  queue.add({0, 3, 0});
  const auto free = [](kvx::slot_index) { return false; };
  CHECK(queue.evict(0, free) == 7);
  CHECK(queue.evict(0, free) == 1);
  CHECK(queue.evict(0, free) == 0);
  CHECK(queue.evict(0, free) == kvx::no_slot);
}
