// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace kvx::detail {

class deferred_core;

/// Guarded by the core's mutex.
struct deferred_event {
  bool fired = false;
};

/// What the copies of one load or save share.
struct deferred_state {
  struct layer_state {
    std::shared_ptr<deferred_event> event = std::make_shared<deferred_event>();
    std::size_t copies_left = 0;
  };

  deferred_state(std::shared_ptr<deferred_core> owner, std::size_t layer_count, std::size_t blocks)
      : core(std::move(owner)), layers(layer_count), copies_left(layer_count * blocks) {
    for (layer_state& layer : layers) layer.copies_left = blocks;
  }

  std::shared_ptr<deferred_core> core;
  std::vector<layer_state> layers;
  std::size_t copies_left;
  std::atomic<bool> failed{false};
  std::atomic<bool> done{false};
};

/// One entry of a stream: a wait for an event, work of the engine, or a copy (`state` is set).
struct deferred_item {
  std::function<void()> work;
  std::shared_ptr<deferred_event> awaited;
  std::shared_ptr<deferred_event> fires;
  std::shared_ptr<deferred_state> state;
  std::size_t layer = 0;
  bool fails = false;
  bool hangs = false;
  std::chrono::nanoseconds delay{0};
};

struct deferred_queue {
  deferred_core* core = nullptr;
  std::deque<deferred_item> items;
  bool running = false;
  /// When the first item may run; empty until it is the first and waits for no event.
  std::optional<std::chrono::nanoseconds> ready_at;
};

/// The scheduler behind `deferred_device`: owns the queues, draws the delays, runs what may run.
/// Thread  members and queues are guarded by `mutex`; functions lock it themselves unless they say otherwise
class deferred_core {
 public:
  using nanoseconds = std::chrono::nanoseconds;

  deferred_core(std::uint64_t seed, nanoseconds min_delay, nanoseconds max_delay, unsigned workers, bool real_time)
      : random_(seed),
        picks_(seed),
        min_delay_(min_delay),
        max_delay_(max_delay),
        workers_(workers),
        real_time_(real_time) {
    if (min_delay < nanoseconds{0} || min_delay > max_delay) {
      throw error{errc::bad_argument, "deferred_device::options::min_delay is " + std::to_string(min_delay.count()) +
                                          " ns with a max_delay of " + std::to_string(max_delay.count()) +
                                          " ns; give 0 <= min_delay <= max_delay"};
    }
  }

  std::mutex mutex;
  std::uint64_t fail_in = 0;
  std::uint64_t hang_in = 0;
  std::uint64_t refuse_in = 0;

  deferred_queue* create_queue() {
    const std::lock_guard lock{mutex};
    queues_.push_back(std::make_unique<deferred_queue>());
    queues_.back()->core = this;
    return queues_.back().get();
  }

  void submit(deferred_queue& queue, deferred_item item) {
    const std::lock_guard lock{mutex};
    push(queue, std::move(item));
    wake();
  }

  /// Has what was pushed looked at; the caller holds the mutex.
  void wake() {
    runnable_.notify_all();
    if (workers_ == 0 && waiting_ > 0) progress_.notify_all();
  }

  /// The caller holds the mutex and calls wake().
  void push(deferred_queue& queue, deferred_item item) {
    // Drawn here, not when the item's turn comes: so delays follow from the order of submission alone.
    if (item.work) item.delay = draw_delay(item.state != nullptr);
    queue.items.push_back(std::move(item));
  }

