// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

namespace kvx_replay {

/// What the calls of a policy cost on slots in random order, which is what a large tier without locality would see.
/// Units   nanoseconds per slot
struct single_calls {
  double insert = 0;
  double touch = 0;
  double replace = 0;              ///< evict and insert, nothing pinned
  double replace_half_pinned = 0;  ///< the same with every other slot pinned, at random
};

template <kvx::eviction_policy Policy>
[[nodiscard]] single_calls time_single_calls(Policy policy, std::size_t slots) {
  constexpr std::size_t batch = 64;
  std::mt19937_64 random(2);
  std::vector<kvx::eviction_entry> entries(slots);
  for (std::size_t i = 0; i < slots; ++i) {
    entries[i].slot = static_cast<kvx::slot_index>(i);
    entries[i].key = random();
  }
  std::shuffle(entries.begin(), entries.end(), random);
  std::vector<kvx::slot_index> touched(slots);
  for (kvx::slot_index& slot : touched) slot = static_cast<kvx::slot_index>(random() % slots);
  std::vector<char> half(slots);
  for (char& pinned : half) pinned = static_cast<char>(random() % 2);

  const auto per_slot = [slots](auto&& work) {
    const auto began = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - began;
    return spent.count() / static_cast<double>(slots);
  };
  const auto replace = [&](auto&& pinned) {
    for (std::size_t i = 0; i < slots; ++i) {
      kvx::eviction_entry entry = entries[i];
      entry.slot = policy.evict(pinned);
      entry.key ^= i;
      policy.insert(std::span(&entry, 1));
    }
  };
  single_calls out;
  out.insert = per_slot([&] {
    for (std::size_t i = 0; i < slots; i += batch) {
      policy.insert(std::span(entries).subspan(i, std::min(batch, slots - i)));
    }
  });
  out.touch = per_slot([&] {
    for (std::size_t i = 0; i < slots; i += batch) {
      policy.touch(std::span(touched).subspan(i, std::min(batch, slots - i)));
    }
  });
  out.replace = per_slot([&] { replace([](kvx::slot_index) { return false; }); });
  out.replace_half_pinned = per_slot([&] { replace([&](kvx::slot_index slot) { return half[slot] != 0; }); });
  return out;
}

}  // namespace kvx_replay
