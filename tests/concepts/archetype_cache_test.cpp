// SPDX-License-Identifier: Apache-2.0
// A cache made of archetypes alone compiles and works: it uses nothing of its policies that their concepts do not
// promise. Where an archetype happens to offer more (copies, a default), that is taken away first.
#include <kvx/any_cache.hpp>
#include <kvx/cache.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::tokens_of;

namespace {

/// Copyable as the concept wants, and nothing else.
class bare_layout : public kvx::archetype::layout {
 public:
  using kvx::archetype::layout::layout;
  bare_layout(const bare_layout&) = default;
  bare_layout& operator=(const bare_layout&) = delete;
};

/// Movable, not copyable.
class bare_eviction : public kvx::archetype::eviction {
 public:
  using kvx::archetype::eviction::eviction;
  bare_eviction(bare_eviction&&) = default;
  bare_eviction& operator=(bare_eviction&&) = default;
};

/// Movable, not copyable.
class bare_admission : public kvx::archetype::admission {
 public:
  using kvx::archetype::admission::admission;
  bare_admission(bare_admission&&) = default;
  bare_admission& operator=(bare_admission&&) = default;
};

/// Copies on streams that are not made out of nothing.
class bare_transfer {
 public:
  class stream_type {
   public:
    explicit stream_type(int number) : number_(number) {}
    [[nodiscard]] int number() const { return number_; }

   private:
    int number_;
  };

  class operation {
   public:
    [[nodiscard]] kvx::status wait_layer(std::size_t layer, stream_type) const { return done_.wait_layer(layer, {}); }
    [[nodiscard]] bool done() const noexcept { return done_.done(); }
    [[nodiscard]] kvx::status outcome() const noexcept { return done_.outcome(); }
    void wait() const { done_.wait(); }

   private:
    kvx::archetype::transfer::operation done_;
  };

  bare_transfer() = default;
  bare_transfer(bare_transfer&&) = default;

  template <kvx::kv_layout Layout>
  [[nodiscard]] kvx::result<operation> load(const Layout& layout, const kvx::transfer_batch& batch, stream_type on) {
    if (on.number() != 7) return kvx::errc::device_failed;
    if (const auto moved = copies_.load(layout, batch, {}); !moved) return moved.status();
    return operation{};
  }
  template <kvx::kv_layout Layout>
  [[nodiscard]] kvx::result<operation> save(const Layout& layout, const kvx::transfer_batch& batch, stream_type on) {
    if (on.number() != 7) return kvx::errc::device_failed;
    if (const auto moved = copies_.save(layout, batch, {}); !moved) return moved.status();
    return operation{};
  }
  [[nodiscard]] kvx::status register_arena(std::span<std::byte> arena) { return copies_.register_arena(arena); }

 private:
  kvx::archetype::transfer copies_;
};

static_assert(!std::is_copy_assignable_v<bare_layout> && !std::default_initializable<bare_layout>);
static_assert(!std::copyable<bare_admission> && !kvx::usage_observer<bare_admission>);
static_assert(!std::copyable<bare_eviction> && !std::default_initializable<bare_eviction>);
static_assert(!std::movable<kvx::archetype::io> && !kvx::contextual_hasher<kvx::archetype::hasher>);
static_assert(!std::copyable<bare_transfer> && !std::default_initializable<bare_transfer::stream_type>);

using bare_cache = kvx::cache<bare_layout, kvx::archetype::hasher, bare_eviction, kvx::archetype::io, bare_transfer>;

constexpr std::uint32_t block_tokens = 4;
constexpr std::size_t block_bytes = 6000;  // not a whole number of pages
constexpr std::size_t page_count = 64;
const bare_transfer::stream_type stream{7};

/// Pages whose bytes follow from the key of the block in them.
struct engine {
  void fill(kvx::block_id page, const kvx::block_key& key) {
    for (std::size_t i = 0; i < block_bytes; ++i)
      memory[page * block_bytes + i] = key.bytes[i % 16] ^ std::byte(i >> 4U);
  }
  [[nodiscard]] bool holds(kvx::block_id page, const kvx::block_key& key) const {
    for (std::size_t i = 0; i < block_bytes; ++i)
      if (memory[page * block_bytes + i] != (key.bytes[i % 16] ^ std::byte(i >> 4U))) return false;
    return true;
  }

