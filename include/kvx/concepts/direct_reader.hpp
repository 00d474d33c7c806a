// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/types.hpp>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

namespace kvx {

/// One slot of a file to be read into staging memory, from where a transfer engine takes it to the engine's pages.
///
/// `header` and `page_values` belong to the reader from submit() until `done` is called.
/// Units   offset, header_bytes, payload_bytes: multiples of page_bytes; the payload follows the header in the file
struct direct_request {
  int file = -1;
  std::uint64_t offset = 0;
  std::size_t payload_bytes = 0;
  /// Host memory for the slot's header, whose size it has, aligned to page_bytes.
  std::span<std::byte> header{};
  /// Host memory for XXH3-64 of each page of the payload, as it is in staging memory.
  std::span<std::uint64_t> page_values{};
  /// When it turns true, a request that was not started yet ends as ECANCELED. May be null.
  const std::atomic<bool>* cancelled = nullptr;
  void* context = nullptr;
  /// Called exactly once, by a thread of the reader, never from inside submit().
  /// Shape   payload: in staging memory, the caller's until give_back(); null unless outcome.error is 0
  void (*done)(void* context, const io_result& outcome, std::byte* payload) noexcept = nullptr;
};

/// Reads slots into staging memory of its own, of a GPU as a rule, and says what it read there.
///
/// A short read is never success. Requests wait while all of the staging memory is lent.
/// `staging()` is where payloads will lie, for transfer engines that want to know beforehand; `capacity()` how many
/// blocks it holds, each of up to `block_bytes()`, header included.
/// `detach(file)` comes before a file is closed that requests named, while none of them is under way.
/// `stop(deadline)` returns true when every request has completed and every payload was given back; false means that
/// some never will, and the reader must be leaked. No submit after it.
/// Thread  any, concurrently; give_back: also from `done`
/// Errors  per request, in its completion
template <class R>
concept direct_reader = requires(R reader, const R& view, std::span<const direct_request> requests, std::byte* payload,
                                 int file, std::chrono::milliseconds deadline) {
  reader.submit(requests);
  reader.give_back(payload);
  reader.detach(file);
  { view.staging() } -> std::same_as<std::span<std::byte>>;
  { view.capacity() } -> std::convertible_to<std::size_t>;
  { view.block_bytes() } -> std::convertible_to<std::size_t>;
  { view.name() } -> std::convertible_to<std::string_view>;
  { reader.stop(deadline) } -> std::same_as<bool>;
};

namespace archetype {

/// The least that models `direct_reader`: host memory, one thread, one request at a time.
class direct_reader {
 public:
  direct_reader(std::size_t block_bytes, std::size_t blocks)
      : block_bytes_(round_up(block_bytes)),
        blocks_(blocks),
        memory_(static_cast<std::byte*>(::operator new (block_bytes_* blocks, std::align_val_t{page_bytes}))),
        thread_([this] { run(); }) {
    for (std::size_t i = 0; i < blocks; ++i) free_.push_back(memory_.get() + i * block_bytes_);
  }
  direct_reader(const direct_reader&) = delete;
  direct_reader& operator=(const direct_reader&) = delete;
  ~direct_reader() {
    stop(std::chrono::milliseconds::max());
    {
      const std::lock_guard lock{mutex_};
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void submit(std::span<const direct_request> requests) {
    {
      const std::lock_guard lock{mutex_};
      waiting_.insert(waiting_.end(), requests.begin(), requests.end());
    }
    changed_.notify_all();
  }
  void give_back(std::byte* payload) {
    {
      const std::lock_guard lock{mutex_};
      free_.push_back(payload);
    }
    changed_.notify_all();
  }
  void detach(int) {}
  [[nodiscard]] std::span<std::byte> staging() const { return {memory_.get(), block_bytes_ * blocks_}; }
  [[nodiscard]] std::size_t capacity() const { return blocks_; }
  [[nodiscard]] std::size_t block_bytes() const { return block_bytes_; }
  [[nodiscard]] std::string_view name() const { return "archetype"; }

  bool stop(std::chrono::milliseconds deadline) {
    std::unique_lock lock{mutex_};
    const auto ended = [this] { return waiting_.empty() && free_.size() == blocks_; };
    if (deadline == std::chrono::milliseconds::max())
      changed_.wait(lock, ended);
    else
      changed_.wait_for(lock, deadline, ended);
    return ended();
  }

 private:
  void run() {
    std::unique_lock lock{mutex_};
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || (!waiting_.empty() && !free_.empty()); });
      if (ending_) return;
      const direct_request request = waiting_.front();
      waiting_.pop_front();
      std::byte* const payload = free_.back();
      free_.pop_back();
      lock.unlock();
      const io_result outcome = move(request, payload);
      if (outcome.error != 0) give_back(payload);
      request.done(request.context, outcome, outcome.error == 0 ? payload : nullptr);
      lock.lock();
      changed_.notify_all();
    }
  }
  io_result move(const direct_request& request, std::byte* payload) const {
    if (request.cancelled != nullptr && *request.cancelled) return {ECANCELED, 0};
    if (request.header.size() + request.payload_bytes > block_bytes_) return {EMSGSIZE, 0};
    io_result outcome;
    const std::span<std::byte> parts[] = {request.header, {payload, request.payload_bytes}};
    for (const std::span<std::byte> part : parts) {
      for (std::size_t at = 0; at < part.size();) {
        const ::ssize_t moved = ::pread(request.file, part.data() + at, part.size() - at,
                                        static_cast<::off_t>(request.offset + outcome.bytes));
        if (moved < 0 && errno == EINTR) continue;
        if (moved < 0) return {errno, outcome.bytes};
        if (moved == 0) return {ENODATA, outcome.bytes};
        at += static_cast<std::size_t>(moved);
        outcome.bytes += static_cast<std::size_t>(moved);
      }
    }
    for (std::size_t i = 0; i < request.page_values.size(); ++i)
      request.page_values[i] = XXH3_64bits(payload + i * page_bytes, page_bytes);
    return outcome;
  }

  struct release {
    void operator()(std::byte* data) const noexcept { ::operator delete (data, std::align_val_t{page_bytes}); }
  };

  std::size_t block_bytes_;
  std::size_t blocks_;
  std::unique_ptr<std::byte, release> memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<direct_request> waiting_;
  std::vector<std::byte*> free_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace archetype

static_assert(direct_reader<archetype::direct_reader>);

}  // namespace kvx
