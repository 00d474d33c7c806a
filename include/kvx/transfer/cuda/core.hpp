// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/transfer.hpp>
#include <kvx/detail/copy_plan.hpp>
#include <kvx/detail/touch.hpp>
#include <kvx/result.hpp>
#include <kvx/transfer/cuda/calibration.hpp>
#include <kvx/transfer/cuda/costs.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/transfer/cuda/kernels.hpp>
#include <kvx/transfer/cuda/lane.hpp>
#include <kvx/transfer/cuda/probe.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace kvx {

struct cuda_transfer_options {
  int device = 0;
  /// From `cuda_kernel_table()`; without kernels only the copy engine is used.
  cuda_kernels kernels{};
  /// Instead of a calibration, which measures what is not given.
  std::optional<cuda_costs> load_costs{};
  std::optional<cuda_costs> save_costs{};
  /// Instead of a choice per call. `strided` where it is not possible becomes `batched`; the others need kernels.
  std::optional<cuda_technique> technique{};
  /// How much is copied before copies of the engine's own get their turn.
  std::size_t piece_bytes = 8U << 20U;
  /// Device memory for `staged`, per direction, taken where there are kernels. A kernel of the engine that runs
  /// longer than this takes over the link stalls the copies.
  std::size_t staging_bytes = 64U << 20U;
  std::size_t staging_pieces = 4;
  /// Groups of layers that a load is cut into at most, so that wait_layer lets the first be used while others arrive.
  /// More than pay are never made; 1 is the fastest for the load alone.
  std::size_t layer_groups = 8;
  /// Largest call that may be `direct`, and that counts as urgent behind a longer load.
  std::size_t direct_bytes = 8U << 20U;
};

namespace cuda {

/// What a `cuda_transfer` and its operations share; operations may outlive the engine.
class core {
 public:
  explicit core(const cuda_transfer_options& with) : with_(checked(with)), device_(with.device) {
    const scope here(device_);
    device_.find_driver();
    try {
      start();
    } catch (...) {
      // As in the destructor, which does not run.
      loads_.reset();
      saves_.reset();
      throw;
    }
  }
  core(const core&) = delete;
  core& operator=(const core&) = delete;
  ~core() {
    // What they give back may be given back while others capture.
    const scope here(device_);
    loads_.reset();
    saves_.reset();
  }

  void close() noexcept {
    const scope here(device_);
    loads_->jobs.wait_all();
    saves_->jobs.wait_all();
    const std::lock_guard lock(arenas_mutex_);
    for (const std::span<std::byte> each : pinned_) static_cast<void>(::cudaHostUnregister(each.data()));
    pinned_.clear();
    arenas_.clear();
    staging_.clear();
    static_cast<void>(::cudaGetLastError());
  }

