// SPDX-License-Identifier: Apache-2.0
// c++ -std=c++20 -O2 -Iinclude examples/03_own_eviction_policy.cpp -pthread -o 03_own_eviction_policy &&
// ./03_own_eviction_policy
//
// A policy is a type: this one is a clock with a second chance. Nothing is registered and nothing derived from.

#include <kvx/cache.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/layout.hpp>
#include <kvx/transfer/host.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "03_own_eviction_policy: failed: %s\n", what);
  std::exit(1);
}

/// A hand goes round the slots; a slot that was used since the hand's last visit is passed over once.
class second_chance {
 public:
  explicit second_chance(std::size_t slots) : states_(slots, state::absent) {}

  void insert(std::span<const kvx::eviction_entry> entries) {
    for (const kvx::eviction_entry& e : entries) states_[e.slot] = state::unused;
    size_ += entries.size();
  }
  void touch(std::span<const kvx::slot_index> slots) {
    for (const kvx::slot_index slot : slots) states_[slot] = state::used;
  }
  void erase(kvx::slot_index slot) {
    states_[slot] = state::absent;
    --size_;
  }

  /// `pinned` says what may not go now: in use, leased, or the parent of a cached block.
  template <class Pinned>
  [[nodiscard]] kvx::slot_index evict(Pinned&& pinned) {
    // In the first round chances are taken away, in the second what may go is found.
    for (std::size_t steps = 0; steps < 2 * states_.size(); ++steps) {
      const auto slot = static_cast<kvx::slot_index>(hand_);
      hand_ = (hand_ + 1) % states_.size();
      if (states_[slot] == state::absent || pinned(slot)) continue;
      if (states_[slot] == state::used) {
        states_[slot] = state::unused;
        continue;
      }
      erase(slot);
      return slot;
    }
    return kvx::no_slot;
  }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  enum class state : std::uint8_t { absent, unused, used };

  std::vector<state> states_;
  std::size_t hand_ = 0;
  std::size_t size_ = 0;
};

static_assert(kvx::eviction_policy<second_chance>);

using my_cache = kvx::cache<kvx::layout, kvx::xxh3_128, second_chance, kvx::posix, kvx::host_transfer>;

void policy_alone() {
  second_chance policy(4);
  const std::vector<kvx::eviction_entry> all{{0, 10}, {1, 11}, {2, 12}, {3, 13}};
  policy.insert(all);
  const std::vector<kvx::slot_index> used{0};
  policy.touch(used);
  const auto none = [](kvx::slot_index) { return false; };
  const auto two = [](kvx::slot_index slot) { return slot == 2; };
  check(policy.evict(two) == 1, "0 was used, so 1 goes first");
  check(policy.evict(two) == 3, "2 is pinned");
  check(policy.evict(two) == 0, "0 had its second chance");
  check(policy.evict(two) == kvx::no_slot && policy.size() == 1, "2 is still pinned");
  check(policy.evict(none) == 2 && policy.size() == 0, "2 goes once it may");
}

/// One layer, one head: a page is 16 tokens of 4 floats, once for keys and once for values.
struct toy_engine {
  static constexpr std::uint32_t page_tokens = 16;
  static constexpr std::size_t page_bytes = page_tokens * 4 * sizeof(float);
  static constexpr std::size_t pages = 32;

  [[nodiscard]] kvx::layout layout() {
    std::byte* const key_tensor = keys.data();
    std::byte* const value_tensor = values.data();
    kvx::separate_kv tensors;
    tensors.shape = {.block_tokens = page_tokens,
                     .page_tokens = page_tokens,
                     .layers = 1,
                     .heads = 1,
                     .head_dim = 4,
                     .element = kvx::element_type::f32};
    tensors.page_count = pages;
    tensors.keys = {&key_tensor, 1};
    tensors.values = {&value_tensor, 1};
    tensors.tensor_bytes = keys.size();
    return kvx::layout(page_tokens, {tensors});
  }
  void fill(kvx::block_id page, const kvx::block_key& key) {
    for (std::size_t i = 0; i < page_bytes; ++i)
      keys[page * page_bytes + i] = values[page * page_bytes + i] = key.bytes[i % 16];
  }
  [[nodiscard]] bool holds(kvx::block_id page, const kvx::block_key& key) const {
    for (std::size_t i = 0; i < page_bytes; ++i)
      if (keys[page * page_bytes + i] != key.bytes[i % 16] || values[page * page_bytes + i] != key.bytes[i % 16])
        return false;
    return true;
  }

  std::vector<std::byte> keys = std::vector<std::byte>(pages * page_bytes);
  std::vector<std::byte> values = std::vector<std::byte>(pages * page_bytes);
};

}  // namespace

int main() {
  policy_alone();

  toy_engine engine;
  kvx::options options;
  options.identity = {"toy-model", "weights-1", "f32"};
  options.memory_bytes = 256U << 10U;
  my_cache cache(options, engine.layout());

  // Far more prompts than memory holds; whatever is still found must be right.
  constexpr std::size_t blocks = 8;
  std::vector<kvx::block_id> from(blocks);
  std::vector<kvx::block_id> to(blocks);
  for (std::size_t b = 0; b < blocks; ++b) {
    from[b] = static_cast<kvx::block_id>(b);
    to[b] = static_cast<kvx::block_id>(blocks + b);
  }
  std::size_t found = 0;
  for (kvx::token_id request = 0; request < 100; ++request) {
    std::vector<kvx::token_id> prompt(blocks * toy_engine::page_tokens + 1, request);
    const kvx::sequence chain = cache.make_sequence(prompt);
    for (std::size_t b = 0; b < blocks; ++b) engine.fill(from[b], chain.key(b));
    const auto save = cache.save(chain, 0, from);
    check(save.wait_stored(std::chrono::seconds(10)) && save.outcome().ok(),
          "there is always room for the next prompt");
    if (request % 25 != 24) continue;
    const kvx::plan plan = cache.match(chain);
    const auto load = cache.load(plan, to);
    load.wait();
    check(load.loaded_blocks() == blocks, "the prompt just saved is there");
    for (std::size_t b = 0; b < blocks; ++b) check(engine.holds(to[b], chain.key(b)), "and it is the right one");
    found += load.loaded_blocks();
  }

  const kvx::metrics_snapshot stats = cache.stats();
  check(stats.memory.evicted > 0, "the policy was asked");
  check(stats.memory.blocks <= cache.memory_blocks(), "memory is bounded");
  std::printf("%llu blocks saved into room for %zu, %llu given up by the policy, %zu loaded again and right\n",
              static_cast<unsigned long long>(stats.memory.stored), cache.memory_blocks(),
              static_cast<unsigned long long>(stats.memory.evicted), found);
}
