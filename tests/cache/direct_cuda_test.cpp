// SPDX-License-Identifier: Apache-2.0
// load_direct as it is used: a cache over cuda_transfer, fed by cufile, on a runtime without a device whose work runs
// late and in any order that streams and events allow.
#include <kvx/io/cufile.hpp>
#include <kvx/presets.hpp>
#include <kvx/presets/cuda.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "fake_cuda.hpp"
#include "fake_cufile.hpp"
#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using kvx_test::fake_cuda;
using kvx_test::fake_cufile;
using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

constexpr std::size_t blocks = 24;
constexpr kvx::block_id loaded_from = 32;

kvx::options options_at(const std::string& root) {
  kvx::options o = kvx_test::patient_options(root);
  o.memory_bytes = 4U << 20U;
  o.storage_bytes = 16U << 20U;
  return o;
}

/// A prompt on storage, and a cache for a GPU that has nothing in memory.
struct fixture {
  explicit fixture(std::uint64_t seed) {
    fake_cuda::instance().reseed(seed);
    fake_cufile::instance().reset();
    kvx::host_cache<> first(options_at(root.path()), engine.layout());
    chain = first.make_sequence(tokens_of(seed, 4 * blocks + 1));
    for (std::size_t b = 0; b < blocks; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    REQUIRE(first.save(chain, 0, pages_from(0, blocks)).wait_stored(patience));
    for (kvx::block_id p = 0; p < 128; ++p) engine.poison(p);
  }
  [[nodiscard]] kvx::gpu_cache<> open() {
    kvx::cuda_transfer_options with;
    with.kernels = kvx_test::fake_kernels();
    with.load_costs = with.save_costs = kvx::cuda_costs{};
    return {options_at(root.path()), engine.layout(), kvx::cuda_transfer(with)};
  }
  [[nodiscard]] std::shared_ptr<kvx::cufile> reader(const kvx::gpu_cache<>& cache, kvx::cufile_way way) const {
    kvx::cufile_options with;
    with.kernels = kvx_test::fake_kernels();
    with.block_bytes = cache.block_bytes();
    with.staging_bytes = 6 * cache.block_bytes();
    with.threads = 4;
    with.through = way;
    with.api = fake_cufile::api();
    return std::make_shared<kvx::cufile>(with);
  }
  [[nodiscard]] bool holds(kvx::block_id page, std::size_t block) const { return engine.holds(page, chain.key(block)); }

  kvx_test::temporary_directory root;
  test_engine engine{test_engine::shape{.pages = 128}};
  kvx::sequence chain;
};

cudaStream_t make_stream() {
  cudaStream_t made = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking) == cudaSuccess);
  return made;
}

}  // namespace

TEST_CASE("blocks come straight from storage, whoever reads, on several streams at once") {
  for (const kvx::cufile_way way : {kvx::cufile_way::host, kvx::cufile_way::cufile}) {
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      fixture f(seed);
      kvx::gpu_cache<> cache = f.open();
      const auto reader = f.reader(cache, way);
      const cudaStream_t streams[] = {make_stream(), make_stream()};
      const kvx::plan plan = cache.match(f.chain);
      REQUIRE(plan.blocks() == blocks);
      std::vector<kvx::direct_load_ticket> tickets;
      for (std::size_t i = 0; i < 3; ++i)
        tickets.push_back(cache.load_direct(
            plan, pages_from(loaded_from + static_cast<kvx::block_id>(i * blocks), blocks), reader, streams[i % 2]));
      for (std::size_t i = 0; i < 3; ++i) {
        REQUIRE(tickets[i].wait_for(patience));
        CHECK(tickets[i].loaded_blocks() == blocks);
        for (std::size_t b = 0; b < blocks; ++b)
          CHECK(f.holds(loaded_from + static_cast<kvx::block_id>(i * blocks + b), b));
      }
      CHECK(cache.stats().memory.blocks == 0);
      for (const cudaStream_t each : streams) REQUIRE(cudaStreamDestroy(each) == cudaSuccess);
    }
  }
}

TEST_CASE("what cuFile brings wrong is a miss, and its page stays as it was") {
  fixture f(7);
  kvx::gpu_cache<> cache = f.open();
  const auto reader = f.reader(cache, kvx::cufile_way::cufile);
  const cudaStream_t stream = make_stream();
  fake_cufile::instance().corrupt = true;
  const auto ticket = cache.load_direct(cache.match(f.chain), pages_from(loaded_from, blocks), reader, stream);
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == 0);
  for (kvx::block_id b = 0; b < blocks; ++b) CHECK(f.engine.poisoned(loaded_from + b));
  CHECK(cache.stats().storage.damaged >= 1);
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("a device that fails fails the load, and nothing is lost with it") {
  fixture f(8);
  kvx::gpu_cache<> cache = f.open();
  const auto reader = f.reader(cache, kvx::cufile_way::host);
  const cudaStream_t stream = make_stream();
  const kvx::plan plan = cache.match(f.chain);
  fake_cuda::instance().break_device();
  const auto ticket = cache.load_direct(plan, pages_from(loaded_from, blocks), reader, stream);
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == 0);
  fake_cuda::instance().repair_device();
  REQUIRE(cache.drain(patience));
  const auto again = cache.load_direct(plan, pages_from(loaded_from, blocks), reader, stream);
  REQUIRE(again.wait_for(patience));
  CHECK(again.outcome(0) != kvx::errc::bad_argument);
  for (std::size_t b = 0; b < again.loaded_blocks(); ++b)
    CHECK(f.holds(loaded_from + static_cast<kvx::block_id>(b), b));
  REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("a reader in memory that the device does not know is refused") {
  fixture f(9);
  kvx::gpu_cache<> cache = f.open();
  const auto reader = std::make_shared<kvx::archetype::direct_reader>(cache.block_bytes(), 2);
  const auto ticket = cache.load_direct(cache.match(f.chain), pages_from(loaded_from, blocks), reader, nullptr);
  CHECK(ticket.done());
  CHECK(ticket.outcome() == kvx::status{kvx::errc::bad_argument});
}
