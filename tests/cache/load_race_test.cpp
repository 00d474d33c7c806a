// SPDX-License-Identifier: Apache-2.0
#include <kvx/load_race.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t block_tokens = 4;
constexpr std::size_t blocks = 10;

using clock_type = std::chrono::steady_clock;

/// A prefetch of ten blocks that began a while ago, and of whose bytes a part has come.
kvx::prefetch_ticket arriving(std::chrono::seconds since, std::uint64_t ready, std::uint64_t wanted) {
  kvx::plan what;
  what.block_tokens = block_tokens;
  what.keys.resize(blocks);
  what.tiers.assign(blocks, kvx::tier::storage);
  std::vector<kvx::detail::prefetch_state::entry> entries;
  for (std::uint32_t b = 0; b < blocks; ++b) entries.push_back({b, 0});
  const auto began = clock_type::now() - since;
  auto state = std::make_shared<kvx::detail::prefetch_state>(1, std::make_shared<const kvx::plan>(std::move(what)),
                                                             std::move(entries), 0, began, began + 24h);
  state->bytes_wanted = wanted;
  state->bytes_ready = ready;
  return {std::move(state), {}};
}

/// The same straight into the pages, in the order of the blocks; the first ones were in memory.
kvx::direct_load_ticket arriving_directly(std::chrono::seconds since, std::size_t in_memory, std::size_t come) {
  kvx::plan what;
  what.block_tokens = block_tokens;
  what.keys.resize(blocks);
  std::vector<kvx::detail::direct_state::entry> entries;
  for (std::uint32_t b = 0; b < blocks; ++b) entries.push_back({b, 0, false});
  const auto began = clock_type::now() - since;
  auto state = std::make_shared<kvx::detail::direct_state>(1, std::move(what), std::move(entries), blocks, true, began,
                                                           began + 24h);
  state->from_storage = blocks - in_memory;
  state->storage_ready = come - in_memory;
  for (std::size_t b = 0; b < come; ++b) state->decide(b, kvx::errc::ok);
  return {std::move(state), {}};
}

/// Whether to wait for a load of ten blocks that needs 9,000 seconds more, where computing a block takes `block` and
/// the prompt has so many blocks. Times are long, so that the test's own do not count.
bool waits(std::chrono::duration<double> block, std::size_t prompt_blocks) {
  const kvx::prefetch_ticket ticket = arriving(1000s, 100, 1000);
  const kvx::prefill_cost cost{block.count() / block_tokens, 0};
  return kvx::load_race(ticket, cost, prompt_blocks * block_tokens, block_tokens).worth_waiting();
}

}  // namespace

TEST_CASE("a load is waited for where it is clearly faster than computing what it brings") {
  for (const std::size_t prompt_blocks : {11U, 1000U}) {  // all but the last, and one in a hundred
    CAPTURE(prompt_blocks);
    CHECK(waits(3000s, prompt_blocks));
    CHECK(waits(1100s, prompt_blocks));
    CHECK_FALSE_MESSAGE(waits(1000s, prompt_blocks), "faster by less than either estimate is good for");
    CHECK_FALSE(waits(500s, prompt_blocks));
  }
}

TEST_CASE("a direct load is judged by the blocks that storage brought") {
  const auto waits_for = [](const kvx::direct_load_ticket& ticket, std::chrono::duration<double> block) {
    const kvx::prefill_cost cost{block.count() / block_tokens, 0};
    return kvx::load_race(ticket, cost, 11 * block_tokens, block_tokens).worth_waiting();
  };
  // Two blocks in 1,000 s, so that eight more take 4,000; and with one of the two from memory, 8,000.
  const kvx::direct_load_ticket all_from_storage = arriving_directly(1000s, 0, 2);
  CHECK(all_from_storage.planned_blocks() == blocks);
  CHECK(waits_for(all_from_storage, 600s));
  CHECK_FALSE(waits_for(all_from_storage, 550s));
  const kvx::direct_load_ticket one_from_memory = arriving_directly(1000s, 1, 2);
  CHECK(waits_for(one_from_memory, 1200s));
  CHECK_FALSE(waits_for(one_from_memory, 1150s));
  // What was in memory says nothing of storage: then it is patience that counts.
  const kvx::direct_load_ticket nothing_yet = arriving_directly(1000s, 2, 2);
  CHECK_FALSE(nothing_yet.projected_remaining().has_value());
  CHECK(waits_for(nothing_yet, 1000s));
  CHECK_FALSE(waits_for(arriving_directly(1s, 0, blocks), 1000s));
}

TEST_CASE("before a first block came, a load is waited for as long as a share of the prefill takes") {
  const kvx::prefetch_ticket ticket = arriving(0s, 0, 1000);
  constexpr std::size_t prompt_tokens = (blocks + 1) * block_tokens;
  const kvx::prefill_cost patient{1000.0, 0};
  CHECK(kvx::load_race(ticket, patient, prompt_tokens, block_tokens).worth_waiting());
  const kvx::prefill_cost hasty{1e-9, 0};
  const kvx::load_race race(ticket, hasty, prompt_tokens, block_tokens);
  const auto until = clock_type::now() + 1ms;
  while (clock_type::now() < until) {
  }
  CHECK_FALSE(race.worth_waiting());
}
