// SPDX-License-Identifier: Apache-2.0
// Several caches, one after the other and side by side, on one runtime's arena.
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
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

using runtime = kvx::runtime<kvx::posix>;
constexpr std::uint64_t mib = 1U << 20U;

kvx::options of_size(std::uint64_t memory_bytes, const std::string& root = {}) {
  kvx::options o = kvx_test::patient_options(root);
  o.memory_bytes = memory_bytes;
  o.storage_bytes = 16 * mib;
  return o;
}

}  // namespace

TEST_CASE("a constructor that throws gives its part of the arena back") {
  const kvx_test::temporary_directory directory;
  const std::string file = directory.path() + "/file";
  std::ofstream(file) << "no directory";
  const auto shared = std::make_shared<runtime>(4 * mib);
  test_engine engine({});
  for (int i = 0; i < 3; ++i)
    CHECK_THROWS_AS(kvx::host_cache<>(of_size(4 * mib, file + "/root"), engine.layout(), shared), kvx::error);
  CHECK_NOTHROW(kvx::host_cache<>(of_size(4 * mib), engine.layout(), shared));
}

TEST_CASE("a part that was given back serves several smaller caches, each no larger than it asked for") {
  const auto shared = std::make_shared<runtime>(8 * mib);
  test_engine engine({});
  { const kvx::host_cache<> large(of_size(8 * mib), engine.layout(), shared); }
  std::vector<std::unique_ptr<kvx::host_cache<>>> small;
  for (int i = 0; i < 8; ++i) {
    small.push_back(std::make_unique<kvx::host_cache<>>(of_size(mib), engine.layout(), shared));
    CHECK(small.back()->memory_blocks() * small.back()->block_bytes() <= mib);
  }
  // What they give back, in any order, is one part again.
  for (const std::size_t first : {3U, 0U, 7U, 5U, 1U, 4U, 6U, 2U}) small[first].reset();
  CHECK_NOTHROW(kvx::host_cache<>(of_size(8 * mib), engine.layout(), shared));
}

TEST_CASE("what pads a slot on storage is not what another cache had in memory") {
  const kvx_test::temporary_directory root;
  const auto shared = std::make_shared<runtime>(4 * mib);
  test_engine secretive({.head_dim = 128}, 7);
  {
    kvx::host_cache<> cache(of_size(4 * mib), secretive.layout(), shared);
    for (kvx::block_id page = 0; page < 64; ++page) secretive.poison(page);
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
      const kvx::sequence chain = cache.make_sequence(tokens_of(seed, 9));
      REQUIRE(cache.save(chain, 0, pages_from(0, 2)).wait_stored(patience));
    }
  }
  test_engine engine({});
  {
    kvx::host_cache<> cache(of_size(3 * mib, root.path()), engine.layout(), shared);
    for (std::uint64_t seed = 100; seed < 120; ++seed) {
      const kvx::sequence chain = cache.make_sequence(tokens_of(seed, 9));
      for (kvx::block_id page = 0; page < 2; ++page) engine.fill(page, chain.key(page));
      REQUIRE(cache.save(chain, 0, pages_from(0, 2)).wait_stored(patience));
    }
  }
  std::size_t slabs = 0;
  const std::string secret(512, '\xA5');
  for (const auto& each : std::filesystem::recursive_directory_iterator(root.path())) {
    if (each.path().extension() != ".slab") continue;
    ++slabs;
    std::ifstream in(each.path(), std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(in)), {});
    CHECK(all.find(secret) == std::string::npos);
  }
  CHECK(slabs > 0);
}
