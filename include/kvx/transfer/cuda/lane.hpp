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
  unsigned copy_streams = 1;
  unsigned staging_blocks = 32;  ///< thread blocks of gather and scatter
};

/// One direction: its streams, its staging memory, and the job that is being submitted to them.
///
/// Streams take pieces in turn; each waits for the engine's stream when a job first uses it. Calls return errors of
/// the runtime; after one, end() still covers whatever was submitted.
/// Thread  the caller holds `mutex` from begin() to end()
class lane {
 public:
  std::mutex mutex;
  job_pool jobs;
  std::vector<detail::copy_run> runs;

  /// Errors  throws device_failed
  lane(bool load, int priority, const lane_options& with) : load_(load), with_(with) {
    for (unsigned i = 0; i < with.copy_streams; ++i) streams_.push_back({make_stream(priority)});
    if (with.kernels.copy == nullptr) return;
    kernels_ = streams_.size();
    streams_.push_back({make_stream(priority)});
    if (load) streams_.push_back({make_stream(priority)});
    direct_ = streams_.size() - 1;
    piece_size_ = with.staging_bytes / with.staging_pieces / alignment * alignment;
    staging_ = make_device_memory(piece_size_ * with.staging_pieces);
    for (std::size_t i = 0; i < with.staging_pieces; ++i) {
      pieces_.push_back({make_event(), make_event()});
      if (pieces_.back().filled == nullptr || pieces_.back().emptied == nullptr)
        require(cudaErrorMemoryAllocation, "an event");
    }
  }

  void begin(job& which) noexcept {
    job_ = &which;
    turn_ = 0;
    for (own_stream& each : streams_) each.joined = each.dirty = false;
  }
  /// Marks what was submitted since the last group ended.
  [[nodiscard]] cudaError_t end_group(std::size_t end_layer) {
    if (const cudaError_t e = flush(); e != cudaSuccess) return e;
    for (own_stream& each : streams_) {
      if (!each.dirty) continue;
      if (const cudaError_t e = job_->mark(each.stream.get()); e != cudaSuccess) return e;
      each.dirty = false;
    }
    job_->end_group(end_layer);
    return cudaSuccess;
  }
  /// After an error: everything submitted is marked, or has ended. Returns whether there was anything.
  [[nodiscard]] bool abandon() noexcept {
    bool any = false;
    for (own_stream& each : streams_) {
      any = any || each.joined;
      if (!each.dirty && !each.joined) continue;
      cudaError_t marked = cudaErrorMemoryAllocation;
      try {
        marked = job_->mark(each.stream.get());
      } catch (...) {  // the list of events cannot grow
      }
      if (marked != cudaSuccess) static_cast<void>(::cudaStreamSynchronize(each.stream.get()));
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
      const std::size_t most_rows = std::max<std::size_t>(1, with_.piece_bytes / first.bytes);
      for (std::size_t row = 0; row < view.rows; row += most_rows) {
        const std::size_t rows = std::min(most_rows, view.rows - row);
        std::byte* const engine = first.engine + row * engine_pitch;
        std::byte* const slot = first.slot + row * slot_pitch;
        cudaStream_t stream = nullptr;
        if (const cudaError_t e = next_copy_stream(stream); e != cudaSuccess) return e;
        const cudaError_t e = load_ ? ::cudaMemcpy2DAsync(engine, engine_pitch, slot, slot_pitch, first.bytes, rows,
                                                          cudaMemcpyHostToDevice, stream)
                                    : ::cudaMemcpy2DAsync(slot, slot_pitch, engine, engine_pitch, first.bytes, rows,
                                                          cudaMemcpyDeviceToHost, stream);
        if (e != cudaSuccess) return e;
      }
    }
    return cudaSuccess;
  }

  [[nodiscard]] cudaError_t batched(const detail::copy_run& run) {
    for (std::size_t at = 0; at < run.bytes;) {
      const std::size_t bytes = std::min(run.bytes - at, with_.piece_bytes);
      if (entries_.full() || (!entries_.empty() && entries_.bytes() + bytes > batch_bytes)) {
        if (const cudaError_t e = flush_entries(); e != cudaSuccess) return e;
      }
      add_entry(run.slot + at, run.engine + at, bytes);
      at += bytes;
    }
    return cudaSuccess;
  }