  std::vector<std::byte> memory = std::vector<std::byte>(page_count * block_bytes);
};

kvx::options options_at(const std::string& root) {
  kvx::options o = kvx_test::patient_options(root);
  o.identity = {"archetype", "r1", "bytes"};
  o.memory_bytes = 512U << 10U;
  o.storage_bytes = 8U << 20U;
  return o;
}

template <class Cache>
void save_prompt(Cache& cache, engine& e, std::uint64_t seed, std::size_t tokens) {
  const kvx::sequence chain = cache.make_sequence(tokens_of(seed, tokens));
  for (std::size_t b = 0; b < chain.blocks(); ++b) e.fill(static_cast<kvx::block_id>(b), chain.key(b));
  const auto ticket = cache.save(chain, 0, pages_from(0, chain.blocks()), stream);
  REQUIRE(ticket.wait_stored(patience));
  INFO(seed << ": " << kvx::to_string(ticket.outcome().code()));
  REQUIRE(ticket.outcome().ok());
  REQUIRE(ticket.source_released());
}

/// Returns how many blocks arrived in the upper half of the pages, all of them right.
template <class Cache>
std::size_t load_prompt(Cache& cache, engine& e, std::uint64_t seed, std::size_t tokens) {
  const kvx::plan plan = cache.match(tokens_of(seed, tokens));
  const auto arriving = cache.prefetch(plan);
  REQUIRE(arriving.wait_for(patience));
  const auto ticket = cache.load(plan, pages_from(page_count / 2, plan.blocks()), stream);
  REQUIRE(ticket.wait_layer(0, stream).ok());
  ticket.wait();
  REQUIRE(ticket.outcome().ok());
  for (std::size_t b = 0; b < ticket.loaded_blocks(); ++b)
    CHECK(e.holds(static_cast<kvx::block_id>(page_count / 2 + b), plan.keys[b]));
  return ticket.loaded_blocks();
}

}  // namespace

TEST_CASE("a cache of archetypes loads what it saved, from memory and after a restart from storage") {
  const kvx_test::temporary_directory root;
  engine e;
  const bare_layout layout(e.memory.data(), block_bytes, page_count, block_tokens);
  {
    bare_cache cache(options_at(root.path()), layout);
    CHECK(load_prompt(cache, e, 1, 41) == 0);
    save_prompt(cache, e, 1, 41);
    CHECK(load_prompt(cache, e, 1, 41) == 10);
    CHECK(cache.drain(patience));
  }
  bare_cache again(options_at(root.path()), layout);
  CHECK(again.match(tokens_of(1, 41)).where(0) == kvx::tier::storage);
  CHECK(load_prompt(again, e, 1, 41) == 10);
  CHECK(again.match(tokens_of(1, 41)).where(0) == kvx::tier::memory);
}

TEST_CASE("a cache of archetypes loads straight from storage, also behind any_cache") {
  const kvx_test::temporary_directory root;
  engine e;
  const bare_layout layout(e.memory.data(), block_bytes, page_count, block_tokens);
  {
    bare_cache cache(options_at(root.path()), layout);
    save_prompt(cache, e, 1, 41);
  }
  std::fill(e.memory.begin(), e.memory.end(), std::byte{0});
  const auto check = [&](auto& cache) {
    const auto reader = std::make_shared<kvx::archetype::direct_reader>(cache.block_bytes(), 2);
    const kvx::plan plan = cache.match(tokens_of(1, 41));
    const auto ticket = cache.load_direct(plan, pages_from(page_count / 2, plan.blocks()), reader, stream);
    REQUIRE(ticket.wait_for(patience));
    CHECK(ticket.loaded_blocks() == 10);
    for (std::size_t b = 0; b < ticket.loaded_blocks(); ++b)
      CHECK(e.holds(static_cast<kvx::block_id>(page_count / 2 + b), plan.keys[b]));
    const auto none = cache.load_direct(plan, pages_from(page_count / 2, plan.blocks()),
                                        std::shared_ptr<kvx::archetype::direct_reader>{}, stream);
    CHECK(none.outcome() == kvx::status{kvx::errc::bad_argument});
    CHECK(cache.match(tokens_of(1, 41)).where(0) == kvx::tier::storage);
  };
  bare_cache typed(options_at(root.path()), layout);
  check(typed);
  std::fill(e.memory.begin(), e.memory.end(), std::byte{0});
  kvx::any_cache<bare_transfer::stream_type> erased(std::move(typed));
  check(erased);
}

