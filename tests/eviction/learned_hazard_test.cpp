// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/detail/key_table.hpp>
#include <kvx/eviction/learned_hazard.hpp>
#include <kvx/eviction/lru.hpp>

#include <allocations.hpp>
#include <exhaustive.hpp>

#include <algorithm>
#include <chrono>
#include <random>
#include <unordered_map>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::learned_hazard);

namespace {

using request_blocks = std::vector<std::uint64_t>;  // front first

/// A tier that asks a policy as kvx's do, and checks every answer.
template <kvx::eviction_policy Policy>
class small_tier {
 public:
  explicit small_tier(std::size_t slots) : policy(slots), key_in_(slots, 0) {
    for (std::size_t i = slots; i-- > 0;) free_.push_back(static_cast<kvx::slot_index>(i));
  }

  /// Returns how many of the request's leading blocks were there.
  /// Shape   times: the policy is told of it, under an id
  std::size_t request(const request_blocks& blocks, kvx::session_state session = kvx::session_state::unknown,
                      int times = 1) {
    std::size_t hits = 0;
    while (hits < blocks.size() && slot_of_.count(blocks[hits]) != 0) ++hits;
    in_use_ = blocks;
    std::sort(in_use_.begin(), in_use_.end());
    std::vector<kvx::eviction_entry> entries;
    std::vector<kvx::slot_index> present;
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const auto at = slot_of_.find(blocks[i]);
      entries.push_back({at == slot_of_.end() ? kvx::no_slot : at->second, blocks[i]});
      if (at != slot_of_.end()) present.push_back(at->second);
    }
    if constexpr (kvx::request_eviction<Policy>) {
      kvx::eviction_request told;
      told.blocks = entries;
      told.session = session;
      told.id = ++requests_;
      for (int i = 0; i < times; ++i) policy.access(told);
    } else {
      policy.touch(present);
    }
    std::vector<kvx::eviction_entry> admitted;
    for (const std::uint64_t key : blocks) {
      if (slot_of_.count(key) != 0) continue;
      const kvx::slot_index slot = room_for(key);
      if (slot == kvx::no_slot) {
        ++refused;
        break;
      }
      slot_of_[key] = slot;
      key_in_[slot] = key;
      admitted.push_back({slot, key});
    }
    std::reverse(admitted.begin(), admitted.end());
    policy.insert(admitted);
    CHECK(policy.size() == slot_of_.size());
    return hits;
  }
  kvx::slot_index give_up_one() {
    in_use_.clear();
    return take_one();
  }
  void forget(std::uint64_t key) {
    const kvx::slot_index slot = slot_of_.at(key);
    policy.erase(slot);
    slot_of_.erase(key);
    free_.push_back(slot);
  }
  [[nodiscard]] bool holds(std::uint64_t key) const { return slot_of_.count(key) != 0; }
  [[nodiscard]] std::vector<std::uint64_t> keys() const {
    std::vector<std::uint64_t> out;
    for (const auto& [key, slot] : slot_of_) out.push_back(key);
    return out;
  }

  Policy policy;
  std::size_t refused = 0;

 private:
  kvx::slot_index room_for(std::uint64_t key) {
    if (!free_.empty()) {
      const kvx::slot_index slot = free_.back();
      free_.pop_back();
      return slot;
    }
    if constexpr (kvx::request_eviction<Policy>)
      if (!policy.admits(key)) return kvx::no_slot;
    return take_one();
  }
  kvx::slot_index take_one() {
    const kvx::slot_index slot = policy.evict([&](kvx::slot_index candidate) {
      return std::binary_search(in_use_.begin(), in_use_.end(), key_in_[candidate]);
    });
    if (slot == kvx::no_slot) return slot;
    REQUIRE(slot_of_.erase(key_in_[slot]) == 1);
    return slot;
  }

  std::unordered_map<std::uint64_t, kvx::slot_index> slot_of_;
  std::vector<std::uint64_t> key_in_;
  std::vector<kvx::slot_index> free_;
  request_blocks in_use_;
  std::uint64_t requests_ = 0;
};

using traffic = std::vector<request_blocks>;

request_blocks row(std::uint64_t first, std::size_t count) {
  request_blocks out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = first + i;
  return out;
}

template <class Policy>
std::size_t hits_of(const traffic& all, std::size_t slots) {
  small_tier<Policy> tier(slots);
  std::size_t hits = 0;
  for (const request_blocks& one : all) hits += tier.request(one);
  return hits;
}

