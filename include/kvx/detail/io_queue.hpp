// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/detail/io_piece.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace kvx::detail {

/// A request on its way. Guarded by the queue's mutex.
struct io_transfer {
  io_request request;
  io_transfer* next = nullptr;
  std::size_t started_bytes = 0;
  std::size_t moved_bytes = 0;
  std::size_t open_pieces = 0;  ///< started and not finished
  int error = 0;                ///< of the first piece that failed
};

/// Transfers in order, linked through themselves.
class io_list {
 public:
  [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }
  [[nodiscard]] io_transfer* front() const noexcept { return first_; }

  void push(io_transfer* added) noexcept {
    added->next = nullptr;
    (first_ == nullptr ? first_ : last_->next) = added;
    last_ = added;
  }
  io_transfer* pop() noexcept {
    io_transfer* const taken = first_;
    first_ = taken->next;
    return taken;
  }

 private:
  io_transfer* first_ = nullptr;
  io_transfer* last_ = nullptr;
};

/// What a worker got to do.
struct io_batch {
  std::vector<io_piece> pieces;
  io_list finished;     ///< to be passed to complete()
  bool closed = false;  ///< nothing will ever come again
};

/// The two queues that all workers of a backend share: loads first, pieces in order, bytes in flight bounded.
///
/// A worker that found nothing is parked: `Worker::wake()` is called once when there is something again. So is one that
/// found too little, if it can be woken while its pieces are in flight (`Worker::wakes_during_io`). Waking is a relay:
/// whoever takes work and leaves some that could be started wakes the next.
/// Thread  any; completions run outside the lock
template <class Worker>
class io_queue {
 public:
  io_queue(const io_limits& limits, std::size_t workers) : limits_(limits) { parked_.reserve(workers); }
  io_queue(const io_queue&) = delete;
  io_queue& operator=(const io_queue&) = delete;

  [[nodiscard]] const io_limits& limits() const noexcept { return limits_; }
  [[nodiscard]] std::size_t in_flight_bytes() const noexcept {
    return in_flight_bytes_.load(std::memory_order_relaxed);
  }

  /// Errors  std::bad_alloc: none of the requests was taken
  void submit(std::span<const io_request> requests) {
    Worker* woken = nullptr;
    {
      const std::lock_guard lock(mutex_);
      io_list accepted;
      for (const io_request& request : requests) {
        io_transfer* const added = allocate(accepted);
        *added = io_transfer{.request = request};
        accepted.push(added);
      }
      outstanding_ += requests.size();
      while (!accepted.empty()) {
        io_transfer* const added = accepted.pop();
        waiting(added->request.priority).push(added);
      }
      woken = next_to_wake();
    }
    if (woken != nullptr) woken->wake();
  }

  /// Hands out pieces until `most_pieces` or `most_bytes` is reached, the queues are empty or the limit is. `shorten`
  /// may cut a piece further: called with (data, bytes), returns a positive number of bytes. Parks the worker unless it
  /// is its own capacity that ended the batch or there are completions to call.
  template <class Shorten>
  void take(Worker& worker, std::size_t most_pieces, std::size_t most_bytes, Shorten&& shorten, io_batch& batch) {
    Worker* woken = nullptr;
    batch.pieces.clear();
    {
      const std::lock_guard lock(mutex_);
      std::erase(parked_, &worker);
      std::size_t taken_bytes = 0;
      bool full = false;
      while (io_transfer* const whole = next_startable(batch.finished)) {
        full = batch.pieces.size() == most_pieces || taken_bytes >= most_bytes;
        if (full) break;
        const io_request& request = whole->request;
        std::byte* const data = request.data + whole->started_bytes;
        const std::size_t bytes = shorten(data, limits_.next_bytes(request.bytes - whole->started_bytes));
        if (!fits(request.priority, bytes)) break;
        batch.pieces.push_back({.whole = whole,
                                .op = request.op,
                                .priority = request.priority,
                                .file = request.file,
                                .offset = request.offset + whole->started_bytes,
                                .data = data,
                                .bytes = bytes,
                                .charged_bytes = bytes});
        charge(request.priority, bytes);
        taken_bytes += bytes;
        whole->started_bytes += bytes;
        ++whole->open_pieces;
        if (whole->started_bytes == request.bytes) waiting(request.priority).pop();
      }
      batch.closed = closed_;
      if (full) {
        woken = next_to_wake();
      } else if (batch.finished.empty() && (Worker::wakes_during_io || batch.pieces.empty())) {
        parked_.push_back(&worker);
      }
    }
    if (woken != nullptr) woken->wake();
  }

  /// Books a piece that ended; the request goes to `finished` when that was its last.
  void finish(const io_piece& piece, int error, io_list& finished) noexcept {
    const std::lock_guard lock(mutex_);
    refund(piece.priority, piece.charged_bytes);
    io_transfer& whole = *piece.whole;
    whole.moved_bytes += piece.charged_bytes - piece.bytes;
    if (whole.error == 0) whole.error = error;
    // A request with pieces left to start is the first of its queue; next_startable() ends it there.
    if (--whole.open_pieces == 0 && whole.started_bytes == whole.request.bytes) finished.push(&whole);
  }

