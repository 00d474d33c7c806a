// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/detail/io_piece.hpp>
#include <kvx/detail/io_queue.hpp>
#include <kvx/detail/io_thread.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <span>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace kvx::detail {

/// Threads that move one piece at a time with a blocking call.
///
/// `Mover` is called as `std::int64_t(const io_piece&)` by any of the threads and answers like pread and pwrite: a
/// count, possibly short, or a negative errno.
template <class Mover>
class io_pool {
 public:
  io_pool(std::string_view name, const io_options& options, std::size_t default_piece_bytes, Mover mover)
      : mover_(std::move(mover)),
        workers_(std::max(options.threads, 1U)),
        queue_(io_limits(options, default_piece_bytes), workers_.size()) {
    threads_.reserve(workers_.size());
    try {
      for (worker& each : workers_) threads_.push_back(start_io_thread(name, [this, &each] { run(each); }));
    } catch (...) {
      (void)stop(std::chrono::milliseconds::max());
      throw;
    }
  }
  io_pool(const io_pool&) = delete;
  io_pool& operator=(const io_pool&) = delete;
  ~io_pool() { (void)stop(std::chrono::milliseconds::max()); }

  void submit(std::span<const io_request> requests) { queue_.submit(requests); }
  [[nodiscard]] std::size_t in_flight_bytes() const noexcept { return queue_.in_flight_bytes(); }

  bool stop(std::chrono::milliseconds deadline) {
    if (!queue_.drain(deadline)) return false;
    for (std::thread& each : threads_) {
      if (each.joinable()) each.join();
    }
    return true;
  }

 private:
  class worker {
   public:
    static constexpr bool wakes_during_io = false;

    void wake() {
      const std::lock_guard lock(mutex_);
      woken_ = true;
      changed_.notify_one();
    }
    void sleep() {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return std::exchange(woken_, false); });
    }

   private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool woken_ = false;
  };

  void run(worker& self) {
    io_batch batch;
    batch.pieces.reserve(1);
    const auto whole_piece = [](const std::byte*, std::size_t bytes) { return bytes; };
    for (;;) {
      queue_.take(self, 1, std::numeric_limits<std::size_t>::max(), whole_piece, batch);
      for (io_piece& piece : batch.pieces) {
        int error = 0;
        while (advance(piece, mover_(std::as_const(piece)), error) == io_step::again) continue;
        queue_.finish(piece, error, batch.finished);
      }
      if (!batch.finished.empty() || !batch.pieces.empty()) {
        queue_.complete(batch.finished);
      } else if (batch.closed) {
        return;
      } else {
        self.sleep();
      }
    }
  }

  Mover mover_;
  std::vector<worker> workers_;
  io_queue<worker> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace kvx::detail
