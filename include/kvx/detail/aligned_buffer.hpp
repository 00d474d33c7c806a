// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <span>

namespace kvx::detail {

/// Zeroed memory fit for direct I/O; zeroed, so that no earlier owner's bytes reach a file.
/// Shape   page-aligned, a multiple of page_bytes long
/// Errors  throws std::bad_alloc
class aligned_buffer {
 public:
  aligned_buffer() noexcept = default;
  explicit aligned_buffer(std::size_t bytes)
      : bytes_(round_up(bytes)), data_(static_cast<std::byte*>(::operator new (bytes_, std::align_val_t{page_bytes}))) {
    std::memset(data_.get(), 0, bytes_);
  }

  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  [[nodiscard]] std::span<std::byte> span() const noexcept { return {data_.get(), bytes_}; }

 private:
  struct release {
    void operator()(std::byte* data) const noexcept { ::operator delete (data, std::align_val_t{page_bytes}); }
  };

  std::size_t bytes_ = 0;
  std::unique_ptr<std::byte, release> data_;
};

}  // namespace kvx::detail