/// One document in use among many that are read once, and each asked about again only after `between` others.
traffic documents_and_scans(std::size_t rounds, std::size_t between) {
  traffic all;
  std::uint64_t fresh = 1'000'000;
  for (std::size_t round = 0; round < rounds; ++round) {
    all.push_back(row(1000 * (1 + round % 4), 10));
    for (std::size_t i = 0; i < between; ++i) {
      all.push_back(row(fresh, 10));
      fresh += 10;
    }
  }
  return all;
}

/// Reuse that depends on the time since the last use alone: what LRU is made for.
traffic recency(std::uint32_t seed, std::size_t requests, double mean) {
  std::mt19937 random(seed);
  std::exponential_distribution<double> back(1 / mean);
  std::vector<request_blocks> stack;
  traffic all;
  std::uint64_t fresh = 1;
  for (std::size_t i = 0; i < requests; ++i) {
    request_blocks one;
    const auto depth = static_cast<std::size_t>(back(random));
    if (depth >= stack.size() || random() % 20 == 0) {
      one = row(fresh, 5 + random() % 20);
      fresh += 100;
    } else {
      const auto at = stack.end() - 1 - static_cast<std::ptrdiff_t>(depth);
      one = *at;
      stack.erase(at);
    }
    stack.push_back(one);
    all.push_back(std::move(one));
  }
  return all;
}

}  // namespace

TEST_CASE("learned_hazard: what comes back is kept through scans that are larger than the cache") {
  const traffic all = documents_and_scans(400, 12);
  CHECK(hits_of<kvx::lru>(all, 100) == 0);
  // 4 documents of 10 blocks, 400 uses; some are needed to learn.
  CHECK(hits_of<kvx::learned_hazard>(all, 100) > 3000);
}

TEST_CASE("learned_hazard: a loop larger than the cache is kept in part, not lost whole") {
  traffic all;
  for (std::size_t i = 0; i < 3000; ++i) all.push_back(row(1000 * (1 + i % 20), 10));
  CHECK(hits_of<kvx::lru>(all, 100) == 0);
  CHECK(hits_of<kvx::learned_hazard>(all, 100) > 3000 * 10 / 4);
}

TEST_CASE("learned_hazard: a newcomer worth less than everything held is refused") {
  small_tier<kvx::learned_hazard> tier(100);
  for (const request_blocks& one : documents_and_scans(400, 12)) tier.request(one);
  CHECK(tier.refused > 1000);
  for (std::uint64_t document = 1; document <= 4; ++document) CHECK(tier.holds(1000 * document));
}

TEST_CASE("learned_hazard: blocks of one request that were used differently often are judged apart") {
  std::mt19937 random(1);
  traffic all;
  for (std::size_t i = 0; i < 3000; ++i) {
    request_blocks one{1 + random() % 30};  // what all prompts of an application begin with
    const request_blocks own = row(1000 * (1 + i), 9);
    one.insert(one.end(), own.begin(), own.end());
    all.push_back(std::move(one));
  }
  CHECK(hits_of<kvx::lru>(all, 45) < 3000 / 4);
  CHECK(hits_of<kvx::learned_hazard>(all, 45) > 3000 * 4 / 5);
}

TEST_CASE("learned_hazard: the last block of a request, as new as the others, is judged apart") {
  traffic all;
  std::uint64_t last = 1'000'000;
  const auto ask = [&](std::size_t document) {
    all.push_back(row(1000 * (1 + document), 4));
    all.back().push_back(++last);  // an answer that never comes back
  };
  constexpr std::size_t apart = 20;
  for (std::size_t document = 0; document < 2000; ++document) {
    ask(document);
    if (document >= apart) ask(document - apart);
  }
  CHECK(hits_of<kvx::lru>(all, 95) == 0);
  CHECK(hits_of<kvx::learned_hazard>(all, 95) > 2000 * 4 * 3 / 4);
}

