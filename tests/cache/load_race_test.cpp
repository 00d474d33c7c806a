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
constexpr std::size_t prompt_tokens = blocks * block_tokens + block_tokens;

using clock_type = std::chrono::steady_clock;

/// A prefetch of ten blocks that began a while ago, and of whose bytes a part has come.
kvx::prefetch_ticket arriving(std::chrono::milliseconds since, std::uint64_t ready, std::uint64_t wanted) {
  kvx::plan what;
  what.block_tokens = block_tokens;
  what.keys.resize(blocks);
  what.tiers.assign(blocks, kvx::tier::storage);
  std::vector<kvx::detail::prefetch_state::entry> entries;
  for (std::uint32_t b = 0; b < blocks; ++b) entries.push_back({b, 0});
  const auto began = clock_type::now() - since;
  auto state = std::make_shared<kvx::detail::prefetch_state>(1, std::make_shared<const kvx::plan>(std::move(what)),
                                                             std::move(entries), 0, began, began + 1h);
  state->bytes_wanted = wanted;
  state->bytes_ready = ready;
  return {std::move(state), {}};
}

/// Whether to wait for a load that needs nine seconds more, where the whole prompt is computed in `prefill`.
bool waits(std::chrono::duration<double> prefill) {
  const kvx::prefetch_ticket ticket = arriving(1s, 100, 1000);
  const kvx::prefill_cost cost{prefill.count() / static_cast<double>(prompt_tokens), 0};
  return kvx::load_race(ticket, cost, prompt_tokens, block_tokens).worth_waiting();
}

}  // namespace

TEST_CASE("a load is waited for where it is clearly faster than computing") {
  CHECK(waits(30s));
  CHECK(waits(13s));  // 9 s and a suffix of 1.2 s, against 13 s
  CHECK_FALSE(waits(5s));
  CHECK_FALSE_MESSAGE(waits(11s), "faster by less than either estimate is good for");
}

TEST_CASE("before a first block came, a load is waited for as long as a share of the prefill takes") {
  const kvx::prefetch_ticket ticket = arriving(0ms, 0, 1000);
  const kvx::prefill_cost patient{1000.0, 0};
  CHECK(kvx::load_race(ticket, patient, prompt_tokens, block_tokens).worth_waiting());
  const kvx::prefill_cost hasty{1e-9, 0};
  const kvx::load_race race(ticket, hasty, prompt_tokens, block_tokens);
  const auto until = clock_type::now() + 1ms;
  while (clock_type::now() < until) {
  }
  CHECK_FALSE(race.worth_waiting());
}
