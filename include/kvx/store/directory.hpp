// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>

#include <dirent.h>

#include <cerrno>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace kvx::store {

/// Whether the failure means that the name is not there (any more): on network file systems also a stale handle.
[[nodiscard]] inline bool is_gone(const status& failure) noexcept {
  return failure.code() == errc::io_failed && (failure.os_error() == ENOENT || failure.os_error() == ESTALE);
}

/// The names in a directory, without "." and "..", in no order.
/// Errors  io_failed: errno of the system
/// Cost    one open and one pass over the directory
inline result<std::vector<std::string>> list_names(int directory) {
  // A fresh open: readdir moves the descriptor's offset, and network file systems revalidate at open.
  auto opened = detail::open_directory(directory, ".");
  if (!opened) return opened.status();
  struct close_directory {
    void operator()(DIR* stream) const noexcept { ::closedir(stream); }
  };
  const std::unique_ptr<DIR, close_directory> stream(::fdopendir(opened->fd()));
  if (!stream) return detail::last_error();
  (void)opened->release();
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) return detail::last_error();
  return names;
}

/// Unlinks a name that may be gone already.
inline status remove_file(int directory, const char* name) noexcept {
  if (::unlinkat(directory, name, 0) == 0 || errno == ENOENT || errno == ESTALE) return {};
  return detail::last_error();
}

/// Removes an empty directory that may be gone already.
/// Errors  io_failed: ENOTEMPTY (or EEXIST): somebody's file is in it
inline status remove_directory(int directory, const char* name) noexcept {
  if (::unlinkat(directory, name, AT_REMOVEDIR) == 0 || errno == ENOENT || errno == ESTALE) return {};
  return detail::last_error();
}

}  // namespace kvx::store
