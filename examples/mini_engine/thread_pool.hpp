// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace mini_engine {

/// Runs loops on a fixed number of threads, the caller among them. One loop at a time.
/// The caller waits for iterations, never for threads: a worker that the system has put aside, because I/O or another
/// program needs the core, holds nothing up unless it is in the middle of an iteration.
class thread_pool {
 public:
  explicit thread_pool(std::size_t threads) {
    for (std::size_t worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool() {
    stopping_.store(true, std::memory_order_relaxed);
    announce();
    for (auto& t : threads_) t.join();
  }

  std::size_t size() const noexcept { return threads_.size() + 1; }

  /// Calls body(i, worker) for every i < count, in any order; worker < size() tells whose scratch memory may be used.
  /// Shape   count: below 2^32
  template <class Body>
  void for_each(std::size_t count, const Body& body) {
    if (count <= 1 || threads_.empty()) {
      for (std::size_t i = 0; i < count; ++i) body(i, 0);
      return;
    }
    call_.store(
        [](const void* context, std::size_t i, std::size_t worker) { (*static_cast<const Body*>(context))(i, worker); },
        std::memory_order_relaxed);
    context_.store(&body, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const std::uint64_t round = round_.load(std::memory_order_relaxed) + 1;
    unclaimed_.store(round << 32 | count, std::memory_order_release);
    announce();
    claim(0);
    for (int spin = 0; done_.load(std::memory_order_acquire) != count; ++spin) {
      if (spin < spins_before_sleep)
        pause();
      else
        std::this_thread::yield();
    }
  }

 private:
  static constexpr int spins_before_sleep = 4000;  // tens of microseconds: the gaps between a layer's loops are shorter

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }

  void announce() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void claim(std::size_t worker) {
    for (;;) {
      std::uint64_t unclaimed = unclaimed_.load(std::memory_order_acquire);
      const auto left = static_cast<std::uint32_t>(unclaimed);
      if (left == 0) return;
      // Of this round, should the exchange succeed: they change only after every iteration of the round was claimed.
      const auto call = call_.load(std::memory_order_relaxed);
      const void* context = context_.load(std::memory_order_relaxed);
      const std::size_t count = count_.load(std::memory_order_relaxed);
      if (!unclaimed_.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acq_rel,
                                            std::memory_order_relaxed))
        continue;
      call(context, count - left, worker);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  void serve(std::size_t worker) {
    for (;;) {
      const std::uint32_t seen = round_.load(std::memory_order_acquire);
      if (stopping_.load(std::memory_order_relaxed)) return;
      claim(worker);
      for (int spin = 0; spin < spins_before_sleep && round_.load(std::memory_order_acquire) == seen; ++spin) pause();
      round_.wait(seen, std::memory_order_acquire);
    }
  }

  std::vector<std::thread> threads_;
  std::atomic<void (*)(const void*, std::size_t, std::size_t)> call_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<std::size_t> count_{0};
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<std::uint64_t> unclaimed_{
      0};  // the round, and in the low half how many of its iterations nobody has
  alignas(64) std::atomic<std::size_t> done_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
};

}  // namespace mini_engine
