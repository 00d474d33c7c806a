// SPDX-License-Identifier: Apache-2.0
#include <kvx/transfer/host.hpp>

#include "conformance.hpp"

#include <doctest/doctest.h>
#include <host_memory.hpp>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using kvx::host_stream;
using kvx::host_transfer;

template <unsigned Threads>
class host_fixture {
 public:
  using transfer = host_transfer;
  static constexpr std::uint64_t seeds = 2;

  explicit host_fixture(std::uint64_t) : engine_(host_transfer::options{Threads}) {}

  host_transfer& engine() { return engine_; }
  host_stream new_stream() { return {}; }
  std::byte* allocate(std::size_t n) { return memory_.allocate(n); }
  std::byte* slot_memory(std::size_t n) { return memory_.allocate(n); }
  void write(std::byte* to, const std::byte* from, std::size_t n) { std::memcpy(to, from, n); }
  void read(std::byte* to, const std::byte* from, std::size_t n) { std::memcpy(to, from, n); }
  void fill_on(host_stream, std::byte* to, std::byte value, std::size_t n) {
    std::memset(to, std::to_integer<int>(value), n);
  }
  void read_on(host_stream, std::byte* to, const std::byte* from, std::size_t n) { std::memcpy(to, from, n); }
  void slow_on(host_stream) {}
  void synchronize(host_stream) {}

 private:
  host_transfer engine_;
  kvx_test::host_memory memory_;
};

}  // namespace

using namespace kvx_test;

TYPE_TO_STRING(host_fixture<1>);
TYPE_TO_STRING(host_fixture<3>);
TEST_CASE_TEMPLATE_INVOKE(transfer_conformance, host_fixture<1>, host_fixture<3>);

TEST_CASE("the host's copies are over when load and save return") {
  kvx_test::bench_top<host_fixture<1>> t{kvx_test::one_group({}), 0, 2, 9};
  t.expect_loaded(t.to);
  auto loaded = t.load(t.to);
  REQUIRE(loaded.ok());
  CHECK(loaded->done());
  CHECK(t.engine.intact());
}

TEST_CASE("host_transfer refuses to copy with no thread and says how to ask") {
  CHECK_THROWS_WITH_AS(host_transfer(host_transfer::options{0}),
                       "kvx: host_transfer::options::threads is 0; give 1 to copy on the caller's thread", kvx::error);
}

TEST_CASE("helper threads share batches of callers that come together") {
  host_transfer engine{host_transfer::options{3}};
  host_fixture<1> memory{1};
  kvx_test::toy_group group;
  group.layers = 8;
  group.page_count = 64;
  kvx_test::toy_engine<host_fixture<1>> toy{memory, kvx_test::one_group(group), 1};
  constexpr std::size_t caller_count = 4;
  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  std::vector<kvx_test::toy_slots<host_fixture<1>>> slots;
  for (std::size_t c = 0; c < caller_count; ++c) slots.emplace_back(memory, toy.layout(), 0U, 16U, c);
  for (std::size_t c = 0; c < caller_count; ++c) {
    callers.emplace_back([&, c] {
      std::vector<std::vector<kvx::block_id>> pages;
      for (std::size_t i = 0; i < 16; ++i) pages.push_back({static_cast<kvx::block_id>(c * 16 + i)});
      std::vector<kvx::block_copy> blocks;
      for (std::size_t i = 0; i < 16; ++i) blocks.push_back({slots[c].payload(i), pages[i]});
      for (int round = 0; round < 200; ++round) {
        if (engine.save(toy.layout(), {0, slots[c].offsets, blocks}, {})) ++good;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(good == 4 * 200);
  for (std::size_t c = 0; c < caller_count; ++c) {
    for (std::size_t i = 0; i < 16; ++i) {
      const std::vector<kvx::block_id> page{static_cast<kvx::block_id>(c * 16 + i)};
      for (std::size_t l = 0; l < group.layers; ++l) {
        const kvx_test::bytes layer = toy.layer_image(0, l, page);
        std::copy(layer.begin(), layer.end(), slots[c].image(i) + slots[c].offsets[l]);
      }
    }
    CHECK(slots[c].intact());
  }
}
