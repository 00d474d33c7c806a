// SPDX-License-Identifier: Apache-2.0
// A model with full attention, a sliding window and a recurrent state: a resume is possible only where all three can.
#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "host_memory.hpp"
#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"
#include "toy_layout.hpp"

using kvx_test::patience;
using kvx_test::tokens_of;
using kvx_test::toy_group;
using kvx_test::toy_layout;

namespace {

constexpr std::uint32_t block_tokens = 4;
constexpr std::size_t full = 0;
constexpr std::size_t window = 1;
constexpr std::size_t recurrent = 2;
constexpr std::size_t pages = 32;

/// Memory of three groups; a page's bytes are a function of (key, group).
class hybrid_engine {
 public:
  hybrid_engine() {
    groups_[full] = {.layers = 2, .fragment_bytes = 256, .page_count = pages};
    groups_[window] = {.layers = 1,
                       .fragment_bytes = 512,
                       .page_count = pages,
                       .kind = kvx::attention_kind::sliding_window,
                       .window_tokens = 2 * block_tokens};
    groups_[recurrent] = {
        .layers = 1, .regions = 1, .fragment_bytes = 1024, .page_count = pages, .kind = kvx::attention_kind::recurrent};
    for (std::size_t g = 0; g < 3; ++g)
      for (std::size_t l = 0; l < groups_[g].layers; ++l)
        for (std::size_t r = 0; r < groups_[g].regions; ++r)
          bases_[g].push_back(memory_.allocate(groups_[g].region_bytes(l)));
  }
  [[nodiscard]] toy_layout layout() const { return {block_tokens, groups_, bases_}; }

  void fill(std::size_t g, kvx::block_id page, const kvx::block_key& key) {
    each(g, page, [&](std::byte* at, std::size_t i) { *at = expected(g, key, i); });
  }
  void poison(std::size_t g, kvx::block_id page) {
    each(g, page, [](std::byte* at, std::size_t) { *at = std::byte{0xA5}; });
  }
  [[nodiscard]] bool holds(std::size_t g, kvx::block_id page, const kvx::block_key& key) {
    bool same = true;
    each(g, page, [&](std::byte* at, std::size_t i) { same &= *at == expected(g, key, i); });
    return same;
  }
  [[nodiscard]] bool poisoned(std::size_t g, kvx::block_id page) {
    bool same = true;
    each(g, page, [&](std::byte* at, std::size_t) { same &= *at == std::byte{0xA5}; });
    return same;
  }

 private:
  [[nodiscard]] static std::byte expected(std::size_t g, const kvx::block_key& key, std::size_t i) {
    return static_cast<std::byte>(static_cast<std::size_t>(key.bytes[i % 16]) + 31 * g + i / 16);
  }
  template <class Visit>
  void each(std::size_t g, kvx::block_id page, Visit visit) {
    std::size_t i = 0;
    for (std::size_t l = 0; l < groups_[g].layers; ++l)
      for (std::size_t r = 0; r < groups_[g].regions; ++r)
        for (std::size_t b = 0; b < groups_[g].fragment(l); ++b)
          visit(bases_[g][l * groups_[g].regions + r] + page * groups_[g].stride(l) + b, i++);
  }

  kvx_test::host_memory memory_;
  std::vector<toy_group> groups_ = std::vector<toy_group>(3);
  std::vector<std::vector<std::byte*>> bases_ = std::vector<std::vector<std::byte*>>(3);
};

using hybrid_cache = kvx::cache<toy_layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::host_transfer>;

kvx::options options(const std::string& root) {
  kvx::options o = kvx_test::patient_options(root);
  o.identity = {"hybrid", "r1", "f32"};
  o.memory_bytes = 2U << 20U;
  o.storage_bytes = 16U << 20U;
  o.extent_bytes = 1U << 20U;
  return o;
}

using ids = std::vector<std::vector<kvx::block_id>>;

std::vector<std::span<const kvx::block_id>> spans(const ids& of) { return {of.begin(), of.end()}; }

/// Saves blocks [0, blocks): the window's and the state's pages only where the engine still has them.
void save(hybrid_cache& cache, hybrid_engine& engine, const kvx::sequence& chain, std::size_t window_from,
          std::size_t state_at) {
  ids pages_of(3);
  for (kvx::block_id b = 0; b < chain.blocks(); ++b) {
    pages_of[full].push_back(b);
    pages_of[window].push_back(b >= window_from ? b : kvx::null_block);
    pages_of[recurrent].push_back(b == state_at ? b : kvx::null_block);
    for (std::size_t g = 0; g < 3; ++g)
      if (pages_of[g][b] != kvx::null_block) engine.fill(g, b, chain.key(b));
  }
  const auto as_spans = spans(pages_of);
  const auto ticket = cache.save(chain, 0, std::span(as_spans));
  REQUIRE(ticket.wait_stored(patience));
  REQUIRE(ticket.outcome().ok());
}

void check_load(hybrid_cache& cache, hybrid_engine& engine, const kvx::plan& plan) {
  const std::size_t n = plan.blocks();
  ids into(3);
  for (std::size_t g = 0; g < 3; ++g)
    for (std::size_t b = 0; b < n; ++b) {
      into[g].push_back(static_cast<kvx::block_id>(16 + b));
      engine.poison(g, into[g][b]);
    }
  const auto pre = cache.prefetch(plan);
  REQUIRE(pre.wait_for(patience));
  CHECK(pre.outcome().ok());
  const auto as_spans = spans(into);
  const auto loaded = cache.load(plan, std::span(as_spans));
  for (std::size_t g = 0; g < 3; ++g) REQUIRE(loaded.wait_layer(0, {}, g).ok());
  CHECK(loaded.loaded_blocks() == n);
  for (std::size_t b = 0; b < n; ++b) {
    const auto page = static_cast<kvx::block_id>(16 + b);
    CHECK(engine.holds(full, page, plan.keys[b]));
    const bool in_window = b + 2 >= n;
    CHECK((in_window ? engine.holds(window, page, plan.keys[b]) : engine.poisoned(window, page)));
    CHECK((b + 1 == n ? engine.holds(recurrent, page, plan.keys[b]) : engine.poisoned(recurrent, page)));
  }
}

}  // namespace

