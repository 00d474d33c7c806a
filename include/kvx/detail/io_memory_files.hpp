// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <span>

namespace kvx::detail {

/// Contents of files, held in memory; what the file system itself holds is only asked for sizes and access modes.
/// Thread  any
class io_memory_files {
 public:
  /// A count, 0 at the end of the file, or a negative errno.
  std::int64_t read(int fd, std::uint64_t offset, std::span<std::byte> into) {
    identity_of_file who;
    std::uint64_t size_bytes = 0;
    if (const int failed = look_up(fd, false, who, size_bytes); failed != 0) return -failed;
    const std::lock_guard lock(mutex_);
    const auto found = contents_.find(who);
    if (found != contents_.end()) size_bytes = std::max(size_bytes, found->second.end_bytes);
    if (offset >= size_bytes) return 0;
    into = into.first(static_cast<std::size_t>(std::min<std::uint64_t>(into.size(), size_bytes - offset)));
    for_each_page(offset, into.size(),
                  [&](std::uint64_t number, std::size_t inside, std::size_t at, std::size_t bytes) {
                    const page* const held = found == contents_.end() ? nullptr : found->second.find(number);
                    if (held == nullptr) {
                      std::memset(into.data() + at, 0, bytes);
                    } else {
                      std::memcpy(into.data() + at, held->data() + inside, bytes);
                    }
                  });
    return static_cast<std::int64_t>(into.size());
  }

  /// A count, or a negative errno.
  std::int64_t write(int fd, std::uint64_t offset, std::span<const std::byte> from) {
    identity_of_file who;
    std::uint64_t size_bytes = 0;
    if (const int failed = look_up(fd, true, who, size_bytes); failed != 0) return -failed;
    const std::lock_guard lock(mutex_);
    try {
      content& into = contents_[who];
      for_each_page(offset, from.size(),
                    [&](std::uint64_t number, std::size_t inside, std::size_t at, std::size_t bytes) {
                      std::memcpy(into.make(number).data() + inside, from.data() + at, bytes);
                    });
      into.end_bytes = std::max(into.end_bytes, offset + from.size());
    } catch (const std::bad_alloc&) {
      return -ENOSPC;
    }
    return static_cast<std::int64_t>(from.size());
  }

 private:
  using page = std::array<std::byte, page_bytes>;

  // The birth time tells a new file from a deleted one whose inode number it got.
  struct identity_of_file {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    std::int64_t born_s = 0;
    std::uint32_t born_ns = 0;
    friend auto operator<=>(const identity_of_file&, const identity_of_file&) = default;
  };

  struct content {
    std::map<std::uint64_t, std::unique_ptr<page>> pages;
    std::uint64_t end_bytes = 0;

    [[nodiscard]] const page* find(std::uint64_t number) const {
      const auto found = pages.find(number);
      return found == pages.end() ? nullptr : found->second.get();
    }
    page& make(std::uint64_t number) {
      std::unique_ptr<page>& held = pages[number];
      if (held == nullptr) held = std::make_unique<page>();
      return *held;
    }
  };

  static int look_up(int fd, bool writing, identity_of_file& who, std::uint64_t& size_bytes) noexcept {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return errno;
    if ((flags & O_ACCMODE) == (writing ? O_RDONLY : O_WRONLY)) return EBADF;
    struct ::statx about {};
    if (::statx(fd, "", AT_EMPTY_PATH, STATX_SIZE | STATX_INO | STATX_BTIME, &about) != 0) return errno;
    who = {.device = (std::uint64_t{about.stx_dev_major} << 32U) | about.stx_dev_minor, .inode = about.stx_ino};
    if ((about.stx_mask & STATX_BTIME) != 0) {
      who.born_s = about.stx_btime.tv_sec;
      who.born_ns = about.stx_btime.tv_nsec;
    }
    size_bytes = about.stx_size;
    return 0;
  }

  template <class Each>
  static void for_each_page(std::uint64_t offset, std::size_t bytes, Each&& each) {
    for (std::size_t at = 0; at < bytes;) {
      const auto inside = static_cast<std::size_t>((offset + at) % page_bytes);
      const std::size_t part = std::min(page_bytes - inside, bytes - at);
      each((offset + at) / page_bytes, inside, at, part);
      at += part;
    }
  }

  std::mutex mutex_;
  std::map<identity_of_file, content> contents_;
};

}  // namespace kvx::detail
