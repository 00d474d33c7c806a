// SPDX-License-Identifier: Apache-2.0
// Orders for blocks (keep, keep before others, give up first) hold whenever they are given: also while the block is on
// its way into a tier.
#include <kvx/io/fault.hpp>
#include <kvx/kvx.hpp>
#include <kvx/transfer/deferred.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

constexpr std::size_t prompt_blocks = 5;

using faulty = kvx::fault<kvx::posix>;

/// A cache with room for two prompts in memory, over a device and a storage that the test can hold up.
struct fixture {
  using cache_type = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, faulty, kvx::deferred_transfer>;

  explicit fixture(const std::string& root = {}, std::uint64_t storage_bytes = 16U << 20U)
      : o(options_at(root, storage_bytes)),
        cache(o, engine.layout(),
              std::make_shared<kvx::runtime<faulty>>(o.memory_bytes, std::make_unique<faulty>(o.io, control)),
              kvx::deferred_transfer(device)) {
    REQUIRE(cache.memory_blocks() == 2 * prompt_blocks);
  }
  static kvx::options options_at(const std::string& root, std::uint64_t storage_bytes) {
    kvx::options o = kvx_test::patient_options();
    o.memory_bytes = 4U << 20U;
    test_engine measured{{}};
    o.memory_bytes = 2 * prompt_blocks * kvx::host_cache<>(o, measured.layout()).block_bytes();
    o.root = root;
    o.storage_bytes = storage_bytes;
    o.lease = 0ms;
    return o;
  }
  kvx::sequence prompt(std::uint64_t seed) { return cache.make_sequence(tokens_of(seed, prompt_blocks * 4 + 1)); }
  kvx::save_ticket start_save(std::uint64_t seed, const kvx::hints& wanted = {}) {
    kvx::sequence chain = prompt(seed);
    chain.set_hints(wanted);
    for (std::size_t b = 0; b < prompt_blocks; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    return cache.save(chain, 0, pages_from(0, prompt_blocks), stream);
  }
  void save(std::uint64_t seed, const kvx::hints& wanted = {}) {
    const auto ticket = start_save(seed, wanted);
    REQUIRE(ticket.wait_stored(patience));
    // The pump publishes what was copied, and lets slots go.
    REQUIRE(cache.drain(patience));
  }
  void save_others(std::uint64_t first, std::size_t prompts) {
    for (std::uint64_t seed = first; seed < first + prompts; ++seed) save(seed);
  }
  std::size_t cached(std::uint64_t seed, kvx::tier where = kvx::tier::memory) {
    const kvx::plan found = cache.match(tokens_of(seed, prompt_blocks * 4 + 1));
    std::size_t count = 0;
    for (std::size_t b = 0; b < found.blocks(); ++b) count += found.where(b) == where ? 1U : 0U;
    return count;
  }

  kvx::options o;
  test_engine engine{{}};
  std::shared_ptr<kvx::fault_control> control = std::make_shared<kvx::fault_control>();
  kvx::deferred_device device{{.workers = 1}};
  kvx::deferred_stream stream = device.create_stream();
  cache_type cache;
};

kvx::hints pinned() {
  kvx::hints wanted;
  wanted.pinned = true;
  return wanted;
}
kvx::hints of_priority(kvx::retention priority) {
  kvx::hints wanted;
  wanted.priority = priority;
  return wanted;
}

}  // namespace

TEST_CASE("a hint holds that comes while the block is copied into memory") {
  fixture f;
  f.device.hold();
  const auto ticket = f.start_save(1);
  f.cache.hint(f.prompt(1), pinned());
  f.device.release();
  REQUIRE(ticket.wait_stored(patience));
  f.save_others(2, 6);
  CHECK(f.cached(1) == prompt_blocks);
}

TEST_CASE("what comes into memory may be given up first only when it is there") {
  fixture f;
  f.save(1);
  f.device.hold();
  const auto ticket = f.start_save(2, of_priority(kvx::retention::low));
  // There is no room for a third prompt beside one that is being copied, and none for its copies.
  const auto third = f.start_save(3);
  f.device.release();
  REQUIRE(ticket.wait_stored(patience));
  REQUIRE(third.wait_stored(patience));
  CHECK(ticket.outcome().ok());
  CHECK(f.cached(2) + f.cached(3) == 2 * prompt_blocks);
}

TEST_CASE("a hint holds on storage that comes while the block waits to be written, or is written") {
  kvx_test::temporary_directory root;
  fixture f(root.path(), 4U << 20U);
  f.control->arm({.kind = kvx::fault_kind::never, .scope = kvx::fault_scope::writes});
  const auto ticket = f.start_save(1);
  while (f.control->withheld() == 0) std::this_thread::sleep_for(1ms);
  f.cache.hint(f.prompt(1), pinned());
  f.control->release_all();
  REQUIRE(ticket.wait_stored(patience));
  REQUIRE(ticket.outcome().ok());
  f.cache.hint(f.prompt(99), pinned());  // of blocks that nobody has
  std::uint64_t seed = 2;
  for (; f.cache.stats().storage.evicted < 20 * prompt_blocks; ++seed) f.save(seed);
  // Also where memory has let go of it.
  REQUIRE(f.cache.erase(f.prompt(seed).keys()) == 0);
  const kvx::host_cache<> reopened(f.o, f.engine.layout());
  CHECK(reopened.match(tokens_of(1, prompt_blocks * 4 + 1)).blocks() == prompt_blocks);
}

TEST_CASE("what comes back from storage comes with its orders") {
  kvx_test::temporary_directory root;
  fixture f(root.path());
  f.save(1, pinned());
  f.save(2, pinned());  // more than half of the memory is not pinned, but of the storage it is
  f.save_others(3, 3);
  REQUIRE(f.cached(1) == prompt_blocks);
  REQUIRE(f.cached(2) == 0);
  REQUIRE(f.cached(2, kvx::tier::storage) == prompt_blocks);
  f.cache.hint(f.prompt(1), {});
  {
    const auto arriving = f.cache.prefetch(f.cache.match(f.prompt(2)));
    REQUIRE(arriving.wait_for(patience));
    REQUIRE(arriving.ready_blocks() == prompt_blocks);
  }
  std::this_thread::sleep_for(600ms);  // leases have steps of a quarter second as well
  f.save_others(20, 6);
  CHECK(f.cached(2) == prompt_blocks);
  CHECK(f.cached(1) == 0);
}

TEST_CASE("of a block that two requests save the stronger orders hold") {
  fixture f;
  SUBCASE("who wants it kept is heard, though it is there already") {
    f.save(1);
    f.save(1, pinned());
    f.save_others(2, 6);
    CHECK(f.cached(1) == prompt_blocks);
  }
  SUBCASE("who can do without it does not take it from the others") {
    f.save(1);
    f.save(2);
    f.save(1, of_priority(kvx::retention::low));
    f.save(3);
    CHECK(f.cached(1) == prompt_blocks);
    CHECK(f.cached(2) == 0);
  }
}

TEST_CASE("a time to live counts from the call, however long the copies took") {
  fixture f;
  f.save(1);
  kvx::hints brief;
  brief.time_to_live = 1ms;
  f.device.hold();
  const auto ticket = f.start_save(2, brief);
  std::this_thread::sleep_for(600ms);  // the clock of such orders has steps of a quarter second
  f.device.release();
  REQUIRE(ticket.wait_stored(patience));
  f.save(3);
  CHECK(f.cached(1) == prompt_blocks);
  CHECK(f.cached(2) == 0);
}
