// SPDX-License-Identifier: Apache-2.0
#include <kvx/admission/second_touch.hpp>
#include <kvx/detail/fold_key.hpp>
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <set>
#include <string>
#include <vector>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

enum class tier { memory, storage };

/// Refuses the blocks whose positions a test names. One type for every test of a tier: a cache of another type takes as
/// long to compile as all tests here.
template <tier>
class refusing {
 public:
  explicit refusing(std::size_t) {}
  [[nodiscard]] bool admit(const kvx::admission_candidate& block) {
    asked.push_back(block);
    return block.block < first_refused || block.block >= admitted_again;
  }
  void used(std::span<const std::uint64_t> keys) { seen.assign(keys.begin(), keys.end()); }

  static void from(std::uint32_t first, std::uint32_t again = nowhere) {
    first_refused = first;
    admitted_again = again;
    asked.clear();
    seen.clear();
  }
  static void nothing() { from(nowhere); }

  static constexpr std::uint32_t nowhere = 0xFFFF'FFFFU;
  static inline std::uint32_t first_refused = nowhere;
  static inline std::uint32_t admitted_again = nowhere;
  static inline std::vector<kvx::admission_candidate> asked;
  static inline std::vector<std::uint64_t> seen;
};
using memory = refusing<tier::memory>;
using storage = refusing<tier::storage>;
static_assert(kvx::usage_observer<memory>);

template <class StorageAdmission = storage>
struct fixture {
  using cache_type =
      kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::host_transfer, memory, StorageAdmission>;

  explicit fixture(const std::string& root) : cache(options_at(root), engine.layout()) {}

  static kvx::options options_at(const std::string& root) {
    kvx::options o = kvx_test::patient_options(root);
    o.memory_bytes = 4U << 20U;
    o.storage_bytes = 16U << 20U;
    return o;
  }
  kvx::sequence prefill(std::uint64_t seed, std::size_t tokens) {
    kvx::sequence chain = cache.make_sequence(tokens_of(seed, tokens));
    for (std::size_t b = 0; b < chain.blocks(); ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    return chain;
  }
  kvx::save_ticket save(const kvx::sequence& chain, std::size_t first = 0) {
    auto ticket = cache.save(chain, first, pages_from(static_cast<kvx::block_id>(first), chain.blocks() - first));
    REQUIRE(ticket.wait_stored(patience));
    return ticket;
  }
  /// Blocks of a prompt that are in memory or on storage; then that many are loaded, all of them right.
  std::size_t load(std::uint64_t seed, std::size_t tokens) {
    const kvx::plan plan = cache.match(tokens_of(seed, tokens));
    const auto pre = cache.prefetch(plan);
    REQUIRE(pre.wait_for(patience));
    const auto ticket = cache.load(plan, pages_from(32, plan.blocks()));
    ticket.wait();
    CHECK(ticket.loaded_blocks() == plan.blocks());
    for (std::size_t b = 0; b < ticket.loaded_blocks(); ++b)
      CHECK(engine.holds(static_cast<kvx::block_id>(32 + b), plan.keys[b]));
    return ticket.loaded_blocks();
  }

  test_engine engine{{}};
  cache_type cache;
};

std::uint64_t bits_of(const kvx::block_key& key) { return kvx::detail::fold_key(key.bytes); }

}  // namespace

TEST_CASE("a block that storage refuses is served from memory, and is gone after a restart") {
  const kvx_test::temporary_directory root;
  memory::nothing();
  storage::from(6);
  {
    fixture<> f(root.path());
    const kvx::sequence chain = f.prefill(1, 41);
    const auto ticket = f.save(chain);
    for (std::size_t b = 0; b < 10; ++b) CHECK(ticket.outcome(b) == (b < 6 ? kvx::errc::ok : kvx::errc::refused));
    CHECK(ticket.outcome() == kvx::status{kvx::errc::refused});
    CHECK(f.load(1, 41) == 10);
    const kvx::metrics_snapshot seen = f.cache.stats();
    CHECK(seen.storage.refused == 4);
    CHECK(seen.memory.refused == 0);
    CHECK(seen.save.refused_blocks == 4);
    CHECK(seen.save.dropped_blocks == 0);
    CHECK(seen.save.failed_blocks == 0);
    CHECK(seen.storage.stored == 6);
    CHECK(seen.memory.stored == 10);
  }
  fixture<> f(root.path());
  CHECK(f.load(1, 41) == 6);
}

