// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/admission/frequency_sketch.hpp>

TEST_CASE_TEMPLATE_INVOKE(admission_conformance, kvx::frequency_sketch);

using kvx_test::offer;
using kvx_test::tell_used;

TEST_CASE("frequency_sketch: as many offers as it is told, and uses count like offers") {
  kvx::frequency_sketch twice(1000);
  CHECK(offer(twice, 1, 0, 20) == 0);
  CHECK(offer(twice, 1, 0, 20) == 20);
  kvx::frequency_sketch four(1000, 4);
  CHECK(offer(four, 1, 0, 20) == 0);
  CHECK(offer(four, 1, 0, 20) == 0);
  tell_used(four, 1, 20);
  CHECK(offer(four, 1, 0, 20) == 20);
}

TEST_CASE("frequency_sketch: fame outlasts a flood, and fades after a longer one") {
  constexpr std::size_t slots = 1000;
  const auto after = [](std::uint64_t others) {
    kvx::frequency_sketch policy(slots, 4);
    for (int times = 0; times < 12; ++times) tell_used(policy, 1, 50);
    for (std::uint64_t prompt = 1000; prompt < 1000 + others / 10; ++prompt) (void)offer(policy, prompt, 0, 10);
    std::uint32_t admitted = 0;
    for (std::uint32_t b = 0; b < 50; ++b) admitted += policy.admit({kvx_test::key_of(1, b), 0, b, 0}) ? 1U : 0U;
    return admitted;
  };
  CHECK(after(16 * slots) == 50);
  CHECK(after(80 * slots) < 25);
}
