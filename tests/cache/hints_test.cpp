// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/fold_key.hpp>
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

/// LRU that refuses the keys that the test names, and writes down what it was told.
class choosy : public kvx::lru {
 public:
  using kvx::lru::lru;

  void access(const kvx::eviction_request& request) {
    told.push_back(request);
    blocks.emplace_back(request.blocks.begin(), request.blocks.end());
    std::vector<kvx::slot_index> here;
    for (const kvx::eviction_entry& e : request.blocks)
      if (e.slot != kvx::no_slot) here.push_back(e.slot);
    touch(here);
  }
  [[nodiscard]] bool admits(std::uint64_t key) const {
    return std::find(refused.begin(), refused.end(), key) == refused.end();
  }
  void advise(std::span<const std::uint64_t> keys, const kvx::hints& news) {
    advised.assign(keys.begin(), keys.end());
    last_news = news;
  }

  static inline std::vector<kvx::eviction_request> told;  // their spans are gone; see blocks
  static inline std::vector<std::vector<kvx::eviction_entry>> blocks;
  static inline std::vector<std::uint64_t> refused;
  static inline std::vector<std::uint64_t> advised;
  static inline kvx::hints last_news;

  static void reset() {
    told.clear();
    blocks.clear();
    refused.clear();
    advised.clear();
  }
};
static_assert(kvx::request_eviction<choosy>);
static_assert(kvx::hint_eviction<choosy>);

std::uint64_t bits_of(const kvx::block_key& key) { return kvx::detail::fold_key(key.bytes); }

/// A cache whose memory holds ten blocks.
template <class Eviction>
struct fixture {
  using cache_type = kvx::cache<kvx::layout, kvx::xxh3_128, Eviction, kvx::posix, kvx::host_transfer>;

  explicit fixture(const std::string& root = {}) : cache(options_at(root), engine.layout()) {
    REQUIRE(cache.memory_blocks() == 10);
  }
  static kvx::options options_at(const std::string& root) {
    kvx::options o = kvx_test::patient_options();
    test_engine measured{{}};
    {
      o.memory_bytes = 4U << 20U;
      const cache_type once(o, measured.layout());
      o.memory_bytes = 10 * once.block_bytes();
    }
    o.root = root;
    o.storage_bytes = 16U << 20U;
    o.lease = 0ms;
    return o;
  }
  kvx::sequence prefill(std::uint64_t seed, std::size_t blocks) {
    kvx::sequence chain = cache.make_sequence(tokens_of(seed, blocks * 4 + 1));
    for (std::size_t b = 0; b < chain.blocks(); ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    return chain;
  }
  kvx::save_ticket save(const kvx::sequence& chain) {
    auto ticket = cache.save(chain, 0, pages_from(0, chain.blocks()));
    REQUIRE(ticket.wait_stored(patience));
    CHECK(ticket.source_released());
    return ticket;
  }
  kvx::save_ticket save(std::uint64_t seed, std::size_t blocks, const kvx::hints& wanted = {}) {
    kvx::sequence chain = prefill(seed, blocks);
    chain.set_hints(wanted);
    return save(chain);
  }
  std::size_t cached(std::uint64_t seed, std::size_t blocks) {
    return cache.match(tokens_of(seed, blocks * 4 + 1)).blocks();
  }

  test_engine engine{{}};
  cache_type cache;
};

}  // namespace

TEST_CASE("a block that the eviction policy refuses is counted, and its request goes on") {
  choosy::reset();
  fixture<choosy> f;
  (void)f.save(1, 10);
  const kvx::sequence chain = f.prefill(2, 5);
  choosy::refused = {bits_of(chain.key(3)), bits_of(chain.key(4))};
  const auto ticket = f.save(chain);
  for (std::size_t b = 0; b < 5; ++b) CHECK(ticket.outcome(b) == (b < 3 ? kvx::errc::ok : kvx::errc::refused));
  CHECK(f.cached(2, 5) == 3);
  CHECK(f.cached(1, 10) == 7);
  const kvx::metrics_snapshot seen = f.cache.stats();
  CHECK(seen.memory.refused == 2);
  CHECK(seen.save.refused_blocks == 2);
  CHECK(seen.save.dropped_blocks == 0);
  for (std::size_t b = 0; b < 5; ++b) CHECK(f.engine.holds(static_cast<kvx::block_id>(b), chain.key(b)));
}

