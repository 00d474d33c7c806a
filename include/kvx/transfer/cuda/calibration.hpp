// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/copy_plan.hpp>
#include <kvx/transfer/cuda/costs.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/transfer/cuda/job.hpp>
#include <kvx/transfer/cuda/lane.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <mutex>

namespace kvx::cuda {

/// Measures what each technique costs, with a lane's own streams and memory of its own.
///
/// Each cost is a difference of two sizes, or what is left when the time of the bytes is taken away; the best of three.
/// Cost    about 30 ms for both directions; 16 MiB of pinned and 32 MiB of device memory meanwhile
class calibration {
 public:
  /// Errors  throws device_failed
  explicit calibration(bool kernels)
      : kernels_(kernels),
        host_(make_pinned_memory(bytes)),
        device_(make_device_memory(2 * bytes)),
        before_(make_stream(0)) {
    if (host_ == nullptr) require(cudaErrorMemoryAllocation, "pinned memory for the calibration");
  }

  /// Errors  throws device_failed
  [[nodiscard]] cuda_costs costs(lane& of) {
    const std::lock_guard lock(of.mutex);
    cuda_costs found;
    const auto rate = [](double more_us, double less_us, std::size_t difference) {
      return static_cast<double>(difference) / (std::max(more_us - less_us, 1.0) * 1e3);
    };
    const auto rest = [](double us, std::size_t moved, double gb_per_s) {
      return std::max(0.0, us - static_cast<double>(moved) / (gb_per_s * 1e3));
    };
    found.link_gb_per_s = rate(measure(of, cuda_technique::batched, bytes, bytes),
                               measure(of, cuda_technique::batched, bytes / 4, bytes / 4), bytes - bytes / 4);
    const double strided =
        measure(of, cuda_technique::strided, bytes, small) - measure(of, cuda_technique::strided, bytes / 4, small);
    found.strided_copy_us = rest(strided, bytes - bytes / 4, found.link_gb_per_s) /
                            static_cast<double>((bytes - bytes / 4) / (small * rows));
    // Long calls, for the first hundreds of entries are taken faster than they are done; and small entries are never
    // cheaper than large ones.
    const auto entry_us = [&](std::size_t size, std::size_t count) {
      const double more = measure(of, cuda_technique::batched, 2 * count * size, size);
      const double less = measure(of, cuda_technique::batched, count * size, size);
      return std::max(more - less, 0.01) / static_cast<double>(count);
    };
    found.large_entry_us = entry_us(large, bytes / 2 / large);
    found.small_entry_us = std::max(found.large_entry_us, entry_us(small, bytes / 4 / small));
    if (!kernels_) return found;
    // Several pieces of staging memory, so that copies and kernels overlap as in a long call.
    const double staged = measure(of, cuda_technique::staged, 6 * bytes, small);
    const double less_staged = measure(of, cuda_technique::staged, 3 * bytes, small);
    found.staged_gb_per_s = rate(staged, less_staged, 3 * bytes);
    found.staged_start_us = rest(less_staged, 3 * bytes, found.staged_gb_per_s);
    const double direct = measure(of, cuda_technique::direct, bytes / 4, small);
    const double less_direct = measure(of, cuda_technique::direct, bytes / 64, small);
    found.direct_gb_per_s = rate(direct, less_direct, bytes / 4 - bytes / 64);
    found.direct_start_us = rest(less_direct, bytes / 64, found.direct_gb_per_s);
    return found;
  }

 private:
  static constexpr std::size_t bytes = 16U << 20U;
  static constexpr std::size_t small = 4096;
  static constexpr std::size_t large = 32768;
  static constexpr std::size_t rows = 64;

  // Fragments of one size, two of them apart in device memory and neighbours in the slot.
  double measure(lane& of, cuda_technique how, std::size_t total, std::size_t fragment) {
    std::array<double, 3> took{};
    for (std::size_t round = 0; round <= took.size(); ++round) {
      job& work = of.jobs.take();
      const auto began = std::chrono::steady_clock::now();
      cudaError_t e = work.begin(total) ? ::cudaEventRecord(work.start(), before_.get()) : cudaErrorMemoryAllocation;
      of.begin(work);
      if (e == cudaSuccess) e = submit(of, how, total, fragment);
      if (e == cudaSuccess) {
        e = of.end_group(1);
      } else {
        static_cast<void>(of.abandon());
      }
      work.wait();
      const auto ended = std::chrono::steady_clock::now();
      const bool well = work.outcome().ok();
      work.holders.store(0, std::memory_order_release);
      require(e, "the calibration");
      if (!well) require(cudaErrorUnknown, "the calibration");
      // The first round finds lists, events and tables that have to grow.
      if (round > 0) took[round - 1] = std::chrono::duration<double, std::micro>(ended - began).count();
    }
    return *std::min_element(took.begin(), took.end());
  }

  cudaError_t submit(lane& of, cuda_technique how, std::size_t total, std::size_t fragment) {
    auto* const slot = static_cast<std::byte*>(host_.get());
    auto* const engine = static_cast<std::byte*>(device_.get());
    const bool whole = total == fragment;
    if (how == cuda_technique::strided) {
      std::array<detail::copy_run, rows> block;
      for (std::size_t at = 0; at < total; at += rows * fragment) {
        for (std::size_t r = 0; r < rows; ++r) {
          block[r] = {engine + 2 * (at + r * fragment), slot + at + r * fragment, fragment};
        }
        if (const cudaError_t e = of.strided(block, {1, rows}); e != cudaSuccess) return e;
      }
      return cudaSuccess;
    }
    for (std::size_t moved = 0; moved < total; moved += fragment) {
      const std::size_t at = moved % bytes;
      const detail::copy_run run{engine + (whole ? at : 2 * at), slot + at, fragment};
      cudaError_t e = cudaSuccess;
      if (how == cuda_technique::batched) e = of.batched(run);
      if (how == cuda_technique::staged) e = of.staged(run);
      if (how == cuda_technique::direct) e = of.direct(run);
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  }

  bool kernels_;
  pinned_memory host_;
  device_memory device_;
  stream_handle before_;
};

}  // namespace kvx::cuda
