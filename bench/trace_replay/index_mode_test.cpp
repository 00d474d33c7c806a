// SPDX-License-Identifier: Apache-2.0
#include "index_mode.hpp"
#include "optimum.hpp"
#include "policies.hpp"
#include "policy_tier.hpp"
#include "report.hpp"
#include "strict_lru.hpp"
#include "workloads.hpp"

#include <kvx/concepts/eviction.hpp>
#include <kvx/eviction/lru.hpp>

#include <doctest/doctest.h>
#include <skip.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace kvx_replay;

namespace {

trace trace_of(const std::vector<std::vector<std::uint64_t>>& requests) {
  trace out(16);
  for (const auto& ids : requests) out.add(out.size() * 1000, ids.size() * 16, 1, ids);
  return out;
}

std::uint64_t hits(const trace& work, tier& only) {
  replay(work, {}, only);
  return only.counts.hit_blocks;
}

/// Chains from a small tree, so that requests share prefixes and return.
trace random_trace(std::uint32_t seed, std::size_t requests, std::uint32_t width, std::uint32_t depth) {
  std::mt19937 random(seed);
  trace out(16);
  for (std::size_t n = 0; n < requests; ++n) {
    std::vector<std::uint64_t> ids;
    std::uint64_t id = 0;
    const std::uint32_t length = 1 + static_cast<std::uint32_t>(random()) % depth;
    for (std::uint32_t i = 0; i < length; ++i) {
      id = id * (width + 1) + 1 + random() % width;
      ids.push_back(id);
    }
    out.add(n * 1000, ids.size() * 16, 1, ids);
  }
  return out;
}

/// LRU by the words of the rules, with nothing shared with the code under test: one list of blocks, oldest first.
std::uint64_t lru_by_hand(const trace& work, std::size_t slots, bool tail_first) {
  std::list<block_number> oldest_first;
  std::uint64_t found = 0;
  const auto has = [&](block_number b) { return std::count(oldest_first.begin(), oldest_first.end(), b) != 0; };
  for (std::size_t at = 0; at < work.size(); ++at) {
    const std::span<const block_number> blocks = work[at].blocks;
    for (const block_number b : blocks) {
      if (!has(b)) break;
      ++found;
    }
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const block_number b = blocks[tail_first ? blocks.size() - 1 - i : i];
      if (has(b)) {
        oldest_first.erase(std::find(oldest_first.begin(), oldest_first.end(), b));
      } else if (oldest_first.size() == slots) {
        const auto victim = std::find_if(oldest_first.begin(), oldest_first.end(), [&](block_number candidate) {
          return std::count(blocks.begin(), blocks.end(), candidate) == 0;
        });
        if (victim == oldest_first.end()) continue;
        oldest_first.erase(victim);
      }
      oldest_first.push_back(b);
    }
  }
  return found;
}

/// The most hits that any choice of what to keep can give, by trying all of them.
class exhaustive {
 public:
  exhaustive(const trace& work, std::size_t slots) : work_(work), slots_(slots) {}

  std::uint64_t best() { return from(0, 0); }

 private:
  std::uint64_t from(std::size_t at, std::uint32_t present) {
    if (at == work_.size()) return 0;
    const auto known = seen_.find({at, present});
    if (known != seen_.end()) return known->second;
    const request now = work_[at];
    std::uint32_t asked = 0;
    std::uint64_t prefix = 0;
    bool whole = true;
    for (const block_number b : now.blocks) {
      const std::uint32_t bit = 1U << b;
      asked |= bit;
      whole = whole && (present & bit) != 0;
      if (whole) ++prefix;
    }
    // What the request has in the cache stays; of the rest any set that fits may be there afterwards.
    const std::uint32_t stays = present & asked;
    const std::uint32_t may = (present | asked) & ~stays;
    std::uint64_t most = 0;
    for (std::uint32_t kept = may;; kept = (kept - 1) & may) {
      const std::uint32_t after = stays | kept;
      if (static_cast<std::size_t>(std::popcount(after)) <= slots_) most = std::max(most, from(at + 1, after));
      if (kept == 0) break;
    }
    seen_[{at, present}] = prefix + most;
    return prefix + most;
  }

  const trace& work_;
  std::size_t slots_;
  std::map<std::pair<std::size_t, std::uint32_t>, std::uint64_t> seen_;
};