TEST_CASE("learned_hazard: a refused block can be taken in all the same, and goes next") {
  small_tier<kvx::learned_hazard> tier(100);
  for (const request_blocks& one : documents_and_scans(400, 12)) tier.request(one);
  std::vector<kvx::eviction_entry> scanned;
  for (std::uint64_t key = 99'999'999; scanned.size() < 10; --key) scanned.push_back({kvx::no_slot, key});
  kvx::eviction_request told;
  told.blocks = scanned;
  tier.policy.access(told);
  REQUIRE_FALSE(tier.policy.admits(scanned.back().key));
  const kvx::eviction_entry unwanted{tier.give_up_one(), scanned.back().key};
  REQUIRE(unwanted.slot != kvx::no_slot);
  tier.policy.insert(std::span(&unwanted, 1));
  CHECK(tier.policy.evict([](kvx::slot_index) { return false; }) == unwanted.slot);
}

TEST_CASE("learned_hazard: that all was in use at an eviction keeps no better newcomer out") {
  int taken = 0;
  for (std::uint64_t wait = 10; wait < 26; ++wait) {
    small_tier<kvx::learned_hazard> tier(100);
    for (const request_blocks& one : documents_and_scans(400, 12)) tier.request(one);
    const request_blocks document = row(5000, 10);
    tier.request(document);
    for (std::uint64_t i = 0; i < wait; ++i) tier.request(row(77'000'000 + 10 * i, 10));
    REQUIRE_FALSE(tier.policy.follows_lru());
    REQUIRE_FALSE(tier.holds(document.front()));
    CHECK(tier.policy.evict([](kvx::slot_index) { return true; }) == kvx::no_slot);
    tier.request(document);
    taken += tier.holds(document.back()) ? 1 : 0;
  }
  CHECK(taken >= 12);  // unless some of what was passed over has just grown older, and is all there is to compare with
}

TEST_CASE("learned_hazard: where LRU is right, LRU is followed") {
  bool followed = false;
  for (std::uint32_t seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    const traffic all = recency(seed, 6000, 20);
    for (const std::size_t slots : {60U, 200U, 600U}) {
      CAPTURE(slots);
      small_tier<kvx::learned_hazard> tier(slots);
      std::size_t hits = 0;
      for (const request_blocks& one : all) hits += tier.request(one);
      followed |= tier.policy.follows_lru();
      CHECK(static_cast<double>(hits) >= 0.994 * static_cast<double>(hits_of<kvx::lru>(all, slots)));
    }
  }
  CHECK(followed);
}

TEST_CASE("learned_hazard: after LRU was followed, a lead is taken up again") {
  small_tier<kvx::learned_hazard> tier(60);
  for (const request_blocks& one : recency(1, 6000, 20)) tier.request(one);
  REQUIRE(tier.policy.follows_lru());
  for (const request_blocks& one : documents_and_scans(600, 12)) tier.request(one);
  CHECK_FALSE(tier.policy.follows_lru());
}

TEST_CASE("learned_hazard: blocks of closed sessions go before those of open ones") {
  // Sessions of two turns; whether the second comes is known only from the hint.
  small_tier<kvx::learned_hazard> told(300);
  small_tier<kvx::learned_hazard> untold(300);
  std::mt19937 random(3);
  std::vector<std::pair<std::uint64_t, bool>> sessions;
  std::size_t with = 0;
  std::size_t without = 0;
  for (std::uint64_t i = 1; i <= 4000; ++i) {
    const request_blocks first = row(i * 100, 10);
    told.request(first);
    untold.request(first);
    const bool comes_back = random() % 4 == 0;
    sessions.emplace_back(i * 100, comes_back);
    request_blocks deepest_first = first;
    std::reverse(deepest_first.begin(), deepest_first.end());
    kvx::hints news;
    news.session = comes_back ? kvx::session_state::open : kvx::session_state::closed;
    told.policy.advise(deepest_first, news);
    if (i <= 60 || !sessions[i - 60].second) continue;
    const request_blocks second = row(sessions[i - 60].first, 10);
    with += told.request(second);
    without += untold.request(second);
  }
  CHECK(with > without + without / 2);
}

TEST_CASE("learned_hazard: news of a session leaves blocks alone that another one used since") {
  small_tier<kvx::learned_hazard> tier(64);
  const request_blocks mine{1, 2, 3};
  const request_blocks yours{1, 4, 5};
  tier.request(mine);
  tier.request(yours);
  kvx::hints news;
  news.session = kvx::session_state::closed;
  const request_blocks deepest_first{3, 2, 1};
  tier.policy.advise(deepest_first, news);
  tier.policy.advise(request_blocks{77, 78}, news);  // never heard of
  CHECK(tier.policy.heard(1) == static_cast<unsigned>(kvx::session_state::unknown));
  CHECK(tier.policy.heard(3) == static_cast<unsigned>(kvx::session_state::closed));
  tier.request(yours);
  CHECK(tier.keys().size() == 5);
}

