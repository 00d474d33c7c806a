// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/copy_plan.hpp>
#include <kvx/result.hpp>
#include <kvx/transfer/cuda/batch.hpp>
#include <kvx/transfer/cuda/costs.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/transfer/cuda/job.hpp>
#include <kvx/transfer/cuda/kernels.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <span>
#include <vector>

namespace kvx::cuda {

/// What the lanes of a `cuda_transfer` share.
/// Units   bytes
struct lane_options {
  cuda_kernels kernels{};
  std::size_t piece_bytes = 0;     ///< of one call of the copy engine
  std::size_t staging_bytes = 0;   ///< of the whole ring
  std::size_t staging_pieces = 0;  ///< of which at most this many are on their way
  unsigned staging_blocks = 32;    ///< thread blocks of kernels that stay in device memory
};

/// One direction: its streams, its staging memory, and the job that is being submitted to them.
///
/// The copy engine takes what one stream holds to its end before it looks at another, so a small copy of the inference
/// engine's would wait for a whole load. So copies change between two streams, one waiting for the other, every
/// piece: each change lets others in, and costs nothing. Streams wait for the inference engine's when a job first uses
/// them. Calls return errors of the runtime; after one, abandon().
/// Thread  the caller holds `mutex` from begin() to the last end_group()
class lane {
 public:
  std::mutex mutex;
  job_pool jobs;
  std::vector<detail::copy_run> runs;

  /// Errors  throws device_failed
  lane(const used_device& device, bool load, int priority, const lane_options& with)
      : jobs(device), load_(load), with_(with) {
    for (own_stream& each : copies_) each.handle = make_stream(priority);
    passed_ = made(make_event());
    if (with.kernels.copy == nullptr) return;
    kernels_.handle = make_stream(priority);
    urgent_.handle = make_stream(priority);
    piece_size_ = with.staging_bytes / with.staging_pieces / alignment * alignment;
    staging_ = make_device_memory(piece_size_ * with.staging_pieces);
    for (std::size_t i = 0; i < with.staging_pieces; ++i) {
      pieces_.push_back({made(make_event()), made(make_event())});
    }
  }

  /// Shape   on_device: slots lie in device memory, so that `direct` need not spare the link
  void begin(job& which, bool on_device = false) noexcept {
    job_ = &which;
    direct_blocks_ = on_device ? with_.staging_blocks : link_blocks;
    ramp_ = first_piece_bytes;
    for (own_stream* each : all()) each->joined = each->dirty = false;
  }
  /// Marks what was submitted since the last group ended.
  [[nodiscard]] cudaError_t end_group(std::size_t end_layer) {
    if (const cudaError_t e = flush(); e != cudaSuccess) return e;
    for (own_stream* each : all()) {
      if (!each->dirty) continue;
      if (const cudaError_t e = job_->mark(each->handle.get()); e != cudaSuccess) return e;
      each->dirty = false;
    }
    job_->end_group(end_layer);
    return cudaSuccess;
  }
  /// After an error: everything submitted is marked, or has ended. Returns whether there was anything.
  [[nodiscard]] bool abandon() noexcept {
    bool any = false;
    for (own_stream* each : all()) {
      if (!each->joined) continue;
      any = true;
      cudaError_t marked = cudaErrorMemoryAllocation;
      try {
        marked = job_->mark(each->handle.get());
      } catch (...) {  // the list of events cannot grow
      }
      if (marked != cudaSuccess) static_cast<void>(::cudaStreamSynchronize(each->handle.get()));
    }
    entries_.clear();
    ranges_.clear();
    list_ = nullptr;
    listed_ = 0;
    filled_ = 0;
    static_cast<void>(::cudaGetLastError());
    return any;
  }