/// Keeps what it was told; admits all but one key.
struct told {
  std::vector<std::vector<std::uint64_t>> accessed;
  std::vector<std::uint64_t> asked;
  std::vector<std::vector<std::uint64_t>> inserted;
  std::vector<std::pair<std::uint64_t, kvx::session_state>> news;
  std::uint64_t refuse = 0;
};

class listening_policy {
 public:
  listening_policy(std::size_t slots, told& log) : order_(slots), log_(&log) {}
  explicit listening_policy(std::size_t slots) : order_(slots) {}

  void insert(std::span<const kvx::eviction_entry> entries) {
    log_->inserted.emplace_back();
    for (const kvx::eviction_entry& e : entries) log_->inserted.back().push_back(e.key);
    order_.insert(entries);
  }
  void touch(std::span<const kvx::slot_index>) { FAIL("a policy that sees requests is not touched"); }
  void erase(kvx::slot_index slot) { order_.erase(slot); }
  template <class Pinned>
  kvx::slot_index evict(Pinned&& pinned) {
    return order_.evict(pinned);
  }
  [[nodiscard]] std::size_t size() const { return order_.size(); }
  void access(const kvx::eviction_request& request) {
    log_->accessed.emplace_back();
    for (const kvx::eviction_entry& e : request.blocks) log_->accessed.back().push_back(e.key);
  }
  [[nodiscard]] bool admits(std::uint64_t key) const {
    log_->asked.push_back(key);
    return key != log_->refuse;
  }
  void advise(std::span<const std::uint64_t> keys, const kvx::hints& news) {
    log_->news.emplace_back(keys.front(), news.session);
  }

 private:
  strict_lru order_;
  told* log_ = nullptr;
};
static_assert(kvx::request_eviction<listening_policy> && kvx::hint_eviction<listening_policy>);

struct asked_about {
  std::vector<std::uint32_t> positions;
  std::vector<std::uint64_t> parents;
  std::vector<std::vector<std::uint64_t>> used;
  std::uint64_t refuse = 0;
  static inline asked_about* current = nullptr;
};

/// Refuses one key.
class choosy {
 public:
  explicit choosy(std::size_t) {}
  [[nodiscard]] bool admit(const kvx::admission_candidate& block) {
    log_->positions.push_back(block.block);
    log_->parents.push_back(block.parent);
    return block.key != log_->refuse;
  }
  void used(std::span<const std::uint64_t> keys) { log_->used.emplace_back(keys.begin(), keys.end()); }

 private:
  asked_about* log_ = asked_about::current;
};
static_assert(kvx::usage_observer<choosy>);

}  // namespace

TEST_CASE("a request hits its longest prefix of present blocks, and what is behind a gap does not count") {
  // Two slots. 1 2 fills them; 1 3 hits 1 and puts 3 in place of 2; 1 2 hits 1; 9 3: its first block is absent.
  const trace work = trace_of({{1, 2}, {1, 3}, {1, 2}, {9, 3}});
  policy_tier<strict_lru> only(work, 2, rules{}, strict_lru(2));
  replay(work, {}, only);
  CHECK(only.counts.hit_blocks == 2);
  CHECK(only.counts.hit_tokens == 2 * 16);
  CHECK(only.counts.inserted == 6);
  CHECK(only.counts.evicted == 4);
  CHECK(only.counts.refused == 0);
}

TEST_CASE("no block of the request under way is evicted, and a newcomer without room is refused") {
  const trace work = trace_of({{1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}});
  for (const access_order order : {access_order::head_first, access_order::as_cache}) {
    policy_tier<strict_lru> only(work, 3, rules{order, true}, strict_lru(3));
    CHECK(hits(work, only) == 3);
    CHECK(only.counts.evicted == 0);
    CHECK(only.counts.refused == 4);
  }
}

TEST_CASE("LRU counts what a list of blocks counts") {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    const trace work = random_trace(seed, 300, 4, 5);
    const std::size_t slots = 3 + seed * 3;
    for (const bool tail_first : {true, false}) {
      CAPTURE(tail_first);
      const rules how{tail_first ? access_order::tail_first : access_order::head_first, false};
      policy_tier<strict_lru> only(work, slots, how, strict_lru(slots));
      CHECK(hits(work, only) == lru_by_hand(work, slots, tail_first));
    }
  }
}