TEST_CASE("the boundary is the longest at which every group can resume") {
  kvx_test::temporary_directory root;
  hybrid_engine engine;
  {
    hybrid_cache cache(options(root.path()), engine.layout());
    const kvx::sequence chain = cache.make_sequence(tokens_of(1, 41));
    save(cache, engine, chain, 4, 6);
    // The state stands after block 6, the window covers 5 and 6: seven blocks, though full attention has ten.
    const kvx::plan plan = cache.match(chain.tokens());
    REQUIRE(plan.blocks() == 7);
    CHECK(plan.where(0, full) == kvx::tier::memory);
    CHECK(plan.where(0, window) == kvx::tier::miss);
    CHECK(plan.where(6, recurrent) == kvx::tier::memory);
    check_load(cache, engine, plan);
    const auto back = kvx::plan::deserialize(plan.serialize());
    REQUIRE(back.ok());
    check_load(cache, engine, *back);
  }
  hybrid_cache again(options(root.path()), engine.layout());
  const kvx::plan plan = again.match(tokens_of(1, 41));
  REQUIRE(plan.blocks() == 7);
  CHECK(plan.where(6, window) == kvx::tier::storage);
  check_load(again, engine, plan);
}

TEST_CASE("no common boundary is no hit") {
  hybrid_engine engine;
  kvx::options o = options({});
  hybrid_cache cache(o, engine.layout());
  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 41));
  save(cache, engine, chain, 8, 5);  // the window around the state's block was not kept
  CHECK(cache.match(chain.tokens()).empty());
}

TEST_CASE("a group that lost a block makes the load nothing, not something shorter") {
  hybrid_engine engine;
  hybrid_cache cache(options({}), engine.layout());
  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 41));
  save(cache, engine, chain, 4, 6);
  const kvx::plan plan = cache.match(chain.tokens());
  REQUIRE(plan.blocks() == 7);
  CHECK(cache.erase(chain.keys().subspan(6, 1)) == 3);
  ids into(3);
  for (auto& i : into) i = kvx_test::pages_from(16, 7);
  const auto as_spans = spans(into);
  const auto loaded = cache.load(plan, std::span(as_spans));
  CHECK(loaded.loaded_blocks() == 0);
  CHECK(cache.match(chain.tokens()).empty());
}

TEST_CASE("straight from storage every group's part comes, or the load is nothing") {
  kvx_test::temporary_directory root;
  hybrid_engine engine;
  kvx::sequence chain;
  {
    hybrid_cache first(options(root.path()), engine.layout());
    chain = first.make_sequence(tokens_of(1, 41));
    save(first, engine, chain, 4, 6);
  }
  hybrid_cache cache(options(root.path()), engine.layout());
  std::size_t largest = 0;
  for (std::size_t g = 0; g < 3; ++g) largest = std::max(largest, cache.block_bytes(g));
  const auto reader = std::make_shared<kvx::archetype::direct_reader>(largest, 2);
  const kvx::plan plan = cache.match(chain.tokens());
  REQUIRE(plan.blocks() == 7);
  std::size_t comes = 7;
  SUBCASE("whole") {}
  SUBCASE("a block is lost") {
    REQUIRE(cache.erase(chain.keys().subspan(6, 1)) == 3);
    comes = 0;
  }
  ids into(3);
  for (std::size_t g = 0; g < 3; ++g) {
    into[g] = kvx_test::pages_from(16, 7);
    for (const kvx::block_id page : into[g]) engine.poison(g, page);
  }
  const auto as_spans = spans(into);
  const auto loaded = cache.load_direct(plan, std::span(as_spans), reader);
  REQUIRE(loaded.wait_for(patience));
  CHECK(loaded.loaded_blocks() == comes);
  CHECK(loaded.outcome().ok() == (comes == 7));
  for (std::size_t b = 0; b < comes; ++b) {
    const auto page = static_cast<kvx::block_id>(16 + b);
    CHECK(engine.holds(full, page, plan.keys[b]));
    CHECK((b >= 5 ? engine.holds(window, page, plan.keys[b]) : engine.poisoned(window, page)));
    CHECK((b == 6 ? engine.holds(recurrent, page, plan.keys[b]) : engine.poisoned(recurrent, page)));
  }
}