  [[nodiscard]] status register_arena(std::span<std::byte> arena) {
    if (arena.empty()) return {};
    {
      const std::lock_guard lock(arenas_mutex_);
      if (inside_an_arena(arena)) return {};
    }
    // Pinning gives pages too, but with one thread; and meanwhile copies ask for the arenas.
    detail::touch_in_parallel(arena);
    const scope here(device_);
    const std::lock_guard lock(arenas_mutex_);
    if (inside_an_arena(arena)) return {};
    const cudaError_t e =
        ::cudaHostRegister(arena.data(), arena.size(), cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (e != cudaSuccess) {
      static_cast<void>(::cudaGetLastError());
      const bool taken = e == cudaErrorHostMemoryAlreadyRegistered && pinned(arena.data()) && pinned(&arena.back());
      if (!taken) return errc::device_failed;
    } else {
      pinned_.push_back(arena);
    }
    arenas_.push_back(arena);
    return {};
  }
  /// Shape   bytes: from each payload on
  [[nodiscard]] bool registered(std::span<const block_copy> blocks, std::size_t bytes) const {
    const std::lock_guard lock(arenas_mutex_);
    return std::all_of(blocks.begin(), blocks.end(),
                       [&](const block_copy& block) { return inside_an_arena(std::span(block.payload, bytes)); });
  }

  [[nodiscard]] status register_staging(std::span<std::byte> staging) {
    if (with_.kernels.copy == nullptr) return errc::unsupported;
    if (staging.empty()) return {};
    {
      const scope here(device_);
      if (!on_device(staging.data()) || !on_device(&staging.back())) return errc::bad_argument;
    }
    const std::lock_guard lock(arenas_mutex_);
    if (!inside_one(staging_, staging)) staging_.push_back(staging);
    return {};
  }
  /// Whether all of the payloads lie in registered staging memory.
  /// Shape   bytes: from each payload on
  [[nodiscard]] bool in_staging(std::span<const block_copy> blocks, std::size_t bytes) const {
    const std::lock_guard lock(arenas_mutex_);
    return std::all_of(blocks.begin(), blocks.end(),
                       [&](const block_copy& block) { return inside_one(staging_, std::span(block.payload, bytes)); });
  }
  /// How loads from there are moved.
  [[nodiscard]] cuda_technique choose_from_staging() noexcept {
    last_[0].store(cuda_technique::direct);
    return cuda_technique::direct;
  }

  [[nodiscard]] const used_device& device() const noexcept { return device_; }
  [[nodiscard]] lane& lane_of(bool load) noexcept { return load ? *loads_ : *saves_; }
  [[nodiscard]] std::size_t largest_pitch() const noexcept { return largest_pitch_; }
  [[nodiscard]] const cuda_costs& costs(bool load) const noexcept { return load ? load_costs_ : save_costs_; }
  [[nodiscard]] cuda_technique last(bool load) const noexcept { return last_[load ? 0 : 1].load(); }

  // Layers in allocations of their own may happen to lie at equal distances, which matrices cannot use.
  [[nodiscard]] bool strides_refused(std::size_t group) const noexcept {
    return (refused_.load(std::memory_order_relaxed) >> std::min<std::size_t>(group, 63) & 1U) != 0;
  }
  void refuse_strides(std::size_t group) noexcept {
    refused_.fetch_or(std::uint64_t{1} << std::min<std::size_t>(group, 63), std::memory_order_relaxed);
  }

  /// Whether a load so small would wait long for those before it. The caller holds the loads' mutex.
  [[nodiscard]] bool behind(std::size_t bytes) noexcept {
    if (with_.kernels.copy == nullptr || bytes > with_.direct_bytes || with_.technique) return false;
    return loads_->jobs.bytes_under_way() > 2 * with_.direct_bytes;
  }

  /// Shape   runs: of the first block, all layers
  [[nodiscard]] cuda_technique choose(bool load, std::size_t group, std::span<const detail::copy_run> runs,
                                      std::size_t layers, std::size_t blocks, bool behind) noexcept {
    const bool kernels = with_.kernels.copy != nullptr;
    cuda_technique how = cuda_technique::batched;
    if (with_.technique) {
      const bool needs = *with_.technique == cuda_technique::staged || *with_.technique == cuda_technique::direct;
      if (!needs || kernels) how = *with_.technique;
    } else if (behind) {
      how = cuda_technique::direct;
    } else {
      how = cheapest(costs(load), workload(group, runs, layers, blocks), kernels, with_.direct_bytes);
    }
    last_[load ? 0 : 1].store(how);
    return how;
  }

  /// Into how many groups of layers a load is cut.
  [[nodiscard]] std::size_t groups(cuda_technique how, std::size_t layers, std::size_t block_bytes,
                                   std::size_t blocks) const noexcept {
    if (how == cuda_technique::direct) return 1;
    const std::size_t most = with_.layer_groups;
    constexpr std::size_t mib = 1U << 20U;
    if (how == cuda_technique::batched) return detail::layer_groups(layers, block_bytes * blocks, 16 * mib, most);
    // These copy a block's part of a group at once. In two is worth a little speed; more must cost next to none.
    return std::max(detail::layer_groups(layers, block_bytes, 5 * mib / 2, std::min<std::size_t>(2, most)),
                    detail::layer_groups(layers, block_bytes, 5 * mib, most));
  }

 private:
  // On a thread where the device is current.
  void start() {
    const auto attribute = [&](cudaDeviceAttr which) {
      int value = 0;
      require(::cudaDeviceGetAttribute(&value, which, with_.device), "device " + std::to_string(with_.device));
      return value;
    };
    // Rows of a matrix may not be further apart.
    largest_pitch_ = static_cast<std::size_t>(attribute(cudaDevAttrMaxPitch));
    if (attribute(cudaDevAttrCanUseHostPointerForRegisteredMem) == 0) with_.direct_bytes = 0;
    int lowest = 0;
    int highest = 0;
    require(::cudaDeviceGetStreamPriorityRange(&lowest, &highest), "priorities of streams");
    if (with_.kernels.copy != nullptr) {
      // A kernel that is loaded when first launched waits for whatever runs then.
      for (const void* kernel : {with_.kernels.copy, with_.kernels.page_values, with_.kernels.check_pages}) {
        cudaFuncAttributes attributes{};
        if (kernel != nullptr) require(::cudaFuncGetAttributes(&attributes, kernel), "a kernel of options::kernels");
      }
    }
    lane_options lanes;
    lanes.kernels = with_.kernels;
    lanes.piece_bytes = with_.piece_bytes;
    lanes.staging_bytes = with_.staging_bytes;
    lanes.staging_pieces = with_.staging_pieces;
    loads_.emplace(device_, true, highest, lanes);
    saves_.emplace(device_, false, lowest, lanes);
    if (!with_.load_costs || !with_.save_costs) {
      calibration measured(with_.kernels.copy != nullptr);
      load_costs_ = measured.costs(*loads_);
      save_costs_ = measured.costs(*saves_);
    }
    if (with_.load_costs) load_costs_ = *with_.load_costs;
    if (with_.save_costs) save_costs_ = *with_.save_costs;
  }

  static cuda_transfer_options checked(const cuda_transfer_options& with) {
    const auto refuse = [](const std::string& why) {
      throw error(errc::bad_argument, "cuda_transfer::options::" + why);
    };
    if (with.layer_groups == 0) refuse("layer_groups is 0; give 1 for loads that arrive as a whole");
    if (with.piece_bytes < 4096) refuse("piece_bytes is below 4096; give a few MiB");
    if (with.kernels.copy != nullptr) {
      if (with.staging_pieces < 2) refuse("staging_pieces is below 2, so that nothing would overlap");
      if (with.staging_bytes / with.staging_pieces < 65536) refuse("staging_bytes gives less than 64 KiB per piece");
    }
    if (const cuda_probe found = probe(with.device); !found.usable) throw error(errc::device_failed, found.text);
    return with;
  }

  // The caller holds the arenas' mutex.
  [[nodiscard]] bool inside_an_arena(std::span<const std::byte> bytes) const noexcept {
    return inside_one(arenas_, bytes);
  }
  [[nodiscard]] static bool inside_one(std::span<const std::span<std::byte>> ranges,
                                       std::span<const std::byte> bytes) noexcept {
    return std::any_of(ranges.begin(), ranges.end(), [&](const std::span<std::byte> range) {
      return !std::less<>{}(bytes.data(), static_cast<const std::byte*>(range.data())) &&
             bytes.size() <= range.size() &&
             static_cast<std::size_t>(bytes.data() - range.data()) <= range.size() - bytes.size();
    });
  }

  [[nodiscard]] static bool pinned(const std::byte* at) noexcept {
    cudaPointerAttributes found{};
    if (::cudaPointerGetAttributes(&found, at) == cudaSuccess) return found.type == cudaMemoryTypeHost;
    static_cast<void>(::cudaGetLastError());
    return false;
  }
  [[nodiscard]] bool on_device(const std::byte* at) const noexcept {
    cudaPointerAttributes found{};
    if (::cudaPointerGetAttributes(&found, at) == cudaSuccess) {
      return found.type == cudaMemoryTypeDevice && found.device == device_.index();
    }
    static_cast<void>(::cudaGetLastError());
    return false;
  }

  [[nodiscard]] cuda_workload workload(std::size_t group, std::span<const detail::copy_run> runs, std::size_t layers,
                                       std::size_t blocks) const noexcept {
    cuda_workload one;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      one.bytes += runs[i].bytes;
      one.ranges += i == 0 || runs[i - 1].slot + runs[i - 1].bytes != runs[i].slot ? 1U : 0U;
    }
    one.fragments = runs.size();
    if (!strides_refused(group)) {
      if (const auto view = detail::find_strides(runs, layers, largest_pitch_)) one.matrices = view->period;
    }
    return {one.bytes * blocks, one.fragments * blocks, one.matrices * blocks, one.ranges * blocks};
  }

  cuda_transfer_options with_;
  used_device device_;
  std::size_t largest_pitch_ = 0;
  std::optional<lane> loads_;
  std::optional<lane> saves_;
  cuda_costs load_costs_;
  cuda_costs save_costs_;
  std::atomic<cuda_technique> last_[2] = {cuda_technique::batched, cuda_technique::batched};
  std::atomic<std::uint64_t> refused_{0};
  mutable std::mutex arenas_mutex_;
  std::vector<std::span<std::byte>> arenas_;
  std::vector<std::span<std::byte>> pinned_;  // those of them that are ours to unpin
  std::vector<std::span<std::byte>> staging_;
};

}  // namespace cuda
}  // namespace kvx