TEST_CASE("the optimum is the best of all choices") {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    const trace work = random_trace(seed, 14, 2, 3);
    REQUIRE(work.distinct() <= 14);
    for (const std::size_t slots : {1U, 2U, 3U, 5U}) {
      CAPTURE(slots);
      optimum_tier only(work, slots);
      CHECK(hits(work, only) == exhaustive(work, slots).best());
    }
  }
}

TEST_CASE("no policy is ahead of the optimum") {
  for (const workload_description& w : all_workloads()) {
    CAPTURE(w.name);
    const trace work = generate(w.name, 300, 3);
    const std::size_t slots = std::max<std::size_t>(1, work.distinct() / 10);
    optimum_tier best(work, slots);
    const std::uint64_t most = hits(work, best);
    for (const policy_entry& policy : all_policies()) {
      CAPTURE(policy.name);
      const std::unique_ptr<tier> only = policy.make(work, slots, rules{});
      CHECK(hits(work, *only) <= most);
      CHECK(only->counts.inserted - only->counts.evicted <= slots);
    }
  }
}

TEST_CASE("a policy that sees requests gets them whole, deepest first, and is asked about newcomers front first") {
  const trace work = trace_of({{1, 2, 3}, {1, 4, 5}});
  const std::array<std::uint64_t, 6> key{0, key_of(0), key_of(1), key_of(2), key_of(3), key_of(4)};  // by id
  told log;
  log.refuse = key[4];
  policy_tier<listening_policy> only(work, 3, rules{}, listening_policy(3, log));
  session_news news;
  news.events.push_back({500, 0, kvx::session_state::follow_up});
  replay(work, news, only);

  CHECK(log.accessed == std::vector<std::vector<std::uint64_t>>{{key[3], key[2], key[1]}, {key[5], key[4], key[1]}});
  CHECK(log.inserted == std::vector<std::vector<std::uint64_t>>{{key[3], key[2], key[1]}});
  CHECK_MESSAGE(log.asked == std::vector<std::uint64_t>{key[4]}, "what is behind a refused block is not asked about");
  CHECK(log.news == std::vector<std::pair<std::uint64_t, kvx::session_state>>{{key[3], kvx::session_state::follow_up}});
  CHECK(only.counts.hit_blocks == 1);
  CHECK(only.counts.refused == 2);
}

TEST_CASE(
    "an admission policy is asked front first about what is not here, and what is behind a refused block stays out") {
  const trace work = trace_of({{1, 2, 3, 4}, {1, 2, 3}});
  asked_about log;
  log.refuse = key_of(2);
  asked_about::current = &log;
  policy_tier<strict_lru, choosy> only(work, 8, rules{}, strict_lru(8));
  replay(work, {}, only);
  // Also about what is behind the refused one.
  CHECK(log.positions == std::vector<std::uint32_t>{0, 1, 2, 3, 2});
  CHECK(log.parents[1] == key_of(0));
  REQUIRE(log.used.size() == 2);
  CHECK(log.used[0].empty());
  CHECK(log.used[1] == std::vector<std::uint64_t>{key_of(1), key_of(0)});
  CHECK(only.counts.hit_blocks == 2);
  CHECK(only.counts.inserted == 2);
  CHECK(only.counts.refused == 3);
}

TEST_CASE("what is read back into memory is not for its admission policy to refuse") {
  const trace work = trace_of({{1}, {2}, {1}});
  asked_about log;
  asked_about::current = &log;
  policy_tier<strict_lru, choosy> memory(work, 1, rules{}, strict_lru(1));
  policy_tier<strict_lru> storage(work, 4, rules{}, strict_lru(4));
  replay(work, {}, memory, storage);
  CHECK(storage.counts.hit_blocks == 1);
  CHECK(memory.counts.inserted == 3);
  CHECK(log.positions.size() == 2);
}

TEST_CASE("what is read back into memory is not for its eviction policy to refuse") {
  const trace work = trace_of({{1}, {2}, {1}});
  told log;
  log.refuse = key_of(0);
  policy_tier<listening_policy> memory(work, 1, rules{}, listening_policy(1, log));
  policy_tier<strict_lru> storage(work, 4, rules{}, strict_lru(4));
  replay(work, {}, memory, storage);
  CHECK(storage.counts.hit_blocks == 1);
  CHECK(memory.counts.inserted == 3);
  CHECK_MESSAGE(log.asked == std::vector<std::uint64_t>{key_of(1)}, "the first has an empty tier, the last was stored");
}

