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

#include <kvx/admission/always.hpp>
#include <kvx/admission/frequency_sketch.hpp>
#include <kvx/admission/prefix_aware.hpp>
#include <kvx/admission/second_touch.hpp>
#include <kvx/concepts/admission.hpp>
#include <kvx/concepts/eviction.hpp>
#include <kvx/eviction/arc.hpp>
#include <kvx/eviction/clock.hpp>
#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/gdsf.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/eviction/s3fifo.hpp>
#include <kvx/eviction/sieve.hpp>
#include <kvx/eviction/w_tinylfu.hpp>
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
#include <type_traits>
#include <unordered_map>
#include <vector>

namespace {

constexpr std::size_t tokens_per_block = 512;  // as in the public traces; what is before a block makes it dear

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

struct outcome {
  double hit_ratio = 0;
  double saved = 0;               // of the cost of computing all blocks, where a token's grows with those before it
  double writes_per_request = 0;  // blocks
};

/// One tier under one pair of policies.
template <kvx::eviction_policy Eviction, kvx::admission_policy Admission>
class tier_model {
 public:
  tier_model(const workload& work, std::size_t slots, bool pin_parents)
      : slots_(slots),
        pin_parents_(pin_parents),
        eviction_(slots),
        admission_(slots),
        slot_of_(work.distinct, kvx::no_slot),
        parent_(work.distinct, nobody),
        children_(work.distinct, 0),
        last_request_(work.distinct, 0),
        block_in_(slots, nobody) {}

  outcome replay(const workload& work) {
    double cost = 0;
    for (const std::vector<std::uint32_t>& blocks : work.requests) {
      ++now_;
      for (std::size_t i = 0; i < blocks.size(); ++i) cost += cost_of(i);
      serve(blocks);
    }
    return {static_cast<double>(hits_) / static_cast<double>(work.blocks), saved_ / cost,
            static_cast<double>(writes_) / static_cast<double>(work.requests.size())};
  }

 private:
  static constexpr std::uint32_t nobody = 0xFFFF'FFFFU;

  static double cost_of(std::size_t position) {
    constexpr double double_at = 32'768;
    return 1 + static_cast<double>(position * tokens_per_block) / double_at;
  }

  void serve(const std::vector<std::uint32_t>& blocks) {
    std::size_t prefix = 0;
    while (prefix < blocks.size() && slot_of_[blocks[prefix]] != kvx::no_slot) saved_ += cost_of(prefix++);
    hits_ += prefix;
    if constexpr (kvx::usage_observer<Admission>) {
      keys_.clear();
      for (std::size_t i = prefix; i-- > 0;) keys_.push_back(blocks[i]);
      admission_.used(keys_);
    }
    std::size_t wanted = prefix;  // blocks from here on are refused
    bool refused = false;
    for (std::size_t i = prefix; i < blocks.size(); ++i) {
      last_request_[blocks[i]] = now_;
      if (slot_of_[blocks[i]] == kvx::no_slot) {
        const std::uint64_t parent = i == 0 ? nobody : blocks[i - 1];
        refused |= !admission_.admit(
            {blocks[i], parent, static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(blocks.size() - i - 1)});
      }
      if (!refused) wanted = i + 1;
    }
    for (std::size_t i = 0; i < prefix; ++i) last_request_[blocks[i]] = now_;
    for (std::size_t i = blocks.size(); i-- > 0;) {
      if (const kvx::slot_index slot = slot_of_[blocks[i]]; slot != kvx::no_slot)
        eviction_.touch(std::span(&slot, 1));
      else if (i < wanted)
        store(blocks, i);
    }
  }

  void store(const std::vector<std::uint32_t>& blocks, std::size_t i) {
    const std::uint32_t block = blocks[i];
    kvx::slot_index slot = kvx::no_slot;
    if (used_ < slots_) {
      slot = static_cast<kvx::slot_index>(used_++);
    } else {
      slot = eviction_.evict([this](kvx::slot_index candidate) {
        const std::uint32_t held = block_in_[candidate];
        return last_request_[held] == now_ || (pin_parents_ && children_[held] != 0);
      });
      if (slot == kvx::no_slot) return;
      const std::uint32_t victim = block_in_[slot];
      slot_of_[victim] = kvx::no_slot;
      if (parent_[victim] != nobody) --children_[parent_[victim]];
    }
    slot_of_[block] = slot;
    block_in_[slot] = block;
    if (i != 0) {
      parent_[block] = blocks[i - 1];
      ++children_[parent_[block]];
    }
    const kvx::eviction_entry entry{slot, block, static_cast<std::uint32_t>(i * tokens_per_block)};
    eviction_.insert(std::span(&entry, 1));
    ++writes_;
  }

