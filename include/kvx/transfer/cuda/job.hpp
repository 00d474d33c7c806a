// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/transfer/cuda/kernels.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace kvx::cuda {

/// One load or save under way: its events, and the lists that its kernels read.
///
/// Jobs are used again and keep what they have grown to, so that nothing is allocated once that has happened. All
/// but the atomics is written before the job is shown to anybody, and again only after nobody holds it.
class job {
 public:
  static constexpr std::size_t copies_per_chunk = 32768;

  /// Shape   device: where its events are; it outlives the job
  explicit job(const used_device& device) noexcept : device_(device) {}

  std::atomic<std::uint32_t> holders{0};
  std::size_t bytes = 0;
  /// An error of the runtime cut the submission short; what was submitted before still counts.
  cudaError_t refused = cudaSuccess;

  /// Whether nothing of it touches any memory any more.
  [[nodiscard]] bool done() noexcept {
    if (state_.load(std::memory_order_acquire) != pending) return true;
    const scope any_thread(device_);
    cudaError_t worst = refused;
    for (std::size_t i = used_; i-- > 0;) {
      const cudaError_t now = ::cudaEventQuery(events_[i].get());
      if (now == cudaSuccess) continue;
      static_cast<void>(::cudaGetLastError());
      if (now == cudaErrorNotReady) return false;
      worst = now;
    }
    settle(worst);
    return true;
  }
  void wait() noexcept {
    if (state_.load(std::memory_order_acquire) != pending) return;
    const scope any_thread(device_);
    cudaError_t worst = refused;
    for (std::size_t i = used_; i-- > 0;) {
      const cudaError_t now = ::cudaEventSynchronize(events_[i].get());
      if (now != cudaSuccess) worst = now;
    }
    if (worst != cudaSuccess) static_cast<void>(::cudaGetLastError());
    settle(worst);
  }
  [[nodiscard]] status outcome() const noexcept {
    if (state_.load(std::memory_order_acquire) == failed || refused != cudaSuccess) return errc::device_failed;
    return {};
  }

  /// Makes `stream` wait for what one layer needs.
  [[nodiscard]] status wait_layer(std::size_t layer, cudaStream_t stream) const noexcept {
    if (refused != cudaSuccess) return errc::device_failed;
    std::size_t first = 0;
    for (const group& g : groups_) {
      if (layer < g.end_layer) {
        const scope any_thread(device_);
        if (const status takes = takes_work(stream); !takes) return takes;
        for (std::size_t i = first; i < g.end_event; ++i) {
          if (::cudaStreamWaitEvent(stream, events_[i].get(), 0) != cudaSuccess) {
            static_cast<void>(::cudaGetLastError());
            return errc::device_failed;
          }
        }
        return {};
      }
      first = g.end_event;
    }
    return errc::bad_argument;
  }

  // What follows is for whoever submits.

  [[nodiscard]] bool begin(std::size_t total_bytes) noexcept {
    bytes = total_bytes;
    refused = cudaSuccess;
    used_ = 0;
    groups_.clear();
    chunk_ = 0;
    filled_ = 0;
    if (start_ == nullptr) start_ = make_event();
    state_.store(pending, std::memory_order_release);
    return start_ != nullptr;
  }
  /// Where the engine's stream stood; valid until the next begin().
  [[nodiscard]] cudaEvent_t start() const noexcept { return start_.get(); }

  /// Remembers the end of what was submitted to a stream so far.
  [[nodiscard]] cudaError_t mark(cudaStream_t stream) {
    if (used_ == events_.size()) {
      event_handle made = make_event();
      if (made == nullptr) return cudaErrorMemoryAllocation;
      events_.push_back(std::move(made));
    }
    const cudaError_t marked = ::cudaEventRecord(events_[used_].get(), stream);
    if (marked == cudaSuccess) ++used_;
    return marked;
  }
  /// Layers below `end_layer` are complete with the marks made so far.
  void end_group(std::size_t end_layer) { groups_.push_back({end_layer, used_}); }

  /// Room for one more entry of a list that a kernel reads, contiguous with the one before unless that was `cut`.
  [[nodiscard]] cuda_copy* add_copy(bool& cut) {
    cut = false;
    if (chunk_ < chunks_.size() && filled_ == copies_in(chunk_)) {
      ++chunk_;
      filled_ = 0;
      cut = true;
    }
    if (chunk_ == chunks_.size()) {
      pinned_memory made = make_pinned_memory(copies_in(chunk_) * sizeof(cuda_copy), cudaHostAllocWriteCombined);
      if (made == nullptr) return nullptr;
      chunks_.push_back(std::move(made));
      cut = true;
    }
    return static_cast<cuda_copy*>(chunks_[chunk_].get()) + filled_++;
  }

 private:
  // Many jobs are of one block: to pin more for the first of each would take longer than its copies.
  [[nodiscard]] static constexpr std::size_t copies_in(std::size_t chunk) noexcept {
    return chunk == 0 ? 1024 : copies_per_chunk;
  }

  enum : int { pending, succeeded, failed };
  struct group {
    std::size_t end_layer = 0;
    std::size_t end_event = 0;
  };

  void settle(cudaError_t worst) noexcept {
    int expected = pending;
    state_.compare_exchange_strong(expected, worst == cudaSuccess ? succeeded : failed, std::memory_order_acq_rel);
  }

  const used_device& device_;
  std::atomic<int> state_{succeeded};
  event_handle start_;
  std::vector<event_handle> events_;
  std::size_t used_ = 0;
  std::vector<group> groups_;
  std::vector<pinned_memory> chunks_;
  std::size_t chunk_ = 0;
  std::size_t filled_ = 0;
};

/// The jobs of one direction.
/// Thread  any, concurrently
class job_pool {
 public:
  explicit job_pool(const used_device& device) noexcept : device_(device) {}

  /// A job that nobody holds and whose work has ended, held once.
  [[nodiscard]] job& take() {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < jobs_.size(); ++i) {
      next_ = next_ + 1 < jobs_.size() ? next_ + 1 : 0;
      job& candidate = *jobs_[next_];
      if (candidate.holders.load(std::memory_order_acquire) != 0 || !candidate.done()) continue;
      candidate.holders.store(1, std::memory_order_relaxed);
      return candidate;
    }
    jobs_.push_back(std::make_unique<job>(device_));
    jobs_.back()->holders.store(1, std::memory_order_relaxed);
    return *jobs_.back();
  }
  [[nodiscard]] std::size_t bytes_under_way() noexcept {
    const std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const auto& each : jobs_) {
      if (!each->done()) sum += each->bytes;
    }
    return sum;
  }
  void wait_all() noexcept {
    const std::lock_guard lock(mutex_);
    for (const auto& each : jobs_) each->wait();
  }

 private:
  const used_device& device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<job>> jobs_;
  std::size_t next_ = 0;
};

}  // namespace kvx::cuda
