// SPDX-License-Identifier: Apache-2.0
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
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

kvx::options small_options(const std::string& root = {}) {
  kvx::options o = kvx_test::patient_options(root);
  o.memory_bytes = 4U << 20U;
  o.storage_bytes = 16U << 20U;
  return o;
}

/// The worst hasher there is.
struct colliding {
  using digest_type = kvx::digest<16>;
  static constexpr std::uint32_t id = 77;
  static constexpr bool collision_resistant = false;
  static digest_type hash(std::span<const std::byte>) noexcept { return {}; }
};

/// The part of a key that xxh3_128's cache counts.
kvx::block_key counted(kvx::block_key key) {
  std::fill(key.bytes.begin() + 16, key.bytes.end(), std::byte{0});
  return key;
}

/// An engine, a cache over it, and a prompt that was prefilled and saved.
struct fixture {
  explicit fixture(const kvx::options& with, std::uint64_t shard_seed = 0)
      : engine({}, shard_seed), cache(with, engine.layout()) {}

  kvx::sequence prefill(std::uint64_t seed, std::size_t tokens, const kvx::scope& where = {}) {
    kvx::sequence chain = cache.make_sequence(tokens_of(seed, tokens), where);
    for (std::size_t b = 0; b < chain.blocks(); ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    return chain;
  }
  void save_all(const kvx::sequence& chain) {
    const auto ticket = cache.save(chain, 0, pages_from(0, chain.blocks()));
    REQUIRE(ticket.wait_stored(patience));
    REQUIRE(ticket.outcome().ok());
  }
  /// Loads what a plan says into poisoned pages from 32 on; returns how many blocks arrived, all right.
  std::size_t load_and_check(const kvx::plan& plan) {
    for (kvx::block_id p = 32; p < 64; ++p) engine.poison(p);
    const auto pre = cache.prefetch(plan);
    REQUIRE(pre.wait_for(patience));
    const std::size_t ready = pre.ready_blocks();
    const auto ticket = cache.load(plan, pages_from(32, plan.blocks()));
    for (std::size_t l = 0; l < engine.geometry().layers; ++l) REQUIRE(ticket.wait_layer(l, {}).ok());
    ticket.wait();
    REQUIRE(ticket.destination_released());
    CHECK(ticket.loaded_blocks() == ready);
    for (std::size_t b = 0; b < ticket.loaded_blocks(); ++b)
      CHECK(engine.holds(static_cast<kvx::block_id>(32 + b), plan.keys[b]));
    for (std::size_t b = ticket.loaded_blocks(); b < 32; ++b)
      CHECK(engine.poisoned(static_cast<kvx::block_id>(32 + b)));
    return ticket.loaded_blocks();
  }

  test_engine engine;
  kvx::host_cache<> cache;
};

}  // namespace

TEST_CASE("what was saved is matched and loaded from memory") {
  fixture f(small_options());
  const kvx::sequence chain = f.prefill(1, 41);
  CHECK(f.cache.match(chain.tokens()).empty());
  f.save_all(chain);
  const kvx::plan plan = f.cache.match(chain.tokens());
  CHECK(plan.blocks() == 10);
  CHECK(plan.where(0) == kvx::tier::memory);
  CHECK(f.load_and_check(plan) == 10);
}

TEST_CASE("a match leaves at least one token to compute and stops where prompts part") {
  fixture f(small_options());
  const kvx::sequence chain = f.prefill(1, 40);
  f.save_all(chain);
  CHECK(f.cache.match(chain.tokens()).matched_tokens() == 36);
  std::vector<kvx::token_id> longer(chain.tokens().begin(), chain.tokens().end());
  longer.push_back(7);
  CHECK(f.cache.match(longer).matched_tokens() == 40);
  longer[13] += 1;
  CHECK(f.cache.match(longer).matched_tokens() == 12);
  CHECK(f.cache.match(std::vector<kvx::token_id>{}).empty());
}