TEST_CASE("nobody is refused while there is room") {
  choosy::reset();
  fixture<choosy> f;
  const kvx::sequence chain = f.prefill(1, 10);
  for (std::size_t b = 0; b < 10; ++b) choosy::refused.push_back(bits_of(chain.key(b)));
  CHECK(f.save(chain).outcome().ok());
  CHECK(f.cached(1, 10) == 10);
}

TEST_CASE("what storage takes passes through memory, whatever memory's policy thinks of it") {
  choosy::reset();
  const kvx_test::temporary_directory root;
  fixture<choosy> f(root.path());
  (void)f.save(1, 10);
  const kvx::sequence chain = f.prefill(2, 5);
  for (std::size_t b = 0; b < 5; ++b) choosy::refused.push_back(bits_of(chain.key(b)));
  CHECK(f.save(chain).outcome().ok());
  CHECK(f.cached(2, 5) == 5);
}

TEST_CASE("policies are told of a save's blocks and of a load's, deepest first") {
  choosy::reset();
  fixture<choosy> f;
  kvx::sequence chain = f.prefill(1, 4);
  kvx::hints wanted;
  wanted.session = kvx::session_state::follow_up;
  wanted.returns_in = 5s;
  chain.set_hints(wanted);
  (void)f.save(chain);
  REQUIRE(choosy::told.size() == 1);
  CHECK(choosy::told[0].before == 0);
  CHECK(choosy::told[0].session == kvx::session_state::follow_up);
  CHECK(choosy::told[0].returns_in == 5s);
  REQUIRE(choosy::blocks[0].size() == 4);
  for (std::size_t b = 0; b < 4; ++b) {
    CHECK(choosy::blocks[0][b].key == bits_of(chain.key(3 - b)));
    CHECK(choosy::blocks[0][b].slot == kvx::no_slot);
  }
  const kvx::sequence longer = f.prefill(1, 6);
  (void)f.save(longer);
  REQUIRE(choosy::told.size() == 2);
  CHECK(choosy::told[1].before == 0);
  REQUIRE(choosy::blocks[1].size() == 6);
  for (std::size_t b = 0; b < 6; ++b) CHECK((choosy::blocks[1][5 - b].slot == kvx::no_slot) == (b >= 4));

  const kvx::plan plan = f.cache.match(tokens_of(1, 25));
  REQUIRE(plan.blocks() == 6);
  f.cache.load(plan, pages_from(32, 6)).wait();
  REQUIRE(choosy::told.size() == 3);
  CHECK(choosy::told[2].id == plan.lease.id);
  REQUIRE(choosy::blocks[2].size() == 6);
  for (std::size_t b = 0; b < 6; ++b) {
    CHECK(choosy::blocks[2][b].key == bits_of(longer.key(5 - b)));
    CHECK(choosy::blocks[2][b].slot != kvx::no_slot);
  }
  // A part of it, behind what another request brought.
  f.cache.load(plan, pages_from(34, 4), {}, 2).wait();
  CHECK(choosy::told[3].before == 2);
  CHECK(choosy::told[3].parent == bits_of(longer.key(1)));
}

TEST_CASE("a request that comes in parts is told once, under one id") {
  choosy::reset();
  const kvx_test::temporary_directory root;  // storage's policy is told as well, after memory's
  fixture<choosy> f(root.path());
  (void)f.save(1, 2);
  choosy::reset();
  kvx::sequence chain = f.prefill(1, 3);
  REQUIRE(chain.id() != 0);
  const kvx::plan plan = f.cache.match(chain);
  CHECK(plan.lease.id == chain.id());
  REQUIRE(plan.blocks() == 2);
  f.cache.load(plan, pages_from(32, 2)).wait();
  REQUIRE(f.cache.save(chain, 2, pages_from(2, 1)).wait_stored(patience));
  (void)f.cache.extend(chain, tokens_of(7, 12));
  for (std::size_t b = 3; b < 6; ++b) f.engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
  REQUIRE(f.cache.save(chain, 4, pages_from(4, 2)).wait_stored(patience));  // block 3 is the engine's own
  REQUIRE(choosy::told.size() == 6);
  constexpr std::size_t begin[] = {0, 2, 3};
  constexpr std::size_t end[] = {2, 3, 6};
  for (std::size_t t = 0; t < 6; ++t) {
    CAPTURE(t);
    CHECK(choosy::told[t].id == chain.id());
    CHECK(choosy::told[t].before == begin[t / 2]);
    REQUIRE(choosy::blocks[t].size() == end[t / 2] - begin[t / 2]);
    for (std::size_t b = begin[t / 2]; b < end[t / 2]; ++b)
      CHECK(choosy::blocks[t][end[t / 2] - 1 - b].key == bits_of(chain.key(b)));
  }
  CHECK(f.cache.make_sequence(tokens_of(1, 5)).id() != chain.id());
}

