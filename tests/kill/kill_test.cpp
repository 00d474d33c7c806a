// SPDX-License-Identifier: Apache-2.0
// kill -9 at any moment: what was stored and not evicted is still there, and nothing that is served is wrong.
//
// A child saves prompts and marks each one in shared memory once its ticket says `stored`, and again when its blocks
// are evicted; it is killed after a random time. The next child opens the root, and checks what the marks promise by
// the byte. KVX_TEST_KILL_CYCLES sets the number of cycles; 1,000 is the whole proof.

#include <kvx/kvx.hpp>

#include <doctest/doctest.h>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "temporary_directory.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

constexpr std::size_t most_prompts = 100'000;
constexpr std::size_t blocks_per_prompt = 3;
constexpr std::size_t prompt_tokens = blocks_per_prompt * 4 + 1;

enum mark : std::uint8_t { unknown = 0, stored = 1, evicted = 2 };

/// Survives the children.
struct ledger {
  std::atomic<std::uint32_t> prompts;
  std::atomic<std::uint64_t> checked;
  std::atomic<std::uint64_t> promised;
  std::atomic<std::uint64_t> found;
  std::atomic<std::uint64_t> wrong;
  std::atomic<std::uint8_t> marks[most_prompts];
};

ledger* shared_ledger() {
  void* at = ::mmap(nullptr, sizeof(ledger), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return new (at) ledger{};
}

class child {
 public:
  child(const std::string& root, ledger& book, std::uint64_t seed)
      : book_(book), random_(seed), engine_({}), options_(options(root)), cache_(options_, engine_.layout()) {}

  /// Looks for what the ledger promises: the newest prompts, and some of all others.
  void check() {
    const std::uint32_t count = book_.prompts.load();
    for (std::uint32_t i = 0; i < 48 && i < count; ++i) {
      const std::uint32_t prompt = i < 24 ? count - 1 - i : static_cast<std::uint32_t>(random_() % count);
      if (i >= 24 && count < 48) break;
      check(prompt);
    }
  }

  /// Saves until it is killed.
  [[noreturn]] void save_for_ever() {
    for (;;) {
      const std::uint32_t prompt = book_.prompts.fetch_add(1);
      if (prompt >= most_prompts) std::_Exit(3);
      const kvx::sequence chain = cache_.make_sequence(tokens_of(prompt, prompt_tokens));
      for (kvx::block_id b = 0; b < blocks_per_prompt; ++b) engine_.fill(b, chain.key(b));
      const auto ticket = cache_.save(chain, 0, pages_from(0, blocks_per_prompt));
      if (!ticket.wait_stored(10s)) std::_Exit(4);
      if (!ticket.outcome().ok()) {
        std::this_thread::sleep_for(1ms);  // no room until a dead writer's extent is reclaimed
        continue;
      }
      std::uint8_t expected = unknown;
      book_.marks[prompt].compare_exchange_strong(expected, stored);
    }
  }

 private:
  [[nodiscard]] kvx::options options(const std::string& root) {
    kvx::options o;
    o.identity = {"test-model", "r1", "f32"};
    o.memory_bytes = 512U << 10U;
    o.root = root;
    o.storage_bytes = 24U << 20U;
    o.extent_bytes = 1U << 20U;
    o.prompts_trusted = true;
    o.lease = 1ms;
    o.writer_dead_after = 24ms;  // so that each child sees its predecessors die and takes their extents
    o.io.threads = 1;
    o.on_event = [this](const kvx::block_event& e) {
      if (e.happened == kvx::block_event::what::evicted && e.where == kvx::tier::storage) note_evicted(e.key);
    };
    return o;
  }

  void note_evicted(const kvx::block_key& key) {
    // Keys are only known by computing them; a child learns those that existed when it started.
    if (keys_.empty()) {
      const std::uint32_t count = std::min<std::uint32_t>(book_.prompts.load() + 2000, most_prompts);
      for (std::uint32_t p = count > 12'000 ? count - 12'000 : 0; p < count; ++p) {
        const kvx::sequence chain = cache_.make_sequence(tokens_of(p, prompt_tokens));
        for (const kvx::block_key& k : chain.keys()) keys_[k] = p;
      }
    }
    if (const auto found = keys_.find(key); found != keys_.end()) book_.marks[found->second].store(evicted);
  }

  void check(std::uint32_t prompt) {
    const bool promised = book_.marks[prompt].load() == stored;
    const std::vector<kvx::token_id> tokens = tokens_of(prompt, prompt_tokens);
    for (kvx::block_id p = 32; p < 32 + blocks_per_prompt; ++p) engine_.poison(p);
    const kvx::plan plan = cache_.match(tokens);
    const auto pre = cache_.prefetch(plan);
    if (!pre.wait_for(20s)) std::_Exit(5);
    const auto loaded = cache_.load(plan, pages_from(32, plan.blocks()));
    const kvx::sequence chain = cache_.make_sequence(tokens);
    for (kvx::block_id b = 0; b < blocks_per_prompt; ++b) {
      const bool here = b < loaded.loaded_blocks();
      if (here ? !engine_.holds(32 + b, chain.key(b)) : !engine_.poisoned(32 + b)) ++book_.wrong;
    }
    ++book_.checked;
    // Only what nobody evicted while it was being looked at counts.
    if (!promised || book_.marks[prompt].load() != stored) return;
    ++book_.promised;
    if (loaded.loaded_blocks() == blocks_per_prompt) ++book_.found;
  }

  ledger& book_;
  std::mt19937_64 random_;
  test_engine engine_;
  std::map<kvx::block_key, std::uint32_t> keys_;
  kvx::options options_;
  kvx::host_cache<> cache_;
};

std::size_t cycles() {
  const char* set = std::getenv("KVX_TEST_KILL_CYCLES");
  return set != nullptr ? std::strtoul(set, nullptr, 10) : 60;
}

}  // namespace

TEST_CASE("kill -9 at any moment keeps what was stored, and serves nothing wrong") {
  kvx_test::temporary_directory root;
  ledger& book = *shared_ledger();
  std::mt19937_64 random(42);
  for (std::size_t cycle = 0; cycle < cycles(); ++cycle) {
    CAPTURE(cycle);
    const std::uint64_t seed = random();
    const auto life = std::chrono::microseconds(random() % 60'000);
    const pid_t pid = ::fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
      try {
        child c(root.path(), book, seed);
        c.check();
        c.save_for_ever();
      } catch (const kvx::error& e) {
        static_cast<void>(!::write(2, e.what(), std::string(e.what()).size()));
        std::_Exit(6);
      }
    }
    // Some are killed while they open and check, most while they save.
    std::this_thread::sleep_for(cycle % 4 == 0 ? life : 40ms + life);
    ::kill(pid, SIGKILL);
    int state = 0;
    REQUIRE(::waitpid(pid, &state, 0) == pid);
    const bool killed = WIFSIGNALED(state) && WTERMSIG(state) == SIGKILL;
    CHECK(killed);
  }
  MESSAGE("prompts " << book.prompts.load() << ", checked " << book.checked.load() << ", promised "
                     << book.promised.load() << ", found " << book.found.load() << ", wrong " << book.wrong.load());
  CHECK(book.wrong == 0);
  CHECK(book.promised > cycles());
  CHECK(static_cast<double>(book.found) >= 0.9 * static_cast<double>(book.promised));
  ::munmap(&book, sizeof(ledger));
}
