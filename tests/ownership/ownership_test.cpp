// SPDX-License-Identifier: Apache-2.0
// Who owns a page, and until when: engines that reuse pages at the first moment they may, over storage that answers
// late or never and copies that end long after the deadline.
//
// KVX_TEST_SCALE multiplies the 100,000 operations; a release build does a million in less than a minute:
//   KVX_TEST_SCALE=10 build/gcc/tests/ownership.ownership
#include <doctest/doctest.h>
#include <kvx/kvx.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine_thread.hpp"
#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KVX_TEST_LEAKS_ARE_REPORTED
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define KVX_TEST_LEAKS_ARE_REPORTED
#endif
#ifdef KVX_TEST_LEAKS_ARE_REPORTED
#include <sanitizer/lsan_interface.h>
#endif

using namespace std::chrono_literals;
using kvx_test::content_of;
using kvx_test::engine_report;
using kvx_test::engine_thread;
using kvx_test::late_cache;
using kvx_test::late_io;
using kvx_test::owned_pages;
using kvx_test::prompt;

namespace {

constexpr std::uint32_t block_tokens = 4;
constexpr std::size_t prompt_blocks = 8;
constexpr std::size_t prompt_count = 80;
constexpr std::size_t engine_threads = 2;
constexpr std::size_t pages_per_thread = 1024;
constexpr std::size_t memory_slots = 64;
constexpr std::size_t slot_bytes = (1 + owned_pages::layers) * kvx::page_bytes;

std::uint64_t scaled_operations() {
  const char* const scale = std::getenv("KVX_TEST_SCALE");
  return static_cast<std::uint64_t>(100'000 * (scale == nullptr ? 1.0 : std::max(0.01, std::atof(scale))));
}

kvx::options late_options(const std::string& root) {
  kvx::options o = kvx_test::patient_options(root);
  o.identity = {"test-model", "r1", "u64"};
  o.memory_bytes = memory_slots * slot_bytes;
  o.storage_bytes = 8U << 20U;
  o.extent_bytes = 1U << 20U;
  o.lease = 5ms;
  o.breaker_failures = 1'000'000'000;
  return o;
}

std::shared_ptr<late_cache::runtime_type> late_runtime(const std::shared_ptr<kvx::fault_control>& faults,
                                                       std::size_t caches) {
  return std::make_shared<late_cache::runtime_type>(caches * (memory_slots + 1) * slot_bytes,
                                                    std::make_unique<late_io>(kvx::io_options{}, faults));
}

std::vector<prompt> make_prompts(const late_cache& cache) {
  std::vector<prompt> out;
  for (std::uint64_t seed = 0; seed < prompt_count; ++seed) {
    prompt made;
    made.chain = cache.make_sequence(kvx_test::tokens_of(seed, prompt_blocks * block_tokens + 1));
    made.stale.block_tokens = block_tokens;
    made.stale.root = made.chain.root();
    made.stale.keys.assign(made.chain.keys().begin(), made.chain.keys().end());
    made.stale.tiers.assign(prompt_blocks, kvx::tier::storage);
    made.stale.tokens.assign(made.chain.tokens().begin(), made.chain.tokens().end() - 1);
    out.push_back(std::move(made));
  }
  return out;
}

/// Storage that is late or silent and a device that pauses, until it is told to stop.
class bad_weather {
 public:
  bad_weather(kvx::fault_control& faults, kvx::deferred_device& device, std::uint64_t seed)
      : faults_(faults), device_(device), thread_([this, seed] { blow(seed); }) {}
  ~bad_weather() {
    stop_ = true;
    thread_.join();
  }
  bad_weather(const bad_weather&) = delete;
  bad_weather& operator=(const bad_weather&) = delete;

 private:
  void blow(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    constexpr std::uint64_t for_ever = kvx::fault_rule::for_ever;
    using enum kvx::fault_kind;
    faults_.arm({.kind = never, .count = for_ever, .rate = 0.005});
    faults_.arm({.kind = late, .count = for_ever, .rate = 0.03, .delay = 5ms});
    faults_.arm({.kind = error, .count = for_ever, .rate = 0.003});
    faults_.arm({.kind = bit_flip, .scope = kvx::fault_scope::reads, .count = for_ever, .rate = 0.005});
    while (!stop_) {
      // Longer than the deadline of a load: what is copied then must not be gone when the device goes on.
      if (random() % 4 == 0) {
        device_.hold();
        std::this_thread::sleep_for(std::chrono::milliseconds(3 + random() % 6));
        device_.release();
      }
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 8000));
      if (random() % 4 == 0) device_.fail_copy(1 + random() % 20);
      if (random() % 8 == 0) device_.fail_submission(1);
      if (random() % 3 == 0) faults_.release_all();
    }
    faults_.disarm();
    faults_.release_all();
    device_.fail_copy(0);
    device_.fail_submission(0);
  }

