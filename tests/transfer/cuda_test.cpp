// SPDX-License-Identifier: Apache-2.0
// cuda_transfer over a runtime that has no device: every technique through the conformance suite, with work that runs
// late and in any order that streams and events allow. tests/gpu/ runs the same on a device.
#include <kvx/layout.hpp>
#include <kvx/transfer/cuda.hpp>
#include <kvx/transfer/cuda/layer_memory.hpp>

#include "../gpu/fixture.hpp"
#include "conformance.hpp"

#include <doctest/doctest.h>
#include <fake_cuda.hpp>

#include <cstdint>
#include <vector>

namespace kvx_gpu {

kvx::cuda_kernels kernels() {
  kvx::cuda_kernels table;
  table.copy = reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(&kvx_test::fake_copy_pieces));
  return table;
}
void spin(cudaStream_t stream, std::uint64_t) {
  for (int i = 0; i < 3; ++i) check(fake_cuda::instance().submit(stream, [] {}));
}

}  // namespace kvx_gpu

using namespace kvx_test;
using kvx::cuda_technique;

namespace {

/// The device's fixture, each time with another order of work.
template <int Technique, bool OneRange>
class late_fixture : public kvx_gpu::cuda_fixture<Technique, OneRange> {
 public:
  static constexpr std::uint64_t seeds = 5;
  explicit late_fixture(std::uint64_t seed)
      : kvx_gpu::cuda_fixture<Technique, OneRange>((fake_cuda::instance().reseed(seed), seed)) {}
};

using chosen = late_fixture<-1, true>;
using strided = late_fixture<static_cast<int>(cuda_technique::strided), true>;
using strided_refused = late_fixture<static_cast<int>(cuda_technique::strided), false>;
using batched = late_fixture<static_cast<int>(cuda_technique::batched), false>;
using staged = late_fixture<static_cast<int>(cuda_technique::staged), false>;
using direct = late_fixture<static_cast<int>(cuda_technique::direct), false>;

}  // namespace

TYPE_TO_STRING(chosen);
TYPE_TO_STRING(strided);
TYPE_TO_STRING(strided_refused);
TYPE_TO_STRING(batched);
TYPE_TO_STRING(staged);
TYPE_TO_STRING(direct);
TEST_CASE_TEMPLATE_INVOKE(transfer_conformance, chosen, strided, strided_refused, batched, staged, direct);

TEST_CASE_TEMPLATE("an error while submitting fails the operation, and nothing of it runs afterwards", Fixture, strided,
                   batched, staged, direct) {
  for (std::uint64_t n = 1; n < 12; ++n) {
    CAPTURE(n);
    toy_group group;
    group.layers = 4;
    group.fragment_bytes = 40'000;
    bench_top<Fixture> t{one_group(group), 0, 3, n};
    fake_cuda::instance().refuse_submission(n);
    auto loaded = t.load(t.to);
    fake_cuda::instance().refuse_submission(0);
    if (loaded.ok()) {
      loaded->wait();
      CHECK(loaded->done());
      if (loaded->outcome().ok()) {
        t.expect_loaded(t.to);
        CHECK(t.engine.intact());
      } else {
        CHECK(loaded->outcome() == kvx::errc::device_failed);
        CHECK(loaded->wait_layer(0, t.stream) == kvx::errc::device_failed);
      }
    } else {
      CHECK(loaded.status() == kvx::errc::device_failed);
      CHECK(t.engine.intact());
    }
    // The engine goes on after it.
    auto again = t.load(t.to);
    REQUIRE(again.ok());
    again->wait();
    CHECK(again->outcome().ok());
    t.expect_loaded(t.to);
    CHECK(t.engine.intact());
  }
}

TEST_CASE("an error of the device ends every operation as failed") {
  bench_top<chosen> t{one_group({}), 0, 2, 1};
  t.fixture.slow_on(t.stream);
  auto loaded = t.load(t.to);
  REQUIRE(loaded.ok());
  fake_cuda::instance().break_device();
  CHECK(loaded->done());
  CHECK(loaded->outcome() == kvx::errc::device_failed);
  const auto later = t.load(t.to);
  if (later.ok()) {
    CHECK(later->done());
    CHECK(later->outcome() == kvx::errc::device_failed);
  }
  fake_cuda::instance().repair_device();
}

TEST_CASE_TEMPLATE("once the largest calls have been seen nothing is allocated", Fixture, strided, batched, staged,
                   direct) {
  toy_group group;
  group.layers = 6;
  group.fragment_bytes = 5000;
  bench_top<Fixture> t{one_group(group), 0, 4, 3};
  const auto both = [&] {
    auto loaded = t.load(t.to);
    auto saved = t.save(t.from);
    REQUIRE(loaded.ok());
    REQUIRE(saved.ok());
    loaded->wait();
    saved->wait();
  };
  for (int i = 0; i < 3; ++i) both();
  const std::size_t before = fake_cuda::instance().allocations();
  for (int i = 0; i < 20; ++i) both();
  CHECK(fake_cuda::instance().allocations() == before);
}

