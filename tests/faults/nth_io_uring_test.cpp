// SPDX-License-Identifier: Apache-2.0
#include <kvx/io/uring.hpp>

#include "nth_io.hpp"
#include "skip.hpp"

TEST_CASE("uring: whichever I/O fails, and however, nothing leaks, hangs or lies") {
  try {
    const kvx::uring probe{kvx::io_options{}};
  } catch (const kvx::error& refused) {
    kvx_test::skip(refused.what());
    return;
  }
  kvx_test::fail_every_io<kvx::uring>();
}
