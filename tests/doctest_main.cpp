// SPDX-License-Identifier: Apache-2.0
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <skip.hpp>

#include <cstdio>

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int result = context.run();
  if (context.shouldExit() || result != 0) return result;
  if (const int count = kvx_test::skips().load(); count > 0) {
    std::fprintf(stderr, "KVX-SKIPPED: %d check group(s) did not run; the rest passed\n", count);
    return kvx_test::skipped_exit_code;
  }
  return 0;
}