  kvx::fault_control& faults_;
  kvx::deferred_device& device_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

engine_report run_engines(late_cache& cache, owned_pages& memory, kvx::deferred_device& device,
                          kvx::fault_control& faults, std::uint64_t operations) {
  const std::vector<prompt> prompts = make_prompts(cache);
  const kvx::deferred_stream stream = device.create_stream();
  for (const prompt& each : prompts) {
    for (std::size_t b = 0; b < prompt_blocks; ++b)
      memory.write(static_cast<kvx::block_id>(b), content_of(each.chain.key(b)));
    REQUIRE(cache.save(each.chain, 0, kvx_test::pages_from(0, prompt_blocks), stream).wait_stored(kvx_test::patience));
  }
  kvx_test::finished_tickets finished;
  std::vector<std::unique_ptr<engine_thread>> engines;
  for (std::size_t t = 0; t < engine_threads; ++t)
    engines.push_back(std::make_unique<engine_thread>(cache, memory, device, prompts, finished,
                                                      static_cast<kvx::block_id>(t * pages_per_thread),
                                                      pages_per_thread, t + 1));
  {
    const bad_weather weather(faults, device, 7);
    std::vector<std::thread> running;
    for (auto& engine : engines)
      running.emplace_back([&engine, operations] { engine->run(operations / engine_threads); });
    for (std::thread& each : running) each.join();
  }
  engine_report all;
  for (auto& engine : engines) all += engine->finish();
  return all;
}

/// Destroys a cache that has to be leaked, and says so to a leak checker.
void destroy_and_leak(std::optional<late_cache>& cache) {
#ifdef KVX_TEST_LEAKS_ARE_REPORTED
  const __lsan::ScopedDisabler deliberately;
#endif
  cache.reset();
}

}  // namespace

TEST_CASE("no page changes under its next owner, and what was loaded is right") {
  const kvx_test::temporary_directory root;
  const auto faults = std::make_shared<kvx::fault_control>(3);
  owned_pages memory(engine_threads * pages_per_thread);
  kvx::deferred_device device({.seed = 5, .workers = 1});
  kvx::options o = late_options(root.path());
  o.load_deadline = 3ms;
  o.save_deadline = 20ms;
  late_cache cache(o, memory.layout(block_tokens), late_runtime(faults, 1), kvx::deferred_transfer(device));
  const engine_report seen = run_engines(cache, memory, device, *faults, scaled_operations());
  REQUIRE(cache.drain(kvx_test::patience));
  const kvx::metrics_snapshot stats = cache.stats();
  MESSAGE(seen.operations << " operations, " << seen.loaded_blocks << " blocks loaded, " << seen.saved_blocks
                          << " saved, " << seen.timed_out_blocks << " timed out, " << seen.cancelled << " cancelled, "
                          << seen.dropped << " dropped, " << seen.device_failures << " failed on the device, "
                          << faults->injected(kvx::fault_kind::late) << " requests late, "
                          << faults->injected(kvx::fault_kind::never) << " withheld, " << stats.memory.evicted
                          << " evicted from memory, " << stats.storage.read_bytes / slot_bytes << " read");
  CHECK(seen.operations >= scaled_operations() / engine_threads * engine_threads);
  CHECK(seen.wrong_blocks == 0);
  CHECK(seen.changed_pages == 0);
  // Nothing of this was tested unless it happened.
  CHECK(seen.loaded_blocks > 0);
  CHECK(seen.timed_out_blocks > 0);
  CHECK(seen.cancelled > 0);
  CHECK(seen.dropped > 0);
  CHECK(seen.device_failures > 0);
  CHECK(faults->injected(kvx::fault_kind::late) > 0);
  CHECK(faults->injected(kvx::fault_kind::never) > 0);
  CHECK(stats.memory.evicted > 0);
  CHECK(stats.storage.read_bytes > 0);
}

