// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvx {

/// Device memory for the tensors of all layers in one range of addresses, at one distance from each other.
///
/// That is what lets `cuda_transfer` move a block with one copy of a matrix, which takes no multiprocessor and next to
/// no time of the host. One allocation of cudaMalloc; an engine that has to grow its pool can map physical memory
/// into a range of cuMemAddressReserve at the same distances instead, which copies as well.
/// Thread  const calls from any
/// Errors  throws bad_argument: nothing to allocate, or a distance of 2 GiB and more, beyond what copies of matrices
///         do; device_failed: the device has no memory left
class cuda_layer_memory {
 public:
  /// Shape   tensors: e.g. keys and values of each layer, in the order of the slot: K0, V0, K1, V1, ...
  /// Units   tensor_bytes: of each, rounded up to 512
  cuda_layer_memory(std::size_t tensors, std::size_t tensor_bytes, int device = 0)
      : device_(device), count_(tensors), stride_(round_up(tensor_bytes, alignment)) {
    if (tensors == 0 || tensor_bytes == 0) throw error(errc::bad_argument, "cuda_layer_memory: nothing to allocate");
    if (stride_ < tensor_bytes || stride_ > largest_stride ||
        tensors > std::numeric_limits<std::size_t>::max() / stride_) {
      throw error(errc::bad_argument,
                  "cuda_layer_memory: tensors of " + std::to_string(tensor_bytes) +
                      " bytes are 2 GiB or more apart, and copies of matrices end there; use tensors "
                      "of fewer pages, or separate allocations");
    }
    const cuda::scope here(device_);
    device_.find_driver();
    memory_ = cuda::make_device_memory(tensors * stride_);
  }
  cuda_layer_memory(cuda_layer_memory&&) noexcept = default;
  cuda_layer_memory& operator=(cuda_layer_memory&& other) noexcept {
    if (this == &other) return *this;
    release();
    device_ = other.device_;
    count_ = other.count_;
    stride_ = other.stride_;
    memory_ = std::move(other.memory_);
    return *this;
  }
  ~cuda_layer_memory() { release(); }

  [[nodiscard]] std::size_t size() const noexcept { return count_; }
  /// Bytes from one tensor to the next.
  [[nodiscard]] std::size_t stride() const noexcept { return stride_; }
  /// Shape   index: below size()
  [[nodiscard]] std::byte* tensor(std::size_t index) const noexcept {
    return static_cast<std::byte*>(memory_.get()) + index * stride_;
  }
  /// Every second one from `first` on: the keys (0) or the values (1), for `separate_kv`.
  [[nodiscard]] std::vector<std::byte*> every_second(std::size_t first) const {
    std::vector<std::byte*> out;
    for (std::size_t i = first; i < count_; i += 2) out.push_back(tensor(i));
    return out;
  }

 private:
  static constexpr std::size_t alignment = 512;
  static constexpr std::size_t largest_stride = (std::size_t{1} << 31U) - alignment;

  // Others may be capturing graphs meanwhile.
  void release() noexcept {
    if (memory_ == nullptr) return;
    const cuda::scope here(device_);
    memory_.reset();
  }

  cuda::used_device device_;
  std::size_t count_;
  std::size_t stride_;
  cuda::device_memory memory_;
};

}  // namespace kvx
