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