TEST_CASE("a cache that dies with I/O and copies under way frees nothing of theirs and counts it") {
  const kvx_test::temporary_directory root;
  const auto faults = std::make_shared<kvx::fault_control>(3);
  constexpr std::size_t rounds = 3;
  const auto runtime = late_runtime(faults, rounds + 1);
  for (std::size_t round = 0; round <= rounds; ++round) {
    owned_pages memory(256);
    kvx_test::page_pool pool(memory, 0, 256);
    kvx::deferred_device device({.seed = round, .workers = 1});
    const kvx::deferred_stream stream = device.create_stream();
    kvx::options o = late_options(root.path());
    if (round != rounds) o.drain_deadline = 50ms;
    std::optional<late_cache> cache(std::in_place, o, memory.layout(block_tokens), runtime,
                                    kvx::deferred_transfer(device));
    const std::vector<prompt> prompts = make_prompts(*cache);
    const auto save = [&](const prompt& what) {
      const std::vector<kvx::block_id> pages = pool.take(prompt_blocks);
      for (std::size_t b = 0; b < prompt_blocks; ++b)
        stream.enqueue(
            [&memory, page = pages[b], content = content_of(what.chain.key(b))] { memory.write(page, content); });
      return std::pair(cache->save(what.chain, 0, pages, stream), pages);
    };
    // More than memory holds, so that the first are on storage alone; of all rounds but the last, one stays in memory.
    for (std::size_t p = 0; p < 12; ++p) {
      const auto [ticket, pages] = save(prompts[p]);
      REQUIRE(ticket.wait_stored(kvx_test::patience));
      stream.synchronize();
      pool.hand_over(pages);
    }
    REQUIRE(cache->drain(kvx_test::patience));
    if (round == rounds) {
      cache.reset();
      CHECK(runtime->leaked_bytes() == rounds * o.memory_bytes);
      break;
    }

    faults->arm({.kind = kvx::fault_kind::never, .count = kvx::fault_rule::for_ever});
    const std::vector<kvx::block_id> waiting = pool.take(prompt_blocks);
    const kvx::prefetch_ticket reading = cache->prefetch(prompts[0].stale);
    REQUIRE_FALSE(reading.done());
    const std::size_t reads = faults->withheld();
    REQUIRE(reads > 0);
    const auto [writing, written_pages] = save(prompts[12 + round]);
    REQUIRE(writing.wait_source_released(kvx_test::patience));
    stream.synchronize();
    pool.hand_over(written_pages);
    while (faults->withheld() == reads) std::this_thread::yield();

    device.hold();
    const std::vector<kvx::block_id> loaded_pages = pool.take(prompt_blocks);
    const auto loading = cache->load(prompts[12 + round].stale, loaded_pages, stream);
    REQUIRE(loading.loaded_blocks() == prompt_blocks);
    const auto [copying, copied_pages] = save(prompts[20 + round]);

    destroy_and_leak(cache);
    CHECK(runtime->leaked_bytes() == (round + 1) * o.memory_bytes);
    CHECK(reading.done());
    CHECK(to_string(reading.outcome(prompt_blocks - 1).value_or(kvx::errc::ok)) == to_string(kvx::errc::closed));
    pool.hand_over(waiting);
    CHECK_FALSE(loading.destination_released());
    CHECK_FALSE(copying.source_released());

    // All of it arrives now, in memory that nobody may have freed.
    device.release();
    loading.wait();
    CHECK(loading.destination_released());
    for (std::size_t b = 0; b < prompt_blocks; ++b)
      CHECK(memory.holds(loaded_pages[b], content_of(prompts[12 + round].chain.key(b))));
    pool.hand_over(loaded_pages);
    device.synchronize();
    faults->disarm();
    faults->release_all();
    while (faults->withheld() != 0) std::this_thread::yield();
    std::this_thread::sleep_for(20ms);
    pool.take_all_back();
    CHECK(pool.changed() == 0);
  }
}

TEST_CASE("an assigned prefetch ticket counts its own blocks, not those of the one before") {
  const auto faults = std::make_shared<kvx::fault_control>();
  const kvx_test::temporary_directory root;
  owned_pages memory(prompt_blocks);
  kvx::deferred_device device;
  late_cache cache(late_options(root.path()), memory.layout(block_tokens), late_runtime(faults, 1),
                   kvx::deferred_transfer(device));
  const std::vector<prompt> prompts = make_prompts(cache);
  const auto saved = cache.save(prompts[0].chain, 0, kvx_test::pages_from(0, prompt_blocks), device.create_stream());
  REQUIRE(saved.wait_stored(kvx_test::patience));
  kvx::prefetch_ticket ticket = cache.prefetch(prompts[0].stale);
  REQUIRE(ticket.wait_for(kvx_test::patience));
  REQUIRE(ticket.ready_blocks() == prompt_blocks);
  ticket = cache.prefetch(prompts[1].stale);
  REQUIRE(ticket.wait_for(kvx_test::patience));
  CHECK(ticket.ready_blocks() == 0);
}

TEST_CASE("a save is stored soon after its copies ended, though they ended after save returned") {
  const auto faults = std::make_shared<kvx::fault_control>();
  const kvx_test::temporary_directory root;
  owned_pages memory(prompt_blocks);
  kvx::deferred_device device;
  const kvx::deferred_stream stream = device.create_stream();
  late_cache cache(late_options(root.path()), memory.layout(block_tokens), late_runtime(faults, 1),
                   kvx::deferred_transfer(device));
  const std::vector<prompt> prompts = make_prompts(cache);
  // The threads of a cache look up once a second when nobody wakes them. A machine that is busy makes some saves slow,
  // and now and then a busy thread looks up in time by chance: what most of them do is the cache's doing.
  constexpr std::size_t most = 8;
  std::size_t soon = 0;
  for (std::size_t p = 0; p < 2 * most - 1 && soon < most; ++p) {
    device.hold();
    const auto saved = cache.save(prompts[p].chain, 0, kvx_test::pages_from(0, prompt_blocks), stream);
    CHECK_FALSE(saved.source_released());
    const auto began = std::chrono::steady_clock::now();
    device.release();
    REQUIRE(saved.wait_stored(kvx_test::patience));
    if (std::chrono::steady_clock::now() - began < 500ms) ++soon;
    CHECK(saved.outcome().ok());
  }
  CHECK(soon == most);
}
