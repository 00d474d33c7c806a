// SPDX-License-Identifier: Apache-2.0
#include "store_fixture.hpp"

#include <kvx/store/block_store.hpp>

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <exhaustive.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <span>
#include <thread>
#include <utility>
#include <vector>

using namespace kvx;
using namespace kvx::store;
using kvx_test::key_of;
using kvx_test::small_store;
namespace fs = std::filesystem;

namespace {

#ifdef KVX_TEST_SANITIZED
constexpr int rounds = 3;
#else
constexpr int rounds = 15;
#endif

// Every claimed extent has exactly one slab.
void check_one_slab_each(const fs::path& root, std::size_t extents) {
  std::size_t claimed = 0;
  for (const auto& extent : fs::directory_iterator(root / "extents")) {
    std::size_t slabs = 0;
    for (const auto& slab : fs::directory_iterator(extent.path())) slabs += slab.is_regular_file() ? 1U : 0U;
    CHECK(slabs == 1);
    ++claimed;
  }
  CHECK(claimed == extents);
}

// Runs in another process: its exit status is the outcome. No doctest there, it would report twice.
template <class F>
pid_t in_child(F&& work) {
  (void)std::fflush(nullptr);  // or the child says it again
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      ::_exit(work());
    } catch (...) {
      ::_exit(99);
    }
  }
  return child;
}

