// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace kvx::detail {

struct io_transfer;

/// What is still to be moved of one part of a request.
struct io_piece {
  io_transfer* whole = nullptr;
  io_op op = io_op::read;
  io_class priority = io_class::load;
  int file = -1;
  std::uint64_t offset = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::size_t charged_bytes = 0;  ///< size when it was started: what it counts in flight
};

/// What a backend does with a piece after a system call.
enum class io_step : std::uint8_t {
  again,  ///< the piece now describes the rest
  ended,  ///< `error` says how
};

/// Books the answer of one read or write: a count, or a negative errno.
///
/// Short transfers go on where they stopped. That place need not be aligned; where direct I/O refuses it, a read had
/// met the end of the file.
inline io_step advance(io_piece& piece, std::int64_t answer, int& error) noexcept {
  error = 0;
  if (answer == -EINTR) return io_step::again;
  if (answer < 0) {
    const bool inside_page = piece.offset % page_bytes != 0;
    error = answer == -EINVAL && inside_page && piece.op == io_op::read ? ENODATA : static_cast<int>(-answer);
    return io_step::ended;
  }
  if (answer == 0 && piece.bytes != 0) {
    error = piece.op == io_op::read ? ENODATA : EIO;
    return io_step::ended;
  }
  const auto moved = std::min(static_cast<std::size_t>(answer), piece.bytes);
  piece.data += moved;
  piece.offset += moved;
  piece.bytes -= moved;
  return piece.bytes == 0 ? io_step::ended : io_step::again;
}

/// How much may be started at once.
struct io_limits {
  std::size_t piece_bytes = 0;
  std::size_t in_flight_bytes = 0;
  std::size_t saves_in_flight_bytes = 0;  ///< half, so that a load never finds the device full of saves

  /// Pieces shrink until one fits under every limit; so the limits hold without exception.
  io_limits(const io_options& options, std::size_t default_piece_bytes) noexcept
      : in_flight_bytes(std::max(options.in_flight_bytes, 2 * page_bytes)), saves_in_flight_bytes(in_flight_bytes / 2) {
    constexpr std::size_t system_call_bytes = std::size_t{1} << 30U;  // the kernel moves less than 2 GiB at once
    const std::size_t wished = options.piece_bytes != 0 ? options.piece_bytes : default_piece_bytes;
    const std::size_t most = std::min(system_call_bytes, saves_in_flight_bytes);
    piece_bytes = std::max(std::min(wished, most) / page_bytes, std::size_t{1}) * page_bytes;
  }

  /// Size of the next piece when `rest` bytes are left: equal parts, so that no tiny one trails.
  [[nodiscard]] std::size_t next_bytes(std::size_t rest) const noexcept {
    if (rest <= piece_bytes) return rest;
    const std::size_t parts = (rest + piece_bytes - 1) / piece_bytes;
    return std::min(round_up((rest + parts - 1) / parts), piece_bytes);
  }
};

}  // namespace kvx::detail
