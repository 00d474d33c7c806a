// SPDX-License-Identifier: Apache-2.0
#include <kvx/presets.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "patient_options.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::tokens_of;

TEST_CASE("a parent that was erased under its children takes no other block's place in the index") {
  kvx_test::test_engine engine({});
  kvx::options options = kvx_test::patient_options();
  options.memory_bytes = 512U << 10U;
  options.lease = 1ms;
  kvx::host_cache<> cache(options, engine.layout());

  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 41));
  REQUIRE(cache.save(chain, 0, pages_from(0, 10)).wait_stored(patience));
  REQUIRE(cache.erase(chain.keys().subspan(4, 1)) == 1);
  // Far more blocks than the index has nodes left for.
  const std::uint64_t last = 3 * cache.memory_blocks();
  for (std::uint64_t seed = 2; seed <= last; ++seed) {
    const kvx::sequence one = cache.make_sequence(tokens_of(seed, 5));
    engine.fill(0, one.key(0));
    const auto ticket = cache.save(one, 0, pages_from(0, 1));
    REQUIRE(ticket.wait_stored(patience));
    CHECK(ticket.outcome().ok());
    if (seed != last) continue;  // what is matched is leased, and may not make room for the next
    cache.load(cache.match(one.tokens()), pages_from(32, 1)).wait();
    CHECK(engine.holds(32, one.key(0)));
  }
  CHECK(cache.match(chain.tokens()).blocks() <= 4);
  CHECK(cache.stats().memory.blocks <= cache.memory_blocks());
}
