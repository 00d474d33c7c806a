// SPDX-License-Identifier: Apache-2.0
// What saves promise while storage is slow, full or failing.
#include <kvx/io/fault.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "file_size_limit.hpp"
#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::patient_options;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

using faulty = kvx::fault<kvx::posix>;
template <class Io>
using cache_over = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, Io, kvx::host_transfer>;

kvx::options options_at(const std::string& root) {
  kvx::options o = patient_options(root);
  o.memory_bytes = 4U << 20U;
  o.storage_bytes = 16U << 20U;
  return o;
}

/// A cache of single-block prompts over storage whose faults the test orders. One write at a time is under way.
struct faulty_storage {
  explicit faulty_storage(kvx::options with) : o(one_write_at_a_time(std::move(with))) {}

  static kvx::options one_write_at_a_time(kvx::options o) {
    o.io.in_flight_bytes = 8192;
    return o;
  }
  kvx::sequence prompt(std::uint64_t seed) {
    return cache.make_sequence(tokens_of(seed, engine.geometry().block_tokens));
  }
  kvx::save_ticket save(const kvx::sequence& chain, kvx::block_id page) {
    engine.fill(page, chain.key(0));
    return cache.save(chain, 0, pages_from(page, 1));
  }
  /// Saves a block whose write the backend keeps until release_all().
  kvx::save_ticket withhold(std::uint64_t seed) {
    control->arm({.kind = kvx::fault_kind::never, .scope = kvx::fault_scope::writes});
    const std::size_t before = control->withheld();
    auto ticket = save(prompt(seed), 0);
    while (control->withheld() == before) {
      REQUIRE_FALSE(ticket.stored());  // given up before storage had it: nothing will be withheld any more
      std::this_thread::sleep_for(1ms);
    }
    return ticket;
  }

  kvx::options o;
  test_engine engine{{}};
  std::shared_ptr<kvx::fault_control> control = std::make_shared<kvx::fault_control>();
  cache_over<faulty> cache{
      o, engine.layout(),
      std::make_shared<kvx::runtime<faulty>>(o.memory_bytes, std::make_unique<faulty>(o.io, control))};
};

}  // namespace

TEST_CASE("drain() says true only when every save is stored") {
  kvx_test::temporary_directory root;
  test_engine engine({});
  kvx::host_cache<> cache(options_at(root.path()), engine.layout());
  std::size_t early = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const kvx::sequence chain = cache.make_sequence(tokens_of(seed, 9));
    const auto ticket = cache.save(chain, 0, pages_from(0, 2));
    REQUIRE(cache.drain(patience));
    early += ticket.stored() ? 0U : 1U;
  }
  CHECK(early == 0);
}

TEST_CASE("a block that is saved again while its first write waits is stored with the bytes it has now") {
  kvx_test::temporary_directory root;
  const kvx::options o = options_at(root.path());
  {
    faulty_storage f(o);
    const auto blocking = f.withhold(1);
    const kvx::sequence chain = f.prompt(2);
    f.engine.poison(1);  // the same tokens, computed in another batch, are not the same bytes
    const auto first = f.cache.save(chain, 0, pages_from(1, 1));
    REQUIRE(f.cache.erase(chain.keys()) == 1);
    const auto second = f.save(chain, 1);
    f.control->release_all();
    REQUIRE(first.wait_stored(patience));
    REQUIRE(second.wait_stored(patience));
    CHECK(first.outcome().code() == kvx::errc::dropped);
    CHECK(second.outcome().ok());
    REQUIRE(blocking.wait_stored(patience));
  }
  test_engine engine({});
  cache_over<kvx::posix> cache(o, engine.layout());
  const kvx::plan plan = cache.match(tokens_of(2, 5));
  REQUIRE(plan.blocks() == 1);
  const auto pre = cache.prefetch(plan);
  REQUIRE(pre.wait_for(patience));
  CHECK(pre.outcome().ok());
  cache.load(plan, pages_from(8, 1)).wait();
  CHECK(engine.holds(8, plan.keys[0]));
  CHECK(cache.stats().storage.damaged == 0);
}

