// SPDX-License-Identifier: Apache-2.0
// A prompt longer than a tier, saved in parts as engines do after each chunk of a prefill: what the tier keeps of it
// begins at its front, since nothing leads to the rest.
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "host_memory.hpp"
#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"
#include "toy_layout.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

constexpr std::size_t prompt_blocks = 32;
constexpr std::size_t tier_blocks = 16;

template <class Policy>
struct fixture {
  using cache_type = kvx::cache<kvx::layout, kvx::xxh3_128, Policy, kvx::posix, kvx::host_transfer>;

  explicit fixture(const kvx::options& with) : options(with), cache(with, engine.layout()) {}

  static std::size_t block_bytes() {
    test_engine measured{{}};
    return kvx::host_cache<>(options_for(4U << 20U), measured.layout()).block_bytes();
  }
  static kvx::options options_for(std::uint64_t memory_bytes) {
    kvx::options o = kvx_test::patient_options();
    o.memory_bytes = memory_bytes;
    o.lease = 0ms;
    return o;
  }
  kvx::sequence prompt(std::uint64_t seed, std::size_t blocks = prompt_blocks) {
    return cache.make_sequence(tokens_of(seed, blocks * 4 + 1));
  }
  void save(const kvx::sequence& chain, std::size_t first, std::size_t count) {
    for (std::size_t b = 0; b < count; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(first + b));
    REQUIRE(cache.save(chain, first, pages_from(0, count)).wait_stored(kvx_test::patience));
  }
  std::size_t found(const kvx::sequence& chain) { return cache.match(chain).blocks(); }

  kvx::options options;
  test_engine engine{{}};
  cache_type cache;
};

}  // namespace

TEST_CASE_TEMPLATE("memory keeps the front of a prompt longer than it is", Policy, kvx::lru, kvx::s3fifo, kvx::fifo,
                   kvx::learned_hazard) {
  using fixture_type = fixture<Policy>;
  const std::size_t bytes = fixture_type::block_bytes();
  for (const std::size_t part : {2U, 4U, 8U}) {
    CAPTURE(part);
    fixture_type one(fixture_type::options_for(tier_blocks * bytes));
    REQUIRE(one.cache.memory_blocks() == tier_blocks);
    const kvx::sequence chain = one.prompt(1);
    for (std::size_t first = 0; first < prompt_blocks; first += part) one.save(chain, first, part);
    CHECK(one.found(chain) == tier_blocks);
  }
}

TEST_CASE_TEMPLATE("storage takes all of a prompt longer than memory", Policy, kvx::lru, kvx::s3fifo, kvx::fifo,
                   kvx::learned_hazard) {
  using fixture_type = fixture<Policy>;
  const std::size_t bytes = fixture_type::block_bytes();
  for (const std::size_t part : {2U, 3U, 5U, 8U}) {
    CAPTURE(part);
    const kvx_test::temporary_directory directory;
    kvx::options with = fixture_type::options_for(tier_blocks * bytes);
    with.root = directory.path();
    with.storage_bytes = 4 * prompt_blocks * bytes;
    fixture_type one(with);
    REQUIRE(one.cache.memory_blocks() == tier_blocks);
    const kvx::sequence chain = one.prompt(1);
    for (std::size_t first = 0; first < prompt_blocks; first += part)
      one.save(chain, first, std::min(part, prompt_blocks - first));
    CHECK(one.found(chain) == prompt_blocks);
    CHECK(one.cache.stats().storage.blocks == prompt_blocks);
  }
}

TEST_CASE_TEMPLATE("prompts that grow side by side keep fronts, not ends", Policy, kvx::lru, kvx::s3fifo,
                   kvx::learned_hazard) {
  using fixture_type = fixture<Policy>;
  const std::size_t bytes = fixture_type::block_bytes();
  for (const std::size_t part : {2U, 4U, 8U}) {
    CAPTURE(part);
    fixture_type both(fixture_type::options_for(tier_blocks * bytes));
    const kvx::sequence a = both.prompt(1), b = both.prompt(2);
    for (std::size_t first = 0; first < tier_blocks; first += part) {
      both.save(a, first, part);
      both.save(b, first, part);
    }
    CHECK(both.found(a) + both.found(b) == tier_blocks);
  }
}

