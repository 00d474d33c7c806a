// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/transfer/cuda/cufile_api.hpp>

#include <fcntl.h>
#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>

namespace kvx::cuda {

/// cuFile's side of a reader: its driver, staging memory registered with it, and a handle for each file that it reads.
///
/// The driver stays open, for others of the process may use it. Files are registered when first read.
/// Thread  any, concurrently, with the staging memory's device current
class cufile_driver {
 public:
  struct file {
    void* handle = nullptr;  ///< null: cuFile refuses the file, for the reason in `refused`
    cufile_error refused{};
  };

  /// Errors  throws unsupported: the driver does not open
  /// Cost    the first of a process takes 0.3 to 0.7 s
  cufile_driver(const cufile_api& api, std::span<std::byte> staging) : api_(api), staging_(staging) {
    if (const cufile_error e = api_.driver_open(); e.err != 0 && e.err != cufile_driver_already_open) {
      throw error(errc::unsupported, "cuFile's driver does not open (" + cufile_text(e) + "); read through the host");
    }
    // Without it reads go through memory that cuFile has registered for itself.
    registered_ = api_.buf_register(staging_.data(), staging_.size(), 0).err == 0;
  }
  cufile_driver(const cufile_driver&) = delete;
  cufile_driver& operator=(const cufile_driver&) = delete;
  ~cufile_driver() {
    for (const auto& [fd, each] : files_) {
      if (each.known.handle != nullptr) api_.handle_deregister(each.known.handle);
    }
    if (registered_) static_cast<void>(api_.buf_deregister(staging_.data()));
  }

  /// The file's handle, registered now where it is new. A refusal is remembered until forget().
  [[nodiscard]] file find(int fd) noexcept {
    const std::lock_guard lock(mutex_);
    try {
      const auto [at, fresh] = files_.try_emplace(fd);
      if (fresh) {
        open_file& made = at->second;
        made.own = reopen(fd);
        cufile_descriptor about;
        about.handle.fd = made.own ? made.own.fd() : fd;
        made.known.refused = api_.handle_register(&made.known.handle, &about);
        if (made.known.refused.err != 0) made.known.handle = nullptr;
      }
      return at->second.known;
    } catch (...) {  // no memory for the map
      return {nullptr, {ENOMEM, 0}};
    }
  }
  /// The descriptor's number may stand for another file afterwards.
  void forget(int fd) noexcept {
    const std::lock_guard lock(mutex_);
    const auto found = files_.find(fd);
    if (found == files_.end()) return;
    if (found->second.known.handle != nullptr) api_.handle_deregister(found->second.known.handle);
    files_.erase(found);
  }

  /// A count, possibly short, or a negative errno, as of pread.
  /// Shape   to: in staging memory
  [[nodiscard]] std::int64_t read(void* handle, std::byte* to, std::size_t bytes, std::uint64_t offset) const noexcept {
    errno = 0;
    const ::ssize_t moved =
        api_.read(handle, staging_.data(), bytes, static_cast<::off_t>(offset), to - staging_.data());
    if (moved >= 0) return moved;
    if (moved == -1) return errno != 0 ? -static_cast<std::int64_t>(errno) : -EIO;
    return moved > -cufile_base_error ? moved : -EIO;
  }

  [[nodiscard]] cufile_properties properties() const noexcept {
    cufile_properties found;
    static_cast<void>(api_.driver_get_properties(&found));
    return found;
  }

 private:
  struct open_file {
    detail::file own;
    file known;
  };

  /// cuFile refuses descriptors that were opened with O_NOFOLLOW, as kvx opens all of its own.
  [[nodiscard]] static detail::file reopen(int fd) {
    const int flags = ::fcntl(fd, F_GETFL);
    const std::string again = "/proc/self/fd/" + std::to_string(fd);
    return detail::file(::open(again.c_str(), O_RDONLY | O_CLOEXEC | (flags < 0 ? 0 : flags & O_DIRECT)));
  }

  cufile_api api_;
  std::span<std::byte> staging_;
  bool registered_ = false;
  std::mutex mutex_;
  std::map<int, open_file> files_;
};

}  // namespace kvx::cuda
