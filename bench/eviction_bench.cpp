// SPDX-License-Identifier: Apache-2.0
// Replays request traces through every eviction policy and counts prefix hits; then times the policies alone.
//
//   eviction_bench [--trace requests.jsonl] [--requests N]
//
// A trace has one JSON object per line with "hash_ids": ids of prefix blocks, equal id = equal prefix up to and
// including that block. Without a trace the requests are generated: sessions of several turns that share system
// prompts, and single questions between them.
//
// A request hits its longest prefix of present blocks; then all its blocks are used, deepest first. Pinned are the
// blocks of the request under way and the parents of present blocks. A newcomer is refused when nothing may go.
// One table also shows the policies without parents pinned, as the literature simulates them.

#include <kvx/concepts/eviction.hpp>
#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/eviction/s3fifo.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <vector>

namespace {

struct workload {
  std::vector<std::vector<std::uint32_t>> requests;  // blocks, numbered from 0
  std::size_t distinct = 0;
  std::size_t blocks = 0;
};

class block_numbers {
 public:
  std::uint32_t operator()(std::uint64_t id) {
    return known_.try_emplace(id, static_cast<std::uint32_t>(known_.size())).first->second;
  }
  [[nodiscard]] std::size_t size() const { return known_.size(); }

 private:
  std::unordered_map<std::uint64_t, std::uint32_t> known_;
};

workload read_trace(const std::string& path, std::size_t limit) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("--trace " + path + ": cannot be opened");
  workload out;
  block_numbers number;
  std::string line;
  while (out.requests.size() < limit && std::getline(file, line)) {
    const std::string where = "--trace " + path + ", line " + std::to_string(out.requests.size() + 1) + ": ";
    const std::size_t name = line.find("\"hash_ids\"");
    const std::size_t open = name == std::string::npos ? name : line.find('[', name);
    if (open == std::string::npos) throw std::runtime_error(where + "has no \"hash_ids\" array");
    std::vector<std::uint32_t> request;
    const char* at = line.data() + open + 1;
    const char* const end = line.data() + line.size();
    for (;;) {
      while (at != end && (*at == ' ' || *at == ',')) ++at;
      if (at != end && *at == ']') break;
      std::uint64_t id = 0;
      const auto [rest, problem] = std::from_chars(at, end, id);
      if (problem != std::errc{}) throw std::runtime_error(where + "\"hash_ids\" is not an array of numbers");
      request.push_back(number(id));
      at = rest;
    }
    out.blocks += request.size();
    out.requests.push_back(std::move(request));
  }
  out.distinct = number.size();
  if (out.blocks == 0) throw std::runtime_error("--trace " + path + ": holds no blocks");
  return out;
}

workload generate(std::size_t count) {
  constexpr std::size_t sessions = 64;
  constexpr std::uint64_t system_prompts = 4;
  std::mt19937_64 random(1);
  workload out;
  block_numbers number;
  std::uint64_t next_id = 1000;
  struct session {
    std::vector<std::uint32_t> blocks;
    std::size_t turns_left = 0;
  };
  std::vector<session> open(sessions);
  while (out.requests.size() < count) {
    session fresh;
    const std::uint64_t system = random() % system_prompts;
    session& chosen = random() % 3 == 0 ? fresh : open[random() % sessions];
    if (chosen.turns_left == 0) {
      chosen.blocks.clear();
      for (std::uint64_t block = 0; block < 2 + system; ++block) chosen.blocks.push_back(number(system * 16 + block));
      chosen.turns_left = 1 + random() % 12;
    }
    const std::uint64_t grown = 1 + random() % 8;
    for (std::uint64_t block = 0; block < grown; ++block) chosen.blocks.push_back(number(next_id++));
    --chosen.turns_left;
    out.blocks += chosen.blocks.size();
    out.requests.push_back(chosen.blocks);
  }
  out.distinct = number.size();
  return out;
}

template <kvx::eviction_policy Policy>
double prefix_hit_ratio(const workload& work, std::size_t slots, bool pin_parents) {
  constexpr std::uint32_t nobody = 0xFFFF'FFFFU;
  Policy policy(slots);
  std::vector<kvx::slot_index> slot_of(work.distinct, kvx::no_slot);
  std::vector<std::uint32_t> parent(work.distinct, nobody);
  std::vector<std::uint32_t> children(work.distinct, 0);
  std::vector<std::size_t> last_request(work.distinct, 0);
  std::vector<std::uint32_t> block_in(slots, nobody);
  std::size_t used = 0;
  std::size_t hits = 0;
  for (std::size_t now = 1; now <= work.requests.size(); ++now) {
    const std::vector<std::uint32_t>& blocks = work.requests[now - 1];
    std::size_t prefix = 0;
    while (prefix < blocks.size() && slot_of[blocks[prefix]] != kvx::no_slot) ++prefix;
    hits += prefix;
    for (const std::uint32_t block : blocks) last_request[block] = now;
    const auto pinned = [&](kvx::slot_index slot) {
      const std::uint32_t block = block_in[slot];
      return last_request[block] == now || (pin_parents && children[block] != 0);
    };
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const std::uint32_t block = blocks[i];
      kvx::slot_index slot = slot_of[block];
      if (slot != kvx::no_slot) {
        policy.touch(std::span(&slot, 1));
        continue;
      }
      if (used < slots) {
        slot = static_cast<kvx::slot_index>(used++);
      } else {
        slot = policy.evict(pinned);
        if (slot == kvx::no_slot) continue;
        const std::uint32_t victim = block_in[slot];
        slot_of[victim] = kvx::no_slot;
        if (parent[victim] != nobody) --children[parent[victim]];
      }
      slot_of[block] = slot;
      block_in[slot] = block;
      if (i != 0) {
        parent[block] = blocks[i - 1];
        ++children[parent[block]];
      }
      const kvx::eviction_entry entry{slot, block};
      policy.insert(std::span(&entry, 1));
    }
  }
  return static_cast<double>(hits) / static_cast<double>(work.blocks);
}

