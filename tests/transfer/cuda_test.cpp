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

#include <sys/mman.h>

#include <cstdint>
#include <optional>
#include <thread>
#include <utility>
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

/// A cuda_transfer whose loads take each payload from its place in staging memory instead.
class staging_engine {
 public:
  using stream_type = kvx::cuda_transfer::stream_type;
  using operation = kvx::cuda_transfer::operation;

  explicit staging_engine(kvx::cuda_transfer& engine) : engine_(engine) {}

  void add(std::byte* slots, std::byte* staging, std::size_t size) {
    REQUIRE(engine_.register_staging({staging, size}).ok());
    places_.push_back({slots, staging, size});
  }
  template <class Layout>
  kvx::result<operation> load(const Layout& layout, const kvx::transfer_batch& batch, stream_type stream) {
    if (!kvx::detail::check_batch(layout, batch)) return engine_.load(layout, batch, stream);
    std::vector<kvx::block_copy> blocks(batch.blocks.begin(), batch.blocks.end());
    for (kvx::block_copy& block : blocks) {
      for (const place& each : places_) {
        if (block.payload < each.slots || block.payload >= each.slots + each.size) continue;
        std::byte* const there = each.staging + (block.payload - each.slots);
        for (std::size_t l = 0; l < batch.layer_offsets.size(); ++l) {
          const std::size_t at = batch.layer_offsets[l];
          std::copy_n(block.payload + at, layout.layer_bytes(batch.group, l), there + at);
        }
        block.payload = there;
        break;
      }
    }
    return engine_.load(layout, {batch.group, batch.layer_offsets, blocks}, stream);
  }
  template <class Layout>
  kvx::result<operation> save(const Layout& layout, const kvx::transfer_batch& batch, stream_type stream) {
    return engine_.save(layout, batch, stream);
  }
  kvx::status register_arena(std::span<std::byte> arena) { return engine_.register_arena(arena); }

 private:
  struct place {
    std::byte* slots;
    std::byte* staging;
    std::size_t size;
  };
  kvx::cuda_transfer& engine_;
  std::vector<place> places_;
};

template <int Technique, bool OneRange>
class staging_fixture : public late_fixture<Technique, OneRange> {
 public:
  using base = late_fixture<Technique, OneRange>;
  using transfer = staging_engine;
  explicit staging_fixture(std::uint64_t seed) : base(seed), engine_(base::engine()) {}
  staging_engine& engine() { return engine_; }
  std::byte* slot_memory(std::size_t n) {
    std::byte* const slots = base::slot_memory(n);
    engine_.add(slots, base::allocate(n), n);
    return slots;
  }

 private:
  staging_engine engine_;
};

using from_staging = staging_fixture<-1, false>;
using from_staging_strided = staging_fixture<static_cast<int>(cuda_technique::strided), true>;

/// As one of kvx's threads calls: it never chose a device, so that device 0 is current.
template <class Call>
void on_new_thread(Call call) {
  std::thread(std::move(call)).join();
}

/// Device 1 is what the test's thread, and so the fixture, is on, in a process that has not begun anything.
struct on_second_device {
  on_second_device() {
    fake_cuda::instance().forget_contexts();
    kvx_gpu::check(cudaSetDevice(1));
  }
  ~on_second_device() { static_cast<void>(cudaSetDevice(0)); }
};

int current_device() {
  int device = -1;
  kvx_gpu::check(cudaGetDevice(&device));
  return device;
}

}  // namespace

TYPE_TO_STRING(chosen);
TYPE_TO_STRING(strided);
TYPE_TO_STRING(strided_refused);
TYPE_TO_STRING(batched);
TYPE_TO_STRING(staged);
TYPE_TO_STRING(direct);
TYPE_TO_STRING(from_staging);
TYPE_TO_STRING(from_staging_strided);
TEST_CASE_TEMPLATE_INVOKE(transfer_conformance, chosen, strided, strided_refused, batched, staged, direct, from_staging,
                          from_staging_strided);

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