  /// Calls the completions, then forgets the requests.
  void complete(io_list& finished) noexcept {
    io_list called;
    std::size_t count = 0;
    while (!finished.empty()) {
      io_transfer* const whole = finished.pop();
      const io_request& request = whole->request;
      request.done(request.context, io_result{whole->error, whole->moved_bytes});
      called.push(whole);
      ++count;
    }
    if (count == 0) return;
    const std::lock_guard lock(mutex_);
    while (!called.empty()) free_.push(called.pop());
    outstanding_ -= count;
    if (outstanding_ == 0) drained_.notify_all();
  }

  /// Waits until every request has completed. The last quarter of the time is for what is in flight: by then whatever
  /// was not started ends as ECANCELED. True closes the queue: workers see `closed`.
  [[nodiscard]] bool drain(std::chrono::milliseconds deadline) {
    // Beyond a year the clock's arithmetic could overflow.
    const std::chrono::milliseconds patience =
        std::clamp<std::chrono::milliseconds>(deadline, std::chrono::milliseconds{0}, std::chrono::hours{24 * 365});
    const auto begin = std::chrono::steady_clock::now();
    std::vector<Worker*> woken;
    bool drained = false;
    {
      std::unique_lock lock(mutex_);
      const auto idle = [this] { return outstanding_ == 0; };
      drained = drained_.wait_until(lock, begin + patience * 3 / 4, idle);
      if (!drained) {
        giving_up_ = true;
        woken = std::exchange(parked_, reserved(parked_.capacity()));
        lock.unlock();
        for (Worker* const worker : woken) worker->wake();
        lock.lock();
        drained = drained_.wait_until(lock, begin + patience, idle);
      }
      if (!drained) return false;
      closed_ = true;
      woken = std::exchange(parked_, reserved(parked_.capacity()));
    }
    for (Worker* const worker : woken) worker->wake();
    return true;
  }

 private:
  [[nodiscard]] io_list& waiting(io_class priority) noexcept { return waiting_[static_cast<std::size_t>(priority)]; }

  // `accepted` goes back to the free list when there is no memory for the rest of its batch.
  io_transfer* allocate(io_list& accepted) {
    if (!free_.empty()) return free_.pop();
    try {
      return &storage_.emplace_back();
    } catch (...) {
      while (!accepted.empty()) free_.push(accepted.pop());
      throw;
    }
  }

  // The request whose piece is next, after those that end without one are out of the way.
  io_transfer* next_startable(io_list& finished) noexcept {
    for (;;) {
      io_list& queue = waiting(waiting(io_class::load).empty() ? io_class::save : io_class::load);
      if (queue.empty()) return nullptr;
      io_transfer* const whole = queue.front();
      const io_request& request = whole->request;
      const bool cancelled =
          giving_up_ || (request.cancelled != nullptr && request.cancelled->load(std::memory_order_acquire));
      if (whole->error == 0 && !cancelled && request.bytes != 0) return whole;
      if (whole->error == 0 && request.bytes != 0) whole->error = ECANCELED;
      (void)queue.pop();
      whole->started_bytes = request.bytes;
      if (whole->open_pieces == 0) finished.push(whole);
    }
  }

  [[nodiscard]] bool fits(io_class priority, std::size_t bytes) const noexcept {
    if (in_flight_bytes() + bytes > limits_.in_flight_bytes) return false;
    return priority == io_class::load || saves_in_flight_bytes_ + bytes <= limits_.saves_in_flight_bytes;
  }
  void charge(io_class priority, std::size_t bytes) noexcept {
    in_flight_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    if (priority == io_class::save) saves_in_flight_bytes_ += bytes;
  }
  void refund(io_class priority, std::size_t bytes) noexcept {
    in_flight_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
    if (priority == io_class::save) saves_in_flight_bytes_ -= bytes;
  }

  // When the limit is what holds the next piece back, a worker with pieces in flight comes for it.
  [[nodiscard]] Worker* next_to_wake() noexcept {
    const io_list& queue = waiting(waiting(io_class::load).empty() ? io_class::save : io_class::load);
    if (queue.empty() || parked_.empty()) return nullptr;
    const io_transfer& whole = *queue.front();
    const std::size_t rest = whole.request.bytes - whole.started_bytes;
    if (!fits(whole.request.priority, limits_.next_bytes(rest))) return nullptr;
    Worker* const woken = parked_.back();
    parked_.pop_back();
    return woken;
  }

  static std::vector<Worker*> reserved(std::size_t workers) {
    std::vector<Worker*> none;
    none.reserve(workers);
    return none;
  }

  const io_limits limits_;
  std::mutex mutex_;
  std::condition_variable drained_;
  std::array<io_list, 2> waiting_;
  io_list free_;
  std::deque<io_transfer> storage_;
  std::vector<Worker*> parked_;
  std::size_t outstanding_ = 0;
  std::size_t saves_in_flight_bytes_ = 0;
  std::atomic<std::size_t> in_flight_bytes_{0};
  bool giving_up_ = false;
  bool closed_ = false;
};

}  // namespace kvx::detail
