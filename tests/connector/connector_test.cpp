// SPDX-License-Identifier: Apache-2.0
// The example of an engine's connector, as a test of what it uses: plans between processes, sequences that are rolled
// back, ranks that share a root.
#include <doctest/doctest.h>

#include "../../examples/06_connector/launch.hpp"

namespace {

connector::totals run(connector::planted mistake, std::uint64_t seed) {
  return connector::launch({.requests = 1'200, .seed = seed, .directory = {}, .mistake = mistake},
                           [](const connector::totals&) {});
}

}  // namespace

TEST_CASE("two ranks serve requests that come and go, and every loaded byte is right") {
  const connector::totals seen = run(connector::planted::nothing, 11);
  CHECK(seen.wrong_bytes == 0);
  CHECK(seen.finished >= 1'200);
  CHECK(seen.loaded_tokens > seen.prompt_tokens / 4);
  // Nothing of this was tested unless it happened.
  CHECK(seen.preempted > 0);
  CHECK(seen.cancelled > 0);
  CHECK(seen.rejected_drafts > 0);
  CHECK(seen.ranks_disagreed > 0);
  CHECK(seen.overslept > 0);
}

TEST_CASE("the mistakes that a connector can make show as wrong bytes") {
  CHECK(run(connector::planted::early_reuse, 12).wrong_bytes > 0);
  CHECK(run(connector::planted::unscoped_save, 12).wrong_bytes > 0);
  CHECK(run(connector::planted::rank_mismatch, 12).wrong_bytes > 0);
}
