// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/detail/io_memory_files.hpp>
#include <kvx/detail/io_piece.hpp>
#include <kvx/detail/io_pool.hpp>
#include <kvx/result.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

namespace kvx {

/// Keeps what is written in memory instead of in the files, for tests and for benches that want no device in the way.
///
/// Files must exist: their descriptor says which content is meant, their size where it ends; a write beyond it extends
/// the content, not the file. What was never written reads as zeros, whatever the file holds.
/// Backends made from one `contents` see the same bytes, as after closing and opening a cache.
/// Thread  as io_backend; one thread moves
class memory_io {
 public:
  using contents = std::shared_ptr<detail::io_memory_files>;

  static constexpr std::size_t default_piece_bytes = std::size_t{1} << 20U;

  explicit memory_io(const io_options& options) : memory_io(options, std::make_shared<detail::io_memory_files>()) {}
  memory_io(const io_options& options, contents shared)
      : contents_(std::move(shared)),
        pool_("kvx-memory", one_thread(options), default_piece_bytes, mover{contents_.get()}) {}

  void submit(std::span<const io_request> requests) { pool_.submit(requests); }
  status register_arena(std::span<std::byte>) noexcept { return errc::unsupported; }
  void attach(int) noexcept {}
  void detach(int) noexcept {}
  [[nodiscard]] std::size_t in_flight_bytes() const noexcept { return pool_.in_flight_bytes(); }
  [[nodiscard]] std::string_view name() const noexcept { return "memory"; }
  bool stop(std::chrono::milliseconds deadline) { return pool_.stop(deadline); }

 private:
  struct mover {
    detail::io_memory_files* files;

    std::int64_t operator()(const detail::io_piece& piece) const {
      return piece.op == io_op::read ? files->read(piece.file, piece.offset, {piece.data, piece.bytes})
                                     : files->write(piece.file, piece.offset, {piece.data, piece.bytes});
    }
  };

  static io_options one_thread(io_options options) noexcept {
    options.threads = 1;
    return options;
  }

  contents contents_;
  detail::io_pool<mover> pool_;
};

static_assert(io_backend<memory_io>);

}  // namespace kvx