TEST_CASE("policies tell keys of an engine's own apart, whichever of their bytes differ") {
  const kvx_test::temporary_directory root;
  memory::nothing();
  storage::nothing();
  fixture<> f(root.path());
  kvx::sequence chain({}, 4);
  for (std::uint8_t b = 1; b <= 5; ++b) {
    kvx::block_key key;
    key.bytes[0] = std::byte{0x5E};  // of the session
    key.bytes[15] = std::byte{b};
    key.bytes[31] = std::byte{0x77};  // the cache's keys have 16 bytes
    chain.append_key(key);
    f.engine.fill(b - 1U, key);
  }
  REQUIRE(f.cache.save(chain, 0, pages_from(0, 5)).wait_stored(patience));
  REQUIRE(memory::asked.size() == 5);
  std::set<std::uint64_t> keys;
  for (std::size_t b = 0; b < 5; ++b) {
    keys.insert(memory::asked[b].key);
    if (b != 0) CHECK(memory::asked[b].parent == memory::asked[b - 1].key);
  }
  CHECK(keys.size() == 5);
  const kvx::plan plan = f.cache.match(chain);
  REQUIRE(plan.blocks() == 5);
  REQUIRE(f.cache.load(plan, pages_from(32, 5)).loaded_blocks() == 5);
  REQUIRE(memory::seen.size() == 5);
  for (std::size_t b = 0; b < 5; ++b) CHECK(memory::seen[b] == memory::asked[4 - b].key);
}

TEST_CASE("a block that memory refuses is saved nowhere, and storage is not asked") {
  const kvx_test::temporary_directory root;
  memory::from(3);
  fixture<kvx::second_touch> f(root.path());
  for (int times = 0; times < 2; ++times) {
    const auto ticket = f.save(f.prefill(1, 41));
    CHECK(ticket.outcome(3) == kvx::errc::refused);
  }
  CHECK(f.load(1, 41) == 3);
  const kvx::metrics_snapshot seen = f.cache.stats();
  CHECK(seen.memory.stored == 3);
  CHECK(seen.memory.refused == 14);
  CHECK(seen.storage.refused == 3);  // the first time
  CHECK(seen.storage.stored == 3);
}

TEST_CASE("nothing is admitted behind a refused block: nobody could reach it") {
  const kvx_test::temporary_directory root;
  memory::nothing();
  storage::from(4, 5);
  {
    fixture<> f(root.path());
    const kvx::sequence chain = f.prefill(1, 41);
    const auto whole = f.save(chain);
    for (std::size_t b = 0; b < 10; ++b) CHECK(whole.outcome(b) == (b < 4 ? kvx::errc::ok : kvx::errc::refused));
    // Nor by a later save that starts behind it.
    CHECK(f.save(f.prefill(1, 61), 10).outcome(0) == kvx::errc::refused);
    CHECK(f.cache.stats().storage.stored == 4);
    // Once the front is there, the rest may follow.
    storage::nothing();
    CHECK(f.save(chain).outcome().ok());
    CHECK(f.cache.stats().storage.stored == 10);
  }
  memory::from(4, 5);
  fixture<> f(root.path());
  const auto ticket = f.save(f.prefill(2, 41));
  for (std::size_t b = 0; b < 10; ++b) CHECK(ticket.outcome(b) == (b < 4 ? kvx::errc::ok : kvx::errc::refused));
  CHECK(f.cache.stats().memory.stored == 4);
}

TEST_CASE("policies are asked front first, with keys, positions and what is behind; and told what was used") {
  const kvx_test::temporary_directory root;
  memory::nothing();
  storage::nothing();
  fixture<> f(root.path());
  const kvx::sequence chain = f.prefill(1, 21);
  (void)f.save(chain);
  REQUIRE(storage::asked.size() == 5);
  for (std::uint32_t b = 0; b < 5; ++b) {
    CHECK(storage::asked[b].key == bits_of(chain.key(b)));
    CHECK(storage::asked[b].parent == bits_of(chain.parent(b)));
    CHECK(storage::asked[b].block == b);
    CHECK(storage::asked[b].behind == 4 - b);
  }
  storage::asked.clear();
  (void)f.save(chain);
  CHECK(storage::asked.empty());  // all of it is there
  (void)f.save(f.prefill(1, 33), 3);
  REQUIRE(storage::asked.size() == 3);
  CHECK(storage::asked[0].block == 5);
  CHECK(storage::asked[0].behind == 2);
  CHECK(f.load(1, 21) == 5);
  REQUIRE(storage::seen.size() == 5);
  for (std::size_t b = 0; b < 5; ++b) CHECK(storage::seen[b] == bits_of(chain.key(4 - b)));
}

TEST_CASE("second touch: what storage refused is stored when it is saved again") {
  const kvx_test::temporary_directory root;
  memory::nothing();
  fixture<kvx::second_touch> f(root.path());
  const kvx::sequence chain = f.prefill(1, 41);
  CHECK(f.save(chain).outcome() == kvx::status{kvx::errc::refused});
  CHECK(f.cache.stats().storage.stored == 0);
  CHECK(f.save(chain).outcome().ok());
  CHECK(f.cache.stats().storage.stored == 10);
  CHECK(f.cache.stats().memory.stored == 10);
}