  [[nodiscard]] cudaError_t staged(const detail::copy_run& run) {
    for (std::size_t at = 0; at < run.bytes;) {
      const bool continues = !ranges_.empty() && ranges_.back().slot + ranges_.back().bytes == run.slot + at;
      std::size_t offset = continues ? filled_ : round_up(filled_, alignment);
      if (offset >= piece_size_) {
        if (const cudaError_t e = flush_staged(); e != cudaSuccess) return e;
        continue;
      }
      const std::size_t bytes = std::min({run.bytes - at, piece_size_ - offset, cuda_kernels::piece_bytes});
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
  static constexpr std::size_t batch_bytes = 8U << 20U;
  static constexpr std::size_t alignment = 256;

  struct own_stream {
    stream_handle stream;
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
  void add_entry(std::byte* host, std::byte* device, std::size_t bytes) noexcept {
    load_ ? entries_.add(device, host, bytes) : entries_.add(host, device, bytes);
  }

  [[nodiscard]] cudaError_t join(own_stream& which) noexcept {
    if (which.joined) return cudaSuccess;
    const cudaError_t e = ::cudaStreamWaitEvent(which.stream.get(), job_->start(), 0);
    which.joined = e == cudaSuccess;
    return e;
  }
  [[nodiscard]] cudaError_t next_copy_stream(cudaStream_t& to) noexcept {
    own_stream& which = streams_[turn_++ % with_.copy_streams];
    which.dirty = true;
    to = which.stream.get();
    return join(which);
  }
  [[nodiscard]] cudaError_t plain(const detail::copy_run& run) {
    for (std::size_t at = 0; at < run.bytes; at += with_.piece_bytes) {
      const std::size_t bytes = std::min(run.bytes - at, with_.piece_bytes);
      cudaStream_t stream = nullptr;
      if (const cudaError_t e = next_copy_stream(stream); e != cudaSuccess) return e;
      const cudaError_t e =
          load_ ? ::cudaMemcpyAsync(run.engine + at, run.slot + at, bytes, cudaMemcpyHostToDevice, stream)
                : ::cudaMemcpyAsync(run.slot + at, run.engine + at, bytes, cudaMemcpyDeviceToHost, stream);
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  }

  [[nodiscard]] cudaError_t flush_entries() {
    if (entries_.empty()) return cudaSuccess;
    cudaStream_t stream = nullptr;
    if (const cudaError_t e = next_copy_stream(stream); e != cudaSuccess) return e;
    return entries_.submit(load_ ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, stream);
  }

  [[nodiscard]] cudaError_t launch(own_stream& on, unsigned blocks) noexcept {
    const cuda_copy* list = list_;
    std::uint32_t count = listed_;
    void* arguments[] = {&list, &count};
    on.dirty = true;
    list_ = nullptr;
    listed_ = 0;
    return ::cudaLaunchKernel(with_.kernels.copy, dim3(blocks), dim3(cuda_kernels::copy_threads), arguments, 0,
                              on.stream.get());
  }

  [[nodiscard]] cudaError_t flush_direct() noexcept {
    if (listed_ == 0) return cudaSuccess;
    own_stream& on = streams_[direct_];
    if (const cudaError_t e = join(on); e != cudaSuccess) return e;
    return launch(on, 2);
  }

  // A piece goes round: emptied -> filled -> emptied; each step waits for the one before on the other stream.
  [[nodiscard]] cudaError_t flush_staged() {
    if (listed_ == 0) return cudaSuccess;
    own_stream& copies = streams_[0];
    own_stream& kernels = streams_[kernels_];
    own_stream& first = load_ ? copies : kernels;
    own_stream& second = load_ ? kernels : copies;
    const staging_piece& piece = pieces_[piece_];
    if (const cudaError_t e = join(first); e != cudaSuccess) return e;
    if (const cudaError_t e = join(second); e != cudaSuccess) return e;
    first.dirty = true;
    second.dirty = true;
    cudaError_t e = ::cudaStreamWaitEvent(first.stream.get(), piece.emptied.get(), 0);
    if (e == cudaSuccess) e = load_ ? copy_ranges() : launch(kernels, with_.staging_blocks);
    if (e == cudaSuccess) e = ::cudaEventRecord(piece.filled.get(), first.stream.get());
    if (e == cudaSuccess) e = ::cudaStreamWaitEvent(second.stream.get(), piece.filled.get(), 0);
    if (e == cudaSuccess) e = load_ ? launch(kernels, with_.staging_blocks) : copy_ranges();
    if (e == cudaSuccess) e = ::cudaEventRecord(piece.emptied.get(), second.stream.get());
    if (e != cudaSuccess) return e;
    // The second stream's end implies the first's.
    first.dirty = false;
    ranges_.clear();
    filled_ = 0;
    piece_ = (piece_ + 1) % pieces_.size();
    return cudaSuccess;
  }
  [[nodiscard]] cudaError_t copy_ranges() {
    const std::byte* const base = static_cast<const std::byte*>(staging_.get()) + piece_ * piece_size_;
    const cudaMemcpyKind kind = load_ ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    for (const range& each : ranges_) {
      for (std::size_t at = 0; at < each.bytes;) {
        const std::size_t bytes = std::min(each.bytes - at, with_.piece_bytes);
        if (entries_.full()) {
          if (const cudaError_t e = entries_.submit(kind, streams_[0].stream.get()); e != cudaSuccess) return e;
        }
        add_entry(each.slot + at, const_cast<std::byte*>(base) + each.offset + at, bytes);
        at += bytes;
      }
    }
    return entries_.empty() ? cudaSuccess : entries_.submit(kind, streams_[0].stream.get());
  }

  bool load_;
  lane_options with_;
  std::vector<own_stream> streams_;
  std::size_t kernels_ = 0;
  std::size_t direct_ = 0;
  device_memory staging_;
  std::vector<staging_piece> pieces_;
  std::size_t piece_size_ = 0;

  // The submission under way.
  job* job_ = nullptr;
  std::size_t turn_ = 0;
  batch entries_;
  std::size_t piece_ = 0;
  std::size_t filled_ = 0;
  std::vector<range> ranges_;
  const cuda_copy* list_ = nullptr;
  std::uint32_t listed_ = 0;
};

}  // namespace kvx::cuda
