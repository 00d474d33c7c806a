// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>
#include <kvx/detail/check_batch.hpp>
#include <kvx/detail/copy_plan.hpp>
#include <kvx/result.hpp>
#include <kvx/transfer/cuda/core.hpp>
#include <kvx/transfer/cuda/costs.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/transfer/cuda/job.hpp>
#include <kvx/transfer/cuda/kernels.hpp>
#include <kvx/transfer/cuda/lane.hpp>
#include <kvx/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>

namespace kvx {

/// Moves blocks between the memory of a CUDA device and slots in pinned host memory.
///
/// Copies run on streams of the engine's own, behind an event of the caller's stream, in pieces of a few MiB. How they
/// run is chosen per call by size, count and direction: see cuda_technique. Without kernels the copy engine does all.
/// Host code: nvcc is needed for the kernels alone. Nothing synchronises the device or uses the legacy stream, and
/// once the largest calls have been seen nothing is allocated. Other streams may be captured into graphs meanwhile.
/// Shape   payloads lie in registered arenas, those of a load also in registered staging memory; engine memory is
/// device
///         memory of `options::device`
/// Thread  load, save: any, concurrently; each direction submits one call at a time. A thread's device is current again
///         after each call, but one without a context: such a thread stays on `options::device`
/// Stream  any but one that is being captured, which is bad_argument for load, save and wait_layer
/// Errors  bad_argument: the batch contradicts the layout, a payload outside of the arenas, payloads of both kinds in
///         one batch, a save to staging memory; device_failed. An error of the device fails the operations under way:
///         done() is true once nothing of them runs
/// Cost    2 to 4 us of host time per block, 0.5 us per fragment where layers lie at no constant distance
/// Source  cudaMemcpy2DAsync, cudaMemcpyBatchAsync; docs/decisions/0008-gpu-transfer.md has the measurements
class cuda_transfer {
 public:
  using stream_type = cudaStream_t;
  using options = cuda_transfer_options;

  class operation {
   public:
    operation() noexcept = default;
    operation(const operation& other) noexcept : core_(other.core_), job_(other.job_) {
      if (job_ != nullptr) job_->holders.fetch_add(1, std::memory_order_relaxed);
    }
    operation(operation&& other) noexcept : core_(std::move(other.core_)), job_(std::exchange(other.job_, nullptr)) {}
    operation& operator=(operation other) noexcept {
      std::swap(core_, other.core_);
      std::swap(job_, other.job_);
      return *this;
    }
    ~operation() {
      if (job_ != nullptr) job_->holders.fetch_sub(1, std::memory_order_release);
    }

    /// Errors  bad_argument: no such layer, or a stream that is being captured
    [[nodiscard]] status wait_layer(std::size_t layer, cudaStream_t stream) const noexcept {
      return job_ == nullptr ? status{} : job_->wait_layer(layer, stream);
    }
    [[nodiscard]] bool done() const noexcept { return job_ == nullptr || job_->done(); }
    [[nodiscard]] status outcome() const noexcept { return job_ == nullptr ? status{} : job_->outcome(); }
    void wait() const noexcept {
      if (job_ != nullptr) job_->wait();
    }

   private:
    friend class cuda_transfer;
    operation(std::shared_ptr<cuda::core> core, cuda::job& taken) noexcept : core_(std::move(core)), job_(&taken) {}

    std::shared_ptr<cuda::core> core_;
    cuda::job* job_ = nullptr;
  };

  cuda_transfer() : cuda_transfer(options{}) {}
  /// Errors  throws device_failed: no such device, or no memory or streams there; bad_argument: an option
  /// Cost    a calibration of less than a tenth of a second, unless `options::costs` is given
  explicit cuda_transfer(const options& with) : core_(std::make_shared<cuda::core>(with)) {}
  cuda_transfer(cuda_transfer&&) noexcept = default;
  cuda_transfer& operator=(cuda_transfer&& other) noexcept {
    if (core_ != nullptr && core_ != other.core_) core_->close();
    core_ = std::move(other.core_);
    return *this;
  }
  /// Waits for whatever is under way, for nothing may write the arenas afterwards, and unregisters them.
  ~cuda_transfer() {
    if (core_ != nullptr) core_->close();
  }

  /// Whether a `cuda_transfer` can be made for this device; the text says why not.
  /// Thread  any; it starts nothing on a device
  [[nodiscard]] static cuda_probe probe(int device = 0) { return cuda::probe(device); }

  template <kv_layout Layout>
  [[nodiscard]] result<operation> load(const Layout& layout, const transfer_batch& batch, cudaStream_t stream) {
    return submit<true>(layout, batch, stream);
  }
  template <kv_layout Layout>
  [[nodiscard]] result<operation> save(const Layout& layout, const transfer_batch& batch, cudaStream_t stream) {
    return submit<false>(layout, batch, stream);
  }

  /// Pins the arena, until this engine dies. One that is pinned already is taken as it is, and stays so as long as
  /// whoever pinned it says.
  /// Errors  device_failed: the system or the device refused; copies would be slow and would block, so it is an error
  /// Cost    20 to 75 ms per GiB, and touching what the system has not given yet, with up to 16 threads
  [[nodiscard]] status register_arena(std::span<std::byte> arena) { return core_->register_arena(arena); }