TEST_CASE("a prompt that finds no more room leaves other prompts theirs") {
  using fixture_type = fixture<kvx::lru>;
  const std::size_t bytes = fixture_type::block_bytes();
  fixture_type one(fixture_type::options_for(tier_blocks * bytes));
  const kvx::sequence chain = one.prompt(1), other = one.prompt(2, tier_blocks / 2);
  for (std::size_t first = 0; first <= tier_blocks; first += 4) one.save(chain, first, 4);
  REQUIRE(one.cache.stats().memory.blocks == tier_blocks);
  one.save(other, 0, tier_blocks / 2);
  CHECK(one.found(other) == tier_blocks / 2);
}

TEST_CASE("storage that has no more room for a prompt has it for others") {
  using fixture_type = fixture<kvx::lru>;
  constexpr std::size_t places = 48, blocks = 64;
  const std::size_t bytes = fixture_type::block_bytes();
  const kvx_test::temporary_directory directory;
  kvx::options with = fixture_type::options_for(4 * blocks * bytes);
  with.root = directory.path();
  with.storage_bytes = (places + 2) * bytes;
  with.extent_bytes = with.storage_bytes;
  fixture_type one(with);
  const kvx::sequence chain = one.prompt(1, blocks), other = one.prompt(2, 8);
  for (std::size_t first = 0; first < blocks; first += 8) one.save(chain, first, 8);
  const std::uint64_t before = one.cache.stats().storage.stored;
  one.save(other, 0, 8);
  CHECK(one.cache.stats().storage.stored == before + 8);
}

TEST_CASE("blocks that need no block in front of them come and go for good, one by one") {
  // Of a sliding window the end of a prompt is all that can be given up, also for the block behind it.
  for (const kvx::attention_kind kind : {kvx::attention_kind::sliding_window, kvx::attention_kind::recurrent}) {
    CAPTURE(static_cast<int>(kind));
    kvx_test::host_memory memory;
    const kvx_test::toy_group group{
        .layers = 1, .fragment_bytes = 512, .page_count = 64, .kind = kind, .window_tokens = 8};
    std::vector<std::vector<std::byte*>> bases(1);
    for (std::size_t r = 0; r < group.regions; ++r) bases[0].push_back(memory.allocate(group.region_bytes(0)));
    const kvx_test::toy_layout layout(4, {group}, bases);
    kvx::options with = kvx_test::patient_options();
    with.memory_bytes = tier_blocks * 8192;
    with.lease = 0ms;
    kvx::cache<kvx_test::toy_layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::host_transfer> cache(with, layout);
    const std::size_t slots = cache.memory_blocks();
    const auto save = [&](const kvx::sequence& chain, std::size_t block) {
      const kvx::block_id page = static_cast<kvx::block_id>(block);
      const std::span<const kvx::block_id> pages(&page, 1);
      return cache.save(chain, block, std::span(&pages, 1)).wait_stored(kvx_test::patience);
    };
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
      const kvx::sequence chain = cache.make_sequence(tokens_of(seed, (slots + 1) * 4 + 1));
      std::vector<kvx::block_key> keys;
      for (std::size_t block = 0; block <= slots; ++block) {
        CHECK(save(chain, block));
        keys.push_back(chain.key(block));
      }
      CHECK(cache.erase(keys) == slots);
    }
  }
}

TEST_CASE_TEMPLATE("storage keeps the front of a prompt longer than it is", Policy, kvx::lru, kvx::s3fifo,
                   kvx::learned_hazard) {
  using fixture_type = fixture<Policy>;
  constexpr std::size_t places = 48, blocks = 64;  // so many that some places are kept free
  const std::size_t bytes = fixture_type::block_bytes();
  for (const std::size_t part : {1U, 4U, 8U}) {
    CAPTURE(part);
    const kvx_test::temporary_directory directory;
    kvx::options with = fixture_type::options_for(2 * blocks * bytes);
    with.root = directory.path();
    with.storage_bytes = (places + 2) * bytes;
    with.extent_bytes = with.storage_bytes;
    std::size_t stored = 0;
    {
      fixture_type one(with);
      const kvx::sequence chain = one.prompt(1, blocks);
      for (std::size_t first = 0; first < blocks; first += part) one.save(chain, first, part);
      stored = one.cache.stats().storage.blocks;
    }
    REQUIRE(stored > places / 2);
    fixture_type later(with);
    CHECK(later.found(later.prompt(1, blocks)) == stored);
  }
}
