// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#define KVX_LEAK_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KVX_LEAK_SANITIZER 1
#endif
#endif

#ifdef KVX_LEAK_SANITIZER
// Of <sanitizer/lsan_interface.h>.
extern "C" void __lsan_ignore_object(const void* at);
#endif

namespace kvx::detail {

/// Gives up ownership of what the kernel or a device may still write: for ever, and on purpose, which LeakSanitizer
/// is told.
template <class T>
void leak_deliberately(std::unique_ptr<T> owned) noexcept {
  [[maybe_unused]] const T* const for_ever = owned.release();
#ifdef KVX_LEAK_SANITIZER
  __lsan_ignore_object(for_ever);
#endif
}

}  // namespace kvx::detail

#undef KVX_LEAK_SANITIZER