TEST_CASE("a new cache on the same root loads from storage what another one saved") {
  kvx_test::temporary_directory root;
  std::vector<kvx::token_id> tokens;
  {
    fixture f(small_options(root.path()));
    const kvx::sequence chain = f.prefill(1, 41);
    f.save_all(chain);
    tokens.assign(chain.tokens().begin(), chain.tokens().end());
  }
  fixture again(small_options(root.path()));
  const kvx::plan plan = again.cache.match(tokens);
  REQUIRE(plan.blocks() == 10);
  CHECK(plan.where(3) == kvx::tier::storage);
  CHECK(again.load_and_check(plan) == 10);
  CHECK(again.cache.match(tokens).where(3) == kvx::tier::memory);
}

TEST_CASE("the time that a request waited for storage is told, once for each prefetch") {
  kvx_test::temporary_directory root;
  fixture first(small_options(root.path()));
  const kvx::sequence chain = first.prefill(1, 41);
  first.save_all(chain);
  CHECK(first.cache.stats().latency.prefetch.count() == 0);

  fixture again(small_options(root.path()));
  const auto began = std::chrono::steady_clock::now();
  REQUIRE(again.load_and_check(again.cache.match(chain)) == 10);
  const auto took = std::chrono::steady_clock::now() - began;
  const kvx::metrics_snapshot stats = again.cache.stats();
  REQUIRE(stats.latency.prefetch.count() == 1);
  CHECK(stats.latency.prefetch_block.count() == 10);
  // It ends with its last block, and began with the first.
  CHECK(stats.latency.prefetch.percentile(1.0) >= stats.latency.prefetch_block.percentile(1.0));
  CHECK(stats.latency.prefetch.sum_ns <= static_cast<std::uint64_t>(std::chrono::nanoseconds(took).count()));
  CHECK_MESSAGE(stats.storage_read_bytes_per_second == 0, "ten small blocks do not tell how fast a drive is");
}

TEST_CASE("scopes, models and shards do not see each other's blocks") {
  kvx_test::temporary_directory root;
  fixture f(small_options(root.path()));
  const kvx::scope alice{"", "alice"};
  const kvx::sequence chain = f.prefill(1, 41, alice);
  f.save_all(chain);
  CHECK(f.cache.match(chain.tokens()).empty());
  CHECK(f.cache.match(chain.tokens(), {"", "bob"}).empty());
  CHECK(f.cache.match(chain.tokens(), {"alice", ""}).empty());
  CHECK(f.cache.match(chain.tokens(), alice).blocks() == 10);

  kvx::options other = small_options(root.path());
  other.identity.revision = "r2";
  CHECK(fixture(other).cache.match(chain.tokens(), alice).empty());
  kvx::options rank = small_options(root.path());
  rank.tensor_size = 2;
  rank.tensor_rank = 1;
  {
    fixture of_rank(rank);
    CHECK(of_rank.cache.match(chain.tokens(), alice).empty());
    of_rank.save_all(of_rank.prefill(1, 41, alice));
  }
  rank.tensor_rank = 0;
  CHECK(fixture(rank).cache.match(chain.tokens(), alice).empty());
}

TEST_CASE("chunked saves continue the chain, and known blocks are not saved again") {
  fixture f(small_options());
  const std::vector<kvx::token_id> tokens = tokens_of(3, 64);
  kvx::sequence chain = f.cache.make_sequence();
  std::size_t saved = 0;
  for (std::size_t at = 0; at < tokens.size(); at += 10) {
    REQUIRE(f.cache.extend(chain, std::span(tokens).subspan(at, std::min<std::size_t>(10, tokens.size() - at))).ok());
    for (std::size_t b = saved; b < chain.blocks(); ++b) f.engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    const auto ticket =
        f.cache.save(chain, saved, pages_from(static_cast<kvx::block_id>(saved), chain.blocks() - saved));
    CHECK(ticket.source_released());
    REQUIRE(ticket.wait_stored(patience));
    saved = chain.blocks();
  }
  CHECK(chain.keys().size() == 16);
  const kvx::sequence whole = f.cache.make_sequence(tokens);
  CHECK(std::equal(whole.keys().begin(), whole.keys().end(), chain.keys().begin()));
  const auto before = f.cache.stats().memory.stored;
  f.save_all(chain);
  CHECK(f.cache.stats().memory.stored == before);
}

