// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/s3fifo.hpp>

#include <algorithm>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::s3fifo, kvx::s3fifo_share<10>);
TEST_CASE_TEMPLATE_INVOKE(chained_conformance, kvx::s3fifo, kvx::s3fifo_share<10>);

using kvx_test::slots_from;

TEST_CASE("s3fifo: one use in the small queue outlives a scan of newcomers") {
  constexpr std::size_t slots = 100;
  kvx_test::checked_policy<kvx::s3fifo> policy(slots);
  policy.insert(slots_from(0, slots));
  policy.touch(slots_from(0, 40));
  std::vector<bool> evicted(slots, false);
  for (int newcomer = 0; newcomer < 1000; ++newcomer) {
    const kvx::slot_index slot = policy.evict();
    REQUIRE(slot >= 40);
    evicted[slot] = true;
    policy.insert({slot});
  }
  CHECK(std::count(evicted.begin(), evicted.end(), true) == 60);
}

TEST_CASE("s3fifo: what comes back soon after it was given up enters the main queue") {
  constexpr std::size_t slots = 100;
  kvx_test::checked_policy<kvx::s3fifo> policy(slots);
  policy.insert(slots_from(0, slots), 1000);  // slot s holds key 1000 + s
  const kvx::slot_index first = policy.evict();
  REQUIRE(first == 0);
  policy.insert({first}, 1000);
  kvx_test::require_outlives(policy, first, 300);
}

TEST_CASE("s3fifo: what comes back behind a newcomer enters the main queue all the same") {
  constexpr std::size_t slots = 100;
  kvx_test::checked_policy<kvx::s3fifo> policy(slots);
  policy.insert(slots_from(0, slots), 1000);  // slot s holds key 1000 + s
  REQUIRE(policy.evict() == 0);
  policy.insert_behind({0}, 1, 1000);
  kvx_test::require_outlives(policy, 0, 300);
}

TEST_CASE("s3fifo: what comes back after more newcomers than there are slots is a newcomer itself") {
  constexpr std::size_t slots = 1000;
  constexpr std::size_t returning = 50;
  constexpr std::uint64_t first_key = 1'000'000;
  kvx_test::checked_policy<kvx::s3fifo> policy(slots);
  policy.insert(slots_from(0, slots), first_key);  // slot s holds first_key + s
  for (kvx::slot_index slot = 0; slot < returning; ++slot) {
    REQUIRE(policy.evict() == slot);
    policy.insert({slot});
  }
  // Few enough that about every third key is still in the table: only its age tells.
  for (std::size_t newcomer = 0; newcomer < slots + slots / 10; ++newcomer) policy.insert({policy.evict()});
  std::vector<bool> back(slots, false);
  for (std::size_t i = 0; i < returning; ++i) {
    const kvx::slot_index slot = policy.evict();
    back[slot] = true;
    policy.insert({slot}, first_key + i);
  }
  for (std::size_t newcomer = 0; newcomer < slots; ++newcomer) {
    const kvx::slot_index slot = policy.evict();
    back[slot] = false;
    policy.insert({slot});
  }
  CHECK(std::count(back.begin(), back.end(), true) == 0);
}

TEST_CASE("s3fifo: in the main queue every use buys one more round") {
  kvx_test::checked_policy<kvx::s3fifo> policy(3);
  policy.insert({0, 1, 2});
  policy.touch({0, 1, 2});
  REQUIRE(policy.evict() == 0);  // the others are in the main queue now, without uses
  policy.touch({1, 1, 2});
  CHECK(policy.evict_all() == std::vector<kvx::slot_index>{2, 1});
}

TEST_CASE("s3fifo: the main queue gives up first while the small one is below its share") {
  struct expectation {
    unsigned percent;
    unsigned evicted_before;
  };
  for (const expectation& expected : {expectation{10, 9}, expectation{50, 5}, expectation{90, 1}}) {
    CAPTURE(expected.percent);
    kvx::s3fifo policy(10, expected.percent);
    for (kvx::slot_index slot = 0; slot < 10; ++slot) {
      const kvx::eviction_entry entry{slot, slot};
      policy.insert(std::span(&entry, 1));
    }
    const kvx::slot_index used = 0;
    policy.touch(std::span(&used, 1));
    unsigned before = 0;
    while (policy.evict([](kvx::slot_index) { return false; }) != used) ++before;
    CHECK(before == expected.evicted_before);
  }
}

TEST_CASE("s3fifo: the share of the small queue is a type's as well") {
  kvx::s3fifo_share<10> policy(10);
  for (kvx::slot_index slot = 0; slot < 10; ++slot) {
    const kvx::eviction_entry entry{slot, slot};
    policy.insert(std::span(&entry, 1));
  }
  const kvx::slot_index used = 0;
  policy.touch(std::span(&used, 1));
  unsigned before = 0;
  while (policy.evict([](kvx::slot_index) { return false; }) != used) ++before;
  CHECK(before == 9);
}