template <kvx::eviction_policy Policy>
void print_hit_ratios(const char* name, const workload& work, bool pin_parents) {
  std::printf("%-8s", name);
  for (const std::size_t percent : {1U, 5U, 10U, 25U}) {
    const std::size_t slots = std::max<std::size_t>(1, work.distinct * percent / 100);
    std::printf("  %.4f", prefix_hit_ratio<Policy>(work, slots, pin_parents));
  }
  std::printf("\n");
}

class stopwatch {
 public:
  [[nodiscard]] double nanoseconds_per(std::size_t operations) const {
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start_;
    return spent.count() / static_cast<double>(operations);
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

template <kvx::eviction_policy Policy>
void print_costs(const char* name) {
  constexpr std::size_t slots = 1'000'000;
  constexpr std::size_t batch = 64;
  std::mt19937_64 random(2);
  std::vector<kvx::eviction_entry> entries(slots);
  for (std::size_t i = 0; i < slots; ++i) entries[i] = {static_cast<kvx::slot_index>(i), random()};
  std::shuffle(entries.begin(), entries.end(), random);
  std::vector<kvx::slot_index> touched(slots);
  for (kvx::slot_index& slot : touched) slot = static_cast<kvx::slot_index>(random() % slots);

  Policy policy(slots);
  const stopwatch inserting;
  for (std::size_t i = 0; i < slots; i += batch) {
    policy.insert(std::span(entries).subspan(i, std::min(batch, slots - i)));
  }
  const double insert = inserting.nanoseconds_per(slots);
  const stopwatch touching;
  for (std::size_t i = 0; i < slots; i += batch) {
    policy.touch(std::span(touched).subspan(i, std::min(batch, slots - i)));
  }
  const double touch = touching.nanoseconds_per(slots);

  std::vector<bool> half(slots);
  for (std::size_t i = 0; i < slots; ++i) half[i] = random() % 2 == 0;
  const auto replace = [&](auto&& pinned) {
    const stopwatch replacing;
    for (std::size_t i = 0; i < slots; ++i) {
      const kvx::eviction_entry entry{policy.evict(pinned), entries[i].key ^ i};
      policy.insert(std::span(&entry, 1));
    }
    return replacing.nanoseconds_per(slots);
  };
  const double none_pinned = replace([](kvx::slot_index) { return false; });
  const double half_pinned = replace([&](kvx::slot_index slot) { return bool{half[slot]}; });
  std::printf("%-8s  %6.1f  %6.1f  %11.1f  %11.1f\n", name, insert, touch, none_pinned, half_pinned);
}

struct options {
  std::string trace;
  std::size_t requests = 20'000;
  bool all_requests = true;
};

options parse(std::span<char*> arguments) {
  options out;
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const std::string_view name = arguments[i];
    if (i + 1 == arguments.size() || (name != "--trace" && name != "--requests")) {
      throw std::runtime_error(std::string(name) + ": usage: eviction_bench [--trace requests.jsonl] [--requests N]");
    }
    const std::string_view value = arguments[++i];
    if (name == "--trace") {
      out.trace = value;
      continue;
    }
    const auto [rest, problem] = std::from_chars(value.data(), value.data() + value.size(), out.requests);
    if (problem != std::errc{} || rest != value.data() + value.size() || out.requests == 0) {
      throw std::runtime_error("--requests " + std::string(value) + ": not a positive number");
    }
    out.all_requests = false;
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const options chosen = parse(std::span(argv, static_cast<std::size_t>(argc)));
    const workload work = chosen.trace.empty()
                              ? generate(chosen.requests)
                              : read_trace(chosen.trace, chosen.all_requests ? SIZE_MAX : chosen.requests);
    std::printf("%s: %zu requests, %zu blocks, %zu distinct\n",
                chosen.trace.empty() ? "generated" : chosen.trace.c_str(), work.requests.size(), work.blocks,
                work.distinct);
    for (const bool pin_parents : {true, false}) {
      std::printf("\nprefix hit ratio with slots for 1, 5, 10, 25 %% of the distinct blocks, parents %s\n",
                  pin_parents ? "pinned" : "not pinned");
      print_hit_ratios<kvx::fifo>("fifo", work, pin_parents);
      print_hit_ratios<kvx::lru>("lru", work, pin_parents);
      print_hit_ratios<kvx::s3fifo>("s3fifo", work, pin_parents);
    }
    std::printf("\nns per slot, 1000000 slots, random order: insert, touch, evict + insert with none or half pinned\n");
    print_costs<kvx::fifo>("fifo");
    print_costs<kvx::lru>("lru");
    print_costs<kvx::s3fifo>("s3fifo");
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "eviction_bench: %s\n", problem.what());
    return 1;
  }
  return 0;
}
