// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>

namespace kvx::cuda {

/// Copies that are submitted by one call.
///
/// More than 512 at once make the runtime slower per copy, not faster.
class batch {
 public:
  static constexpr std::size_t capacity = 512;

  [[nodiscard]] bool empty() const noexcept { return count_ == 0; }
  [[nodiscard]] bool full() const noexcept { return count_ == capacity; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  void clear() noexcept { count_ = bytes_ = 0; }

  /// Shape   not full()
  void add(void* to, const void* from, std::size_t bytes) noexcept {
    to_[count_] = to;
    from_[count_] = from;
    sizes_[count_++] = bytes;
    bytes_ += bytes;
  }

  /// Leaves the batch empty.
  /// Stream  not the legacy one
  [[nodiscard]] cudaError_t submit(cudaMemcpyKind kind, cudaStream_t stream) noexcept {
    const std::size_t count = count_;
    clear();
    if (count == 1) return ::cudaMemcpyAsync(to_[0], from_[0], sizes_[0], kind, stream);
    if (!refused_) {
      // In stream order: with cudaMemcpySrcAccessOrderAny a source may be read before what the stream waits for.
      cudaMemcpyAttributes how{};
      how.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
      std::size_t first = 0;
#if CUDART_VERSION >= 13000
      const cudaError_t e =
          ::cudaMemcpyBatchAsync(to_.data(), from_.data(), sizes_.data(), count, &how, &first, 1, stream);
#else
      std::size_t failed = 0;
      const cudaError_t e = ::cudaMemcpyBatchAsync(to_.data(), const_cast<void**>(from_.data()), sizes_.data(), count,
                                                   &how, &first, 1, &failed, stream);
#endif
      if (e != cudaErrorNotSupported && e != cudaErrorCallRequiresNewerDriver) return e;
      static_cast<void>(::cudaGetLastError());
      refused_ = true;
    }
    for (std::size_t i = 0; i < count; ++i) {
      const cudaError_t e = ::cudaMemcpyAsync(to_[i], from_[i], sizes_[i], kind, stream);
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  }

 private:
  std::array<void*, capacity> to_{};
  std::array<const void*, capacity> from_{};
  std::array<std::size_t, capacity> sizes_{};
  std::size_t count_ = 0;
  std::size_t bytes_ = 0;
  bool refused_ = false;
};

}  // namespace kvx::cuda