TEST_CASE("two tiers: what memory gave up is found on storage, and only what is in neither is written there") {
  const trace work = trace_of({{1, 2}, {3, 4}, {1, 2}, {1, 2}});
  policy_tier<kvx::lru> memory(work, 2, rules{}, kvx::lru(2));
  policy_tier<kvx::lru> storage(work, 8, rules{}, kvx::lru(8));
  replay(work, {}, memory, storage);
  CHECK(memory.counts.hit_blocks == 2);
  CHECK(storage.counts.hit_blocks == 2);
  CHECK(storage.counts.hit_tokens == 2 * 16);
  CHECK(storage.counts.inserted == 4);
  CHECK(memory.counts.inserted == 6);
}

TEST_CASE("a block that memory has and storage lost is not written again") {
  const trace work = trace_of({{1}, {2}, {1}});
  policy_tier<kvx::lru> memory(work, 2, rules{}, kvx::lru(2));
  policy_tier<kvx::lru> storage(work, 1, rules{}, kvx::lru(1));
  replay(work, {}, memory, storage);
  CHECK(memory.counts.hit_blocks == 1);
  CHECK(storage.counts.inserted == 2);
}

TEST_CASE("the longest call is what is long in every replay") {
  using std::chrono::microseconds;
  std::vector<call_times> replays(3);
  for (std::size_t i = 0; i < replays.size(); ++i) {
    for (std::size_t call = 0; call < 100; ++call) {
      // A call that is interrupted in one replay only, and one that takes its time in each.
      const microseconds in_each(500 + 100 * i);
      replays[i].add(call == 10 + i ? microseconds(5'000) : call == 50 ? in_each : microseconds(1));
    }
  }
  const call_costs got = summarize(replays);
  CHECK(got.calls == 100);
  CHECK(got.p50_ns == 1'000);
  CHECK(got.p99_ns == 1'000);
  CHECK(got.longest_ns == 500'000);
  CHECK(got.longest_of_any_replay_ns == 5'000'000);
}

TEST_CASE("a call that is timed took what it took, at least") {
  call_times one;
  const auto began = std::chrono::steady_clock::now();
  one.time([] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
  const std::chrono::nanoseconds all = std::chrono::steady_clock::now() - began;
  REQUIRE(one.nanoseconds().size() == 1);
  CHECK(one.nanoseconds().front() >= 2'000'000);
  CHECK(one.nanoseconds().front() <= all.count());
}

TEST_CASE("the published figures of the two traces") {
  struct expected {
    const char* file;
    const char* policy;
    rules how;
    std::array<double, 5> ratios;
  };
  const rules as_published{access_order::head_first, false};
  const std::string chat = "conversation_trace.jsonl";
  const std::string agents = "agentic_64_sessions.jsonl.xz";
  const std::array<expected, 6> all{{
      {chat.c_str(), "strict_lru", as_published, {.0523, .1954, .2784, .3535, .3631}},
      {chat.c_str(), "lru", rules{}, {.0525, .1958, .2789, .3535, .3631}},
      {chat.c_str(), "optimum", rules{}, {.2464, .3664, .3664, .3664, .3664}},
      {agents.c_str(), "strict_lru", as_published, {.1132, .7201, .9072, .9664, .9664}},
      {agents.c_str(), "lru", rules{}, {.1228, .7477, .9146, .9664, .9664}},
      {agents.c_str(), "optimum", rules{}, {.3977, .8630, .9482, .9664, .9664}},
  }};
  std::map<std::string, trace> traces;
  for (const std::string& name : {chat, agents}) {
    const auto path = kvx_test::data_file("KVX_TEST_TRACES", name);
    if (!path) return;
    traces.emplace(name, read_trace(path->string(), 512));
  }
  for (const expected& row : all) {
    CAPTURE(row.file);
    CAPTURE(row.policy);
    const trace& work = traces.at(row.file);
    const std::array<double, 5> percents{1, 5, 10, 25, 50};
    for (std::size_t i = 0; i < percents.size(); ++i) {
      CAPTURE(percents[i]);
      const auto slots = static_cast<std::size_t>(static_cast<double>(work.distinct()) * percents[i] / 100);
      const std::unique_ptr<tier> only = policy_named(row.policy).make(work, slots, row.how);
      replay(work, {}, *only);
      const double got = ratio(static_cast<double>(only->counts.hit_blocks), static_cast<double>(work.blocks()));
      CHECK(got == doctest::Approx(row.ratios[i]).epsilon(0.000055));
    }
  }
}
