// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/admission/second_touch.hpp>

TEST_CASE_TEMPLATE_INVOKE(admission_conformance, kvx::second_touch);

using kvx_test::offer;

TEST_CASE("second_touch: not the first time, but the second") {
  kvx::second_touch policy(100);
  CHECK(offer(policy, 1, 0, 20) == 0);
  CHECK(offer(policy, 1, 0, 20) == 20);
  CHECK(offer(policy, 1, 0, 30) == 20);  // grown meanwhile
}

TEST_CASE("second_touch: what is offered once each writes next to nothing") {
  kvx::second_touch policy(1000);
  std::uint32_t admitted = 0;
  for (std::uint64_t prompt = 0; prompt < 2000; ++prompt) admitted += offer(policy, prompt, 0, 10);
  CHECK(admitted <= 20);  // one key in 2^11 to 2^15 is taken for another
}

TEST_CASE("second_touch: an offer is forgotten after eight times the slots") {
  constexpr std::size_t slots = 1000;
  const auto after = [](std::uint64_t others) {
    kvx::second_touch policy(slots);
    (void)offer(policy, 1, 0, 100);
    for (std::uint64_t prompt = 1000; prompt < 1000 + others / 10; ++prompt) (void)offer(policy, prompt, 0, 10);
    std::uint32_t remembered = 0;
    for (std::uint32_t b = 0; b < 100; ++b) remembered += policy.admit({kvx_test::key_of(1, b), 0, b, 0}) ? 1U : 0U;
    return remembered;
  };
  CHECK(after(4 * slots) >= 88);
  CHECK(after(9 * slots) <= 2);
}
