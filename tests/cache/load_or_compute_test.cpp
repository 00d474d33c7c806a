// SPDX-License-Identifier: Apache-2.0
// A plan leaves out what is slower to load than to compute, once both are known.
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

constexpr std::size_t blocks = 100;
constexpr std::size_t stretch = 10;

/// Blocks of 768 KiB, so that the rate of storage is known after one prompt.
const test_engine::shape large{.heads = 64, .head_dim = 128, .pages = stretch};

/// A cache whose storage holds a prompt of 100 blocks, and whose memory has room for a few of them.
struct fixture {
  explicit fixture(const kvx::options& with) : cache(with, engine.layout()), chain(cache.make_sequence(tokens())) {}

  static std::vector<kvx::token_id> tokens() { return tokens_of(1, blocks * large.block_tokens + 1); }
  void save() {
    for (std::size_t first = 0; first < blocks; first += stretch) {
      for (std::size_t b = 0; b < stretch; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(first + b));
      const auto saved = cache.save(chain, first, pages_from(0, stretch));
      REQUIRE(saved.wait_stored(kvx_test::patience));
      REQUIRE(saved.outcome().code() == kvx::errc::ok);
    }
  }
  // As long as the plan has all of them.
  void read() {
    for (std::size_t end = stretch; end <= blocks; end += stretch) {
      kvx::plan part = cache.match(chain);
      if (part.blocks() < blocks) return;
      part.truncate(end);
      const auto arriving = cache.prefetch(part, end - stretch);
      REQUIRE(arriving.wait_for(kvx_test::patience));
      REQUIRE(arriving.ready_blocks() == end);
    }
  }
  std::size_t from_storage() {
    const kvx::plan found = cache.match(chain);
    return static_cast<std::size_t>(std::count(found.tiers.begin(), found.tiers.end(), kvx::tier::storage));
  }

  test_engine engine{large};
  kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::host_transfer> cache;
  kvx::sequence chain;
};

kvx::options options_at(const kvx_test::temporary_directory& root) {
  kvx::options o = kvx_test::patient_options(root.path());
  o.memory_bytes = 32U << 20U;
  o.storage_bytes = 256U << 20U;
  o.lease = 0ms;
  return o;
}

}  // namespace

TEST_CASE("what loads slower than it computes is left out of the plan") {
  const kvx_test::temporary_directory root;
  fixture f(options_at(root));
  f.save();
  CHECK(f.from_storage() > blocks / 2);
  f.cache.report_prefill(1000, 1ns);
  CHECK_MESSAGE(f.from_storage() > blocks / 2, "nothing is known of storage yet");
  f.cache.report_prefill(1000, 1000s);
  f.read();
  CHECK(f.cache.match(f.chain).blocks() == blocks);
  CHECK(f.cache.stats().storage_read_bytes_per_second > 0);
  for (int i = 0; i < 100; ++i) f.cache.report_prefill(1000, 1ns);
  CHECK(f.from_storage() == 0);
  for (int i = 0; i < 100; ++i) f.cache.report_prefill(1000, 1000s);
  CHECK(f.cache.match(f.chain).blocks() == blocks);
}

TEST_CASE("what prefill costs can be said instead of learned") {
  const kvx_test::temporary_directory root;
  kvx::options o = options_at(root);
  fixture(o).save();
  SUBCASE("cheap") {
    o.prefill = kvx::prefill_cost{1e-12, 0};
    fixture f(o);
    CHECK_MESSAGE(f.from_storage() == blocks, "nothing is known of storage yet");
    f.read();
    CHECK(f.from_storage() == 0);
  }
  SUBCASE("dear") {
    o.prefill = kvx::prefill_cost{1, 0};
    fixture f(o);
    f.read();
    CHECK(f.cache.match(f.chain).blocks() == blocks);
  }
}
