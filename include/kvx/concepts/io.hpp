// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <string_view>
#include <thread>

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
  unsigned threads = 2;                      ///< posix: pool size; uring: rings
  std::size_t piece_bytes = 0;               ///< largest single system call; 0: the backend's own choice
  std::size_t in_flight_bytes = 32U << 20U;  ///< started and not yet complete, over all threads
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
concept io_backend = std::constructible_from<B, const io_options&> &&
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

namespace archetype {

/// The least that models `io_backend`: one thread, one request at a time, in the order of submission.
class io {
 public:
  explicit io(const io_options&) : thread_([this] { run(); }) {}
  io(const io&) = delete;
  io& operator=(const io&) = delete;
  ~io() { stop(std::chrono::milliseconds::max()); }

  void submit(std::span<const io_request> requests) {
    {
      const std::lock_guard lock{mutex_};
      waiting_.insert(waiting_.end(), requests.begin(), requests.end());
      for (const io_request& request : requests) in_flight_ += request.bytes;
    }
    changed_.notify_all();
  }
  status register_arena(std::span<std::byte>) { return errc::unsupported; }
  void attach(int) {}
  void detach(int) {}
  [[nodiscard]] std::size_t in_flight_bytes() const { return in_flight_; }
  [[nodiscard]] std::string_view name() const { return "archetype"; }

  /// Waits for as long as it takes.
  bool stop(std::chrono::milliseconds) {
    {
      const std::lock_guard lock{mutex_};
      stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
    return true;
  }

 private:
  void run() {
    std::unique_lock lock{mutex_};
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      const io_request request = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      const io_result outcome = move(request);
      in_flight_ -= request.bytes;
      request.done(request.context, outcome);
      lock.lock();
    }
  }

  static io_result move(const io_request& request) {
    io_result outcome;
    if (request.cancelled != nullptr && *request.cancelled) return {ECANCELED, 0};
    while (outcome.bytes < request.bytes) {
      std::byte* const data = request.data + outcome.bytes;
      const std::size_t left = request.bytes - outcome.bytes;
      const auto at = static_cast<::off_t>(request.offset + outcome.bytes);
      const ::ssize_t moved =
          request.op == io_op::read ? ::pread(request.file, data, left, at) : ::pwrite(request.file, data, left, at);
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0) return {errno, outcome.bytes};
      if (moved == 0) return {ENODATA, outcome.bytes};
      outcome.bytes += static_cast<std::size_t>(moved);
    }
    return outcome;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<io_request> waiting_;
  std::atomic<std::size_t> in_flight_{0};
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace archetype

static_assert(io_backend<archetype::io>);

}  // namespace kvx
