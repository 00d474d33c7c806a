// SPDX-License-Identifier: Apache-2.0
// Blocks go from device memory to pinned memory, to storage, and back to other pages, by way of memory or straight,
// under random delays, while both tiers evict. A kernel writes each block as a function of its key, and a kernel checks
// every word that comes back.
//
// KVX_TEST_ROUND_TRIPS: blocks that have to make the whole way (default 20,000); KVX_TEST_STORAGE: a directory.
#include <kvx/cache.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/cufile.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/layout.hpp>
#include <kvx/transfer/cuda.hpp>

#include <doctest/doctest.h>
#include <patient_options.hpp>
#include <temporary_directory.hpp>
#include <test_engine.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "fixture.hpp"

using namespace std::chrono_literals;
using kvx_gpu::check;
using gpu_cache = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::cuda_transfer>;

namespace {

constexpr std::uint32_t block_tokens = 4;
constexpr std::size_t layers = 2;
constexpr std::size_t page_piece = 4096;  // keys, or values, of one layer of one page
constexpr std::size_t prompt_blocks = 32;
constexpr std::size_t threads = 6;
constexpr std::size_t prompts_per_thread = 160;
constexpr std::size_t pages_per_thread = 4 * prompt_blocks;
constexpr std::size_t slot_bytes = (2 * layers + 1) * kvx::page_bytes;

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// An engine's pool of pages on the device.
struct device_pool {
  device_pool() {
    for (std::size_t r = 0; r < 2 * layers; ++r) {
      check(cudaMalloc(reinterpret_cast<void**>(&regions[r]), pages * page_piece));
    }
  }
  ~device_pool() {
    for (std::byte* at : regions) static_cast<void>(cudaFree(at));
  }
  device_pool(const device_pool&) = delete;
  device_pool& operator=(const device_pool&) = delete;

  [[nodiscard]] kvx::layout layout() const {
    std::vector<std::byte*> keys;
    std::vector<std::byte*> values;
    for (std::size_t l = 0; l < layers; ++l) {
      keys.push_back(regions[2 * l]);
      values.push_back(regions[2 * l + 1]);
    }
    kvx::separate_kv tensors;
    tensors.shape.block_tokens = tensors.shape.page_tokens = block_tokens;
    tensors.shape.layers = static_cast<std::uint32_t>(layers);
    tensors.shape.heads = 4;
    tensors.shape.head_dim = page_piece / block_tokens / 4 / 2;
    tensors.shape.element = kvx::element_type::bf16;
    tensors.page_count = pages;
    tensors.keys = keys;
    tensors.values = values;
    tensors.tensor_bytes = pages * page_piece;
    return kvx::layout(block_tokens, {tensors});
  }

  static constexpr std::size_t pages = threads * pages_per_thread;
  std::byte* regions[2 * layers] = {};
};

/// What a kernel reads to know which words belong where, in pinned memory; one list per layer.
struct lists {
  lists() {
    check(cudaHostAlloc(reinterpret_cast<void**>(&pieces), layers * prompt_blocks * 2 * sizeof(std::byte*), 0));
    check(cudaHostAlloc(reinterpret_cast<void**>(&numbers), layers * prompt_blocks * sizeof(std::uint64_t), 0));
  }
  ~lists() {
    static_cast<void>(cudaFreeHost(pieces));
    static_cast<void>(cudaFreeHost(numbers));
  }
  lists(const lists&) = delete;
  lists& operator=(const lists&) = delete;

  void set(const device_pool& pool, const kvx::sequence& chain, std::span<const kvx::block_id> ids) const {
    for (std::size_t l = 0; l < layers; ++l) {
      for (std::size_t b = 0; b < ids.size(); ++b) {
        std::uint64_t key = 0;
        std::memcpy(&key, chain.key(b).bytes.data(), sizeof key);
        numbers[l * prompt_blocks + b] = key * layers + l;
        for (std::size_t part = 0; part < 2; ++part) {
          pieces[(l * prompt_blocks + b) * 2 + part] = pool.regions[2 * l + part] + ids[b] * page_piece;
        }
      }
    }
  }