  /// A random number below `n`; the caller holds the mutex.
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }

  void plan(std::uint64_t& counter, std::uint64_t n) {
    const std::lock_guard lock{mutex};
    counter = n;
  }
  /// True when the planned number is reached; the caller holds the mutex.
  static bool count_down(std::uint64_t& counter) noexcept { return counter > 0 && --counter == 0; }

  void hold() {
    std::unique_lock lock{mutex};
    held_ = true;
    progress_.wait(lock, [this] { return running_ == 0; });
  }
  void release() {
    {
      const std::lock_guard lock{mutex};
      held_ = false;
    }
    runnable_.notify_all();
    progress_.notify_all();
  }

  bool step() {
    std::unique_lock lock{mutex};
    return run_one(lock);
  }

  /// The caller holds the mutex.
  [[nodiscard]] bool all_empty() const {
    for (const auto& queue : queues_) {
      if (!queue->items.empty()) return false;
    }
    return true;
  }

  /// Returns once `satisfied()`, which is called with the mutex held; runs the streams itself where there is no worker.
  template <class Predicate>
  void wait(Predicate satisfied) {
    std::unique_lock lock{mutex};
    ++waiting_;
    while (!satisfied()) {
      if (workers_ == 0 && run_one(lock)) continue;
      // Looking for work drops waits that are over, which may be all that the caller waited for.
      if (satisfied()) break;
      if (workers_ == 0 && next_ready_) {
        progress_.wait_for(lock, *next_ready_ - now());
      } else {
        progress_.wait(lock);
      }
    }
    --waiting_;
  }

  /// What a worker thread does.
  void work() {
    std::unique_lock lock{mutex};
    while (!stopping_) {
      if (run_one(lock)) continue;
      if (next_ready_) {
        runnable_.wait_for(lock, *next_ready_ - now());
      } else {
        runnable_.wait(lock);
      }
    }
  }

  void stop() {
    {
      const std::lock_guard lock{mutex};
      stopping_ = true;
    }
    runnable_.notify_all();
  }

  /// Drops what was never run; nothing runs any more when this is called.
  void abandon() {
    // Items own states, which own this core: they must go, and not under the lock that they might be waited under.
    std::vector<deferred_item> dropped;
    {
      const std::lock_guard lock{mutex};
      for (const auto& queue : queues_) {
        for (deferred_item& item : queue->items) {
          if (item.state) {
            item.state->failed.store(true, std::memory_order_relaxed);
            item.state->done.store(true, std::memory_order_release);
          }
          dropped.push_back(std::move(item));
        }
        queue->items.clear();
      }
    }
    progress_.notify_all();
  }

 private:
  // Half of the copies are as late as can be and half of the engine's work is as early, which is where a missing
  // wait shows; a quarter is the other way round, as a wait in the other direction may be the one that is missing.
  nanoseconds draw_delay(bool copy) {
    const std::uint64_t span = static_cast<std::uint64_t>((max_delay_ - min_delay_).count()) + 1;
    const std::uint64_t kind = random_() % 4;
    const std::uint64_t inside = random_() % span;
    if (kind == 0) return min_delay_ + nanoseconds{static_cast<std::int64_t>(inside)};
    const bool late = kind == 1 ? !copy : copy;
    return late ? max_delay_ : min_delay_;
  }

  nanoseconds now() const {
    if (!real_time_) return clock_;
    return std::chrono::duration_cast<nanoseconds>(std::chrono::steady_clock::now() - began_);
  }

  // The runnable queue whose turn comes first, by chance among equals.
  deferred_queue* pick() {
    deferred_queue* found = nullptr;
    std::uint64_t equals = 0;
    for (const auto& entry : queues_) {
      deferred_queue& queue = *entry;
      if (queue.running) continue;
      while (!queue.items.empty() && queue.items.front().awaited && queue.items.front().awaited->fired) {
        queue.items.pop_front();
        if (queue.items.empty() && waiting_ > 0) progress_.notify_all();
      }
      if (queue.items.empty() || queue.items.front().awaited || queue.items.front().hangs) continue;
      if (!queue.ready_at) queue.ready_at = now() + queue.items.front().delay;
      if (found == nullptr || *queue.ready_at < *found->ready_at) {
        found = &queue;
        equals = 1;
      } else if (*queue.ready_at == *found->ready_at && picks_() % ++equals == 0) {
        found = &queue;
      }
    }
    return found;
  }

  bool run_one(std::unique_lock<std::mutex>& lock) {
    next_ready_.reset();
    if (held_ || stopping_) return false;
    deferred_queue* const queue = pick();
    if (queue == nullptr) return false;
    if (real_time_ && *queue->ready_at > now()) {
      next_ready_ = queue->ready_at;
      return false;
    }
    if (!real_time_ && *queue->ready_at > clock_) clock_ = *queue->ready_at;

    deferred_item& item = queue->items.front();
    if (item.state && item.fails) item.state->failed.store(true, std::memory_order_relaxed);
    const bool runs = !item.state || !item.state->failed.load(std::memory_order_relaxed);
    queue->running = true;
    ++running_;
    lock.unlock();
    // A deque keeps its elements in place while others are appended, and nobody else removes this one.
    if (runs) item.work();
    lock.lock();
    --running_;
    queue->running = false;
    queue->ready_at.reset();
    deferred_item ended = std::move(queue->items.front());
    queue->items.pop_front();
    finish(ended);
    if (waiting_ > 0 || held_) progress_.notify_all();
    if (workers_ > 1) runnable_.notify_all();
    // Captured objects of the engine may do anything when they die.
    lock.unlock();
    ended = {};
    lock.lock();
    return true;
  }

  static void finish(deferred_item& item) {
    if (item.fires) item.fires->fired = true;
    if (!item.state) return;
    deferred_state& state = *item.state;
    deferred_state::layer_state& layer = state.layers[item.layer];
    if (--layer.copies_left == 0) layer.event->fired = true;
    if (--state.copies_left == 0) state.done.store(true, std::memory_order_release);
  }

  std::mt19937_64 random_;
  // Of its own: how often a worker looks for work must not change what the next submission draws.
  std::mt19937_64 picks_;
  nanoseconds min_delay_;
  nanoseconds max_delay_;
  unsigned workers_;
  bool real_time_;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();

  std::condition_variable runnable_;
  std::condition_variable progress_;
  std::vector<std::unique_ptr<deferred_queue>> queues_;
  nanoseconds clock_{0};
  std::optional<nanoseconds> next_ready_;
  std::size_t running_ = 0;
  std::size_t waiting_ = 0;
  bool held_ = false;
  bool stopping_ = false;
};

}  // namespace kvx::detail
