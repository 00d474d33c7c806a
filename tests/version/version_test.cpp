// SPDX-License-Identifier: Apache-2.0
#include <kvx/version.hpp>

#include <doctest/doctest.h>

TEST_CASE("the version is a constant and agrees with its macros") {
  static_assert(kvx::version == kvx::version_number{KVX_VERSION_MAJOR, KVX_VERSION_MINOR, KVX_VERSION_PATCH});
  CHECK(kvx::version.major == KVX_VERSION_MAJOR);
  CHECK(kvx::version.minor == KVX_VERSION_MINOR);
  CHECK(kvx::version.patch == KVX_VERSION_PATCH);
}

TEST_CASE("versions are ordered by major, then minor, then patch") {
  using v = kvx::version_number;
  CHECK(v{0, 1, 2} < v{0, 2, 0});
  CHECK(v{0, 9, 9} < v{1, 0, 0});
  CHECK(v{1, 2, 3} < v{1, 2, 4});
  CHECK(v{1, 2, 3} == v{1, 2, 3});
}
