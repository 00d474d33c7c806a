// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <new>

namespace kvx_test {

/// Page-aligned host memory that lives as long as this; zeroed.
/// Thread  any, concurrently
class host_memory {
 public:
  std::byte* allocate(std::size_t n) {
    const std::lock_guard lock{mutex_};
    auto* const at = static_cast<std::byte*>(::operator new (kvx::round_up(n), std::align_val_t{kvx::page_bytes}));
    std::fill_n(at, kvx::round_up(n), std::byte{0});
    blocks_.emplace_back(at);
    return at;
  }

 private:
  struct release {
    void operator()(std::byte* at) const { ::operator delete (at, std::align_val_t{kvx::page_bytes}); }
  };

  std::mutex mutex_;
  std::deque<std::unique_ptr<std::byte, release>> blocks_;
};

}  // namespace kvx_test
