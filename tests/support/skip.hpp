// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

namespace kvx_test {

/// ctest reports a program that ends with this code as skipped (SKIP_RETURN_CODE); a failure outranks it.
inline constexpr int skipped_exit_code = 77;

inline std::atomic<int>& skips() {
  static std::atomic<int> count{0};
  return count;
}

/// Says on stderr that a test case leaves something out, and why. The program then ends as skipped, not as passed.
inline void skip(const std::string& reason) {
  std::fprintf(stderr, "KVX-SKIPPED: %s\n", reason.c_str());
  skips().fetch_add(1);
}

/// The file `name` under the directory that the environment variable holds (KVX_TEST_MODELS, KVX_TEST_TRACES).
/// Empty, after a skip(), where the variable is not set. A set variable without the file is a broken setup: the path is
/// returned all the same and opening it fails the test.
inline std::optional<std::filesystem::path> data_file(const char* variable, const std::string& name) {
  const char* directory = std::getenv(variable);
  if (directory == nullptr || *directory == '\0') {
    skip(name + " is not tested: set " + variable + " to the directory that holds it");
    return std::nullopt;
  }
  return std::filesystem::path(directory) / name;
}

}  // namespace kvx_test