TEST_CASE("a save without an id tells of its own blocks alone") {
  choosy::reset();
  fixture<choosy> f;
  kvx::sequence chain = f.prefill(1, 4);
  chain.set_id(0);
  REQUIRE(f.cache.save(chain, 2, pages_from(2, 2)).wait_stored(patience));
  REQUIRE(choosy::told.size() == 1);
  CHECK(choosy::told[0].before == 2);
  CHECK(choosy::told[0].parent == bits_of(chain.key(1)));
}

TEST_CASE("hint: the policy hears of the session, deepest block first") {
  choosy::reset();
  fixture<choosy> f;
  const kvx::sequence chain = f.prefill(1, 4);
  (void)f.save(chain);
  kvx::hints news;
  news.session = kvx::session_state::closed;
  f.cache.hint(chain, news);
  REQUIRE(choosy::advised.size() == 4);
  for (std::size_t b = 0; b < 4; ++b) CHECK(choosy::advised[b] == bits_of(chain.key(3 - b)));
  CHECK(choosy::last_news == news);
}

TEST_CASE_TEMPLATE("orders hold with every policy", Eviction, kvx::lru, kvx::fifo, kvx::s3fifo, kvx::learned_hazard) {
  fixture<Eviction> f;
  kvx::hints wanted;
  SUBCASE("low priority goes before everything else") {
    (void)f.save(1, 5);
    wanted.priority = kvx::retention::low;
    (void)f.save(2, 5, wanted);
    (void)f.save(3, 5);
    CHECK(f.cached(1, 5) == 5);
    CHECK(f.cached(2, 5) == 0);
    CHECK(f.cached(3, 5) == 5);
  }
  SUBCASE("high priority goes last") {
    wanted.priority = kvx::retention::high;
    (void)f.save(1, 5, wanted);
    for (std::uint64_t seed = 2; seed < 8; ++seed) (void)f.save(seed, 5);
    CHECK(f.cached(1, 5) == 5);
    (void)f.save(9, 5, wanted);
    (void)f.save(10, 5, wanted);
    CHECK(f.cached(1, 5) + f.cached(9, 5) + f.cached(10, 5) == 10);
  }
  SUBCASE("what is pinned stays, at most half of the tier") {
    wanted.pinned = true;
    (void)f.save(1, 5, wanted);
    for (std::uint64_t seed = 2; seed < 8; ++seed) (void)f.save(seed, 5, wanted);
    CHECK(f.cached(1, 5) == 5);
  }
  SUBCASE("a later hint takes back what was ordered") {
    wanted.pinned = true;
    (void)f.save(1, 5, wanted);
    for (std::uint64_t seed = 2; seed < 8; ++seed) (void)f.save(seed, 5);
    f.cache.hint(f.prefill(1, 5), {});
    for (std::uint64_t seed = 12; seed < 16; ++seed) (void)f.save(seed, 10);
    CHECK(f.cached(1, 5) == 0);
  }
  SUBCASE("what has outlived its time goes first, however new") {
    (void)f.save(1, 5);
    wanted.time_to_live = 1ms;
    (void)f.save(2, 5, wanted);
    // The clock of such orders has steps of a quarter second.
    const auto until = std::chrono::steady_clock::now() + 600ms;
    while (std::chrono::steady_clock::now() < until) {
    }
    (void)f.save(3, 5);
    CHECK(f.cached(1, 5) == 5);
    CHECK(f.cached(2, 5) == 0);
  }
}

TEST_CASE("the default policy refuses in a cache, and what it refuses is a miss, not an error") {
  fixture<kvx::learned_hazard> f;
  // One prompt that comes back again and again, among prompts that never do.
  for (std::uint64_t round = 0; round < 150; ++round) {
    (void)f.save(1, 5);
    const kvx::plan plan = f.cache.match(tokens_of(1, 21));
    f.cache.load(plan, pages_from(32, plan.blocks())).wait();
    for (std::uint64_t other = 0; other < 3; ++other) (void)f.save(1000 + round * 3 + other, 8);
  }
  CHECK(f.cache.stats().memory.refused > 100);
  CHECK(f.cached(1, 5) == 5);
}
