// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>
#include <kvx/detail/check_batch.hpp>
#include <kvx/detail/deferred_core.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace kvx {

/// An in-order queue of a `deferred_device`, as a CUDA stream is one of a GPU; a handle, valid as long as the device.
/// Thread  any, concurrently
class deferred_stream {
 public:
  deferred_stream() noexcept = default;

  /// Appends work of the engine; it must not throw, and may enqueue more but not wait.
  /// Shape   the stream is not a default-constructed one
  void enqueue(std::function<void()> work) const {
    detail::deferred_item item;
    item.work = std::move(work);
    queue_->core->submit(*queue_, std::move(item));
  }

  /// Blocks the calling thread until everything enqueued so far, and since, has run.
  void synchronize() const {
    queue_->core->wait([this] { return queue_->items.empty(); });
  }

  [[nodiscard]] explicit operator bool() const noexcept { return queue_ != nullptr; }
  friend bool operator==(deferred_stream, deferred_stream) noexcept = default;

 private:
  friend class deferred_device;
  friend class deferred_transfer;
  explicit deferred_stream(detail::deferred_queue* queue) noexcept : queue_(queue) {}

  detail::deferred_queue* queue_ = nullptr;
};

/// A GPU's order of events without a GPU: streams whose work runs late, in any order that the streams allow.
///
/// Which of the runnable streams goes next follows from random delays, drawn from the seed as work is
/// submitted and spent on a clock that jumps; so a run with `workers = 0` or between hold() and release()
/// repeats exactly. What is still queued when the device goes is never run; operations it belonged to end
/// as device_failed.
/// Thread  any, concurrently; hold, step and destruction not from work on a stream
class deferred_device {
 public:
  struct options {
    std::uint64_t seed = 1;
    /// Delay of each piece of work and of each copy once its turn has come.
    std::chrono::nanoseconds min_delay{0};
    std::chrono::nanoseconds max_delay = std::chrono::microseconds{100};
    /// Threads that run the streams; with 0 whoever waits, synchronises or calls step() does.
    unsigned workers = 1;
    /// Let the delays pass for real.
    bool real_time = false;
  };

  deferred_device() : deferred_device(options{}) {}

  /// Errors  throws bad_argument: min_delay is negative or above max_delay; unsupported: no more threads
  explicit deferred_device(const options& with)
      : core_(std::make_shared<detail::deferred_core>(with.seed, with.min_delay, with.max_delay, with.workers,
                                                      with.real_time)) {
    threads_.reserve(with.workers);
    try {
      for (unsigned i = 0; i < with.workers; ++i) threads_.emplace_back([core = core_.get()] { core->work(); });
    } catch (const std::system_error& failure) {
      stop();
      throw error{errc::unsupported, "deferred_device::options::workers is " + std::to_string(with.workers) +
                                         ", but the system starts no more threads (" + failure.what() +
                                         "); give fewer"};
    }
  }
  deferred_device(const deferred_device&) = delete;
  deferred_device& operator=(const deferred_device&) = delete;
  ~deferred_device() {
    stop();
    core_->abandon();
  }

  [[nodiscard]] deferred_stream create_stream() { return deferred_stream{core_->create_queue()}; }

  /// Nothing runs from here to release(); returns when what was running has ended.
  void hold() { core_->hold(); }
  void release() { core_->release(); }

  /// Runs the next piece of work on the calling thread; false when nothing may run now.
  bool step() { return core_->step(); }

  /// Blocks the calling thread until every stream is empty.
  void synchronize() {
    core_->wait([this] { return core_->all_empty(); });
  }

  /// The n-th copy submitted from now on fails, and so do those of its operation that had not run; 1 is the next.
  ///
  /// A copy moves one layer of one block.
  void fail_copy(std::uint64_t n) { core_->plan(core_->fail_in, n); }
  /// The n-th copy submitted from now on never ends: nothing behind it on its stream runs, its operation is never done.
  void hang_copy(std::uint64_t n) { core_->plan(core_->hang_in, n); }
  /// The n-th load or save from now on submits nothing and returns device_failed.
  void fail_submission(std::uint64_t n) { core_->plan(core_->refuse_in, n); }

 private:
  friend class deferred_transfer;

  void stop() noexcept {
    core_->stop();
    for (std::thread& thread : threads_) thread.join();
  }

  std::shared_ptr<detail::deferred_core> core_;
  std::vector<std::thread> threads_;
};

/// Moves blocks late and in random order, so that a missing wait shows on machines without a GPU.
///
/// Copies run on streams of the engine's own, layers and blocks mixed. What a copy will write holds
/// `poison` from the operation's place in the caller's stream until the copy: whoever reads without a wait
/// sees that. What a copy reads is read late: whoever overwrites without a wait damages it.
/// Thread  load, save: any, concurrently; the device must outlive the engine
/// Stream  a null stream or one of another device is bad_argument
/// Errors  bad_argument: the batch contradicts the layout, nothing was submitted; device_failed: as the device was told
class deferred_transfer {
 public:
  static constexpr std::byte poison{0xA5};

  using stream_type = deferred_stream;

  class operation {
   public:
    operation() noexcept = default;

