// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <thread>
#include <vector>

namespace kvx::detail {

/// Lets other threads take memory where the calling thread would.
///
/// A policy that the caller was given, as by numactl, is inherited by its threads. Without one a page comes from the
/// node of whoever touches it first, and the scheduler may have put a helper on another.
class node_of_caller {
 public:
  node_of_caller() noexcept {
    int policy = 0;
    unsigned cpu = 0;
    unsigned node = 0;
    if (::syscall(SYS_get_mempolicy, &policy, nullptr, 0UL, nullptr, 0UL) == 0 && policy == default_policy &&
        ::syscall(SYS_getcpu, &cpu, &node, nullptr) == 0 && node < 8 * sizeof mask_) {
      mask_ = 1UL << node;
    }
  }
  /// For the rest of the life of the thread that calls it.
  void prefer() const noexcept {
    if (mask_ != 0) static_cast<void>(::syscall(SYS_set_mempolicy, preferred, &mask_, 8 * sizeof mask_ + 1));
  }

 private:
  static constexpr int default_policy = 0;  // MPOL_DEFAULT, without libnuma's headers
  static constexpr int preferred = 1;       // MPOL_PREFERRED

  unsigned long mask_ = 0;
};

/// Has the kernel give the pages of memory, whose content stays as it is.
/// Shape   part: whole pages that may be written; what is not mapped is left to whoever uses it
/// Source  madvise(2), MADV_POPULATE_WRITE since Linux 5.14
inline void touch(std::span<std::byte> part) noexcept {
#ifdef MADV_POPULATE_WRITE
  // Of nothing: whether this kernel knows it.
  if (::madvise(part.data(), 0, MADV_POPULATE_WRITE) == 0) {
    static_cast<void>(::madvise(part.data(), part.size(), MADV_POPULATE_WRITE));
    return;
  }
#endif
  if (::msync(part.data(), part.size(), MS_ASYNC) != 0) return;  // ENOMEM: not all of it is mapped
  for (std::size_t at = 0; at < part.size(); at += page_bytes) {
    std::atomic_ref(reinterpret_cast<unsigned char&>(part[at])).fetch_or(0, std::memory_order_relaxed);
  }
}

/// Touches memory with several threads, for one gets a few GiB per second and pins them no faster.
/// Shape   memory: that may be written
/// Thread  any; others may write the memory meanwhile
/// Cost    the kernel's time to clear it, over up to 16 threads
inline void touch_in_parallel(std::span<std::byte> memory) noexcept {
  if (memory.empty()) return;
  constexpr std::size_t piece = std::size_t{64} << 20U;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t before = reinterpret_cast<std::uintptr_t>(memory.data()) % page;
  std::byte* const first = memory.data() - before;  // of the page that it begins in
  const std::size_t bytes = round_up(memory.size() + before, page);
  const std::size_t pieces = (bytes + piece - 1) / piece;
  const std::size_t threads = std::min<std::size_t>({16, std::max(1U, std::thread::hardware_concurrency()), pieces});
  std::atomic<std::size_t> next{0};
  const auto work = [&]() noexcept {
    for (std::size_t i = next++; i < pieces; i = next++) {
      touch({first + i * piece, std::min(piece, bytes - i * piece)});
    }
  };
  const node_of_caller here;
  std::vector<std::thread> helpers;
  try {
    helpers.reserve(threads);
    while (helpers.size() + 1 < threads) {
      helpers.emplace_back([&]() noexcept {
        here.prefer();
        work();
      });
    }
  } catch (const std::exception&) {  // with fewer, then
  }
  work();
  for (std::thread& each : helpers) each.join();
}

}  // namespace kvx::detail