TEST_CASE_TEMPLATE("what was submitted before an error counts until it has ended", Fixture, strided, batched, staged,
                   direct) {
  for (std::uint64_t n = 2; n < 6; ++n) {
    CAPTURE(n);
    toy_group group;
    group.layers = 4;
    group.fragment_bytes = 40'000;
    bench_top<Fixture> t{one_group(group), 0, 3, n};
    fake_cuda::instance().core().hold();
    fake_cuda::instance().refuse_submission(n);
    auto loaded = t.load(t.to);
    fake_cuda::instance().refuse_submission(0);
    const bool under_way = loaded.ok() && !loaded->done();
    fake_cuda::instance().core().release();
    REQUIRE(loaded.ok());
    CHECK(under_way);
    loaded->wait();
    CHECK(loaded->done());
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
    loaded->wait();  // the memory of this scope goes before its engine does
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

TEST_CASE("staging memory that goes round is filled again only when it was emptied") {
  // A copy for each piece: with more of them no copy ever overtakes a kernel by a whole round.
  kvx::cuda_transfer_options with;
  with.kernels = kvx_gpu::kernels();
  with.load_costs = with.save_costs = kvx::cuda_costs{};
  with.technique = cuda_technique::staged;
  with.staging_pieces = 2;
  with.staging_bytes = with.staging_pieces * 65'536;
  toy_group group;
  group.layers = 8;
  group.fragment_bytes = 32'768;
  group.page_count = 16;
  for (std::uint64_t seed = 1; seed <= chosen::seeds; ++seed) {
    bench_top<chosen> t{one_group(group), 0, 4, seed};
    kvx::cuda_transfer engine(with);
    const auto arena = static_cast<std::size_t>(t.slots.payload(3) - t.slots.payload(0)) + 16 * 32'768;
    REQUIRE(engine.register_arena({t.slots.payload(0), arena}).ok());
    const auto to = t.copies(t.to);
    auto loaded = engine.load(t.engine.layout(), {0, t.slots.offsets, to}, t.stream);
    REQUIRE(loaded.ok());
    loaded->wait();
    t.expect_loaded(t.to);
    CHECK(t.engine.intact());
    const auto from = t.copies(t.from);
    auto saved = engine.save(t.engine.layout(), {0, t.slots.offsets, from}, t.stream);
    REQUIRE(saved.ok());
    saved->wait();
    t.expect_saved(t.from);
    CHECK(t.slots.intact());
  }
}

TEST_CASE("threads that never chose a device start nothing on device 0, and leave others' captures alone") {
  const on_second_device there;
  {
    bench_top<chosen> t{one_group({}), 0, 2, 1};
    std::optional<kvx::cuda_transfer::operation> saved;
    std::optional<kvx::cuda_transfer::operation> loaded;
    fake_cuda::instance().begin_capture();
    on_new_thread([&] {
      host_memory memory;
      kvx::cuda_transfer_options with;
      with.device = 1;
      with.load_costs = with.save_costs = kvx::cuda_costs{};
      kvx::cuda_transfer other(with);
      CHECK(other.register_arena({memory.allocate(4096), 4096}).ok());
    });
    on_new_thread([&] { saved = *t.save(t.from); });
    on_new_thread([&] { saved->wait(); });
    on_new_thread([&] { loaded = *t.load(t.to); });
    on_new_thread([&] { CHECK(loaded->wait_layer(0, t.stream).ok()); });
    on_new_thread([&] {
      while (!loaded->done()) std::this_thread::yield();
    });
    CHECK(fake_cuda::instance().end_capture());
    CHECK(saved->outcome().ok());
    CHECK(loaded->outcome().ok());
    t.expect_saved(t.from);
    t.expect_loaded(t.to);
    CHECK(t.engine.intact());
    CHECK(t.slots.intact());
  }
  CHECK(fake_cuda::instance().has_context(1));
  CHECK_FALSE(fake_cuda::instance().has_context(0));
}

TEST_CASE("a thread gets its device back, unless that would start a context on it") {
  const on_second_device there;
  bench_top<chosen> t{one_group({}), 0, 1, 1};
  const auto load_and_wait = [&t] {
    const auto loaded = t.load(t.to);
    REQUIRE(loaded.ok());
    loaded->wait();
  };
  on_new_thread([&] {
    load_and_wait();
    CHECK(current_device() == 1);
  });
  CHECK_FALSE(fake_cuda::instance().has_context(0));
  on_new_thread([&] {
    kvx_gpu::check(cudaSetDevice(0));
    load_and_wait();
    CHECK(current_device() == 0);
  });
}

TEST_CASE("asking for a device starts nothing") {
  fake_cuda::instance().forget_contexts();
  CHECK(kvx::cuda_transfer::probe(0).usable);
  CHECK(kvx::cuda_transfer::probe(1).usable);
  CHECK_FALSE(kvx::cuda_transfer::probe(fake_cuda::devices).usable);
  for (int device = 0; device < fake_cuda::devices; ++device) CHECK_FALSE(fake_cuda::instance().has_context(device));
}

TEST_CASE("an engine that finds no memory gives back what it has, and leaves others' captures alone") {
  const on_second_device there;
  const std::size_t before = fake_cuda::instance().allocated();
  // Of either direction's staging memory, and of the calibration's pinned and device memory.
  for (std::uint64_t n = 1; n <= 4; ++n) {
    CAPTURE(n);
    fake_cuda::instance().begin_capture();
    on_new_thread([&] {
      kvx::cuda_transfer_options with;
      with.device = 1;
      with.kernels = kvx_gpu::kernels();
      fake_cuda::instance().refuse_allocation(n);
      CHECK_THROWS_AS(kvx::cuda_transfer{with}, kvx::error);
      fake_cuda::instance().refuse_allocation(0);
    });
    CHECK(fake_cuda::instance().end_capture());
    CHECK(fake_cuda::instance().allocated() == before);
  }
  CHECK_FALSE(fake_cuda::instance().has_context(0));
}

TEST_CASE("an operation that somebody holds keeps its outcome while others come and go") {
  bench_top<chosen> t{one_group({}), 0, 2, 1};
  auto held = t.load(t.to);
  REQUIRE(held.ok());
  held->wait();
  fake_cuda::instance().core().hold();
  std::vector<kvx::cuda_transfer::operation> others;
  for (int i = 0; i < 3; ++i) {
    auto next = t.load(t.to);
    REQUIRE(next.ok());
    others.push_back(*next);
  }
  CHECK(held->done());
  CHECK(held->outcome().ok());
  for (const auto& each : others) CHECK_FALSE(each.done());
  fake_cuda::instance().core().release();
  for (const auto& each : others) each.wait();
}

TEST_CASE("an arena that is not mapped is an error, and one that is mapped is touched before it is pinned") {
  bench_top<chosen> t{one_group({}), 0, 1, 1};
  constexpr std::size_t size = 1U << 20U;
  auto* const mapped = static_cast<std::byte*>(
      ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  REQUIRE(mapped != MAP_FAILED);
  CHECK(t.fixture.engine().register_arena({mapped, size}).ok());
  std::vector<unsigned char> resident(size / 4096);
  REQUIRE(::mincore(mapped, size, resident.data()) == 0);
  for (const unsigned char page : resident) CHECK((page & 1U) != 0);
  ::munmap(mapped, size);
  kvx::cuda_transfer_options with;
  with.load_costs = with.save_costs = kvx::cuda_costs{};
  kvx::cuda_transfer other(with);
  CHECK(other.register_arena({mapped, size}) == kvx::errc::device_failed);
}

TEST_CASE("cuda_layer_memory moves, and is given back on its device, whatever others capture") {
  const on_second_device there;
  const std::size_t before = fake_cuda::instance().allocated();
  fake_cuda::instance().begin_capture();
  on_new_thread([&] {
    kvx::cuda_layer_memory first(2, 4096, 1);
    std::byte* const tensor = first.tensor(1);
    kvx::cuda_layer_memory second(std::move(first));
    CHECK(second.tensor(1) == tensor);
    kvx::cuda_layer_memory third(4, 8192, 1);
    third = std::move(second);
    CHECK(third.size() == 2);
    CHECK(third.tensor(1) == tensor);
    CHECK(fake_cuda::instance().allocated() == before + 2 * 4096);
  });
  std::optional<kvx::cuda_layer_memory> elsewhere;
  on_new_thread([&] { elsewhere.emplace(2, 4096, 1); });
  on_new_thread([&] { elsewhere.reset(); });
  CHECK(fake_cuda::instance().end_capture());
  CHECK(fake_cuda::instance().allocated() == before);
  CHECK_FALSE(fake_cuda::instance().has_context(0));
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

namespace {

/// Blocks with a payload in an arena and a twin of it in staging memory.
template <class Fixture>
struct with_staging : bench_top<Fixture> {
  explicit with_staging(const toy_group& group = {}) : bench_top<Fixture>(one_group(group), 0, 2, 1) {
    size = static_cast<std::size_t>(this->slots.payload(1) - this->slots.payload(0)) + this->slots.payload_bytes();
    staging = this->fixture.allocate(size);
    std::copy_n(this->slots.payload(0), size, staging);
  }
  [[nodiscard]] std::vector<kvx::block_copy> from_staging() const {
    std::vector<kvx::block_copy> blocks = this->copies(this->to);
    for (kvx::block_copy& each : blocks) each.payload = staging + (each.payload - this->slots.payload(0));
    return blocks;
  }
  kvx::result<kvx::cuda_transfer::operation> load_blocks(const std::vector<kvx::block_copy>& blocks) {
    return this->fixture.engine().load(this->engine.layout(), {0, this->slots.offsets, blocks}, this->stream);
  }

  std::byte* staging = nullptr;
  std::size_t size = 0;
};

}  // namespace

TEST_CASE_TEMPLATE("payloads in staging memory are moved by the kernel, whatever the technique", Fixture, chosen,
                   strided, batched, staged) {
  toy_group group;
  group.layers = 24;
  group.page_count = 4;
  group.fragment_bytes = 20'000;
  with_staging<Fixture> t{group};
  kvx::cuda_transfer& engine = t.fixture.engine();
  REQUIRE(engine.register_staging({t.staging, t.size}).ok());
  REQUIRE(engine.register_staging({t.staging, t.size}).ok());
  auto loaded = t.load_blocks(t.from_staging());
  REQUIRE(loaded.ok());
  CHECK(engine.last_load() == cuda_technique::direct);
  // More blocks of threads than over the link: 192 pieces, a warp each.
  CHECK(fake_cuda::instance().last_grid == 6);
  loaded->wait();
  CHECK(loaded->outcome().ok());
  t.expect_loaded(t.to);
  CHECK(t.engine.intact());
  // What is in host memory goes as ever.
  auto again = t.load(t.from);
  REQUIRE(again.ok());
  again->wait();
  CHECK((engine.last_load() != cuda_technique::direct || fake_cuda::instance().last_grid == 2));
  t.expect_loaded(t.from);
  CHECK(t.engine.intact());
}

TEST_CASE("a batch from host and staging memory at once is refused whole, and so is a save to staging memory") {
  with_staging<chosen> t;
  kvx::cuda_transfer& engine = t.fixture.engine();
  REQUIRE(engine.register_staging({t.staging, t.size}).ok());
  std::vector<kvx::block_copy> blocks = t.from_staging();
  CHECK(engine.save(t.engine.layout(), {0, t.slots.offsets, blocks}, t.stream).status() == kvx::errc::bad_argument);
  for (const std::size_t in_host : {0U, 1U}) {
    std::vector<kvx::block_copy> mixed = blocks;
    mixed[in_host] = t.copies(t.to)[in_host];
    CHECK(t.load_blocks(mixed).status() == kvx::errc::bad_argument);
    CHECK(engine.save(t.engine.layout(), {0, t.slots.offsets, mixed}, t.stream).status() == kvx::errc::bad_argument);
  }
  // Ends behind the staging memory.
  blocks[1].payload += 4096;
  CHECK(t.load_blocks(blocks).status() == kvx::errc::bad_argument);
  t.fixture.synchronize(t.stream);
  CHECK(t.engine.intact());
  CHECK(t.slots.intact());
}

TEST_CASE("device memory that is not registered is refused, and what is no device memory is not registered") {
  with_staging<chosen> t;
  kvx::cuda_transfer& engine = t.fixture.engine();
  CHECK(t.load_blocks(t.from_staging()).status() == kvx::errc::bad_argument);
  CHECK(engine.register_staging({t.slots.payload(0), 4096}) == kvx::errc::bad_argument);
  host_memory pageable;
  CHECK(engine.register_staging({pageable.allocate(4096), 4096}) == kvx::errc::bad_argument);
  CHECK(engine.register_staging({t.staging, std::size_t{1} << 30U}) == kvx::errc::bad_argument);
  CHECK(engine.register_staging({}).ok());
  on_new_thread([&] {
    // Memory of another device's.
    kvx_gpu::check(cudaSetDevice(1));
    void* elsewhere = nullptr;
    kvx_gpu::check(cudaMalloc(&elsewhere, 4096));
    CHECK(engine.register_staging({static_cast<std::byte*>(elsewhere), 4096}) == kvx::errc::bad_argument);
    kvx_gpu::check(cudaFree(elsewhere));
  });
  kvx::cuda_transfer_options without;
  without.load_costs = without.save_costs = kvx::cuda_costs{};
  kvx::cuda_transfer no_kernels(without);
  CHECK(no_kernels.register_staging({t.staging, t.size}) == kvx::errc::unsupported);
  CHECK(t.engine.intact());
}
