// SPDX-License-Identifier: Apache-2.0
// A load that was called off still writes the engine's pages until its copies end.
#include <kvx/kvx.hpp>
#include <kvx/transfer/deferred.hpp>

#include <doctest/doctest.h>

#include "patient_options.hpp"
#include "test_engine.hpp"

using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::test_engine;
using kvx_test::tokens_of;

TEST_CASE("the pages of a cancelled load are released when its copies end, not before") {
  test_engine engine({});
  kvx::options with = kvx_test::patient_options();
  with.memory_bytes = 1U << 20U;
  kvx::deferred_device device({.workers = 1});
  kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::deferred_transfer> cache(
      with, engine.layout(), kvx::deferred_transfer(device));
  const kvx::deferred_stream stream = device.create_stream();
  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 5));
  engine.fill(0, chain.key(0));
  REQUIRE(cache.save(chain, 0, pages_from(0, 1), stream).wait_stored(patience));

  const kvx::plan plan = cache.match(chain);
  const auto pre = cache.prefetch(plan);
  REQUIRE(pre.wait_for(patience));
  engine.poison(1);
  device.hold();
  auto load = cache.load(plan, pages_from(1, 1), stream);
  load.cancel();
  CHECK_FALSE(load.destination_released());
  CHECK(load.loaded_blocks() == 1);
  device.release();
  load.wait();
  CHECK(load.destination_released());
  CHECK(load.outcome().ok());
  CHECK(engine.holds(1, chain.key(0)));
}