  std::size_t slots_;
  bool pin_parents_;
  Eviction eviction_;
  Admission admission_;
  std::vector<kvx::slot_index> slot_of_;
  std::vector<std::uint32_t> parent_;
  std::vector<std::uint32_t> children_;
  std::vector<std::size_t> last_request_;
  std::vector<std::uint32_t> block_in_;
  std::vector<std::uint64_t> keys_;
  std::size_t now_ = 0;
  std::size_t used_ = 0;
  std::size_t hits_ = 0;
  std::size_t writes_ = 0;
  double saved_ = 0;
};

constexpr std::array<std::size_t, 4> percents{1, 5, 10, 25};

template <class Eviction, class Admission>
outcome replay(const workload& work, std::size_t percent, bool pin_parents) {
  const std::size_t slots = std::max<std::size_t>(1, work.distinct * percent / 100);
  return tier_model<Eviction, Admission>(work, slots, pin_parents).replay(work);
}

template <kvx::eviction_policy Policy>
void print_hit_ratios(const char* name, const workload& work, bool pin_parents) {
  std::printf("%-10s", name);
  std::array<double, percents.size()> saved{};
  for (std::size_t i = 0; i < percents.size(); ++i) {
    const outcome found = replay<Policy, kvx::always>(work, percents[i], pin_parents);
    std::printf("  %.4f", found.hit_ratio);
    saved[i] = found.saved;
  }
  std::printf("  |");
  for (const double share : saved) std::printf("  %.4f", share);
  std::printf("\n");
}

template <kvx::eviction_policy Eviction, kvx::admission_policy Admission>
void print_writes(const char* eviction, const char* admission, const workload& work) {
  std::printf("%-10s %-16s", eviction, admission);
  for (const std::size_t percent : percents) {
    const outcome found = replay<Eviction, Admission>(work, percent, true);
    std::printf("  %.4f %6.2f", found.hit_ratio, found.writes_per_request);
  }
  std::printf("\n");
}

template <kvx::eviction_policy Eviction>
void print_admissions(const char* eviction, const workload& work) {
  print_writes<Eviction, kvx::always>(eviction, "always", work);
  print_writes<Eviction, kvx::second_touch>(eviction, "second_touch", work);
  print_writes<Eviction, kvx::frequency_sketch>(eviction, "frequency_sketch", work);
  print_writes<Eviction, kvx::prefix_aware>(eviction, "prefix_aware", work);
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
  std::printf("%-10s  %6.1f  %6.1f  %11.1f  %11.1f\n", name, insert, touch, none_pinned, half_pinned);
}

/// Calls `visit(name, std::type_identity<policy>)` for every policy.
template <class Visit>
void for_each_policy(Visit&& visit) {
  visit("fifo", std::type_identity<kvx::fifo>{});
  visit("lru", std::type_identity<kvx::lru>{});
  visit("clock", std::type_identity<kvx::clock>{});
  visit("sieve", std::type_identity<kvx::sieve>{});
  visit("s3fifo", std::type_identity<kvx::s3fifo>{});
  visit("s3fifo 10%", std::type_identity<kvx::s3fifo_share<10>>{});
  visit("arc", std::type_identity<kvx::arc>{});
  visit("w_tinylfu", std::type_identity<kvx::w_tinylfu>{});
  visit("gdsf", std::type_identity<kvx::gdsf>{});
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
      std::printf(
          "\nprefix hit ratio | share of the computing saved, with slots for 1, 5, 10, 25 %% of the distinct "
          "blocks, parents %s\n",
          pin_parents ? "pinned" : "not pinned");
      for_each_policy([&](const char* name, auto policy) {
        print_hit_ratios<typename decltype(policy)::type>(name, work, pin_parents);
      });
    }
    std::printf("\nprefix hit ratio and blocks written per request at the same capacities, parents pinned\n");
    print_admissions<kvx::fifo>("fifo", work);
    print_admissions<kvx::lru>("lru", work);
    print_admissions<kvx::s3fifo>("s3fifo", work);
    std::printf("\nns per slot, 1000000 slots, random order: insert, touch, evict + insert with none or half pinned\n");
    for_each_policy([](const char* name, auto policy) { print_costs<typename decltype(policy)::type>(name); });
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "eviction_bench: %s\n", problem.what());
    return 1;
  }
  return 0;
}
