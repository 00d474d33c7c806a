// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

namespace kvx::detail {

/// An array of plain values that nobody wrote to yet, so that its memory is only touched as it is used, and in small
/// pages: clearing a large one would hold a request up.
/// Shape   T: trivially copyable and destructible
template <class T>
class untouched_array {
 public:
  explicit untouched_array(std::size_t size) : at_(std::allocator<T>{}.allocate(size)), size_(size) {}
  ~untouched_array() {
    if (at_ != nullptr) std::allocator<T>{}.deallocate(at_, size_);
  }
  untouched_array(untouched_array&& from) noexcept : at_(std::exchange(from.at_, nullptr)), size_(from.size_) {}
  untouched_array& operator=(untouched_array&& from) noexcept {
    std::swap(at_, from.at_);
    std::swap(size_, from.size_);
    return *this;
  }
  untouched_array(const untouched_array&) = delete;
  untouched_array& operator=(const untouched_array&) = delete;

  [[nodiscard]] T& operator[](std::size_t i) noexcept { return at_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return at_[i]; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

  T* at_;
  std::size_t size_;
};

}  // namespace kvx::detail