TEST_CASE("learned_hazard: blocks in a row that have one key are one") {
  // A cache's policies see 64 bits of a key, of which an engine's own may be longer.
  small_tier<kvx::learned_hazard> tier(8);
  for (std::uint64_t i = 0; i < 8000; ++i) {  // more than the history holds, so that they are dropped again
    std::vector<kvx::eviction_entry> blocks;
    for (const std::uint64_t key : {6U, 5U, 5U, 4U, 4U, 4U}) blocks.push_back({kvx::no_slot, key + 10 * (i / 4)});
    kvx::eviction_request request;
    request.blocks = blocks;
    request.id = i / 2;
    tier.policy.access(request);
    tier.request({100'000 + i % 5, 200'000 + i % 11});
  }
  CHECK(tier.keys().size() == 8);
}

TEST_CASE("a look-up in a table ends, whatever was in it before") {
  constexpr std::size_t buckets = 12, ways = 10;
  kvx::detail::key_table table((buckets - 2) * 6);
  // Fills each bucket and lets one pass on, which stays when the others go.
  const auto hash_in = [&](std::size_t bucket, std::uint32_t which) {
    return static_cast<std::uint32_t>((std::uint64_t{bucket} << 32U) / buckets) + 100 + which;
  };
  for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
    const auto entry = [&](std::size_t which) { return static_cast<std::uint32_t>(bucket * 100 + which); };
    for (std::uint32_t i = 0; i <= ways; ++i) table.insert(hash_in(bucket, i), entry(i));
    const std::size_t fit = bucket == 0 ? ways : ways - 1;  // one came from the bucket before
    for (std::uint32_t i = 0; i < fit; ++i) table.erase(hash_in(bucket, i), entry(i));
  }
  CHECK(table.find(hash_in(3, 5000), [](std::uint32_t) { return true; }) == kvx::detail::key_table::none);
  CHECK(table.find(hash_in(3, ways), [](std::uint32_t entry) { return entry == 300 + ways; }) == 300 + ways);
}

TEST_CASE("learned_hazard: a request told of again counts its blocks once") {
  // Documents of several popularities, and every other request a new one: uses decide what stays.
  const auto hits = [](int times) {
    small_tier<kvx::learned_hazard> tier(64);
    std::mt19937_64 random(7);
    std::size_t sum = 0;
    for (std::uint64_t i = 0; i < 3000; ++i) {
      const std::uint64_t rank = std::min(random() % 40, random() % 40);
      const std::uint64_t first = i % 2 == 0 ? 1000 * (1 + rank) : 1'000'000 + 1000 * i;
      request_blocks blocks;
      for (std::uint64_t b = 0; b < 6; ++b) blocks.push_back(first + b);
      // Of one request in three only: of all of them it would change nothing.
      sum += tier.request(blocks, kvx::session_state::unknown, i % 3 == 0 ? times : 1);
    }
    return sum;
  };
  // Classes are renewed by calls, so that it is not the same to the last hit.
  CHECK(static_cast<double>(hits(2)) == doctest::Approx(static_cast<double>(hits(1))).epsilon(0.03));
}

namespace {

/// A policy that is told of growing prompts as a cache tells it, with room for `slots` blocks.
class told_in_parts {
 public:
  explicit told_in_parts(std::size_t slots) : policy(slots) {
    for (std::size_t i = slots; i-- > 0;) free_.push_back(static_cast<kvx::slot_index>(i));
  }
  /// Tells of [first, end) of a prompt, front first, and takes in what is admitted. Returns how many were refused.
  std::size_t part(const request_blocks& prompt, std::size_t first, std::size_t end, std::uint64_t id) {
    std::vector<kvx::eviction_entry> blocks;
    for (std::size_t i = end; i-- > first;) {
      const auto at = slot_of.find(prompt[i]);
      blocks.push_back({at == slot_of.end() ? kvx::no_slot : at->second, prompt[i]});
    }
    kvx::eviction_request told;
    told.blocks = blocks;
    told.before = first;
    if (first != 0) told.parent = prompt[first - 1];
    told.id = id;
    policy.access(told);
    std::size_t refused = 0;
    for (std::size_t i = first; i < end; ++i) {
      if (slot_of.count(prompt[i]) != 0) continue;
      if (free_.empty()) {
        kvx::slot_index victim = kvx::no_slot;
        if (policy.admits(prompt[i])) victim = policy.evict([](kvx::slot_index) { return false; });
        if (victim == kvx::no_slot) {
          ++refused;
          continue;
        }
        std::erase_if(slot_of, [&](const auto& held) { return held.second == victim; });
        free_.push_back(victim);
      }
      const kvx::eviction_entry made{free_.back(), prompt[i]};
      free_.pop_back();
      slot_of[prompt[i]] = made.slot;
      policy.insert(std::span(&made, 1));
    }
    return refused;
  }

