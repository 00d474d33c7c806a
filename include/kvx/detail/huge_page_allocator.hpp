// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace kvx::detail {

/// Backs large arrays that are read at random with 2 MiB pages, where the kernel has them: with 4 KiB pages most
/// reads would miss the TLB as well as the cache.
template <class T>
struct huge_page_allocator {
  using value_type = T;

  huge_page_allocator() noexcept = default;
  template <class U>
  huge_page_allocator(const huge_page_allocator<U>&) noexcept {}

  [[nodiscard]] T* allocate(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    void* const at = ::operator new(bytes, alignment_of(bytes));
    if (bytes >= huge_page_bytes) ::madvise(at, bytes, MADV_HUGEPAGE);
    return static_cast<T*>(at);
  }
  void deallocate(T* at, std::size_t count) noexcept { ::operator delete(at, alignment_of(count * sizeof(T))); }

  friend bool operator==(const huge_page_allocator&, const huge_page_allocator&) noexcept { return true; }

 private:
  static constexpr std::size_t huge_page_bytes = 2U << 20U;
  static constexpr std::size_t cache_line_bytes = 64;
  static constexpr std::align_val_t alignment_of(std::size_t bytes) noexcept {
    return std::align_val_t{bytes >= huge_page_bytes ? huge_page_bytes : cache_line_bytes};
  }
};

}  // namespace kvx::detail
