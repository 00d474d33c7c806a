// expect: (read-only|const-qualified)
// SPDX-License-Identifier: Apache-2.0
#include <kvx/version.hpp>

int main() {
#ifdef KVX_COMPILE_FAIL
  kvx::version.major = 1;
#endif
  return kvx::version.major;
}