    /// Errors  bad_argument: no such layer, a null stream or one of another device
    [[nodiscard]] status wait_layer(std::size_t layer, deferred_stream stream) const {
      if (state_ == nullptr) return {};
      if (layer >= state_->layers.size() || !stream || stream.queue_->core != state_->core.get()) {
        return errc::bad_argument;
      }
      detail::deferred_item item;
      item.awaited = state_->layers[layer].event;
      state_->core->submit(*stream.queue_, std::move(item));
      return {};
    }
    [[nodiscard]] bool done() const noexcept {
      return state_ == nullptr || state_->done.load(std::memory_order_acquire);
    }
    [[nodiscard]] status outcome() const noexcept {
      if (state_ == nullptr || !state_->failed.load(std::memory_order_relaxed)) return {};
      return errc::device_failed;
    }
    void wait() const {
      if (state_ != nullptr) state_->core->wait([this] { return done(); });
    }

   private:
    friend class deferred_transfer;
    explicit operation(std::shared_ptr<detail::deferred_state> state) noexcept : state_(std::move(state)) {}

    std::shared_ptr<detail::deferred_state> state_;
  };

  /// Shape   copy_streams: at least 1
  /// Errors  throws bad_argument: no copy stream
  explicit deferred_transfer(deferred_device& device, std::size_t copy_streams = 3) : core_(device.core_) {
    if (copy_streams == 0) {
      throw error{errc::bad_argument, "deferred_transfer needs a stream to copy on; give copy_streams of 1 or more"};
    }
    for (std::size_t i = 0; i < copy_streams; ++i) queues_.push_back(core_->create_queue());
  }

  template <kv_layout Layout>
  [[nodiscard]] result<operation> load(const Layout& layout, const transfer_batch& batch, deferred_stream stream) {
    return submit(layout, batch, stream, true);
  }

  template <kv_layout Layout>
  [[nodiscard]] result<operation> save(const Layout& layout, const transfer_batch& batch, deferred_stream stream) {
    return submit(layout, batch, stream, false);
  }

  /// Nothing to do: any memory will do.
  [[nodiscard]] status register_arena(std::span<std::byte> /*arena*/) const noexcept { return {}; }

 private:
  struct piece {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    std::size_t bytes = 0;
  };
  struct layer_copy {
    std::size_t layer = 0;
    std::vector<piece> pieces;
  };

  template <class Layout>
  result<operation> submit(const Layout& layout, const transfer_batch& batch, deferred_stream stream, bool load) {
    if (const status fits = detail::check_batch(layout, batch); !fits) return fits;
    if (!stream || stream.queue_->core != core_.get()) return errc::bad_argument;

    std::vector<layer_copy> copies;
    copies.reserve(batch.layer_offsets.size() * batch.blocks.size());
    for (std::size_t layer = 0; layer < batch.layer_offsets.size(); ++layer) {
      for (const block_copy& block : batch.blocks) {
        layer_copy copy{layer, {}};
        std::byte* const slot = block.payload + batch.layer_offsets[layer];
        layout.for_each_fragment(batch.group, layer, block.pages, [&](const fragment& f) {
          std::byte* const at = slot + f.offset;
          copy.pieces.push_back(load ? piece{f.data, at, f.bytes} : piece{at, f.data, f.bytes});
        });
        copies.push_back(std::move(copy));
      }
    }

    const std::lock_guard lock{core_->mutex};
    if (detail::deferred_core::count_down(core_->refuse_in)) return errc::device_failed;
    if (copies.empty()) return operation{};
    auto state = std::make_shared<detail::deferred_state>(core_, batch.layer_offsets.size(), batch.blocks.size());
    // One lock over all of it: streams of copies stay in the order of submission, so they cannot wait in a circle.
    auto start = std::make_shared<detail::deferred_event>();
    detail::deferred_item first;
    first.fires = start;
    first.work = [spans = destinations(copies)] {
      for (const auto& [to, bytes] : spans) std::memset(to, std::to_integer<int>(poison), bytes);
    };
    core_->push(*stream.queue_, std::move(first));
    for (detail::deferred_queue* queue : queues_) {
      detail::deferred_item wait;
      wait.awaited = start;
      core_->push(*queue, std::move(wait));
    }
    for (std::size_t left = copies.size(); left > 0; --left) {
      std::swap(copies[left - 1], copies[core_->below(left)]);
      detail::deferred_item item;
      item.state = state;
      item.layer = copies[left - 1].layer;
      item.fails = detail::deferred_core::count_down(core_->fail_in);
      item.hangs = detail::deferred_core::count_down(core_->hang_in);
      item.work = [pieces = std::move(copies[left - 1].pieces)] {
        for (const piece& p : pieces) std::memcpy(p.to, p.from, p.bytes);
      };
      core_->push(*queues_[core_->below(queues_.size())], std::move(item));
    }
    core_->wake();
    return operation{std::move(state)};
  }

  static std::vector<std::pair<std::byte*, std::size_t>> destinations(const std::vector<layer_copy>& copies) {
    std::vector<std::pair<std::byte*, std::size_t>> spans;
    for (const layer_copy& copy : copies) {
      for (const piece& p : copy.pieces) spans.emplace_back(p.to, p.bytes);
    }
    return spans;
  }

  std::shared_ptr<detail::deferred_core> core_;
  std::vector<detail::deferred_queue*> queues_;
};

static_assert(transfer_engine<deferred_transfer, archetype::layout>);

}  // namespace kvx