TEST_CASE("extras are part of a block's meaning") {
  fixture f(small_options());
  const std::string image = "digest of an image";
  const kvx::block_extra extra{1, std::as_bytes(std::span(image))};
  const std::vector<kvx::token_id> tokens = tokens_of(5, 21);
  const kvx::sequence chain = f.cache.make_sequence(tokens, {}, {&extra, 1});
  for (std::size_t b = 0; b < chain.blocks(); ++b) f.engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
  f.save_all(chain);
  CHECK(f.cache.match(tokens).blocks() == 1);
  CHECK(f.cache.match(tokens, {}, {&extra, 1}).blocks() == 5);
}

TEST_CASE("memory is bounded: old prompts go, prefixes outlive suffixes, storage still has them") {
  kvx_test::temporary_directory root;
  kvx::options o = small_options(root.path());
  o.memory_bytes = 256U << 10U;
  o.lease = 1ms;
  fixture f(o);
  const std::size_t fits = f.cache.memory_blocks();
  std::vector<kvx::sequence> prompts;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    prompts.push_back(f.prefill(seed, 41));
    f.save_all(prompts.back());
  }
  REQUIRE(fits < 80);
  CHECK(f.cache.stats().memory.blocks <= fits);
  CHECK(f.cache.stats().memory.evicted > 0);
  for (const kvx::sequence& chain : prompts) {
    const kvx::plan plan = f.cache.match(chain.tokens());
    REQUIRE(plan.blocks() == 10);
    bool left_memory = false;
    for (std::size_t b = 0; b < plan.blocks(); ++b) {
      left_memory |= plan.where(b) != kvx::tier::memory;
      CHECK((plan.where(b) == kvx::tier::memory) == !left_memory);
    }
    // Half of the memory may be pinned by one prefetch.
    CHECK(f.load_and_check(plan) >= std::min<std::size_t>(10, fits / 2));
  }
}

TEST_CASE("a prefix that was saved first, and never used since, still outlives its suffix") {
  kvx::options o = small_options();
  o.memory_bytes = 256U << 10U;
  o.lease = 1ms;
  fixture f(o);
  const kvx::sequence chain = f.prefill(1, 41);
  for (kvx::block_id b = 0; b < 10; b += 2) REQUIRE(f.cache.save(chain, b, pages_from(b, 2)).wait_stored(patience));
  const kvx::sequence other = f.prefill(2, 41);
  REQUIRE(f.cache.save(other, 0, pages_from(0, 10)).wait_stored(patience));
  REQUIRE(f.cache.stats().memory.evicted > 0);
  REQUIRE(f.cache.stats().memory.evicted < 10);
  CHECK(f.cache.match(chain.tokens()).blocks() == 10 - f.cache.stats().memory.evicted);
}

TEST_CASE("after a restart a prefix outlives its suffix, also where its write ended last") {
  kvx_test::temporary_directory root;
  kvx::options o = small_options(root.path());
  const std::vector<kvx::token_id> tokens = tokens_of(1, 13);
  test_engine engine({});
  {
    using faulty = kvx::fault<kvx::posix>;
    const auto control = std::make_shared<kvx::fault_control>();
    const auto shared = std::make_shared<kvx::runtime<faulty>>(o.memory_bytes, std::make_unique<faulty>(o.io, control));
    kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, faulty, kvx::host_transfer> cache(o, engine.layout(), shared);
    control->arm({.kind = kvx::fault_kind::late, .scope = kvx::fault_scope::writes, .delay = 200ms});
    REQUIRE(cache.save(cache.make_sequence(tokens), 0, pages_from(0, 3)).wait_stored(patience));
  }
  o.lease = 1ms;
  {
    kvx_test::temporary_directory elsewhere;
    kvx::options probe = small_options(elsewhere.path());
    o.memory_bytes = 6 * kvx::host_cache<>(probe, engine.layout()).block_bytes();
  }
  kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::host_transfer> cache(o, engine.layout());
  const kvx::plan plan = cache.match(tokens);
  REQUIRE(plan.blocks() == 3);
  {
    const auto pre = cache.prefetch(plan);
    REQUIRE(pre.wait_for(patience));
    REQUIRE(pre.ready_blocks() == 3);
    cache.load(plan, pages_from(1, 2), {}, 1).wait();  // of the first block nobody has been longer without
  }
  std::this_thread::sleep_for(600ms);  // leases end
  for (std::uint64_t seed = 2; cache.stats().memory.evicted == 0; ++seed) {
    REQUIRE(seed < 20);
    REQUIRE(cache.save(cache.make_sequence(tokens_of(seed, 4)), 0, pages_from(0, 1)).wait_stored(patience));
  }
  CHECK(cache.match(tokens).where(0) == kvx::tier::memory);
  CHECK(cache.match(tokens).where(2) == kvx::tier::storage);
}

