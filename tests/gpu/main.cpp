// SPDX-License-Identifier: Apache-2.0
// Without a device a program of this directory ends as skipped, and says why.
#define DOCTEST_CONFIG_IMPLEMENT
#include <kvx/transfer/cuda.hpp>

#include <doctest/doctest.h>
#include <skip.hpp>

int main(int argc, char** argv) {
  const kvx::cuda_probe found = kvx::cuda_transfer::probe();
  if (!found.usable) {
    kvx_test::skip(found.text);
    return kvx_test::skipped_exit_code;
  }
  doctest::Context context(argc, argv);
  const int result = context.run();
  if (context.shouldExit() || result != 0) return result;
  return kvx_test::skips().load() > 0 ? kvx_test::skipped_exit_code : 0;
}
