// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

namespace mini_engine {

/// An array of zeros for weights, activations and KV pages: anonymous memory on 2 MiB pages where the kernel has them,
/// touched here so that page faults are not paid later, inside a measured prefill.
template <class T>
class huge_array {
 public:
  huge_array() = default;

  explicit huge_array(std::size_t size) : size_(size) {
    if (size == 0) return;
    // One huge page more than needed, so that the data can start on a huge page's boundary.
    mapped_bytes_ = size * sizeof(T) + (size * sizeof(T) >= huge_page_bytes ? huge_page_bytes : 0);
    mapping_ = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc{};
    void* start = mapping_;
    std::size_t space = mapped_bytes_;
    if (mapped_bytes_ > huge_page_bytes) {
      const auto misaligned = reinterpret_cast<std::size_t>(mapping_) % huge_page_bytes;
      const std::size_t skip = misaligned == 0 ? 0 : huge_page_bytes - misaligned;
      start = static_cast<std::byte*>(mapping_) + skip;
      space -= skip;
      ::madvise(start, space, MADV_HUGEPAGE);  // refused where the kernel has none: small pages work too
    }
    data_ = static_cast<T*>(start);
    std::memset(start, 0, size * sizeof(T));
  }

  huge_array(huge_array&& other) noexcept { swap(other); }
  huge_array& operator=(huge_array&& other) noexcept {
    swap(other);
    return *this;
  }
  ~huge_array() {
    if (mapping_ != nullptr) ::munmap(mapping_, mapped_bytes_);
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  T& operator[](std::size_t i) noexcept { return data_[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_[i]; }

 private:
  static constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

  void swap(huge_array& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
  }

  T* data_ = nullptr;
  std::size_t size_ = 0;
  void* mapping_ = nullptr;
  std::size_t mapped_bytes_ = 0;
};

}  // namespace mini_engine