  /// Lets loads take payloads from device memory, as a `direct_reader` lends them. They are moved by the copy kernel
  /// alone, whatever `options::technique` says, and arrive as a whole. The memory outlives the loads from it; once
  /// registered it may be registered again.
  /// Errors  unsupported: there is no copy kernel; bad_argument: not device memory of `options::device`
  /// Cost    of such loads: 32 blocks of threads at the speed of the device's memory, nothing over the link
  [[nodiscard]] status register_staging(std::span<std::byte> staging) { return core_->register_staging(staging); }

  /// What the calibration found, or was told.
  [[nodiscard]] const cuda_costs& load_costs() const noexcept { return core_->costs(true); }
  [[nodiscard]] const cuda_costs& save_costs() const noexcept { return core_->costs(false); }
  /// What the last load, or save, was moved by.
  [[nodiscard]] cuda_technique last_load() const noexcept { return core_->last(true); }
  [[nodiscard]] cuda_technique last_save() const noexcept { return core_->last(false); }

 private:
  template <bool Load, kv_layout Layout>
  [[nodiscard]] result<operation> submit(const Layout& layout, const transfer_batch& batch, cudaStream_t stream) {
    if (const status fits = detail::check_batch(layout, batch); !fits) return fits;
    if (batch.blocks.empty()) return operation{};
    std::size_t block_bytes = 0;
    std::size_t extent = 0;
    for (std::size_t l = 0; l < batch.layer_offsets.size(); ++l) {
      const auto layer = static_cast<std::size_t>(layout.layer_bytes(batch.group, l));
      block_bytes += layer;
      extent = std::max(extent, batch.layer_offsets[l] + layer);
    }
    const bool from_staging = Load && core_->in_staging(batch.blocks, extent);
    if (!from_staging && !core_->registered(batch.blocks, extent)) return errc::bad_argument;
    const cuda::scope here(core_->device());
    if (const status takes = cuda::takes_work(stream); !takes) return takes;
    cuda::lane& lane = core_->lane_of(Load);
    const std::lock_guard lock(lane.mutex);
    cuda::job& job = lane.jobs.take();
    operation made(core_, job);
    const std::size_t over_the_link = from_staging ? 0 : block_bytes * batch.blocks.size();
    // Looked at before the job counts as under way itself.
    const bool behind = Load && !from_staging && core_->behind(over_the_link);
    if (!job.begin(over_the_link) || ::cudaEventRecord(job.start(), stream) != cudaSuccess) {
      job.refused = cudaErrorUnknown;
      static_cast<void>(::cudaGetLastError());
      return errc::device_failed;
    }
    lane.begin(job, from_staging);
    cudaError_t e = cudaErrorMemoryAllocation;
    try {
      e = copy<Load>(layout, batch, block_bytes, {from_staging, behind}, lane);
    } catch (...) {  // a list that could not grow
    }
    if (e == cudaSuccess) return made;
    job.refused = e;
    if (!lane.abandon()) return errc::device_failed;
    return made;
  }

  struct call_kind {
    bool from_staging = false;
    bool behind = false;  ///< small, and behind a long one
  };

  template <bool Load, kv_layout Layout>
  [[nodiscard]] cudaError_t copy(const Layout& layout, const transfer_batch& batch, std::size_t block_bytes,
                                 call_kind kind, cuda::lane& lane) {
    const std::size_t layers = batch.layer_offsets.size();
    lane.runs.clear();
    detail::append_runs(layout, batch, batch.blocks[0], 0, layers, lane.runs);
    const cuda_technique how =
        kind.from_staging ? core_->choose_from_staging()
                          : core_->choose(Load, batch.group, lane.runs, layers, batch.blocks.size(), kind.behind);
    // Whole blocks are best for saves, which nobody waits for layer by layer.
    const std::size_t groups = Load ? core_->groups(how, layers, block_bytes, batch.blocks.size()) : 1;
    for (std::size_t g = 0; g < groups; ++g) {
      const std::size_t first = layers * g / groups;
      const std::size_t last = layers * (g + 1) / groups;
      for (const block_copy& block : batch.blocks) {
        lane.runs.clear();
        detail::append_runs(layout, batch, block, first, last, lane.runs);
        if (const cudaError_t e = copy_block(how, batch.group, last - first, lane); e != cudaSuccess) return e;
      }
      if (const cudaError_t e = lane.end_group(last); e != cudaSuccess) return e;
    }
    return cudaSuccess;
  }

  [[nodiscard]] cudaError_t copy_block(cuda_technique how, std::size_t group, std::size_t layers, cuda::lane& lane) {
    if (how == cuda_technique::strided && !core_->strides_refused(group)) {
      if (const auto view = detail::find_strides(lane.runs, layers, core_->largest_pitch())) {
        const cudaError_t e = lane.strided(lane.runs, *view);
        if (e != cudaErrorInvalidValue) return e;
        // Copying a block once more does no harm: the rows that went through are the same.
        static_cast<void>(::cudaGetLastError());
        core_->refuse_strides(group);
      }
    }
    for (const detail::copy_run& run : lane.runs) {
      cudaError_t e = cudaSuccess;
      switch (how) {
        case cuda_technique::strided:
        case cuda_technique::batched:
          e = lane.batched(run);
          break;
        case cuda_technique::staged:
          e = lane.staged(run);
          break;
        case cuda_technique::direct:
          e = lane.direct(run);
          break;
      }
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  }

  std::shared_ptr<cuda::core> core_;
};

static_assert(transfer_engine<cuda_transfer, archetype::layout>);

}  // namespace kvx
