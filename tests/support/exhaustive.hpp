// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KVX_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(undefined_behavior_sanitizer)
#define KVX_TEST_SANITIZED 1
#endif
#endif

namespace kvx_test {

/// Exhaustive loops try everything in an optimised build and one in `otherwise` where the build makes them slow.
[[nodiscard]] constexpr std::size_t exhaustive_step([[maybe_unused]] std::size_t otherwise) {
#if defined(__OPTIMIZE__) && !defined(KVX_TEST_SANITIZED)
  return 1;
#else
  return otherwise;
#endif
}

}  // namespace kvx_test
