// SPDX-License-Identifier: Apache-2.0
#include <kvx/version.hpp>

#include <cstdio>

int main() {
  std::printf("kvx %d.%d.%d\n", kvx::version.major, kvx::version.minor, kvx::version.patch);
  return kvx::version >= kvx::version_number{0, 1, 0} ? 0 : 1;
}
