// SPDX-License-Identifier: Apache-2.0
#include "nth_io.hpp"

TEST_CASE("posix: whichever I/O fails, and however, nothing leaks, hangs or lies") {
  kvx_test::fail_every_io<kvx::posix>();
}

TEST_CASE("posix: everything fails from the N-th I/O on") {
  for (std::uint64_t n = 1; n <= 12; ++n) {
    CAPTURE(n);
    const auto seen = kvx_test::nth_io<kvx::posix>::run({{.first = n, .count = kvx::fault_rule::for_ever}});
    CHECK(seen.wrong == 0);
  }
}

TEST_CASE(
    "a read that never ends: the cache is left behind and counted, and its memory is still there for the kernel") {
  using suite = kvx_test::nth_io<kvx::posix>;
  using namespace std::chrono_literals;
  kvx_test::temporary_directory root;
  kvx_test::test_engine engine({});
  const auto control = std::make_shared<kvx::fault_control>();
  kvx::options with = kvx_test::patient_options(root.path());
  with.memory_bytes = 1U << 20U;
  with.storage_bytes = 4U << 20U;
  with.extent_bytes = 1U << 20U;
  const auto tokens = kvx_test::tokens_of(1, 25);
  {
    kvx::host_cache<> cache(with, engine.layout());
    const kvx::sequence chain = cache.make_sequence(tokens);
    for (kvx::block_id b = 0; b < 6; ++b) engine.fill(b, chain.key(b));
    REQUIRE(cache.save(chain, 0, kvx_test::pages_from(0, 6)).wait_stored(kvx_test::patience));
  }
  const auto shared = std::make_shared<suite::runtime_type>(
      2 * with.memory_bytes, std::make_unique<suite::faulty>(kvx::io_options{}, control));
  {
    kvx::options hasty = with;
    hasty.load_deadline = 50ms;
    hasty.drain_deadline = 100ms;
    suite::cache_type cache(hasty, engine.layout(), shared);
    control->arm({.kind = kvx::fault_kind::never, .scope = kvx::fault_scope::reads, .count = 2});
    const auto pre = cache.prefetch(cache.match(tokens));
    REQUIRE(pre.wait_for(kvx_test::patience));
    CHECK(pre.outcome().code() == kvx::errc::timed_out);
    CHECK(control->withheld() == 2);
    // The other reads end, or were given up; these two do not, and the cache's end does not wait for them.
    while (cache.stats().storage.in_flight_read_bytes > 2 * cache.block_bytes()) std::this_thread::sleep_for(1ms);
    CHECK(cache.stats().storage.in_flight_read_bytes == 2 * cache.block_bytes());
  }
  CHECK(shared->leaked_buffers() == 2);
  CHECK(shared->leaked_bytes() == with.memory_bytes);
  suite::cache_type cache(with, engine.layout(), shared);
  CHECK(cache.stats().leaked_buffers == 2);
  control->disarm();
  const kvx::plan plan = cache.match(tokens);
  REQUIRE(plan.blocks() == 6);
  const auto pre = cache.prefetch(plan);
  REQUIRE(pre.wait_for(kvx_test::patience));
  REQUIRE(pre.ready_blocks() == 6);
  // The late bytes arrive in memory that nobody else was given: what is there proves so when it is loaded.
  control->release_all();
  while (control->withheld() != 0 || shared->io().in_flight_bytes() != 0) std::this_thread::sleep_for(1ms);
  for (kvx::block_id page = 8; page < 14; ++page) engine.poison(page);
  cache.load(plan, kvx_test::pages_from(8, 6)).wait();
  for (std::size_t b = 0; b < 6; ++b) CHECK(engine.holds(static_cast<kvx::block_id>(8 + b), plan.keys[b]));
}