TEST_CASE("a block whose way to storage was cut off goes there with the next save") {
  kvx_test::temporary_directory root;
  using faulty = kvx::fault<kvx::posix>;
  const auto control = std::make_shared<kvx::fault_control>();
  kvx::options o = small_options(root.path());
  o.breaker_failures = 100;
  test_engine engine({});
  const auto shared =
      std::make_shared<kvx::runtime<faulty>>(o.memory_bytes, std::make_unique<faulty>(kvx::io_options{}, control));
  kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, faulty, kvx::host_transfer> cache(o, engine.layout(), shared);
  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 41));
  for (kvx::block_id b = 0; b < 10; ++b) engine.fill(b, chain.key(b));
  control->arm({.scope = kvx::fault_scope::writes, .count = kvx::fault_rule::for_ever});
  const auto failed = cache.save(chain, 0, pages_from(0, 10));
  REQUIRE(failed.wait_stored(patience));
  CHECK_FALSE(failed.outcome().ok());
  CHECK(cache.match(chain.tokens()).blocks() == 10);
  control->disarm();
  const auto again = cache.save(chain, 0, pages_from(0, 10));
  REQUIRE(again.wait_stored(patience));
  CHECK(again.outcome().ok());
  CHECK(cache.stats().storage.stored == 10);
}

TEST_CASE("storage is bounded: the cap holds, evicted blocks are misses, nothing is wrong") {
  kvx_test::temporary_directory root;
  kvx::options o = small_options(root.path());
  o.storage_bytes = 2U << 20U;
  o.extent_bytes = 512U << 10U;
  o.memory_bytes = 256U << 10U;
  o.lease = 1ms;
  fixture f(o);
  std::vector<kvx::sequence> prompts;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    prompts.push_back(f.prefill(seed, 41));
    const auto ticket = f.cache.save(prompts.back(), 0, pages_from(0, prompts.back().blocks()));
    REQUIRE(ticket.wait_stored(patience));
  }
  const auto stats = f.cache.stats();
  CHECK(stats.storage.evicted > 0);
  CHECK(stats.storage.blocks <= stats.storage.capacity);
  std::size_t hits = 0;
  for (const kvx::sequence& chain : prompts) hits += f.load_and_check(f.cache.match(chain.tokens()));
  CHECK(hits > 0);
  CHECK(hits < 400);
}

TEST_CASE("erased blocks are misses in every tier") {
  kvx_test::temporary_directory root;
  fixture f(small_options(root.path()));
  const kvx::sequence chain = f.prefill(1, 41);
  f.save_all(chain);
  REQUIRE(f.cache.drain(patience));
  CHECK(f.cache.erase(chain.keys().subspan(4)) == 6);
  CHECK(f.cache.match(chain.tokens()).blocks() == 4);
  f.save_all(chain);
  CHECK(f.cache.match(chain.tokens()).blocks() == 10);
}

TEST_CASE("a plan travels between processes as bytes") {
  fixture f(small_options());
  const kvx::sequence chain = f.prefill(1, 41);
  f.save_all(chain);
  kvx::plan plan = f.cache.match(chain.tokens());
  plan.truncate(7);
  const std::vector<std::byte> bytes = plan.serialize();
  const auto back = kvx::plan::deserialize(bytes);
  REQUIRE(back.ok());
  CHECK(back->keys == plan.keys);
  CHECK(back->tokens == plan.tokens);
  CHECK(f.load_and_check(*back) == 7);
  for (std::size_t cut = 0; cut < bytes.size(); ++cut)
    CHECK_FALSE(kvx::plan::deserialize(std::span(bytes).first(cut)).ok());
}