  /// One matrix per phase of the view. cudaErrorInvalidValue before anything was submitted: the rows do not lie in one
  /// range of addresses, take another technique.
  [[nodiscard]] cudaError_t strided(std::span<const detail::copy_run> block, const detail::strided_view& view) {
    for (std::size_t phase = 0; phase < view.period; ++phase) {
      const detail::copy_run& first = block[phase];
      if (view.rows == 1) {
        if (const cudaError_t e = plain(first); e != cudaSuccess) return e;
        continue;
      }
      const detail::copy_run& second = block[phase + view.period];
      const auto engine_pitch = static_cast<std::size_t>(second.engine - first.engine);
      const auto slot_pitch = static_cast<std::size_t>(second.slot - first.slot);
      // A matrix of up to two pieces stays whole, for its start costs more than the longer turn.
      const bool whole = view.rows * first.bytes <= 2 * with_.piece_bytes;
      const std::size_t most_rows = whole ? view.rows : std::max<std::size_t>(1, with_.piece_bytes / first.bytes);
      for (std::size_t row = 0; row < view.rows; row += most_rows) {
        const std::size_t rows = std::min(most_rows, view.rows - row);
        std::byte* const engine = first.engine + row * engine_pitch;
        std::byte* const slot = first.slot + row * slot_pitch;
        cudaStream_t on = nullptr;
        if (const cudaError_t e = next_copy(rows * first.bytes, on); e != cudaSuccess) return e;
        const cudaError_t e = load_ ? ::cudaMemcpy2DAsync(engine, engine_pitch, slot, slot_pitch, first.bytes, rows,
                                                          cudaMemcpyHostToDevice, on)
                                    : ::cudaMemcpy2DAsync(slot, slot_pitch, engine, engine_pitch, first.bytes, rows,
                                                          cudaMemcpyDeviceToHost, on);
        if (e != cudaSuccess) return e;
      }
    }
    return cudaSuccess;
  }

  [[nodiscard]] cudaError_t batched(const detail::copy_run& run) {
    for (std::size_t at = 0; at < run.bytes;) {
      const std::size_t bytes = std::min(run.bytes - at, with_.piece_bytes);
      if (const cudaError_t e = add_entry(run.slot + at, run.engine + at, bytes); e != cudaSuccess) return e;
      at += bytes;
    }
    return cudaSuccess;
  }

  [[nodiscard]] cudaError_t staged(const detail::copy_run& run) {
    for (std::size_t at = 0; at < run.bytes;) {
      const bool continues = !ranges_.empty() && ranges_.back().slot + ranges_.back().bytes == run.slot + at;
      std::size_t offset = continues ? filled_ : round_up(filled_, alignment);
      const std::size_t room = std::min(piece_size_, ramp_);
      if (offset >= room) {
        if (const cudaError_t e = flush_staged(); e != cudaSuccess) return e;
        continue;
      }
      const std::size_t bytes = std::min({run.bytes - at, room - offset, cuda_kernels::piece_bytes});
      std::byte* const stage = static_cast<std::byte*>(staging_.get()) + piece_ * piece_size_ + offset;
      bool cut = false;
      cuda_copy* const copy = job_->add_copy(cut);
      if (copy == nullptr) return cudaErrorMemoryAllocation;
      if (cut && listed_ != 0) {
        // The entry is the first of the next list.
        if (const cudaError_t e = flush_staged(); e != cudaSuccess) return e;
        offset = 0;
        *copy = entry(static_cast<std::byte*>(staging_.get()) + piece_ * piece_size_, run.engine + at, bytes);
        ranges_.push_back({run.slot + at, 0, bytes});
      } else {
        *copy = entry(stage, run.engine + at, bytes);
        if (continues) {
          ranges_.back().bytes += bytes;
        } else {
          ranges_.push_back({run.slot + at, offset, bytes});
        }
      }
      if (listed_++ == 0) list_ = copy;
      filled_ = offset + bytes;
      at += bytes;
    }
    return cudaSuccess;
  }

  [[nodiscard]] cudaError_t direct(const detail::copy_run& run) {
    for (std::size_t at = 0; at < run.bytes;) {
      const std::size_t bytes = std::min(run.bytes - at, cuda_kernels::piece_bytes);
      bool cut = false;
      cuda_copy* const copy = job_->add_copy(cut);
      if (copy == nullptr) return cudaErrorMemoryAllocation;
      if (cut && listed_ != 0) {
        if (const cudaError_t e = flush_direct(); e != cudaSuccess) return e;
      }
      *copy = entry(run.slot + at, run.engine + at, bytes);
      if (listed_++ == 0) list_ = copy;
      at += bytes;
    }
    return cudaSuccess;
  }

  /// Submits what was collected.
  [[nodiscard]] cudaError_t flush() {
    if (const cudaError_t e = flush_entries(); e != cudaSuccess) return e;
    return ranges_.empty() ? flush_direct() : flush_staged();
  }

 private:
  static constexpr std::size_t alignment = 256;
  // A call starts with less than a piece, and doubles that: the link idles until the host has the first ready.
  static constexpr std::size_t first_piece_bytes = 1U << 20U;
  // Over the link two keep it full, and leave the engine's kernels the rest.
  static constexpr unsigned link_blocks = 2;

