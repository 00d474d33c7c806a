// SPDX-License-Identifier: Apache-2.0
// A prompt larger than memory arrives stretch by stretch: a stretch's memory is free for the next one when its copies
// end, which on a GPU is later than the call that submitted them.
#include <kvx/kvx.hpp>
#include <kvx/transfer/deferred.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <utility>
#include <vector>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::test_engine;
using kvx_test::tokens_of;

TEST_CASE("a prefetch waits for memory that loads under way will let go of") {
  const kvx_test::temporary_directory directory;
  test_engine engine({});
  kvx::options with = kvx_test::patient_options(directory.path());
  with.memory_bytes = 1U << 20U;
  with.storage_bytes = 16U << 20U;
  constexpr std::size_t blocks = 12;
  const auto tokens = tokens_of(1, blocks * engine.geometry().block_tokens + 1);
  std::size_t slot_bytes = 0;
  {
    kvx::host_cache<> cache(with, engine.layout());
    slot_bytes = cache.block_bytes();
    const kvx::sequence chain = cache.make_sequence(tokens);
    for (std::size_t b = 0; b < blocks; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    const auto saved = cache.save(chain, 0, pages_from(0, blocks));
    REQUIRE(saved.wait_stored(patience));
    REQUIRE(saved.outcome().ok());
  }

  // Prefetches and loads may keep half of the memory: one stretch.
  constexpr std::size_t stretch = 4;
  with.memory_bytes = 2 * stretch * slot_bytes;
  kvx::deferred_device device({.workers = 1});
  using cache_type = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::deferred_transfer>;
  cache_type cache(with, engine.layout(), kvx::deferred_transfer(device));
  const kvx::deferred_stream stream = device.create_stream();
  const kvx::sequence chain = cache.make_sequence(tokens);
  const kvx::plan whole = cache.match(chain);
  REQUIRE(whole.blocks() == blocks);
  for (std::size_t b = 0; b < blocks; ++b) engine.poison(static_cast<kvx::block_id>(b));

  std::vector<kvx::load_ticket<kvx::deferred_stream>> loads;
  for (std::size_t first = 0; first < blocks; first += stretch) {
    kvx::plan part = whole;
    part.truncate(first + stretch);
    kvx::prefetch_ticket fetched = cache.prefetch(std::move(part), first);
    if (first > 0) {
      // The copies of the stretch before are held up, and nothing else will let go of memory.
      CHECK_FALSE(fetched.wait_for(20ms));
      device.release();
    }
    REQUIRE(fetched.wait_for(patience));
    REQUIRE(fetched.ready_blocks() == first + stretch);
    device.hold();
    loads.push_back(cache.load(whole, pages_from(static_cast<kvx::block_id>(first), stretch), stream, first));
    CHECK(loads.back().loaded_blocks() == first + stretch);
  }
  device.release();
  for (const auto& load : loads) load.wait();
  device.synchronize();
  for (std::size_t b = 0; b < blocks; ++b) CHECK(engine.holds(static_cast<kvx::block_id>(b), chain.key(b)));
}

TEST_CASE("a prompt larger than memory arrives whole, whatever the size of a stretch") {
  const kvx_test::temporary_directory directory;
  constexpr std::size_t blocks = 60;
  test_engine engine({.pages = blocks});
  kvx::options with = kvx_test::patient_options(directory.path());
  with.memory_bytes = 4U << 20U;
  with.storage_bytes = 16U << 20U;
  with.io.threads = 1;  // one write after the other: every block knows its parent after a restart
  const auto tokens = tokens_of(1, blocks * engine.geometry().block_tokens + 1);
  std::size_t slot_bytes = 0;
  {
    kvx::host_cache<> cache(with, engine.layout());
    slot_bytes = cache.block_bytes();
    const kvx::sequence chain = cache.make_sequence(tokens);
    for (std::size_t b = 0; b < blocks; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    const auto saved = cache.save(chain, 0, pages_from(0, blocks));
    REQUIRE(saved.wait_stored(patience));
    REQUIRE(saved.outcome().ok());
  }
  constexpr std::size_t stretch = 4;
  with.memory_bytes = (2 * stretch + 1) * slot_bytes;
  kvx::host_cache<> cache(with, engine.layout());
  const kvx::plan whole = cache.match(tokens);
  REQUIRE(whole.blocks() == blocks);
  for (std::size_t b = 0; b < blocks; ++b) engine.poison(static_cast<kvx::block_id>(b));
  for (std::size_t first = 0; first < blocks; first += stretch) {
    kvx::plan part = whole;
    part.truncate(first + stretch);
    const auto fetched = cache.prefetch(std::move(part), first);
    REQUIRE(fetched.wait_for(patience));
    REQUIRE(fetched.ready_blocks() == first + stretch);
    cache.load(whole, pages_from(static_cast<kvx::block_id>(first), stretch), {}, first).wait();
  }
  for (std::size_t b = 0; b < blocks; ++b) CHECK(engine.holds(static_cast<kvx::block_id>(b), whole.keys[b]));
}