TEST_CASE("bad arguments are refused and change nothing") {
  fixture f(small_options());
  const kvx::sequence chain = f.prefill(1, 41);
  CHECK(f.cache.save(chain, 0, pages_from(0, 11)).outcome() == kvx::status{kvx::errc::bad_argument});
  CHECK(f.cache.save(chain, 11, pages_from(0, 0)).outcome() == kvx::status{kvx::errc::bad_argument});
  CHECK(f.cache.save(kvx::sequence{}, 0, pages_from(0, 0)).outcome() == kvx::status{kvx::errc::bad_argument});
  const auto beyond = f.cache.save(chain, 0, pages_from(60, 10));
  REQUIRE(beyond.wait_stored(patience));
  CHECK_FALSE(beyond.outcome().ok());
  CHECK(f.cache.match(chain.tokens()).empty());
  f.save_all(chain);
  const kvx::plan plan = f.cache.match(chain.tokens());
  const auto wrong = f.cache.load(plan, pages_from(60, 10));
  CHECK(wrong.outcome().code() == kvx::errc::bad_argument);
  CHECK(wrong.loaded_blocks() == 0);
  CHECK(f.cache.load(plan, pages_from(0, 11)).outcome().code() == kvx::errc::bad_argument);
}

TEST_CASE("a weak hasher on shared storage or with tenants is refused unless prompts are trusted") {
  kvx_test::temporary_directory root;
  kvx::options o = small_options(root.path());
  o.prompts_trusted = false;
  test_engine engine({});
  CHECK_THROWS_AS(kvx::host_cache<>(o, engine.layout()), kvx::error);
  o.root.clear();
  kvx::host_cache<> cache(o, engine.layout());
  CHECK_FALSE(cache.root({"", "tenant"}).ok());
  CHECK(cache.root({"adapter", ""}).ok());
}

TEST_CASE("finished tickets can be polled") {
  fixture f(small_options());
  const kvx::sequence chain = f.prefill(1, 41);
  const auto saved = f.cache.save(chain, 0, pages_from(0, 10));
  REQUIRE(saved.wait_stored(patience));
  const kvx::plan plan = f.cache.match(chain.tokens());
  const auto pre = f.cache.prefetch(plan);
  const auto loaded = f.cache.load(plan, pages_from(32, 10));
  std::vector<kvx::completion> done(8);
  done.resize(f.cache.poll(done));
  REQUIRE(done.size() == 3);
  CHECK(done[0].ticket == saved.id());
  CHECK(done[1].ticket == pre.id());
  CHECK(done[2].ticket == loaded.id());
}

TEST_CASE("an extra counts also when its block is filled later, and after a rollback") {
  fixture f(small_options());
  const std::string one = "image one";
  const std::string two = "image two";
  const auto chain_of = [&](const std::string& image, bool rolled_back) {
    const std::vector<kvx::token_id> tokens = tokens_of(9, 9);
    const kvx::block_extra extra{1, std::as_bytes(std::span(image))};
    kvx::sequence chain = f.cache.make_sequence(std::span(tokens).first(6), {}, {&extra, 1});
    if (rolled_back) {
      REQUIRE(f.cache.extend(chain, tokens_of(10, 2)).ok());
      chain.truncate(6);
    }
    REQUIRE(f.cache.extend(chain, std::span(tokens).subspan(6)).ok());
    return chain;
  };
  CHECK(chain_of(one, false).key(0) == chain_of(two, false).key(0));
  CHECK(chain_of(one, false).key(1) != chain_of(two, false).key(1));
  CHECK(chain_of(one, true).key(1) == chain_of(one, false).key(1));
  const std::vector<kvx::token_id> tokens = tokens_of(9, 9);
  const kvx::block_extra extra{1, std::as_bytes(std::span(one))};
  CHECK(f.cache.make_sequence(tokens, {}, {&extra, 1}).key(1) == chain_of(one, false).key(1));
}

