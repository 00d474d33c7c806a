// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/detail/io_piece.hpp>
#include <kvx/detail/io_pool.hpp>
#include <kvx/result.hpp>

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace kvx {

/// Moves with pread and pwrite from a fixed pool of threads; the right one on Lustre and NFS, where io_uring would hand
/// every request to a kernel thread and one file would take one writer at a time.
///
/// A request larger than a piece is moved by several threads at once. `io_options::threads` times `piece_bytes` is what
/// the device sees; on a parallel file system 8 to 32 threads saturate a client.
/// Units   piece_bytes: 4 to 16 MiB suit parallel file systems, which split one large call over their servers
/// Thread  submit, attach, detach: any, completions included; stop: one, not from a completion
/// Errors  constructor throws kvx::error: no threads to be had; requests: errno in their completion
/// Cost    one system call per piece; attach and register_arena bring nothing and are free
class posix {
 public:
  static constexpr std::size_t default_piece_bytes = std::size_t{8} << 20U;

  explicit posix(const io_options& options) : pool_("kvx-posix", options, default_piece_bytes, mover{}) {}

  void submit(std::span<const io_request> requests) { pool_.submit(requests); }
  status register_arena(std::span<std::byte>) noexcept { return errc::unsupported; }
  void attach(int) noexcept {}
  void detach(int) noexcept {}
  [[nodiscard]] std::size_t in_flight_bytes() const noexcept { return pool_.in_flight_bytes(); }
  [[nodiscard]] std::string_view name() const noexcept { return "posix"; }
  bool stop(std::chrono::milliseconds deadline) { return pool_.stop(deadline); }

 private:
  struct mover {
    std::int64_t operator()(const detail::io_piece& piece) const noexcept {
      const auto offset = static_cast<off_t>(piece.offset);
      const ssize_t moved = piece.op == io_op::read ? ::pread(piece.file, piece.data, piece.bytes, offset)
                                                    : ::pwrite(piece.file, piece.data, piece.bytes, offset);
      return moved < 0 ? -static_cast<std::int64_t>(errno) : moved;
    }
  };

  detail::io_pool<mover> pool_;
};

static_assert(io_backend<posix>);

}  // namespace kvx
