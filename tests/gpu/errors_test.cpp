// SPDX-License-Identifier: Apache-2.0
#include <kvx/transfer/cuda.hpp>

#include "../transfer/conformance.hpp"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <string>

#include "fixture.hpp"

using namespace kvx_test;
using device_fixture = kvx_gpu::cuda_fixture<-1, true>;

TEST_CASE("a device that is not there is named") {
  const kvx::cuda_probe found = kvx::cuda_transfer::probe(4321);
  CHECK_FALSE(found.usable);
  CHECK(found.text.find("4321") != std::string::npos);
  kvx::cuda_transfer_options with;
  with.device = 4321;
  CHECK_THROWS_AS(kvx::cuda_transfer{with}, kvx::error);
}

TEST_CASE("slots outside of the arenas are refused, and nothing is written") {
  bench_top<device_fixture> t{one_group({}), 0, 1, 1};
  kvx_test::host_memory elsewhere;
  const std::vector<kvx::block_copy> blocks{{elsewhere.allocate(1U << 20U), t.to[0]}};
  CHECK(t.fixture.engine().load(t.engine.layout(), {0, t.slots.offsets, blocks}, t.stream).status() ==
        kvx::errc::bad_argument);
  CHECK(t.engine.intact());
}

TEST_CASE("an arena that cannot be pinned is an error, and one that is pinned already is taken") {
  kvx::cuda_transfer_options with;
  with.load_costs = with.save_costs = kvx::cuda_costs{};
  kvx::cuda_transfer engine(with);
  constexpr std::size_t size = 1U << 20U;
  void* const mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(mapped != MAP_FAILED);
  ::munmap(mapped, size);
  CHECK(engine.register_arena({static_cast<std::byte*>(mapped), size}).code() == kvx::errc::device_failed);

  kvx_test::host_memory memory;
  std::byte* const arena = memory.allocate(size);
  CHECK(engine.register_arena({arena, size}).ok());
  CHECK(engine.register_arena({arena + 4096, 4096}).ok());
  kvx::cuda_transfer second(with);
  CHECK(second.register_arena({arena, size}).ok());
  // Pinned in part: copies there would block.
  CHECK(second.register_arena({arena - 4096, 8192}).code() == kvx::errc::device_failed);
}

TEST_CASE("an arena is unpinned when its engine dies, also under operations that are still held") {
  kvx_test::host_memory memory;
  std::byte* const arena = memory.allocate(1U << 20U);
  for (int round = 0; round < 3; ++round) {
    kvx::cuda_transfer::operation kept;
    {
      bench_top<device_fixture> t{one_group({}), 0, 1, 1};
      t.fixture.slow_on(t.stream);
      auto loaded = t.load(t.to);
      REQUIRE(loaded.ok());
      kept = *loaded;
      REQUIRE(t.fixture.engine().register_arena({arena, 1U << 20U}).ok());
    }
    CHECK(kept.done());
    CHECK(kept.outcome().ok());
    // Only what is not pinned can be pinned.
    kvx_gpu::check(cudaHostRegister(arena, 1U << 20U, cudaHostRegisterDefault));
    kvx_gpu::check(cudaHostUnregister(arena));
  }
}

// Last, for the device is lost to the process afterwards.
TEST_CASE("an error of the device fails what is under way, and everything after it, without waiting for ever") {
  kvx::cuda_transfer::operation kept;
  {
    bench_top<device_fixture> t{one_group({}), 0, 2, 1};
    kvx_gpu::trap(t.stream, 2000);
    auto loaded = t.load(t.to);
    REQUIRE(loaded.ok());
    auto saved = t.save(t.from);
    REQUIRE(saved.ok());
    loaded->wait();
    CHECK(loaded->done());
    CHECK(loaded->outcome().code() == kvx::errc::device_failed);
    while (!saved->done()) {
    }
    CHECK(saved->outcome().code() == kvx::errc::device_failed);
    auto later = t.load(t.to);
    if (later.ok()) {
      later->wait();
      CHECK(later->outcome().code() == kvx::errc::device_failed);
    } else {
      CHECK(later.status().code() == kvx::errc::device_failed);
    }
    kept = *loaded;
  }
  CHECK(kept.outcome().code() == kvx::errc::device_failed);
}