TEST_CASE("an extra that comes after its block was hashed is refused, and nothing is appended") {
  fixture f(small_options());
  const std::string image = "digest of an image";
  const kvx::block_extra late{1, std::as_bytes(std::span(image))};
  kvx::sequence chain = f.cache.make_sequence(tokens_of(9, 9));
  REQUIRE(chain.blocks() == 2);
  CHECK(f.cache.extend(chain, tokens_of(10, 4), {&late, 1}).code() == kvx::errc::bad_argument);
  CHECK(chain.tokens().size() == 9);
  CHECK(chain.extra(1).empty());
  kvx::sequence of_nobody;
  CHECK(f.cache.extend(of_nobody, tokens_of(10, 4)).code() == kvx::errc::bad_argument);
}

TEST_CASE_TEMPLATE("an engine that hashes itself saves and matches by keys alone", Width,
                   std::integral_constant<std::size_t, 16>, std::integral_constant<std::size_t, 32>) {
  kvx_test::temporary_directory root;
  // Of longer keys than the hasher's only the first bytes count.
  const auto chain_of = [] {
    kvx::sequence chain({}, 4);
    for (std::uint8_t b = 1; b <= 5; ++b) {
      kvx::block_key key;
      key.bytes[0] = std::byte{b};
      key.bytes[Width::value - 1] = std::byte{0x77};
      chain.append_key(key);
    }
    return chain;
  };
  {
    fixture f(small_options(root.path()));
    const kvx::sequence chain = chain_of();
    for (kvx::block_id b = 0; b < 5; ++b) f.engine.fill(b, counted(chain.key(b)));
    f.save_all(chain);
    CHECK(f.load_and_check(f.cache.match(chain)) == 5);
  }
  fixture again(small_options(root.path()));
  const kvx::plan plan = again.cache.match(chain_of());
  REQUIRE(plan.blocks() == 5);
  CHECK(plan.where(4) == kvx::tier::storage);
  CHECK(again.load_and_check(plan) == 5);
}

TEST_CASE("what an engine that hashes itself takes back is gone from the sequence") {
  kvx::sequence chain({}, 4);
  kvx::block_key key;
  for (std::uint8_t b = 1; b <= 5; ++b) {
    key.bytes[0] = std::byte{b};
    chain.append_key(key);
  }
  chain.truncate(20);
  CHECK(chain.blocks() == 5);
  chain.truncate(15);
  CHECK(chain.blocks() == 3);
  key.bytes[0] = std::byte{9};
  chain.append_key(key);
  CHECK(chain.key(3) == key);
  CHECK(chain.parent(3) == chain.key(2));
}

TEST_CASE("a plan that does not fit is refused and costs no block") {
  kvx_test::temporary_directory root;
  std::vector<kvx::token_id> tokens;
  {
    fixture f(small_options(root.path()));
    const kvx::sequence chain = f.prefill(1, 41);
    f.save_all(chain);
    tokens.assign(chain.tokens().begin(), chain.tokens().end());
  }
  fixture f(small_options(root.path()));
  const kvx::plan good = f.cache.match(tokens);
  REQUIRE(good.blocks() == 10);
  kvx::plan other_root = good;
  other_root.root.bytes[3] ^= std::byte{1};
  kvx::plan other_tokens = good;
  other_tokens.tokens[5] ^= 1;
  kvx::plan other_size = good;
  other_size.block_tokens = 8;
  kvx::plan other_tiers = good;
  other_tiers.tiers.pop_back();
  for (const kvx::plan* bad : {&other_root, &other_tokens, &other_size, &other_tiers}) {
    const auto pre = f.cache.prefetch(*bad);
    REQUIRE(pre.wait_for(patience));
    const std::size_t ready = pre.ready_blocks();
    const auto loaded = f.cache.load(*bad, pages_from(32, bad->blocks()));
    // A read that somebody else began is joined as it is; the load then sees what does not fit.
    CHECK((ready < 10 || loaded.loaded_blocks() < 10));
    REQUIRE(f.cache.drain(patience));
  }
  CHECK(f.cache.match(tokens).blocks() == 10);
  CHECK(f.load_and_check(good) == 10);
}