  std::byte** pieces = nullptr;
  std::uint64_t* numbers = nullptr;
};

struct totals {
  std::atomic<std::uint64_t> whole_way{0};
  std::atomic<std::uint64_t> from_memory{0};
  std::atomic<std::uint64_t> straight{0};  // of those that went the whole way
  std::atomic<std::uint64_t> saved{0};
  std::atomic<std::uint64_t> missed{0};
  std::atomic<std::uint64_t> errors{0};
};

void engine(gpu_cache& cache, const std::shared_ptr<kvx::cufile>& reader, const device_pool& pool, std::size_t me,
            std::uint64_t goal, totals& all, unsigned long long* wrong) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const lists written;
  const lists expected;
  std::mt19937_64 random(me);
  std::vector<kvx::block_id> free_pages(pages_per_thread);
  std::iota(free_pages.begin(), free_pages.end(), static_cast<kvx::block_id>(me * pages_per_thread));
  std::vector<kvx::sequence> prompts;
  for (std::size_t p = 0; p < prompts_per_thread; ++p) {
    prompts.push_back(cache.make_sequence(kvx_test::tokens_of(me * 1000 + p, prompt_blocks * block_tokens + 1)));
  }
  const auto delay = [&] {
    if (random() % 8 == 0) kvx_gpu::spin(stream, random() % 200);
  };
  // What a prefill would do: write the pages, late, and save them.
  const auto prefill = [&](const kvx::sequence& chain, std::span<const kvx::block_id> pages) {
    written.set(pool, chain, pages);
    delay();
    for (std::size_t l = 0; l < layers; ++l) {
      kvx_gpu::write_blocks(stream, written.pieces + l * prompt_blocks * 2, written.numbers + l * prompt_blocks,
                            prompt_blocks, 2, page_piece);
    }
    kvx::save_ticket saved = cache.save(chain, 0, pages, stream);
    if (!saved.wait_source_released(20s)) ++all.errors;
    all.saved += prompt_blocks;
    // Nothing reads them any more, so anybody may write them.
    for (const kvx::block_id page : pages) {
      check(cudaMemsetAsync(pool.regions[0] + page * page_piece, 0xA5, page_piece, stream));
    }
    check(cudaStreamSynchronize(stream));
    return saved;
  };
  // Counts the words that are wrong in the pages of a prompt's first blocks.
  const auto check_pages = [&](const kvx::sequence& chain, std::span<const kvx::block_id> pages, auto&& layer_ready) {
    expected.set(pool, chain, pages);
    for (std::size_t l = 0; l < layers && !pages.empty(); ++l) {
      if (!layer_ready(l)) ++all.errors;
      kvx_gpu::check_blocks(stream, expected.pieces + l * prompt_blocks * 2, expected.numbers + l * prompt_blocks,
                            static_cast<std::uint32_t>(pages.size()), 2, page_piece, wrong);
    }
    check(cudaStreamSynchronize(stream));
  };
  // More than storage holds, so that it evicts from the start.
  for (const kvx::sequence& chain : prompts) {
    std::shuffle(free_pages.begin(), free_pages.end(), random);
    if (!prefill(chain, std::span(free_pages).first(prompt_blocks)).wait_stored(20s)) ++all.errors;
  }
  while (all.whole_way < goal && all.errors == 0) {
    const kvx::sequence& chain = prompts[random() % prompts.size()];
    std::shuffle(free_pages.begin(), free_pages.end(), random);
    const std::span<const kvx::block_id> here = std::span(free_pages).first(prompt_blocks);
    const std::span<const kvx::block_id> there = std::span(free_pages).subspan(prompt_blocks, prompt_blocks);
    const kvx::plan plan = cache.match(chain);
    if (plan.blocks() < prompt_blocks) {
      all.missed += prompt_blocks - plan.blocks();
      static_cast<void>(prefill(chain, here));
      continue;
    }
    const bool straight = random() % 3 == 0;
    std::size_t count = 0;
    if (straight) {
      // Whoever copies before the engine's stream is there, or not at all, leaves these.
      if (random() % 8 == 0) kvx_gpu::spin(stream, 5000);  // longer than storage takes
      for (std::byte* const region : pool.regions)
        for (const kvx::block_id page : there)
          check(cudaMemsetAsync(region + page * page_piece, 0xA5, page_piece, stream));
      const kvx::direct_load_ticket arriving = cache.load_direct(plan, there, reader, stream);
      if (!arriving.wait_for(kvx_test::patience)) ++all.errors;
      count = arriving.loaded_blocks();
      check_pages(chain, there.first(count), [](std::size_t) { return true; });
      // What was evicted meanwhile is a miss.
      if (const kvx::errc code = arriving.outcome().code(); code != kvx::errc::ok && code != kvx::errc::miss)
        ++all.errors;
    } else {
      const kvx::prefetch_ticket arriving = cache.prefetch(plan);
      static_cast<void>(arriving.wait_for(20s));
      delay();
      const auto loaded = cache.load(plan, there, stream);
      count = loaded.loaded_blocks();
      check_pages(chain, there.first(count), [&](std::size_t l) { return loaded.wait_layer(l, stream).ok(); });
      loaded.wait();
      if (!loaded.outcome().ok()) ++all.errors;
    }
    std::size_t from_storage = 0;
    for (std::size_t b = 0; b < count; ++b) from_storage += plan.where(b) == kvx::tier::storage ? 1U : 0U;
    if (straight) all.straight += from_storage;
    all.whole_way += from_storage;
    all.from_memory += count - from_storage;
  }
  check(cudaStreamDestroy(stream));
}

}  // namespace