  kvx::learned_hazard policy;
  std::unordered_map<std::uint64_t, kvx::slot_index> slot_of;

 private:
  std::vector<kvx::slot_index> free_;
};

}  // namespace

TEST_CASE("learned_hazard: prompts that grow block by block leave no slot unusable") {
  for (const bool with_ids : {false, true}) {
    CAPTURE(with_ids);
    told_in_parts tier(8);
    std::size_t refused = 0;
    for (std::uint64_t chain = 1; chain <= 400; ++chain) {
      refused = 0;
      const request_blocks prompt = row(1000 * chain, 12);
      for (std::size_t b = 0; b < prompt.size(); ++b) refused += tier.part(prompt, b, b + 1, with_ids ? chain : 0);
    }
    // The last of them had its front taken in, as the first had.
    CHECK(refused < 12);
    CHECK(tier.policy.size() == 8);
  }
}

TEST_CASE("learned_hazard: random prompts in parts, and no block is chosen in front of itself") {
  for (std::uint32_t seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    told_in_parts tier(1 + random() % 40);
    for (std::uint64_t id = 1; id <= 600; ++id) {
      request_blocks prompt = row(10'000 * (1 + random() % 4), random() % 6);
      const std::uint64_t way = random() % 30;
      for (std::size_t i = 1 + random() % 30; i-- > 0;) prompt.push_back(prompt.size() + 1'000'000 * (1 + way));
      std::size_t first = 0;
      while (first < prompt.size()) {
        const std::size_t end = std::min(prompt.size(), first + 1 + random() % 6);
        tier.part(prompt, first, end, random() % 8 == 0 ? 0 : id);
        first = random() % 6 == 0 ? first : end;  // some are told again
      }
      REQUIRE(tier.policy.choices_end());
    }
  }
}

TEST_CASE("learned_hazard: a prompt told in parts goes from its end, as one told at once does") {
  const auto order = [](std::size_t first_part, std::size_t part) {
    told_in_parts tier(64);
    std::uint64_t id = 0;
    for (std::uint64_t round = 0; round < 40; ++round) {
      for (const std::uint64_t which : {round % 3, 10 + round}) {
        const request_blocks prompt = row(1000 * (1 + which), 12);
        ++id;
        tier.part(prompt, 0, first_part, id);
        for (std::size_t b = first_part; b < 12; b += part)
          tier.part(prompt, b, std::min<std::size_t>(12, b + part), id);
      }
    }
    std::vector<std::uint64_t> out;
    for (kvx::slot_index slot = 0; slot != kvx::no_slot;) {
      slot = tier.policy.evict([](kvx::slot_index) { return false; });
      for (const auto& [key, at] : tier.slot_of)
        if (at == slot) out.push_back(key);
    }
    return out;
  };
  for (const std::size_t part : {1U, 4U, 12U}) {
    const std::vector<std::uint64_t> parts = order(part == 12 ? 12 : 4, part);
    REQUIRE(parts.size() == 64);
    // A prompt's deeper blocks go before those in front of them.
    std::size_t upside_down = 0;
    for (std::size_t i = 0; i < parts.size(); ++i)
      for (std::size_t j = i + 1; j < parts.size(); ++j)
        upside_down += parts[i] / 1000 == parts[j] / 1000 && parts[i] < parts[j] ? 1U : 0U;
    CHECK(upside_down == 0);
  }
}

TEST_CASE("learned_hazard: news of a session reaches all that its request loaded and saved") {
  // Two groups of sessions alike but for their news; what was closed goes first, loaded blocks too.
  told_in_parts tier(4000);
  for (std::uint64_t i = 1; i <= 200; ++i) {
    const request_blocks prompt = row(1000 * i, 12);
    tier.part(prompt, 0, 6, 2 * i);       // the first turn
    tier.part(prompt, 0, 6, 2 * i + 1);   // the second loads it
    tier.part(prompt, 6, 9, 2 * i + 1);   // and saves
    tier.part(prompt, 9, 12, 2 * i + 1);  // what is new
    request_blocks deepest_first = prompt;
    std::reverse(deepest_first.begin(), deepest_first.end());
    kvx::hints news;
    news.session = i % 2 == 0 ? kvx::session_state::closed : kvx::session_state::open;
    tier.policy.advise(deepest_first, news);
    CHECK(tier.policy.heard(prompt.front()) == static_cast<unsigned>(news.session));
    CHECK(tier.policy.heard(prompt.back()) == static_cast<unsigned>(news.session));
  }
}

TEST_CASE("learned_hazard: random requests, erasures, news and evictions against the tier's account") {
  for (std::size_t seed = 0; seed < 40; seed += kvx_test::exhaustive_step(4)) {
    CAPTURE(seed);
    std::mt19937 random(static_cast<std::uint32_t>(seed));
    const std::size_t slots = 1 + random() % 60;
    small_tier<kvx::learned_hazard> tier(slots);
    for (int step = 0; step < 2000; ++step) {
      // Prompts share a front of a few kinds, and go on in one of several ways.
      request_blocks blocks = row(10'000 * (1 + random() % 4), random() % 6);
      const std::uint64_t way = random() % 30;
      for (std::size_t i = random() % 40; i-- > 0;) blocks.push_back(blocks.size() + 1'000'000 * (1 + way));
      if (random() % 50 == 0) blocks = row(random(), 3 * slots + 1500);  // longer than all it can remember
      tier.request(blocks, static_cast<kvx::session_state>(random() % 4));
      const std::vector<std::uint64_t> held = tier.keys();
      if (!held.empty() && random() % 4 == 0) tier.forget(held[random() % held.size()]);
      if (random() % 3 == 0) {
        std::reverse(blocks.begin(), blocks.end());
        kvx::hints news;
        news.session = static_cast<kvx::session_state>(random() % 4);
        news.returns_in = std::chrono::milliseconds(random() % 2 * random() % 1'000'000);
        tier.policy.advise(blocks, news);
      }
    }
  }
}

TEST_CASE("learned_hazard: nothing is allocated once it has seen its longest request") {
  small_tier<kvx::learned_hazard> tier(500);
  std::mt19937 random(1);
  std::vector<kvx::eviction_entry> entries(64);
  kvx::eviction_request told;
  told.blocks = entries;
  tier.policy.access(told);
  if (!kvx_test::counts_allocations) MESSAGE("SKIPPED: allocations are not counted under this sanitizer");
  const std::size_t before = kvx_test::allocations.load();
  for (int i = 0; i < 20'000; ++i) {
    const std::uint64_t first = random() % 5 == 0 ? random() : 1000U * (random() % 30);
    for (std::size_t b = 0; b < entries.size(); ++b) entries[b] = {kvx::no_slot, first + (entries.size() - b)};
    tier.policy.access(told);
  }
  CHECK(kvx_test::allocations.load() == before);
}

TEST_CASE("learned_hazard: news of a session reaches the front of a very long request") {
  kvx::learned_hazard policy(20'000);
  std::vector<kvx::eviction_entry> blocks;
  request_blocks deepest_first;
  for (std::uint64_t key = 20'000; key != 0; --key) {
    blocks.push_back({kvx::no_slot, key});
    deepest_first.push_back(key);
  }
  kvx::eviction_request told;
  told.blocks = blocks;
  told.id = 1;
  policy.access(told);
  kvx::hints news;
  news.session = kvx::session_state::closed;
  policy.advise(deepest_first, news);
  CHECK(policy.heard(20'000) == static_cast<unsigned>(kvx::session_state::closed));
  CHECK(policy.heard(1) == static_cast<unsigned>(kvx::session_state::closed));
}

TEST_CASE("learned_hazard: a very long prompt told in parts goes from its end") {
  constexpr std::size_t length = 20'000;
  told_in_parts tier(length);
  const request_blocks prompt = row(1, length);
  for (std::size_t b = 0; b < length; b += 4000) tier.part(prompt, b, b + 4000, 1);
  CHECK(tier.policy.evict([](kvx::slot_index) { return false; }) == tier.slot_of.at(length));
}