TEST_CASE("a save that waits behind a stuck write ends at its own deadline, as timed out") {
  kvx_test::temporary_directory root;
  kvx::options o = options_at(root.path());
  o.save_deadline = 2s;
  o.breaker_failures = 1000;
  faulty_storage f(o);
  const auto stuck = f.withhold(1);
  const auto began = std::chrono::steady_clock::now();
  const auto waiting = f.save(f.prompt(2), 1);
  REQUIRE(waiting.wait_stored(patience));
  CHECK(std::chrono::steady_clock::now() - began >= o.save_deadline);
  CHECK(waiting.outcome().code() == kvx::errc::timed_out);
  REQUIRE(stuck.wait_stored(patience));
  CHECK(stuck.outcome().code() == kvx::errc::timed_out);
  CHECK(f.cache.stats().save.timed_out_blocks == 2);
  CHECK(f.cache.stats().save.dropped_blocks == 0);
  // It is still in memory, and goes to storage with the next save: one of the next, where storage is slow.
  f.control->disarm();
  f.control->release_all();
  kvx::save_ticket again;
  const auto end = std::chrono::steady_clock::now() + patience;
  do {
    again = f.save(f.prompt(2), 1);
    REQUIRE(again.wait_stored(patience));
  } while (again.outcome().code() == kvx::errc::timed_out && std::chrono::steady_clock::now() < end);
  CHECK(again.outcome().ok());
  REQUIRE(f.cache.drain(patience));
  CHECK(f.cache.stats().storage.stored == 2);
}

TEST_CASE("while a journal cannot be written the cache's threads sleep, and saves go on when it can again") {
  kvx_test::temporary_directory root;
  kvx::options o = options_at(root.path());
  test_engine engine({});
  constexpr std::size_t places = 8;
  std::size_t slot_bytes = 0;
  {
    kvx_test::temporary_directory elsewhere;
    kvx::options probe = o;
    probe.root = elsewhere.path();
    slot_bytes = cache_over<kvx::posix>(probe, engine.layout()).block_bytes();
  }
  o.storage_bytes = o.extent_bytes = kvx::page_bytes + places * slot_bytes;
  o.lease = 1ms;
  cache_over<kvx::posix> cache(o, engine.layout());
  const auto save = [&](std::uint64_t seed) {
    const kvx::sequence chain = cache.make_sequence(tokens_of(seed, 5));
    engine.fill(0, chain.key(0));
    return cache.save(chain, 0, pages_from(0, 1));
  };
  for (std::uint64_t seed = 0; seed < places; ++seed) REQUIRE(save(seed).wait_stored(patience));
  std::this_thread::sleep_for(600ms);  // leases end

  // No file may grow from now on: places are evicted, but their evictions cannot be logged.
  std::optional<kvx_test::file_size_limit> none(std::in_place, 0);
  std::vector<kvx::save_ticket> waiting;
  for (std::uint64_t seed = 100; seed < 104; ++seed) waiting.push_back(save(seed));
  std::this_thread::sleep_for(300ms);
  ::rusage from{};
  ::rusage to{};
  ::getrusage(RUSAGE_SELF, &from);
  std::this_thread::sleep_for(1s);
  ::getrusage(RUSAGE_SELF, &to);
  none.reset();
  CHECK(to.ru_nvcsw - from.ru_nvcsw < 1'000);
  for (const kvx::save_ticket& each : waiting) REQUIRE(each.wait_stored(patience));
  CHECK(waiting.back().outcome().ok());
}

TEST_CASE("a half open breaker whose probe finds no room keeps the probe for when there is") {
  kvx_test::temporary_directory root;
  kvx::options o = options_at(root.path());
  o.save_deadline = 5s;
  o.breaker_failures = 1;
  o.breaker_pause = 100ms;
  std::atomic<std::size_t> in_memory{0};
  o.on_event = [&](const kvx::block_event& e) {
    if (e.happened == kvx::block_event::what::stored && e.where == kvx::tier::memory) ++in_memory;
  };
  faulty_storage f(o);
  const auto until = [](auto&& there) {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!there() && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(1ms);
    return there();
  };
  const auto stuck = f.withhold(1);
  REQUIRE(stuck.wait_stored(patience));
  REQUIRE(stuck.outcome().code() == kvx::errc::timed_out);
  REQUIRE(until([&] { return f.cache.stats().breaker_save.half_opened != 0; }));
  REQUIRE(f.cache.stats().breaker_save.opened == 1);
  const auto probe = f.save(f.prompt(2), 1);
  // Events are told between looks at what waits: once another's was told, the probe has been looked at.
  REQUIRE(until([&] { return in_memory == 2; }));
  const auto behind = f.save(f.prompt(3), 2);
  REQUIRE(until([&] { return in_memory == 3; }));
  f.control->release_all();
  REQUIRE(probe.wait_stored(patience));
  CHECK(probe.outcome().ok());
  CHECK(f.cache.stats().breaker_save.closed == 1);
  REQUIRE(behind.wait_stored(patience));
}
