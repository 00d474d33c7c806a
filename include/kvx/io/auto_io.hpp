// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/io/uring.hpp>
#include <kvx/result.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace kvx {

/// io_uring where kernel and file system are good at it, threads everywhere else; decided once, at run time.
///
/// Given a directory, its file system decides first: Lustre, NFS, FUSE and other network file systems, and directories
/// where direct I/O does not work, get threads. Then the kernel does: containers often forbid io_uring.
/// Thread  as the backend chosen
/// Errors  constructor throws kvx::error: the directory cannot be opened or written to; no threads to be had
class auto_io {
 public:
  enum class kind : std::uint8_t { uring, posix };

  /// Which backend suits, and why, in words for a log.
  struct choice {
    kind backend = kind::uring;
    std::string reason;
  };

  /// The file system's part of the decision, by a real direct write and read in the directory.
  /// Errors  io_failed: errno; the directory cannot be written to
  /// Cost    one temporary file; none on a network file system
  static result<choice> choose(int directory) {
    const auto system = detail::file_system_of(directory);
    if (!system) return system.status();
    if (*system != detail::file_system::local) {
      return choice{kind::posix, "the directory is on a " + std::string(detail::to_string(*system)) +
                                     " file system, where io_uring only adds kernel threads"};
    }
    const auto direct = detail::probe_direct(directory);
    if (!direct) return direct.status();
    if (!*direct) return choice{kind::posix, "direct I/O does not work in the directory"};
    return choice{kind::uring, "local file system with direct I/O"};
  }

  explicit auto_io(const io_options& options) : auto_io(options, choice{kind::uring, "no directory to judge by"}) {}
  auto_io(const io_options& options, const std::string& directory) : auto_io(options, judged(directory)) {}
  auto_io(const io_options& options, choice made) : reason_(std::move(made.reason)) {
    if (made.backend == kind::uring) {
      try {
        uring_.emplace(options);
        return;
      } catch (const error& refused) {
        reason_ = refused.what();
      }
    }
    posix_.emplace(options);
  }

  void submit(std::span<const io_request> requests) { uring_ ? uring_->submit(requests) : posix_->submit(requests); }
  status register_arena(std::span<std::byte> arena) {
    return uring_ ? uring_->register_arena(arena) : posix_->register_arena(arena);
  }
  void attach(int file) {
    if (uring_) uring_->attach(file);
  }
  void detach(int file) {
    if (uring_) uring_->detach(file);
  }
  [[nodiscard]] std::size_t in_flight_bytes() const noexcept {
    return uring_ ? uring_->in_flight_bytes() : posix_->in_flight_bytes();
  }
  [[nodiscard]] std::string_view name() const noexcept { return uring_ ? uring_->name() : posix_->name(); }
  bool stop(std::chrono::milliseconds deadline) { return uring_ ? uring_->stop(deadline) : posix_->stop(deadline); }

  [[nodiscard]] kind chosen() const noexcept { return uring_ ? kind::uring : kind::posix; }
  [[nodiscard]] std::string_view reason() const noexcept { return reason_; }

 private:
  static choice judged(const std::string& directory) {
    const auto opened = detail::open_root(directory.c_str());
    auto made = opened ? choose(opened->fd()) : result<choice>(opened.status());
    if (!made) {
      throw error(made.status().code(), "cannot probe directory '" + directory + "' for direct I/O: " +
                                            std::generic_category().message(made.status().os_error()) +
                                            "; it must exist and be writable");
    }
    return std::move(*made);
  }

  std::string reason_;
  std::optional<uring> uring_;
  std::optional<posix> posix_;
};

static_assert(io_backend<auto_io>);

}  // namespace kvx
