// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace kvx {

enum class io_op : std::uint8_t { read, write };

/// Loads outrank saves: a backend starts no save while a load waits.
enum class io_class : std::uint8_t { load, save };

/// How one request ended.
/// Units   bytes: moved; equal to the request's exactly when error is 0
struct io_result {
  int error = 0;  ///< errno; ENODATA when the file ended early, ECANCELED when given up before it was started
  std::size_t bytes = 0;
};

/// One transfer between a file and memory.
///
/// `data` belongs to the backend from submit() until `done` is called, whatever the caller's deadline did.
/// Units   offset, bytes: multiples of page_bytes; data: aligned to page_bytes
struct io_request {
  io_op op = io_op::read;
  io_class priority = io_class::load;
  int file = -1;
  std::uint64_t offset = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  /// When it turns true, pieces that were not started yet end as ECANCELED. May be null.
  const std::atomic<bool>* cancelled = nullptr;
  void* context = nullptr;
  /// Called exactly once, by a thread of the backend, never from inside submit().
  void (*done)(void* context, const io_result& outcome) noexcept = nullptr;
};

/// Knobs that every backend understands.
struct io_options {
  unsigned threads = 2;                         ///< posix: pool size; uring: rings
  std::size_t piece_bytes = 0;                  ///< largest single system call; 0: the backend's own choice
  std::size_t in_flight_bytes = 32U << 20U;     ///< started and not yet complete, over all threads
};

/// Moves (file, offset, buffer) and nothing else; opening, naming and meaning are the store's.
///
/// Short reads and writes are continued; a short transfer is never success.
/// `register_arena` may answer `unsupported` or `io_failed`: the backend then goes on without.
/// `attach`/`detach` announce files; requests for files that were not attached work all the same.
/// `stop(deadline)` returns true when every request has completed; false means that some never did and
/// the arena and the backend must be leaked, not freed: the kernel may still write. No submit after it.
/// Thread  submit, attach, detach: any thread, concurrently
/// Errors  per request, in its completion
/// Cost    submit: no waiting for storage; allocation at most when a queue grows
template <class B>
concept io_backend =
    std::constructible_from<B, const io_options&> &&
    requires(B backend, const B& view, std::span<const io_request> requests, std::span<std::byte> arena, int file,
             std::chrono::milliseconds deadline) {
      backend.submit(requests);
      { backend.register_arena(arena) } -> std::same_as<status>;
      backend.attach(file);
      backend.detach(file);
      { view.in_flight_bytes() } -> std::convertible_to<std::size_t>;
      { view.name() } -> std::convertible_to<std::string_view>;
      { backend.stop(deadline) } -> std::same_as<bool>;
    };

}  // namespace kvx
