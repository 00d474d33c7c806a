// SPDX-License-Identifier: Apache-2.0
// kill -9 at any moment: what was stored and not evicted is still there, and nothing that is served is wrong.
//
// A child saves prompts and marks each one in shared memory once its ticket says `stored`, and again when its blocks
// are evicted; it is killed after a random number of checks or saves. The next child opens the root, and checks what
// the marks promise by the byte. KVX_TEST_KILL_CYCLES sets the number of cycles; 1,000 is the whole proof.

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
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::patience;
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
  std::atomic<std::uint64_t> saved;
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

/// Which prompt a block is of. The parent learns it ahead, so that a child knows before it opens the root.
class prompt_of_key {
 public:
  /// Makes sure of the prompts below `count`, and of many more.
  void learn_up_to(std::uint32_t count) {
    if (count <= known_) return;
    kvx::options o = kvx_test::patient_options();
    o.memory_bytes = 512U << 10U;
    test_engine engine({});
    const kvx::host_cache<> hasher(o, engine.layout());
    for (const std::uint32_t end = count + 5'000; known_ < end; ++known_) {
      const kvx::sequence chain = hasher.make_sequence(tokens_of(known_, prompt_tokens));
      for (const kvx::block_key& key : chain.keys()) prompts_[key] = known_;
    }
  }
  [[nodiscard]] std::optional<std::uint32_t> find(const kvx::block_key& key) const {
    const auto found = prompts_.find(key);
    if (found == prompts_.end()) return std::nullopt;
    return found->second;
  }

 private:
  std::map<kvx::block_key, std::uint32_t> prompts_;
  std::uint32_t known_ = 0;
};

class child {
 public:
  child(const std::string& root, ledger& book, const prompt_of_key& keys, std::uint64_t seed)
      : book_(book),
        keys_(keys),
        random_(seed),
        engine_({}),
        options_(options(root)),
        cache_(options_, engine_.layout()) {}

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
      if (!ticket.wait_stored(patience)) std::_Exit(4);
      if (!ticket.outcome().ok()) {
        std::this_thread::sleep_for(5ms);  // no room until a dead writer's extent is reclaimed
        continue;
      }
      std::uint8_t expected = unknown;
      book_.marks[prompt].compare_exchange_strong(expected, stored);
      ++book_.saved;
    }
  }

 private:
  [[nodiscard]] kvx::options options(const std::string& root) {
    kvx::options o = kvx_test::patient_options(root);
    o.memory_bytes = 512U << 10U;
    o.storage_bytes = 24U << 20U;
    o.extent_bytes = 1U << 20U;
    o.lease = 1ms;
    o.writer_dead_after = 24ms;  // so that each child sees its predecessors die and takes their extents
    o.io.threads = 1;
    o.on_event = [this](const kvx::block_event& e) {
      if (e.happened == kvx::block_event::what::evicted && e.where == kvx::tier::storage) note_evicted(e.key);
    };
    return o;
  }

  void note_evicted(const kvx::block_key& key) {
    if (const auto prompt = keys_.find(key); prompt && *prompt < most_prompts) book_.marks[*prompt].store(evicted);
  }

  void check(std::uint32_t prompt) {
    const bool promised = book_.marks[prompt].load() == stored;
    const std::vector<kvx::token_id> tokens = tokens_of(prompt, prompt_tokens);
    for (kvx::block_id p = 32; p < 32 + blocks_per_prompt; ++p) engine_.poison(p);
    const kvx::plan plan = cache_.match(tokens);
    const auto pre = cache_.prefetch(plan);
    if (!pre.wait_for(patience)) std::_Exit(5);
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
  const prompt_of_key& keys_;
  std::mt19937_64 random_;
  test_engine engine_;
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
  prompt_of_key keys;
  std::mt19937_64 random(42);
  for (std::size_t cycle = 0; cycle < cycles(); ++cycle) {
    CAPTURE(cycle);
    keys.learn_up_to(book.prompts.load() + 2'000);
    const std::uint64_t seed = random();
    // Counted, not timed: a slow machine gets as far as a fast one. Some are killed while they open and check, some
    // when they began to save a prompt, most after some are stored.
    const std::uint64_t steps = random() % 16;
    const auto got_to = [&book, kind = cycle % 4] {
      if (kind == 0) return book.checked.load() + book.prompts.load();
      return kind == 1 ? book.prompts.load() : book.saved.load();
    };
    const std::uint64_t far_enough = got_to() + steps;
    const pid_t pid = ::fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
      try {
        child c(root.path(), book, keys, seed);
        c.check();
        c.save_for_ever();
      } catch (const kvx::error& e) {
        static_cast<void>(!::write(2, e.what(), std::string(e.what()).size()));
        std::_Exit(6);
      }
    }
    int state = 0;
    pid_t ended = 0;
    while (got_to() < far_enough && (ended = ::waitpid(pid, &state, WNOHANG)) == 0) std::this_thread::sleep_for(100us);
    if (ended == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 1'000));
      ::kill(pid, SIGKILL);
      ended = ::waitpid(pid, &state, 0);
    }
    REQUIRE(ended == pid);
    const bool killed = WIFSIGNALED(state) && WTERMSIG(state) == SIGKILL;
    CHECK(killed);
  }
  MESSAGE("prompts " << book.prompts.load() << ", saved " << book.saved.load() << ", checked " << book.checked.load()
                     << ", promised " << book.promised.load() << ", found " << book.found.load() << ", wrong "
                     << book.wrong.load());
  CHECK(book.wrong == 0);
  CHECK(book.promised > cycles());
  CHECK(static_cast<double>(book.found) >= 0.9 * static_cast<double>(book.promised));
  ::munmap(&book, sizeof(ledger));
}
