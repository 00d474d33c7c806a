// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/admission/prefix_aware.hpp>

#include <random>

TEST_CASE_TEMPLATE_INVOKE(admission_conformance, kvx::prefix_aware, kvx::prefix_aware_at<2>);

using kvx_test::offer;
using kvx_test::tell_used;

namespace {

constexpr std::size_t slots = 1000;

/// Prompts that are never seen again, until the policy knows.
template <class Policy>
std::uint32_t flood(Policy& policy, std::uint64_t first, std::uint64_t prompts) {
  std::uint32_t admitted = 0;
  for (std::uint64_t prompt = first; prompt < first + prompts; ++prompt) admitted += offer(policy, prompt, 0, 10);
  return admitted;
}

}  // namespace

TEST_CASE("prefix_aware: admits everything until it knows better, then no longer what is never seen again") {
  kvx::prefix_aware policy(slots);
  CHECK(flood(policy, 1000, 20) == 200);
  (void)flood(policy, 2000, 3000);
  CHECK(flood(policy, 10'000, 100) == 0);
}

TEST_CASE("prefix_aware: what was seen before is admitted where first sights are not") {
  kvx::prefix_aware policy(slots);
  // One prompt in ten comes back, soon.
  std::uint32_t first = 0;
  std::uint32_t again = 0;
  for (std::uint64_t prompt = 0; prompt < 3000; ++prompt) {
    const bool counted = prompt >= 2000;
    const std::uint32_t admitted = offer(policy, 1000 + prompt, 0, 10);
    first += counted ? admitted : 0;
    if (prompt % 10 != 5) continue;
    const std::uint32_t second = offer(policy, 1000 + prompt, 0, 10);
    again += counted ? second : 0;
    // And once more, so that its second sight was worth a write.
    tell_used(policy, 1000 + prompt, 10);
  }
  CHECK(first <= 100);
  CHECK(again >= 900);
}

TEST_CASE("prefix_aware: turns of a conversation are told from single questions") {
  kvx::prefix_aware policy(slots);
  std::uint32_t turns = 0;
  std::uint32_t questions = 0;
  constexpr std::uint32_t longest = 40;
  for (std::uint64_t step = 0; step < 4000; ++step) {
    const bool counted = step >= 3000;
    // Ten conversations take turns; what each adds is used by its next turn. A fresh one starts when one ends.
    const std::uint64_t conversation = 50'000 + step % 10 + step / 100 * 10;
    const auto turn = static_cast<std::uint32_t>(step % 100 / 10);
    tell_used(policy, conversation, turn * 4);
    const std::uint32_t grown = offer(policy, conversation, turn * 4, 4);
    if (counted && turn >= 2 && turn < longest / 4 - 1) turns += grown;
    // And many questions that nobody repeats.
    for (std::uint64_t other = 0; other < 4; ++other) {
      const std::uint32_t admitted = offer(policy, 1'000'000 + step * 4 + other, 0, 12);
      if (counted) questions += admitted;
    }
  }
  CHECK(turns >= 1000 * 7 / 10 * 4 * 9 / 10);
  CHECK(questions <= 4000 * 12 / 100);
}

TEST_CASE("prefix_aware: a loop larger than the tier is admitted in part, so that the part stays") {
  // Used again, but only after twice the slots: written all, nothing of it would be there in time.
  kvx::prefix_aware policy(slots);
  std::uint32_t admitted = 0;
  for (std::uint64_t step = 0; step < 6000; ++step) {
    const std::uint32_t now = offer(policy, step % 200, 0, 10);
    if (step >= 3000) admitted += now;
  }
  CHECK(admitted < 30'000 / 2);
  CHECK(admitted > 0);
}

TEST_CASE("prefix_aware: a change of traffic is learned") {
  kvx::prefix_aware policy(slots);
  (void)flood(policy, 1000, 5000);
  std::uint32_t late = 0;
  for (std::uint64_t step = 0; step < 4000; ++step) {
    // From now on each prompt is seen three times within thirty.
    const std::uint32_t admitted = offer(policy, 500'000 + step / 30 * 10 + step % 10, 0, 10);
    if (step >= 3000 && step % 30 < 10) late += admitted;
  }
  CHECK(late >= 3000);  // first sights, 10 of 30 steps of 10 blocks each
}

TEST_CASE("prefix_aware: the dearer a write, the less is written") {
  std::mt19937 random(3);
  kvx::prefix_aware_at<2> dear(slots);
  kvx::prefix_aware_at<12> cheap(slots);
  std::uint32_t written_dear = 0;
  std::uint32_t written_cheap = 0;
  for (std::uint64_t step = 0; step < 5000; ++step) {
    // One prompt in four is seen again.
    const std::uint64_t prompt = random() % 5 == 0 ? (step < 50 ? 0 : step - 1 - random() % 40) : step;
    written_dear += offer(dear, prompt, 0, 10);
    written_cheap += offer(cheap, prompt, 0, 10);
  }
  CHECK(written_dear * 2 < written_cheap);
}