TEST_CASE("a cache of archetypes evicts in both tiers") {
  const kvx_test::temporary_directory root;
  engine e;
  const bare_layout layout(e.memory.data(), block_bytes, page_count, block_tokens);
  kvx::options options = options_at(root.path());
  options.storage_bytes = 2U << 20U;
  options.extent_bytes = 512U << 10U;
  bare_cache cache(options, layout);
  for (std::uint64_t seed = 0; seed < 30; ++seed) save_prompt(cache, e, seed, 41);
  const kvx::metrics_snapshot stats = cache.stats();
  CHECK(stats.memory.evicted > 0);
  CHECK(stats.storage.evicted > 0);
  CHECK(stats.memory.blocks <= stats.memory.capacity);
  CHECK(stats.storage.blocks <= stats.storage.capacity);
  CHECK(load_prompt(cache, e, 29, 41) == 10);
}

TEST_CASE("any_cache holds a cache of archetypes and shares a runtime with another") {
  engine e;
  const bare_layout layout(e.memory.data(), block_bytes, page_count, block_tokens);
  kvx::options options = options_at({});
  const auto shared = std::make_shared<bare_cache::runtime_type>(4U << 20U);
  bare_cache other(options, layout, shared);
  kvx::any_cache<bare_transfer::stream_type> cache(bare_cache(options, layout, shared, bare_transfer{}));
  save_prompt(cache, e, 1, 41);
  CHECK(load_prompt(cache, e, 1, 41) == 10);
  CHECK(load_prompt(other, e, 1, 41) == 0);
}

TEST_CASE("a transfer engine that refuses costs a save or a load, nothing else") {
  engine e;
  const bare_layout layout(e.memory.data(), block_bytes, page_count, block_tokens);
  bare_cache cache(options_at({}), layout);
  const bare_transfer::stream_type refused{8};
  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 41));
  const auto save = cache.save(chain, 0, pages_from(0, 10), refused);
  CHECK(save.stored());
  CHECK(save.source_released());
  CHECK(save.outcome().code() == kvx::errc::device_failed);
  CHECK(cache.match(chain).empty());
  save_prompt(cache, e, 1, 41);
  const auto load = cache.load(cache.match(chain), pages_from(page_count / 2, 10), refused);
  CHECK(load.loaded_blocks() == 0);
  CHECK(load.outcome().code() == kvx::errc::device_failed);
  CHECK(load.destination_released());
  CHECK(load_prompt(cache, e, 1, 41) == 10);
}

TEST_CASE("a cache of archetypes asks admission for each tier, and loads what both admitted") {
  using choosy_cache = kvx::cache<bare_layout, kvx::archetype::hasher, bare_eviction, kvx::archetype::io, bare_transfer,
                                  bare_admission, bare_admission>;
  const kvx_test::temporary_directory root;
  engine e;
  const bare_layout layout{e.memory.data(), block_bytes, page_count, block_tokens};
  choosy_cache cache(options_at(root.path()), layout);
  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 4 * block_tokens + 1));
  for (std::size_t b = 0; b < chain.blocks(); ++b) e.fill(static_cast<kvx::block_id>(b), chain.key(b));
  const auto ticket = cache.save(chain, 0, pages_from(0, chain.blocks()), stream);
  REQUIRE(ticket.wait_stored(patience));
  CHECK(ticket.outcome() == kvx::status{kvx::errc::refused});
  CHECK(ticket.outcome(0) == kvx::errc::ok);
  CHECK(load_prompt(cache, e, 1, 4 * block_tokens + 1) == 1);
}