int wait_for(pid_t child) {
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

slot_index try_save(block_store& store, const block_key& key, std::span<std::byte> buffer) {
  const auto slot = store.allocate();
  if (!slot) return no_slot;
  const auto ticket = store.prepare_write(*slot);
  if (!ticket) return no_slot;
  kvx_test::fill_payload(buffer.subspan(store.geometry().header_bytes), key);
  block_header header;
  header.key = key;
  header.generation = ticket->generation;
  header.slot_number = ticket->slot_number;
  header.writer = ticket->writer;
  encode_slot(buffer, store.geometry(), store.identity(), header);
  if (!detail::pwrite_all(ticket->place.file, buffer, ticket->place.offset)) return no_slot;
  store.log_insert(key, {}, *slot, ticket->generation);
  return *slot;
}

// What another process has flushed, in memory that outlives it.
struct flushed_blocks {
  static constexpr std::uint64_t none = ~std::uint64_t{0};
  std::atomic<std::uint64_t> flushes;
  std::array<std::atomic<std::uint64_t>, 80> key_in;  // by slot

  static flushed_blocks& shared() {
    void* at = ::mmap(nullptr, sizeof(flushed_blocks), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(at != MAP_FAILED);
    return *new (at) flushed_blocks{};
  }
  void clear() {
    flushes = 0;
    for (auto& key : key_in) key = none;
  }
};

}  // namespace

TEST_CASE("threads that grow stores in one root share its extents out, each to one") {
  for (int round = 0; round < rounds; ++round) {
    const kvx_test::scratch scratch;
    const auto options = small_store::options(scratch / "root", 24);
    std::vector<std::unique_ptr<block_store>> stores;
    for (std::uint8_t i = 0; i < 6; ++i) {
      stores.push_back(std::make_unique<block_store>(options, small_store::identity(i % 2), small_store::geometry()));
    }
    std::atomic<std::size_t> claimed{0};
    std::vector<std::thread> threads;
    for (auto& store : stores) {
      threads.emplace_back([&] {
        while (const auto gained = store->grow()) claimed += *gained / 5;
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(claimed == 24);
    check_one_slab_each(options.root, 24);
  }
}

TEST_CASE("processes that grow stores in one root share its extents out, each to one") {
  for (int round = 0; round < rounds; ++round) {
    const kvx_test::scratch scratch;
    const auto options = small_store::options(scratch / "root", 24);
    std::vector<pid_t> children;
    for (int i = 0; i < 4; ++i) {
      children.push_back(in_child([&] {
        block_store store(options, small_store::identity(), small_store::geometry());
        int claimed = 0;
        while (store.grow().ok()) ++claimed;
        return claimed;
      }));
    }
    int claimed = 0;
    for (const pid_t child : children) claimed += wait_for(child);
    CHECK(claimed == 24);
    check_one_slab_each(options.root, 24);
  }
}

TEST_CASE("processes that reclaim and grow at once never share an extent, and never take a live one") {
  for (int round = 0; round < rounds; ++round) {
    const kvx_test::scratch scratch;
    const auto options = small_store::options(scratch / "root", 12);
    {
      block_store dead(options, small_store::identity(), small_store::geometry());
      for (int i = 0; i < 9; ++i) REQUIRE(dead.grow().ok());
    }
    block_store alive(options, small_store::identity(), small_store::geometry());
    for (int i = 0; i < 3; ++i) REQUIRE(alive.grow().ok());
    std::set<std::size_t> held;
    while (const auto slot = alive.allocate()) held.insert(*slot / 5);
    std::vector<pid_t> children;
    for (int i = 0; i < 4; ++i) {
      children.push_back(in_child([&] {
        block_store store(options, small_store::identity(), small_store::geometry());
        if (!store.recover([](const recovered_block&) {})) return 98;
        int claimed = 0;
        for (int attempt = 0; attempt < 30; ++attempt) {
          if (const auto range = store.reclaim_dead()) store.release(*range);
          if (store.grow().ok()) ++claimed;
        }
        // Ends without a word, so that its extents are not free to be taken again.
        ::_exit(claimed);
        return 0;
      }));
    }
    int claimed = 0;
    for (const pid_t child : children) claimed += wait_for(child);
    CHECK(claimed <= 9);
    CHECK(claimed > 0);
    check_one_slab_each(options.root, static_cast<std::size_t>(claimed) + 3);
    for (const std::size_t extent : held) {
      const auto there = slab_is_there(detail::open_root((options.root + "/extents").c_str())->fd(), extent,
                                       *alive.writer_of(static_cast<slot_index>(extent * 5)));
      CHECK((there.ok() && *there));
    }
  }
}

TEST_CASE("quick calls from many threads while one does the metadata") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 8, 20);
  block_store store(options, small_store::identity(), small_store::geometry());
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> key{0};
  std::atomic<std::size_t> saved{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      const detail::aligned_buffer buffer(store.geometry().stride);
      std::mt19937_64 random(static_cast<std::uint64_t>(i));
      std::vector<slot_index> mine;
      while (!stop) {
        if (const slot_index slot = try_save(store, key_of(key++), buffer.span()); slot != no_slot) {
          mine.push_back(slot);
          ++saved;
        }
        const auto slot = static_cast<slot_index>(random() % store.slot_count());
        (void)store.place_for_read(slot);
        (void)store.writer_of(slot);
        if (mine.size() < 30) continue;
        std::swap(mine[random() % mine.size()], mine.back());
        store.log_evict(mine.back());
        store.free(mine.back());
        mine.pop_back();
      }
    });
  }
  std::set<slot_index> seen;
  auto time = std::chrono::steady_clock::now();
  for (int i = 0; i < 60 || saved <= 160; ++i) {
    (void)store.grow();
    CHECK(store.flush_journal().ok());
    CHECK(store.maintain(time += std::chrono::seconds(1)).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  REQUIRE(store.flush_journal().ok());
  block_store reader(options, small_store::identity(), small_store::geometry());
  for (const auto& [found, slot] : kvx_test::recover(reader)) {
    CHECK(seen.insert(slot).second);
    CHECK(kvx_test::holds(reader, slot, found));
  }
  CHECK(seen.size() > 20);
}

TEST_CASE("killed at any moment: what was flushed is found and proves itself, nothing wrong ever does") {
  std::mt19937_64 random(7);
  flushed_blocks& flushed = flushed_blocks::shared();
  std::size_t promised = 0;
  for (int round = 0; round < rounds * 4; ++round) {
    const kvx_test::scratch scratch;
    const auto options = small_store::options(scratch / "root", 4, 20);
    flushed.clear();
    const pid_t child = in_child([&] {
      block_store store(options, small_store::identity(), small_store::geometry());
      const detail::aligned_buffer buffer(store.geometry().stride);
      auto time = std::chrono::steady_clock::now();
      for (std::uint64_t key = 0;; ++key) {
        if (key % 16 == 0) (void)store.grow();
        const slot_index saved = try_save(store, key_of(key), buffer.span());
        if (saved == no_slot) {
          for (slot_index i = 0; i < 7; ++i) {
            const auto slot = static_cast<slot_index>((key * 5 + i) % store.slot_count());
            flushed.key_in[slot] = flushed_blocks::none;
            store.free(slot);
          }
        }
        if (!store.flush_journal()) return 96;
        if (saved != no_slot) flushed.key_in[saved] = key;
        ++flushed.flushes;
        if (key % 8 == 0 && !store.maintain(time += std::chrono::seconds(1))) return 94;
      }
    });
    // Counted, not timed: a slow machine gets as far as a fast one. The first kills come before any extent is full.
    const std::uint64_t far_enough = random() % (round % 2 == 0 ? 40 : 400);
    while (flushed.flushes < far_enough && ::waitpid(child, nullptr, WNOHANG) == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
    REQUIRE(::kill(child, SIGKILL) == 0);
    CHECK(wait_for(child) == -SIGKILL);
    block_store store(options, small_store::identity(), small_store::geometry());
    std::set<block_key> seen;
    std::size_t wrong = 0;
    for (const auto& [key, slot] : kvx_test::recover(store)) {
      // A slot that was being written again when the kill came was given up in the journal before.
      if (!kvx_test::holds(store, slot, key)) ++wrong;
      seen.insert(key);
    }
    CHECK(wrong == 0);
    for (const std::uint64_t key : flushed.key_in) {
      if (key == flushed_blocks::none) continue;
      CHECK(seen.contains(key_of(key)));
      ++promised;
    }
  }
  CHECK(promised > 100);
}
