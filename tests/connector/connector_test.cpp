// SPDX-License-Identifier: Apache-2.0
// The example of an engine's connector, as a test of what it uses: plans between processes, sequences that are rolled
// back, ranks that share a root.
#include <doctest/doctest.h>
#include <patient_options.hpp>
#include <temporary_directory.hpp>

#include "../../examples/06_connector/launch.hpp"

namespace {

connector::totals run(const connector::launch_options& with) {
  return connector::launch(with, [](const connector::totals&) {});
}

connector::totals run(connector::planted mistake) {
  return run({.requests = 1'200, .seed = 12, .directory = {}, .mistake = mistake, .load_deadline = kvx_test::patience});
}

}  // namespace

TEST_CASE("two ranks serve requests that come and go, and every loaded byte is right") {
  const connector::totals seen = run(connector::planted::nothing);
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

TEST_CASE("ranks that start again on the same root find their own blocks there, and only theirs") {
  const kvx_test::temporary_directory root;
  const connector::launch_options with{
      .requests = 150, .seed = 13, .directory = root.path(), .load_deadline = kvx_test::patience};
  const connector::totals first = run(with);
  const connector::totals again = run(with);
  CHECK(first.wrong_bytes == 0);
  CHECK(again.wrong_bytes == 0);
  // The same documents, read from storage.
  CHECK(again.loaded_tokens * first.prompt_tokens > first.loaded_tokens * again.prompt_tokens * 9 / 8);
}

TEST_CASE("the mistakes that a connector can make show as wrong bytes") {
  CHECK(run(connector::planted::early_reuse).wrong_bytes > 0);
  CHECK(run(connector::planted::unscoped_save).wrong_bytes > 0);
  CHECK(run(connector::planted::rank_mismatch).wrong_bytes > 0);
}
