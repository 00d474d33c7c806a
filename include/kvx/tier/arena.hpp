// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace kvx {

/// Page-aligned memory for slots: the buffers of I/O and of device copies at once.
///
/// Anonymous, backed by 2 MiB pages where the kernel has them (a read costs five times less CPU than with
/// 4 KiB pages). The kernel gives a page when it is first used: a short process pays for what it uses, and opening
/// does not wait for it. What has to be pinned is touched by whoever pins it.
/// Where there is less memory than was asked for, its first use ends the process, as with any memory.
/// Thread  carve, give_back: any
/// Errors  the constructor throws `no_space` where the size cannot be mapped
/// Cost    microseconds; about 0.1 s per GiB at first use
class arena {
 public:
  explicit arena(std::size_t bytes) : size_(round_up(bytes, huge_page_bytes)) {
    // Mapped one huge page too long, so that the part used can start on a huge page.
    mapped_ = size_ + huge_page_bytes;
    void* at = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
      throw error(errc::no_space, "memory_bytes: cannot map " + std::to_string(mapped_) + " bytes (" +
                                      std::strerror(errno) + "); lower it or raise the process's limit");
    mapping_ = static_cast<std::byte*>(at);
    base_ = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<std::size_t>(mapping_), huge_page_bytes));
    ::madvise(base_, size_, MADV_HUGEPAGE);
    // Forked children share pages copy-on-write, which would pull them from under a device or the kernel.
    ::madvise(base_, size_, MADV_DONTFORK);
  }
  ~arena() {
    if (mapping_ != nullptr) ::munmap(mapping_, mapped_);
  }
  arena(const arena&) = delete;
  arena& operator=(const arena&) = delete;

  /// A part of the arena that nobody else has until it is given back. All of it is zero.
  /// Errors  no_space
  [[nodiscard]] result<std::span<std::byte>> carve(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const std::size_t rounded = round_up(bytes);
    if (rounded < bytes) return errc::no_space;
    const auto reused =
        std::find_if(returned_.begin(), returned_.end(), [&](const auto& part) { return part.size() >= rounded; });
    if (reused != returned_.end()) {
      const std::span<std::byte> part = reused->first(rounded);
      *reused = reused->subspan(rounded);
      if (reused->empty()) returned_.erase(reused);
      // What slots are padded with goes to storage: no earlier owner's bytes may. Giving the pages back to the kernel
      // instead would pull them from under a device or a ring that pinned them.
      std::memset(part.data(), 0, part.size());
      return part;
    }
    if (rounded > size_ - used_) return errc::no_space;
    const std::span<std::byte> part(base_ + used_, rounded);
    used_ += rounded;
    return part;
  }

  /// Ends the ownership of a part, for caches that come and go on one runtime.
  void give_back(std::span<std::byte> part) {
    if (part.empty()) return;
    const std::lock_guard lock(mutex_);
    const auto behind =
        std::find_if(returned_.begin(), returned_.end(), [&](const auto& other) { return other.data() > part.data(); });
    const auto added = returned_.insert(behind, part);
    const auto join = [this](auto left, auto right) {
      if (left->data() + left->size() != right->data()) return;
      *left = {left->data(), left->size() + right->size()};
      returned_.erase(right);
    };
    if (added + 1 != returned_.end()) join(added, added + 1);
    if (added != returned_.begin()) join(added - 1, added);
  }

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {base_, size_}; }

 private:
  static constexpr std::size_t huge_page_bytes = 2U << 20U;

  std::size_t size_;
  std::size_t mapped_ = 0;
  std::byte* mapping_ = nullptr;
  std::byte* base_ = nullptr;
  std::mutex mutex_;
  std::size_t used_ = 0;
  std::vector<std::span<std::byte>> returned_;  // by address, neighbours joined
};

}  // namespace kvx
