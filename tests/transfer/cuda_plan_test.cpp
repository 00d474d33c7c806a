// SPDX-License-Identifier: Apache-2.0
// Which technique, which pieces, which addresses: what cuda_transfer decides before it submits anything.
#include <kvx/detail/copy_plan.hpp>
#include <kvx/transfer/cuda/costs.hpp>

#include <doctest/doctest.h>
#include <toy_layout.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

using kvx::cuda_costs;
using kvx::cuda_technique;
using kvx::cuda_workload;
using kvx::detail::copy_run;
using kvx::detail::find_strides;

namespace {

constexpr std::size_t far = std::size_t{1} << 31U;

// Addresses alone: nothing reads or writes there.
std::byte* at(std::size_t offset) { return reinterpret_cast<std::byte*>((std::uintptr_t{1} << 32U) + offset); }

std::vector<copy_run> rows(std::size_t count, std::size_t engine_step, std::size_t slot_step, std::size_t bytes) {
  std::vector<copy_run> out;
  for (std::size_t i = 0; i < count; ++i) out.push_back({at(i * engine_step), at(i * slot_step), bytes});
  return out;
}

}  // namespace

TEST_CASE("rows at constant distances are one matrix") {
  const auto view = find_strides(rows(160, 1 << 20, 4096, 4096), 80, far);
  REQUIRE(view);
  CHECK(view->period == 1);
  CHECK(view->rows == 160);
}

TEST_CASE("keys and values at constant distances of their own are two matrices") {
  std::vector<copy_run> runs;
  for (std::size_t layer = 0; layer < 8; ++layer) {
    runs.push_back({at(layer * 10'000), at(layer * 8192), 1000});
    runs.push_back({at(1'000'000 + layer * 10'000), at(layer * 8192 + 1000), 1000});
  }
  const auto view = find_strides(runs, 8, far);
  REQUIRE(view);
  CHECK(view->period == 2);
  CHECK(view->rows == 8);
}

TEST_CASE("one row out of line, of another size, or too far away is no matrix") {
  auto runs = rows(16, 10'000, 4096, 4096);
  CHECK(find_strides(runs, 16, far));
  runs[7].engine += 16;
  CHECK_FALSE(find_strides(runs, 16, far));
  runs = rows(16, 10'000, 4096, 4096);
  runs[15].bytes -= 1;
  CHECK_FALSE(find_strides(runs, 16, far));
  runs = rows(16, 10'000, 4096, 4096);
  CHECK_FALSE(find_strides(runs, 16, 9'999));
  CHECK_FALSE(find_strides(rows(16, 4095, 4096, 4096), 16, far));
  CHECK_FALSE(find_strides({}, 16, far));
}

TEST_CASE("neighbours on both sides are one run, and never across blocks") {
  kvx_test::toy_group group;
  group.pages_per_block = 3;
  group.fragment_bytes = 256;
  std::vector<std::byte> pool(1U << 16U);
  std::vector<std::byte> slots(1U << 16U);
  const kvx_test::toy_layout layout(
      16, {group}, {{pool.data(), pool.data() + 16384, pool.data() + 32768, pool.data() + 49152 - 8192}});
  const std::vector<std::size_t> offsets{0, 4096};
  const std::vector<kvx::block_id> together{4, 5, 6};
  const std::vector<kvx::block_id> apart{4, 6, 7};
  const auto runs_of = [&](const std::vector<kvx::block_id>& pages) {
    const kvx::block_copy block{slots.data(), pages};
    std::vector<copy_run> runs{{pool.data() + 4 * 256 - 100, slots.data() - 100, 100}};
    kvx::detail::append_runs(layout, {0, offsets, {&block, 1}}, block, 0, 2, runs);
    return runs;
  };
  const auto one = runs_of(together);
  REQUIRE(one.size() == 1 + 4);
  CHECK(one[1].bytes == 3 * 256);
  CHECK(one[1].engine == pool.data() + 4 * 256);
  CHECK(one[2].slot == slots.data() + 3 * 256);
  CHECK(one[3].slot == slots.data() + 4096);
  CHECK(runs_of(apart).size() == 1 + 8);
}

TEST_CASE("a load is cut into groups of layers no finer than pays") {
  using kvx::detail::layer_groups;
  CHECK(layer_groups(80, 5U << 20U, 2U << 20U, 8) == 2);
  CHECK(layer_groups(80, 64U << 20U, 2U << 20U, 8) == 8);
  CHECK(layer_groups(80, 1U << 20U, 2U << 20U, 8) == 1);
  CHECK(layer_groups(2, 64U << 20U, 2U << 20U, 8) == 2);
}

TEST_CASE("the choice follows the costs") {
  const cuda_costs costs;
  constexpr std::size_t mib = 1U << 20U;
  // 64 MiB of blocks of 80 layers.
  const auto work = [](std::size_t fragment, bool constant) {
    const std::size_t fragments = 64 * mib / fragment;
    return cuda_workload{64 * mib, fragments, constant ? fragments / 160 : 0, fragments / 160};
  };
  CHECK(cheapest(costs, work(65'536, true), true, 8 * mib) == cuda_technique::strided);
  CHECK(cheapest(costs, work(32'768, true), true, 8 * mib) == cuda_technique::strided);
  CHECK(cheapest(costs, work(2'048, true), true, 8 * mib) == cuda_technique::staged);
  CHECK(cheapest(costs, work(2'048, true), false, 8 * mib) == cuda_technique::strided);
  CHECK(cheapest(costs, work(65'536, false), true, 8 * mib) == cuda_technique::batched);
  CHECK(cheapest(costs, work(4'096, false), true, 8 * mib) == cuda_technique::staged);
  CHECK(cheapest(costs, work(4'096, false), false, 8 * mib) == cuda_technique::batched);
  CHECK(cheapest(costs, {65'536, 16, 0, 1}, true, 8 * mib) == cuda_technique::direct);
  CHECK(cheapest(costs, {65'536, 16, 0, 1}, true, 0) == cuda_technique::staged);
  CHECK(cheapest(costs, {65'536, 16, 0, 1}, false, 8 * mib) == cuda_technique::batched);
}