  struct own_stream {
    stream_handle handle;
    bool joined = false;  ///< waits for the engine's stream, in this job
    bool dirty = false;   ///< has work that no mark covers
  };
  struct staging_piece {
    event_handle filled;
    event_handle emptied;
  };
  struct range {
    std::byte* slot = nullptr;
    std::size_t offset = 0;
    std::size_t bytes = 0;
  };

  [[nodiscard]] cuda_copy entry(const std::byte* near, const std::byte* engine, std::size_t bytes) const noexcept {
    const auto a = reinterpret_cast<std::uint64_t>(near);
    const auto b = reinterpret_cast<std::uint64_t>(engine);
    return load_ ? cuda_copy{b, a, bytes} : cuda_copy{a, b, bytes};
  }
  [[nodiscard]] cudaError_t add_entry(std::byte* host, std::byte* device, std::size_t bytes) {
    if (entries_.full() || (!entries_.empty() && entries_.bytes() + bytes > std::min(with_.piece_bytes, ramp_))) {
      if (const cudaError_t e = flush_entries(); e != cudaSuccess) return e;
    }
    load_ ? entries_.add(device, host, bytes) : entries_.add(host, device, bytes);
    return cudaSuccess;
  }

  static event_handle made(event_handle event) {
    if (event == nullptr) require(cudaErrorMemoryAllocation, "an event");
    return event;
  }

  [[nodiscard]] std::array<own_stream*, 4> all() noexcept { return {&copies_[0], &copies_[1], &kernels_, &urgent_}; }

  // The stream for the next copy.
  [[nodiscard]] cudaError_t next_copy(std::size_t bytes, cudaStream_t& on) noexcept {
    own_stream& now = copies_[turn_];
    if (since_turn_ != 0 && since_turn_ + bytes > with_.piece_bytes) {
      own_stream& next = copies_[1 - turn_];
      if (const cudaError_t e = ::cudaEventRecord(passed_.get(), now.handle.get()); e != cudaSuccess) return e;
      if (const cudaError_t e = ::cudaStreamWaitEvent(next.handle.get(), passed_.get(), 0); e != cudaSuccess) return e;
      // The end of the next implies the end of this.
      next.joined = now.joined;
      now.dirty = false;
      turn_ = 1 - turn_;
      since_turn_ = 0;
    }
    since_turn_ += bytes;
    on = copies_[turn_].handle.get();
    return use(copies_[turn_]);
  }

