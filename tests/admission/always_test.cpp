// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/admission/always.hpp>

#include <type_traits>

TEST_CASE_TEMPLATE_INVOKE(admission_conformance, kvx::always);

TEST_CASE("always: every block, at once, without a byte of state") {
  kvx::always policy(10);
  CHECK(kvx_test::offer(policy, 1, 0, 100) == 100);
  CHECK(std::is_empty_v<kvx::always>);
}
