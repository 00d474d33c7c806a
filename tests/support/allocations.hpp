// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

// Counts what the program allocates, by replacing the global operators: include it in one source file of a program.

#if defined(__SANITIZE_THREAD__)
#define KVX_TEST_COUNTS_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KVX_TEST_COUNTS_ALLOCATIONS 0
#endif
#endif
#if !defined(KVX_TEST_COUNTS_ALLOCATIONS)
#define KVX_TEST_COUNTS_ALLOCATIONS 1
#endif

namespace kvx_test {

inline std::atomic<std::size_t> allocations{0};

/// Whether they are counted at all: ThreadSanitizer's runtime does not let its operators be replaced.
inline constexpr bool counts_allocations = KVX_TEST_COUNTS_ALLOCATIONS != 0;

#if KVX_TEST_COUNTS_ALLOCATIONS

inline void* counted_allocation(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  // aligned_alloc wants a multiple of the alignment.
  if (void* const at = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment + alignment))
    return at;
  throw std::bad_alloc();
}
#endif

}  // namespace kvx_test

#if KVX_TEST_COUNTS_ALLOCATIONS
void* operator new(std::size_t bytes) { return kvx_test::counted_allocation(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return kvx_test::counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* at) noexcept { std::free(at); }
void operator delete(void* at, std::size_t) noexcept { std::free(at); }
void operator delete(void* at, std::align_val_t) noexcept { std::free(at); }
void operator delete(void* at, std::size_t, std::align_val_t) noexcept { std::free(at); }
#endif
