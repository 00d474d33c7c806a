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
#include <utility>
#include <vector>

namespace kvx::cuda {

/// Pinned memory for the first list of each job: many jobs are of one block, and to pin for each alone would take
/// longer than their copies.
/// Thread  one
class short_lists {
 public:
  static constexpr std::size_t copies = 2048;

  /// Null where no memory can be pinned.
  [[nodiscard]] cuda_copy* take() {
    if (left_ == 0) {
      pinned_memory made = make_pinned_memory(lists_per_chunk * copies * sizeof(cuda_copy), cudaHostAllocWriteCombined);
      if (made == nullptr) return nullptr;
      chunks_.push_back(std::move(made));
      left_ = lists_per_chunk;
    }
    return static_cast<cuda_copy*>(chunks_.back().get()) + --left_ * copies;
  }

 private:
  static constexpr std::size_t lists_per_chunk = 64;

  std::vector<pinned_memory> chunks_;
  std::size_t left_ = 0;  // of the last chunk
};

/// One load or save under way: its events, and the lists that its kernels read.
///
/// Jobs are used again and keep what they have grown to, so that nothing is allocated once that has happened. All
/// but the atomics is written before the job is shown to anybody, and again only after nobody holds it.
class job {
 public:
  static constexpr std::size_t copies_per_chunk = 32768;

  /// Shape   device: where its events are; it and the lists outlive the job
  job(const used_device& device, short_lists& lists) noexcept : device_(device), lists_(lists) {}

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
    list_ = nullptr;
    list_copies_ = 0;
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
    cut = filled_ == list_copies_;
    if (cut) {
      if (!next_list()) return nullptr;
      filled_ = 0;
    }
    return list_ + filled_++;
  }

 private:
  [[nodiscard]] bool next_list() {
    if (list_ == nullptr) {
      if (first_list_ == nullptr) first_list_ = lists_.take();
      list_ = first_list_;
      list_copies_ = list_ != nullptr ? short_lists::copies : 0;
      return list_ != nullptr;
    }
    if (chunk_ == chunks_.size()) {
      pinned_memory made = make_pinned_memory(copies_per_chunk * sizeof(cuda_copy), cudaHostAllocWriteCombined);
      if (made == nullptr) return false;
      chunks_.push_back(std::move(made));
    }
    list_ = static_cast<cuda_copy*>(chunks_[chunk_++].get());
    list_copies_ = copies_per_chunk;
    return true;
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
  short_lists& lists_;
  cuda_copy* first_list_ = nullptr;
  std::vector<pinned_memory> chunks_;
  std::size_t chunk_ = 0;  // the next one
  cuda_copy* list_ = nullptr;
  std::size_t list_copies_ = 0;
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
    jobs_.push_back(std::make_unique<job>(device_, lists_));
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
  short_lists lists_;  // outlives the jobs
  std::vector<std::unique_ptr<job>> jobs_;
  std::size_t next_ = 0;
};

}  // namespace kvx::cuda