TEST_CASE("a hasher that collides cannot make a load serve another block's tokens") {
  test_engine engine({});
  kvx::cache<kvx::layout, colliding, kvx::lru, kvx::posix, kvx::host_transfer> cache(small_options(), engine.layout());
  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 5));
  REQUIRE(cache.save(chain, 0, pages_from(0, 1)).wait_stored(patience));
  const kvx::plan mine = cache.match(chain.tokens());
  CHECK(cache.load(mine, pages_from(8, 1)).loaded_blocks() == 1);
  const kvx::plan theirs = cache.match(tokens_of(2, 5));
  REQUIRE(theirs.blocks() == 1);
  CHECK(cache.load(theirs, pages_from(8, 1)).loaded_blocks() == 0);
}

TEST_CASE("caches that come and go on one runtime leave nothing behind") {
  kvx_test::temporary_directory root;
  kvx::options o = small_options(root.path());
  const auto shared = std::make_shared<kvx::runtime<kvx::posix>>(o.memory_bytes);
  test_engine engine({});
  for (std::uint64_t round = 0; round < 4; ++round) {
    o.identity.revision = std::to_string(round % 2);
    kvx::host_cache<> cache(o, engine.layout(), shared);
    const kvx::sequence chain = cache.make_sequence(tokens_of(1, 41));
    for (kvx::block_id b = 0; b < 10; ++b) engine.fill(b, chain.key(b));
    CHECK(cache.match(chain).blocks() == (round < 2 ? 0 : 10));
    REQUIRE(cache.save(chain, 0, pages_from(0, 10)).wait_stored(patience));
  }
}

TEST_CASE("tickets are decided when the cache goes before storage answers") {
  using faulty = kvx::fault<kvx::posix>;
  kvx_test::temporary_directory root;
  const auto control = std::make_shared<kvx::fault_control>();
  kvx::options o = small_options(root.path());
  o.drain_deadline = 50ms;
  test_engine engine({});
  const auto shared =
      std::make_shared<kvx::runtime<faulty>>(o.memory_bytes, std::make_unique<faulty>(kvx::io_options{}, control));
  kvx::save_ticket saved;
  {
    kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, faulty, kvx::host_transfer> cache(o, engine.layout(), shared);
    control->arm({.kind = kvx::fault_kind::never, .count = kvx::fault_rule::for_ever});
    const kvx::sequence chain = cache.make_sequence(tokens_of(1, 41));
    saved = cache.save(chain, 0, pages_from(0, 10));
    std::this_thread::sleep_for(20ms);
  }
  REQUIRE(saved.stored());
  CHECK(saved.outcome().code() == kvx::errc::closed);
  control->release_all();
}

TEST_CASE("storage that hangs opens the breaker, though each request has a single read under way") {
  using faulty = kvx::fault<kvx::posix>;
  kvx_test::temporary_directory root;
  kvx::options o = small_options(root.path());
  std::vector<kvx::token_id> tokens;
  {
    fixture f(o);
    const kvx::sequence chain = f.prefill(1, 5);
    f.save_all(chain);
    tokens.assign(chain.tokens().begin(), chain.tokens().end());
  }
  const auto control = std::make_shared<kvx::fault_control>();
  o.load_deadline = 10ms;
  o.breaker_failures = 3;
  o.breaker_pause = 50ms;
  test_engine engine({});
  const auto shared =
      std::make_shared<kvx::runtime<faulty>>(o.memory_bytes, std::make_unique<faulty>(kvx::io_options{}, control));
  kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, faulty, kvx::host_transfer> cache(o, engine.layout(), shared);
  control->arm({.kind = kvx::fault_kind::never, .count = kvx::fault_rule::for_ever});
  for (int request = 0; request < 3; ++request) {
    const kvx::plan plan = cache.match(tokens);
    REQUIRE(plan.blocks() == 1);
    REQUIRE(cache.prefetch(plan).wait_for(patience));
  }
  CHECK(cache.stats().breaker_load.opened == 1);
  CHECK(cache.match(tokens).where(0) == kvx::tier::pending);  // its read is still under way
  control->disarm();
  control->release_all();
  const auto end = std::chrono::steady_clock::now() + patience;
  while (cache.stats().breaker_load.closed == 0 && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(10ms);
  CHECK(cache.stats().breaker_load.closed == 1);
}