TEST_CASE("an arena that cannot be pinned is an error; those that are pinned go with the engine") {
  const std::size_t before = fake_cuda::instance().pinned_arenas();
  kvx::cuda_transfer::operation kept;
  {
    bench_top<chosen> t{one_group({}), 0, 1, 1};
    auto loaded = t.load(t.to);
    REQUIRE(loaded.ok());
    kept = *loaded;
    CHECK(fake_cuda::instance().pinned_arenas() > before);
    host_memory memory;
    fake_cuda::instance().refuse_pinning(true);
    CHECK(t.fixture.engine().register_arena({memory.allocate(4096), 4096}) == kvx::errc::device_failed);
    fake_cuda::instance().refuse_pinning(false);
  }
  CHECK(fake_cuda::instance().pinned_arenas() == before);
  CHECK(kept.done());
}

TEST_CASE("slots outside of the arenas are refused") {
  bench_top<chosen> t{one_group({}), 0, 1, 1};
  host_memory elsewhere;
  const std::vector<kvx::block_copy> blocks{{elsewhere.allocate(1U << 20U), t.to[0]}};
  CHECK(t.fixture.engine().load(t.engine.layout(), {0, t.slots.offsets, blocks}, t.stream).status() ==
        kvx::errc::bad_argument);
  CHECK(t.engine.intact());
}

TEST_CASE("the calibration ends and finds figures that can be used") {
  kvx::cuda_transfer_options with;
  with.kernels = kvx_gpu::kernels();
  const kvx::cuda_transfer engine(with);
  for (const kvx::cuda_costs& costs : {engine.load_costs(), engine.save_costs()}) {
    CHECK(costs.link_gb_per_s > 0);
    CHECK(costs.staged_gb_per_s > 0);
    CHECK(costs.strided_copy_us >= 0);
    CHECK(costs.small_entry_us > 0);
  }
}

TEST_CASE("a small load behind a long one takes the fast lane, and both arrive") {
  toy_group group;
  group.layers = 8;
  group.fragment_bytes = 32'768;
  group.page_count = 8;
  bench_top<chosen> t{one_group(group), 0, 3, 2};
  kvx::cuda_transfer_options with;
  with.kernels = kvx_gpu::kernels();
  with.load_costs = with.save_costs = kvx::cuda_costs{};
  with.direct_bytes = group.layers * group.regions * group.fragment_bytes;
  kvx::cuda_transfer engine(with);
  const auto arena = static_cast<std::size_t>(t.slots.payload(2) - t.slots.payload(0)) + 16 * 32'768;
  REQUIRE(engine.register_arena({t.slots.payload(0), arena}).ok());
  const auto blocks = t.copies(t.to);
  const auto other = t.fixture.new_stream();
  fake_cuda::instance().core().hold();
  const std::vector<kvx::block_copy> twice{blocks[0], blocks[1], blocks[0], blocks[1]};
  auto before = engine.load(t.engine.layout(), {0, t.slots.offsets, twice}, t.stream);
  REQUIRE(before.ok());
  CHECK(engine.last_load() != cuda_technique::direct);
  auto urgent = engine.load(t.engine.layout(), {0, t.slots.offsets, std::span(blocks).last(1)}, other);
  REQUIRE(urgent.ok());
  CHECK(engine.last_load() == cuda_technique::direct);
  fake_cuda::instance().core().release();
  before->wait();
  urgent->wait();
  t.expect_loaded(t.to);
  CHECK(t.engine.intact());
}

TEST_CASE("the tensors of cuda_layer_memory can be copied as matrices") {
  constexpr std::uint32_t layers = 6;
  constexpr std::size_t pages = 8;
  constexpr std::size_t half = std::size_t{16} * 2 * 32 * 2;
  const kvx::cuda_layer_memory memory(2 * layers, pages * half + 1);
  CHECK(memory.stride() % 512 == 0);
  CHECK(memory.stride() > pages * half);
  const auto keys = memory.every_second(0);
  const auto values = memory.every_second(1);
  REQUIRE(keys.size() == layers);
  kvx::separate_kv tensors;
  tensors.shape = {.block_tokens = 16, .page_tokens = 16, .layers = layers, .heads = 2, .head_dim = 32};
  tensors.page_count = pages;
  tensors.keys = keys;
  tensors.values = values;
  tensors.tensor_bytes = pages * half;
  const kvx::layout layout(16, {tensors});
  std::vector<std::size_t> offsets;
  for (std::size_t l = 0; l < layers; ++l) offsets.push_back(l * layout.layer_bytes(0, l));
  const kvx::block_id page = 5;
  const kvx::block_copy block{memory.tensor(0), {&page, 1}};
  std::vector<kvx::detail::copy_run> runs;
  kvx::detail::append_runs(layout, {0, offsets, {&block, 1}}, block, 0, layers, runs);
  const auto view = kvx::detail::find_strides(runs, layers, 0x7FFF'FFFF);
  REQUIRE(view);
  CHECK(view->period == 1);
  CHECK(view->rows == 2 * layers);
  CHECK_THROWS_AS(kvx::cuda_layer_memory(2, std::size_t{1} << 31U), kvx::error);
  CHECK_THROWS_AS(kvx::cuda_layer_memory(0, 4096), kvx::error);
}
