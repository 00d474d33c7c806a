// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/policy_duel.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>

namespace {

/// Requests of a hundred blocks, all alike.
class duel {
 public:
  /// Shape   own, lru, held: blocks of each request that the own policy, LRU and the cache have
  void requests(std::size_t count, double own, double lru, double held) {
    for (; count != 0; --count) {
      double lead = 0;
      judge.request({own, lru, held}, 100, lead, false);
    }
  }
  kvx::detail::policy_duel judge;
};

}  // namespace

TEST_CASE("policy duel: a steady lead is taken up as soon as there is something to go by, where a loss can be borne") {
  duel one;
  one.requests(15, 110, 100, 100);
  CHECK(one.judge.follows_lru());
  one.requests(1, 110, 100, 100);
  CHECK_FALSE(one.judge.follows_lru());
}

TEST_CASE("policy duel: a lead that two requests decided is not taken up, one that three did is") {
  duel one;
  one.requests(40, 99, 100, 100);
  one.requests(2, 130, 100, 100);
  CHECK(one.judge.follows_lru());
  one.requests(1, 130, 100, 100);
  CHECK_FALSE(one.judge.follows_lru());
}

TEST_CASE("policy duel: where one request's hits could not be borne, twelve requests' worth of lead are asked for") {
  duel one;
  one.requests(590, 3, 1, 1);
  CHECK(one.judge.follows_lru());
  one.requests(400, 3, 1, 1);  // old leads fade
  CHECK_FALSE(one.judge.follows_lru());
}

TEST_CASE("policy duel: it is left when a request and a little were lost, however large the lead was") {
  duel one;
  one.requests(16, 200, 100, 100);
  REQUIRE_FALSE(one.judge.follows_lru());
  one.requests(1, 200, 100, 0);
  CHECK_FALSE(one.judge.follows_lru());
  one.requests(1, 200, 100, 0);
  CHECK(one.judge.follows_lru());
}

TEST_CASE("policy duel: who was ahead may lose some of it") {
  duel one;
  one.requests(16, 200, 100, 100);
  one.requests(100, 200, 100, 200);
  one.requests(5, 200, 100, 0);
  CHECK_FALSE(one.judge.follows_lru());
  one.requests(20, 200, 100, 0);
  CHECK(one.judge.follows_lru());
}
