// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/gdsf.hpp>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::gdsf);

#include <array>

namespace {

const auto free_to_go = [](kvx::slot_index) { return false; };

void put(kvx::gdsf& policy, kvx::slot_index slot, std::uint32_t past_tokens) {
  const kvx::eviction_entry entry{slot, slot, past_tokens};
  policy.insert(std::span(&entry, 1));
}
void use(kvx::gdsf& policy, kvx::slot_index slot) { policy.touch(std::span(&slot, 1)); }

}  // namespace

TEST_CASE("gdsf: of blocks used alike, the one that is cheaper to compute again goes first") {
  kvx::gdsf policy(4, 1000);
  put(policy, 0, 3000);  // four times the first block's cost
  put(policy, 1, 0);
  put(policy, 2, 1000);
  put(policy, 3, 500);
  for (const kvx::slot_index expected : {1U, 3U, 2U, 0U}) CHECK(policy.evict(free_to_go) == expected);
}

TEST_CASE("gdsf: a block is worth what hangs on it") {
  kvx::gdsf policy(3, 1000);
  const std::vector<kvx::eviction_entry> prompt{{1, 1, 10'000}, {0, 0, 0}};
  policy.insert(prompt);
  put(policy, 2, 5000);
  for (const kvx::slot_index expected : {2U, 1U, 0U}) CHECK(policy.evict(free_to_go) == expected);
}

TEST_CASE("gdsf: uses weigh as much as cost") {
  kvx::gdsf policy(3, 1000);
  put(policy, 0, 0);
  put(policy, 1, 2000);
  put(policy, 2, 0);
  for (int uses = 0; uses < 3; ++uses) use(policy, 0);  // 4 uses x 1 against 1 use x 3
  for (const kvx::slot_index expected : {2U, 1U, 0U}) CHECK(policy.evict(free_to_go) == expected);
}

TEST_CASE("gdsf: what is not used any more ages, however dear it was") {
  kvx::gdsf policy(2, 1000);
  put(policy, 0, 9000);  // worth ten newcomers
  for (int newcomer = 0; newcomer < 10; ++newcomer) {
    put(policy, 1, 0);
    CHECK(policy.evict(free_to_go) == (newcomer < 9 ? 1U : 0U));
  }
  CHECK(policy.size() == 1);
}

TEST_CASE("gdsf: a use lifts a slot to the present age") {
  kvx::gdsf policy(3, 1000);
  put(policy, 0, 0);
  put(policy, 1, 9000);
  CHECK(policy.evict(free_to_go) == 0);  // the age is that of one use of a first block now
  put(policy, 0, 0);
  use(policy, 0);
  put(policy, 2, 0);
  CHECK(policy.evict(free_to_go) == 2);
  CHECK(policy.evict(free_to_go) == 0);
  CHECK(policy.evict(free_to_go) == 1);
}

TEST_CASE("gdsf: values beyond the wheel are as good as its end, and the wheel turns for good") {
  kvx::gdsf policy(8, 1);
  std::uint32_t next = 1;
  for (kvx::slot_index slot = 0; slot < 8; ++slot) put(policy, slot, 0xFFFF'FFFFU);
  for (int turn = 0; turn < 20'000; ++turn) {
    next = next * 1'664'525U + 1'013'904'223U;
    const kvx::slot_index slot = policy.evict(free_to_go);
    REQUIRE(slot < 8);
    put(policy, slot, (next >> 8U) % 600);
    use(policy, (next >> 20U) % 8);
  }
  std::array<bool, 8> seen{};
  for (int left = 0; left < 8; ++left) {
    const kvx::slot_index slot = policy.evict(free_to_go);
    REQUIRE(slot < 8);
    CHECK_FALSE(seen[slot]);
    seen[slot] = true;
  }
  CHECK(policy.evict(free_to_go) == kvx::no_slot);
}
