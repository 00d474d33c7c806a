// SPDX-License-Identifier: Apache-2.0
// A prompt longer than a tier, saved in parts as engines do after each chunk of a prefill: what the tier keeps of it
// begins at its front, since nothing leads to the rest.
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

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
      for (std::size_t first = 0; first < blocks; first += part) {
        one.save(chain, first, part);
        std::this_thread::sleep_for(6ms);  // who found nothing to give up tries again only then
      }
      stored = one.cache.stats().storage.blocks;
    }
    REQUIRE(stored > places / 2);
    fixture_type later(with);
    CHECK(later.found(later.prompt(1, blocks)) == stored);
  }
}
