// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/w_tinylfu.hpp>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::w_tinylfu);
TEST_CASE_TEMPLATE_INVOKE(chained_conformance, kvx::w_tinylfu);

using kvx_test::slots_from;

namespace {

struct keyed_policy {
  explicit keyed_policy(std::size_t slots) : policy(slots), key_in(slots) {}
  void put(kvx::slot_index slot, std::uint64_t key) {
    policy.insert({slot}, key);
    key_in[slot] = key;
  }
  kvx_test::checked_policy<kvx::w_tinylfu> policy;
  std::vector<std::uint64_t> key_in;
};

}  // namespace

TEST_CASE("w_tinylfu: a newcomer that was seen less often than the victim is given up itself") {
  constexpr std::size_t slots = 100;
  keyed_policy cache(slots);
  for (kvx::slot_index slot = 0; slot < slots; ++slot) cache.put(slot, 1 + slot);
  for (int uses = 0; uses < 8; ++uses) cache.policy.touch(slots_from(0, slots));
  // The last one is in the window, like the newcomers that follow it: all others stay.
  std::size_t kept = 0;
  std::uint64_t fresh = 1000;
  for (int newcomer = 0; newcomer < 200; ++newcomer) cache.put(cache.policy.evict(), fresh++);
  for (const std::uint64_t key : cache.key_in) kept += key <= slots ? 1U : 0U;
  CHECK(kept >= slots - 2);
}

TEST_CASE("w_tinylfu: a newcomer that was seen more often takes the victim's place") {
  constexpr std::size_t slots = 100;
  keyed_policy cache(slots);
  for (kvx::slot_index slot = 0; slot < slots; ++slot) cache.put(slot, 1 + slot);
  constexpr std::uint64_t wanted = 5000;
  std::uint64_t fresh = 10'000;
  bool stayed = false;
  // Offered every ten newcomers: it leaves the window each time, until it has been seen more often than the rest.
  for (int round = 0; round < 4 && !stayed; ++round) {
    cache.put(cache.policy.evict(), wanted);
    for (int newcomer = 0; newcomer < 10; ++newcomer) cache.put(cache.policy.evict(), fresh++);
    stayed = std::count(cache.key_in.begin(), cache.key_in.end(), wanted) == 1;
  }
  CHECK(stayed);
}

TEST_CASE("w_tinylfu: old fame fades") {
  constexpr std::size_t slots = 64;
  keyed_policy cache(slots);
  for (kvx::slot_index slot = 0; slot < slots; ++slot) cache.put(slot, 1 + slot);
  for (int uses = 0; uses < 15; ++uses) cache.policy.touch(slots_from(0, slots));
  // Another set of blocks is asked for from now on, each four times a round.
  for (int round = 0; round < 40; ++round) {
    for (std::uint64_t key = 1001; key <= 1032; ++key) {
      const auto at = std::find(cache.key_in.begin(), cache.key_in.end(), key);
      if (at != cache.key_in.end())
        cache.policy.touch({static_cast<kvx::slot_index>(at - cache.key_in.begin())});
      else
        cache.put(cache.policy.evict(), key);
    }
  }
  std::size_t arrived = 0;
  for (const std::uint64_t key : cache.key_in) arrived += key > 1000 ? 1U : 0U;
  CHECK(arrived >= 30);
}

TEST_CASE("w_tinylfu: what is used in the main part is protected from what is not") {
  constexpr std::size_t slots = 100;
  keyed_policy cache(slots);
  for (kvx::slot_index slot = 0; slot < slots; ++slot) cache.put(slot, 1 + slot);
  cache.policy.touch(slots_from(0, 40));
  std::uint64_t fresh = 1000;
  for (int newcomer = 0; newcomer < 1000; ++newcomer) {
    const kvx::slot_index slot = cache.policy.evict();
    REQUIRE(slot >= 40);
    cache.put(slot, fresh++);
  }
}