TEST_CASE("no block comes back wrong from its way through memory and storage") {
  const std::uint64_t goal = number_from("KVX_TEST_ROUND_TRIPS", 20'000);
  const char* const directory = std::getenv("KVX_TEST_STORAGE");
  const kvx_test::temporary_directory own;
  const std::string root = directory == nullptr ? own.path() : std::string(directory) + "/kvx-round-trips";
  const device_pool pool;
  unsigned long long* wrong = nullptr;
  check(cudaHostAlloc(reinterpret_cast<void**>(&wrong), sizeof *wrong, 0));
  *wrong = 0;
  kvx::options with = kvx_test::patient_options(root);
  with.identity = {"round-trips", "r1", "bf16"};
  // Less than all blocks, so that both tiers have to evict.
  with.memory_bytes = 1024 * slot_bytes;
  with.storage_bytes = 3 * threads * prompts_per_thread * prompt_blocks * slot_bytes / 4;
  with.extent_bytes = with.storage_bytes / 16 / kvx::page_bytes * kvx::page_bytes;
  with.lease = 5ms;
  with.io.threads = 8;
  kvx::cuda_transfer_options device;
  device.kernels = kvx_gpu::kernels();
  totals all;
  kvx::metrics_snapshot stats;
  const auto began = std::chrono::steady_clock::now();
  {
    gpu_cache cache(with, pool.layout(), kvx::cuda_transfer(device));
    kvx::cufile_options direct;
    direct.kernels = device.kernels;
    direct.block_bytes = cache.block_bytes();
    direct.staging_bytes = 16 * cache.block_bytes();  // fewer than a prompt has
    direct.threads = 4;
    direct.through = kvx::cufile_way::host;
    const auto reader = std::make_shared<kvx::cufile>(direct);
    std::vector<std::thread> engines;
    for (std::size_t t = 0; t < threads; ++t) {
      engines.emplace_back([&, t] { engine(cache, reader, pool, t, goal, all, wrong); });
    }
    for (std::thread& each : engines) each.join();
    stats = cache.stats();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  std::printf(
      "round trips: %llu whole way, %llu of them straight, %llu from memory, %llu saved, %llu missed, %llu evicted "
      "from memory, %llu from storage, %llu damaged, %llu wrong words, %.1f s\n",
      static_cast<unsigned long long>(all.whole_way), static_cast<unsigned long long>(all.straight),
      static_cast<unsigned long long>(all.from_memory), static_cast<unsigned long long>(all.saved),
      static_cast<unsigned long long>(all.missed), static_cast<unsigned long long>(stats.memory.evicted),
      static_cast<unsigned long long>(stats.storage.evicted), static_cast<unsigned long long>(stats.storage.damaged),
      *wrong, seconds);
  CHECK(all.errors == 0);
  CHECK(*wrong == 0);
  CHECK(all.whole_way >= goal);
  CHECK(all.straight >= goal / 10);
  CHECK(stats.memory.evicted > 0);
  CHECK(stats.storage.evicted > 0);
  static_cast<void>(cudaFreeHost(wrong));
}
