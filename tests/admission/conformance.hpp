// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/admission.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "allocations.hpp"

// What every admission policy promises, whatever it admits. A new policy is tested by three lines:
//
//   #include "conformance.hpp"
//   #include <kvx/admission/my_policy.hpp>
//   TEST_CASE_TEMPLATE_INVOKE(admission_conformance, kvx::my_policy);

namespace kvx_test {

/// The keys of a prompt's blocks; those of one seed are one prompt.
inline std::uint64_t key_of(std::uint64_t prompt, std::uint32_t block) {
  std::uint64_t key = prompt * 0x9E37'79B9'7F4A'7C15U + block + 1;
  key = (key ^ (key >> 30U)) * 0xBF58'476D'1CE4'E5B9U;
  return key ^ (key >> 27U);
}

/// Asks about the blocks [first, first + count) of a prompt and returns how many of them were admitted, from the front.
template <kvx::admission_policy Policy>
std::uint32_t offer(Policy& policy, std::uint64_t prompt, std::uint32_t first, std::uint32_t count) {
  std::uint32_t admitted = 0;
  bool refused = false;
  for (std::uint32_t b = first; b < first + count; ++b) {
    const std::uint64_t parent = b == 0 ? 0 : key_of(prompt, b - 1);
    refused |= !policy.admit({key_of(prompt, b), parent, b, first + count - b - 1});
    if (!refused) ++admitted;
  }
  return admitted;
}

template <kvx::admission_policy Policy>
void tell_used(Policy& policy, std::uint64_t prompt, std::uint32_t blocks) {
  if constexpr (kvx::usage_observer<Policy>) {
    std::vector<std::uint64_t> keys;
    for (std::uint32_t b = blocks; b-- > 0;) keys.push_back(key_of(prompt, b));
    policy.used(keys);
  }
}

/// Answers to random requests from a seed.
template <kvx::admission_policy Policy>
std::vector<std::uint32_t> answers(Policy& policy, std::uint32_t seed, std::size_t steps) {
  std::mt19937 random(seed);
  std::vector<std::uint32_t> out;
  for (std::size_t step = 0; step < steps; ++step) {
    const std::uint64_t prompt = random() % 40;
    const auto known = static_cast<std::uint32_t>(random() % 6);
    tell_used(policy, prompt, known);
    out.push_back(offer(policy, prompt, known, static_cast<std::uint32_t>(random() % 12)));
  }
  return out;
}

}  // namespace kvx_test

TEST_CASE_TEMPLATE_DEFINE("admission policy", Policy, admission_conformance) {
  using namespace kvx_test;

  SUBCASE("tiers of any size, also none") {
    for (const std::size_t slots : {0U, 1U, 2U, 1000U}) {
      Policy policy(slots);
      tell_used(policy, 1, 0);
      tell_used(policy, 1, 5);
      (void)answers(policy, 1, 200);
    }
  }
  SUBCASE("a prompt that keeps coming back is admitted before long, as a whole") {
    for (std::uint64_t prompt = 1; prompt < 20; ++prompt) {
      Policy policy(1000);
      std::uint32_t admitted = 0;
      for (int times = 0; times < 16 && admitted != 30; ++times) {
        admitted = offer(policy, prompt, 0, 30);
        (void)offer(policy, 100 + prompt + static_cast<std::uint64_t>(times), 0, 30);
      }
      CHECK(admitted == 30);
    }
  }
  SUBCASE("a prompt that keeps coming back is admitted even after a flood of others") {
    Policy policy(200);
    for (std::uint64_t other = 1000; other < 3000; ++other) (void)offer(policy, other, 0, 10);
    std::uint32_t admitted = 0;
    for (int times = 0; times < 64 && admitted != 10; ++times) {
      admitted = offer(policy, 7, 0, 10);
      (void)offer(policy, 10'000 + static_cast<std::uint64_t>(times), 0, 10);
    }
    CHECK(admitted == 10);
  }
  SUBCASE("the same questions get the same answers") {
    for (std::uint32_t seed = 0; seed < 10; ++seed) {
      Policy one(50);
      Policy other(50);
      CHECK(answers(one, seed, 500) == answers(other, seed, 500));
    }
  }
  SUBCASE("a moved policy goes on where it was") {
    Policy stays(50);
    Policy from(50);
    CHECK(answers(stays, 1, 300) == answers(from, 1, 300));
    Policy to = std::move(from);
    CHECK(answers(stays, 2, 300) == answers(to, 2, 300));
  }
  SUBCASE("nothing is allocated after the constructor") {
    Policy policy(500);
    const std::vector<std::uint64_t> used{key_of(1, 1), key_of(1, 0)};
    if (!counts_allocations) MESSAGE("SKIPPED: allocations are not counted under this sanitizer");
    const std::size_t before = allocations.load();
    for (std::uint64_t prompt = 0; prompt < 2000; ++prompt) {
      (void)offer(policy, prompt % 700, 2, 5);
      if constexpr (kvx::usage_observer<Policy>) policy.used(used);
    }
    const std::size_t after = allocations.load();
    CHECK(after == before);
  }
}
