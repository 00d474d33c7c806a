// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

namespace kvx_test {

using namespace std::chrono_literals;

/// Save, reopen, match, prefetch, load over a backend with faults; everything that arrives is checked by the byte.
template <class Inner>
class nth_io {
 public:
  using faulty = kvx::fault<Inner>;
  using cache_type = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, faulty, kvx::host_transfer>;
  using runtime_type = kvx::runtime<faulty>;
  static constexpr std::size_t blocks = 6;

  struct counts {
    std::size_t loaded = 0;        // blocks that came back, all of them right
    std::size_t wrong = 0;         // blocks that were reported as loaded and are not what was saved
    std::uint64_t operations = 0;  // I/O requests of the run
    std::uint64_t injected = 0;
  };

  /// One run: the first prompt goes through storage under the faults, then they are lifted and a second prompt must
  /// go through without any loss.
  static counts run(const std::vector<kvx::fault_rule>& rules) {
    counts seen;
    const std::size_t files_before = open_files();
    {
      temporary_directory root;
      const auto control = std::make_shared<kvx::fault_control>(7);
      control->keep_shadows(8U << 20U);
      for (const kvx::fault_rule& r : rules) control->arm(r);
      test_engine engine({});
      const kvx::sequence first =
          through_storage(engine, root.path(), control, 1, deadline(rules), seen, rules.empty());
      for (std::size_t k = 0; k < kvx::fault_kinds; ++k)
        seen.injected += control->injected(static_cast<kvx::fault_kind>(k));
      seen.operations = control->operations();
      control->disarm();
      control->release_all();
      counts after;
      static_cast<void>(through_storage(engine, root.path(), control, 2, patience, after, true));
      CHECK(after.loaded == blocks);
      CHECK(after.wrong == 0);
    }
    CHECK(open_files() == files_before);
    return seen;
  }

 private:
  static std::size_t open_files() {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
    return count;
  }

  // Only of storage that is late or silent does anything end at its deadline.
  static std::chrono::milliseconds deadline(const std::vector<kvx::fault_rule>& rules) {
    const bool silent = std::any_of(rules.begin(), rules.end(), [](const kvx::fault_rule& r) {
      return r.kind == kvx::fault_kind::late || r.kind == kvx::fault_kind::never;
    });
    return silent ? 60ms : std::chrono::milliseconds(patience);
  }

  static kvx::options options(const std::string& root, std::chrono::milliseconds deadline) {
    kvx::options o = patient_options(root);
    o.memory_bytes = 1U << 20U;
    o.storage_bytes = 4U << 20U;
    o.extent_bytes = 1U << 20U;
    o.load_deadline = o.save_deadline = deadline;
    o.breaker_failures = 1000;
    return o;
  }

  // What is withheld while this goes on is let go as well.
  static void drain(cache_type& cache, kvx::fault_control& control) {
    const auto end = std::chrono::steady_clock::now() + patience;
    bool drained = false;
    while (!drained && std::chrono::steady_clock::now() < end) {
      control.release_all();
      drained = cache.drain(50ms);
    }
    REQUIRE(drained);
  }

  static kvx::sequence through_storage(test_engine& engine, const std::string& root,
                                       const std::shared_ptr<kvx::fault_control>& control, std::uint64_t seed,
                                       std::chrono::milliseconds deadline, counts& seen, bool must_succeed) {
    const auto io = [&] { return std::make_unique<faulty>(kvx::io_options{}, control); };
    const kvx::options with = options(root, deadline);
    kvx::sequence chain;
    {
      const auto shared = std::make_shared<runtime_type>(with.memory_bytes, io());
      cache_type cache(with, engine.layout(), shared);
      chain = cache.make_sequence(tokens_of(seed, blocks * 4 + 1));
      for (kvx::block_id b = 0; b < blocks; ++b) engine.fill(b, chain.key(b));
      const auto saved = cache.save(chain, 0, pages_from(0, blocks));
      CHECK(saved.source_released());
      REQUIRE(saved.wait_stored(patience));
      if (must_succeed) REQUIRE(saved.outcome().ok());
      // Whatever storage did, memory has the blocks.
      check_load(cache, engine, chain, seen, true);
      drain(cache, *control);
    }
    const auto shared = std::make_shared<runtime_type>(with.memory_bytes, io());
    cache_type cache(with, engine.layout(), shared);
    check_load(cache, engine, chain, seen, must_succeed);
    drain(cache, *control);
    const auto stats = cache.stats();
    CHECK(stats.storage.in_flight_read_bytes == 0);
    CHECK(stats.storage.in_flight_write_bytes == 0);
    return chain;
  }

  static void check_load(cache_type& cache, test_engine& engine, const kvx::sequence& chain, counts& seen, bool all) {
    for (kvx::block_id p = 32; p < 32 + blocks; ++p) engine.poison(p);
    const kvx::plan plan = cache.match(chain);
    auto pre = cache.prefetch(plan);
    REQUIRE(pre.wait_for(patience));
    const auto loaded = cache.load(plan, pages_from(32, plan.blocks()));
    loaded.wait();
    if (all) CHECK(loaded.loaded_blocks() == blocks);
    seen.loaded = 0;
    for (kvx::block_id b = 0; b < blocks; ++b) {
      if (b < loaded.loaded_blocks()) {
        ++seen.loaded;
        if (!engine.holds(32 + b, chain.key(b))) ++seen.wrong;
      } else if (!engine.poisoned(32 + b)) {
        ++seen.wrong;
      }
    }
    CHECK(seen.wrong == 0);
  }
};

/// Fails the N-th I/O for every N until a run has fewer, for every fault kind; nothing leaks, hangs or lies.
template <class Inner>
void fail_every_io() {
  using suite = nth_io<Inner>;
  const auto clean = suite::run({});
  REQUIRE(clean.loaded == suite::blocks);
  REQUIRE(clean.operations >= 2 * suite::blocks);
  for (std::size_t k = 0; k < kvx::fault_kinds; ++k) {
    std::uint64_t took_effect = 0;
    for (std::uint64_t n = 1; n <= clean.operations; ++n) {
      for (const int error : {EIO, ENOSPC, ESTALE}) {
        kvx::fault_rule rule;
        rule.kind = static_cast<kvx::fault_kind>(k);
        rule.first = n;
        rule.error = error;
        rule.delay = 150ms;
        // Only what is an error differs by errno.
        if (rule.kind != kvx::fault_kind::error && error != EIO) continue;
        CAPTURE(k);
        CAPTURE(n);
        CAPTURE(error);
        const auto seen = suite::run({rule});
        CHECK(seen.wrong == 0);
        took_effect += seen.injected;
      }
    }
    CAPTURE(k);
    // Reads of slots that were never overwritten have nothing stale to show.
    if (static_cast<kvx::fault_kind>(k) != kvx::fault_kind::stale_read) CHECK(took_effect > 0);
  }
}

}  // namespace kvx_test