  // From here on the stream is behind the engine's, and has something to mark.
  [[nodiscard]] cudaError_t use(own_stream& which) noexcept {
    if (!which.joined) {
      const cudaError_t e = ::cudaStreamWaitEvent(which.handle.get(), job_->start(), 0);
      if (e != cudaSuccess) return e;
    }
    which.joined = which.dirty = true;
    return cudaSuccess;
  }
  [[nodiscard]] cudaError_t plain(const detail::copy_run& run) {
    for (std::size_t at = 0; at < run.bytes; at += with_.piece_bytes) {
      const std::size_t bytes = std::min(run.bytes - at, with_.piece_bytes);
      cudaStream_t on = nullptr;
      if (const cudaError_t e = next_copy(bytes, on); e != cudaSuccess) return e;
      const cudaError_t e = load_
                                ? ::cudaMemcpyAsync(run.engine + at, run.slot + at, bytes, cudaMemcpyHostToDevice, on)
                                : ::cudaMemcpyAsync(run.slot + at, run.engine + at, bytes, cudaMemcpyDeviceToHost, on);
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  }

  [[nodiscard]] cudaError_t flush_entries() {
    if (entries_.empty()) return cudaSuccess;
    cudaStream_t on = nullptr;
    if (const cudaError_t e = next_copy(entries_.bytes(), on); e != cudaSuccess) return e;
    ramp_ = std::min(2 * ramp_, std::max(with_.piece_bytes, piece_size_));
    return entries_.submit(load_ ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, on);
  }

  [[nodiscard]] cudaError_t launch(own_stream& on, unsigned blocks) noexcept {
    constexpr std::uint32_t warps_per_block = cuda_kernels::copy_threads / 32;
    blocks = std::min(blocks, (listed_ + warps_per_block - 1) / warps_per_block);
    const cuda_copy* list = list_;
    std::uint32_t count = listed_;
    void* arguments[] = {&list, &count};
    list_ = nullptr;
    listed_ = 0;
    return ::cudaLaunchKernel(with_.kernels.copy, dim3(blocks), dim3(cuda_kernels::copy_threads), arguments, 0,
                              on.handle.get());
  }

  [[nodiscard]] cudaError_t flush_direct() noexcept {
    if (listed_ == 0) return cudaSuccess;
    if (const cudaError_t e = use(urgent_); e != cudaSuccess) return e;
    return launch(urgent_, direct_blocks_);
  }

  // A piece goes round, emptied, filled, emptied, with each step behind the one before on the other side.
  [[nodiscard]] cudaError_t flush_staged() {
    if (listed_ == 0) return cudaSuccess;
    if (const cudaError_t e = load_ ? arrive_and_scatter() : gather_and_leave(); e != cudaSuccess) return e;
    ranges_.clear();
    filled_ = 0;
    piece_ = (piece_ + 1) % pieces_.size();
    return cudaSuccess;
  }
  [[nodiscard]] cudaError_t arrive_and_scatter() {
    const staging_piece& piece = pieces_[piece_];
    // The kernel's end implies that of these copies, but not of others before them.
    const bool others = copies_[turn_].dirty;
    cudaError_t e = ::cudaStreamWaitEvent(copies_[turn_].handle.get(), piece.emptied.get(), 0);
    if (e == cudaSuccess) e = copy_ranges();
    if (e == cudaSuccess) e = ::cudaEventRecord(piece.filled.get(), copies_[turn_].handle.get());
    if (e == cudaSuccess) e = use(kernels_);
    if (e == cudaSuccess) e = ::cudaStreamWaitEvent(kernels_.handle.get(), piece.filled.get(), 0);
    if (e == cudaSuccess) e = scatter_or_gather();
    if (e == cudaSuccess) e = ::cudaEventRecord(piece.emptied.get(), kernels_.handle.get());
    if (e == cudaSuccess) copies_[turn_].dirty = others;
    return e;
  }
  [[nodiscard]] cudaError_t gather_and_leave() {
    const staging_piece& piece = pieces_[piece_];
    cudaError_t e = use(kernels_);
    if (e == cudaSuccess) e = ::cudaStreamWaitEvent(kernels_.handle.get(), piece.emptied.get(), 0);
    if (e == cudaSuccess) e = scatter_or_gather();
    if (e == cudaSuccess) e = ::cudaEventRecord(piece.filled.get(), kernels_.handle.get());
    if (e == cudaSuccess) e = ::cudaStreamWaitEvent(copies_[turn_].handle.get(), piece.filled.get(), 0);
    if (e == cudaSuccess) e = copy_ranges();
    if (e == cudaSuccess) e = ::cudaEventRecord(piece.emptied.get(), copies_[turn_].handle.get());
    if (e == cudaSuccess) kernels_.dirty = false;
    return e;
  }
  [[nodiscard]] cudaError_t scatter_or_gather() noexcept { return launch(kernels_, with_.staging_blocks); }
  [[nodiscard]] cudaError_t copy_ranges() {
    std::byte* const base = static_cast<std::byte*>(staging_.get()) + piece_ * piece_size_;
    for (const range& each : ranges_) {
      for (std::size_t at = 0; at < each.bytes; at += with_.piece_bytes) {
        const std::size_t bytes = std::min(each.bytes - at, with_.piece_bytes);
        if (const cudaError_t e = add_entry(each.slot + at, base + each.offset + at, bytes); e != cudaSuccess) return e;
      }
    }
    return flush_entries();
  }

  bool load_;
  lane_options with_;
  std::array<own_stream, 2> copies_;
  event_handle passed_;
  std::size_t turn_ = 0;
  std::size_t since_turn_ = 0;
  own_stream kernels_;
  own_stream urgent_;
  device_memory staging_;
  std::vector<staging_piece> pieces_;
  std::size_t piece_size_ = 0;

  // The submission under way.
  job* job_ = nullptr;
  std::size_t ramp_ = 0;
  unsigned direct_blocks_ = link_blocks;
  batch entries_;
  std::size_t piece_ = 0;
  std::size_t filled_ = 0;
  std::vector<range> ranges_;
  const cuda_copy* list_ = nullptr;
  std::uint32_t listed_ = 0;
};

}  // namespace kvx::cuda
