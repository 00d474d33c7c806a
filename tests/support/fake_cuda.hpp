// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA runtime that cuda_transfer uses, on the CPU: streams whose work runs late and in any order that
// streams and events allow (deferred_core), so that a missing wait shows without a GPU. Include it in one file of a
// program: it defines the runtime's functions, which then take the place of the library's.
#pragma once

#include <kvx/detail/deferred_core.hpp>
#include <kvx/transfer/cuda/kernels.hpp>

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace kvx_test {

/// The device. Faults are numbers of calls from now on: 1 is the next.
class fake_cuda {
 public:
  static fake_cuda& instance() {
    static fake_cuda device;
    return device;
  }

  /// A new order of everything; nothing may be under way.
  void reseed(std::uint64_t seed) {
    stop();
    start(seed);
  }
  /// The n-th copy or launch returns an error and does nothing.
  void refuse_submission(std::uint64_t n) { refuse_in_ = n; }
  /// From here on, until repaired, whatever asks for the device's state hears of an error, and copies do nothing.
  void break_device() { broken_ = true; }
  void repair_device() { broken_ = false; }
  /// Arenas cannot be pinned.
  void refuse_pinning(bool refused) { refuses_pinning_ = refused; }
  [[nodiscard]] std::size_t pinned_arenas() {
    const std::lock_guard lock(mutex_);
    return pinned_.size();
  }
  [[nodiscard]] std::size_t allocations() {
    const std::lock_guard lock(mutex_);
    return made_;
  }

  // What follows is called by the runtime's functions.

  struct event {
    std::shared_ptr<kvx::detail::deferred_event> last;
  };

  kvx::detail::deferred_core& core() { return *core_; }
  static kvx::detail::deferred_queue& queue(cudaStream_t stream) {
    return *reinterpret_cast<kvx::detail::deferred_queue*>(stream);
  }
  cudaError_t submit(cudaStream_t stream, std::function<void()> work) {
    if (broken_) return cudaErrorLaunchFailure;
    if (refuse_in_ > 0 && --refuse_in_ == 0) return cudaErrorUnknown;
    kvx::detail::deferred_item item;
    item.work = [this, work = std::move(work)] {
      if (!broken_) work();
    };
    core_->submit(queue(stream), std::move(item));
    return cudaSuccess;
  }
  [[nodiscard]] bool broken() const { return broken_; }
  [[nodiscard]] bool refuses_pinning() const { return refuses_pinning_; }

  void* allocate(std::size_t size) {
    void* const at = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    const std::lock_guard lock(mutex_);
    ++made_;
    memory_[static_cast<std::byte*>(at)] = size;
    return at;
  }
  void release(void* at) {
    const std::lock_guard lock(mutex_);
    memory_.erase(static_cast<std::byte*>(at));
    std::free(at);
  }
  void count_allocation() {
    const std::lock_guard lock(mutex_);
    ++made_;
  }
  /// Whether a range lies in one allocation, or in none that is known, as host memory does.
  bool in_one_allocation(const void* first, std::size_t size) {
    const std::lock_guard lock(mutex_);
    const auto* const begin = static_cast<const std::byte*>(first);
    auto after = memory_.upper_bound(const_cast<std::byte*>(begin));
    if (after == memory_.begin()) return after == memory_.end() || begin + size <= after->first;
    const auto before = std::prev(after);
    if (begin < before->first + before->second) return begin + size <= before->first + before->second;
    return after == memory_.end() || begin + size <= after->first;
  }
  cudaError_t pin(void* at, std::size_t size) {
    const std::lock_guard lock(mutex_);
    if (refuses_pinning_) return cudaErrorMemoryAllocation;
    return pinned_.emplace(at, size).second ? cudaSuccess : cudaErrorHostMemoryAlreadyRegistered;
  }
  cudaError_t unpin(void* at) {
    const std::lock_guard lock(mutex_);
    return pinned_.erase(at) == 1 ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
  }

 private:
  fake_cuda() { start(1); }
  ~fake_cuda() { stop(); }

  void start(std::uint64_t seed) {
    core_ = std::make_shared<kvx::detail::deferred_core>(seed, std::chrono::nanoseconds{0},
                                                         std::chrono::microseconds{100}, 1, false);
    worker_ = std::thread([core = core_.get()] { core->work(); });
  }
  void stop() {
    core_->wait([this] { return core_->all_empty(); });
    core_->stop();
    worker_.join();
    core_->abandon();
  }

  std::shared_ptr<kvx::detail::deferred_core> core_;
  std::thread worker_;
  std::mutex mutex_;
  std::map<std::byte*, std::size_t> memory_;
  std::map<void*, std::size_t> pinned_;
  std::size_t made_ = 0;
  std::atomic<std::uint64_t> refuse_in_{0};
  std::atomic<bool> broken_{false};
  std::atomic<bool> refuses_pinning_{false};
};

inline void fake_copy_pieces(const kvx::cuda_copy* copies, std::uint32_t count) {
  for (std::uint32_t i = 0; i < count; ++i) {
    std::memcpy(reinterpret_cast<void*>(copies[i].to), reinterpret_cast<const void*>(copies[i].from), copies[i].bytes);
  }
}

}  // namespace kvx_test

using kvx_test::fake_cuda;

extern "C" {

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the fake device"; }
const char* cudaGetErrorName(cudaError_t) { return "fake"; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* to, int) {
  *to = {};
  std::strcpy(to->name, "fake");
  to->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMaxPitch ? 0x7FFF'FFFF : 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = *highest = 0;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* to, unsigned, int) {
  *to = reinterpret_cast<cudaStream_t>(fake_cuda::instance().core().create_queue());
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* to, unsigned) { return cudaStreamCreateWithPriority(to, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  auto& queue = fake_cuda::queue(stream);
  fake_cuda::instance().core().wait([&] { return queue.items.empty(); });
  return fake_cuda::instance().broken() ? cudaErrorLaunchFailure : cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* to) {
  *to = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const auto& last = reinterpret_cast<fake_cuda::event*>(event)->last;
  if (last == nullptr) return cudaSuccess;
  kvx::detail::deferred_item item;
  item.awaited = last;
  fake_cuda::instance().core().submit(fake_cuda::queue(stream), std::move(item));
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* to, unsigned) {
  fake_cuda::instance().count_allocation();
  *to = reinterpret_cast<cudaEvent_t>(new fake_cuda::event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<fake_cuda::event*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  kvx::detail::deferred_item item;
  item.work = [] {};
  item.fires = reinterpret_cast<fake_cuda::event*>(event)->last = std::make_shared<kvx::detail::deferred_event>();
  fake_cuda::instance().core().submit(fake_cuda::queue(stream), std::move(item));
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  auto& core = fake_cuda::instance().core();
  const std::lock_guard lock(core.mutex);
  if (fake_cuda::instance().broken()) return cudaErrorLaunchFailure;
  return reinterpret_cast<fake_cuda::event*>(event)->last->fired ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto last = reinterpret_cast<fake_cuda::event*>(event)->last;
  fake_cuda::instance().core().wait([&] { return last->fired || fake_cuda::instance().broken(); });
  return fake_cuda::instance().broken() ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaMalloc(void** to, std::size_t bytes) {
  *to = fake_cuda::instance().allocate(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  fake_cuda::instance().release(at);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** to, std::size_t bytes, unsigned) { return cudaMalloc(to, bytes); }
cudaError_t cudaFreeHost(void* at) { return cudaFree(at); }
cudaError_t cudaHostRegister(void* at, std::size_t bytes, unsigned) { return fake_cuda::instance().pin(at, bytes); }
cudaError_t cudaHostUnregister(void* at) { return fake_cuda::instance().unpin(at); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* to, const void*) {
  *to = {};
  to->type = cudaMemoryTypeHost;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return fake_cuda::instance().submit(stream, [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return fake_cuda::instance().submit(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind, cudaStream_t stream) {
  auto& device = fake_cuda::instance();
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidPitchValue;
  if (!device.in_one_allocation(to, (height - 1) * to_pitch + width) ||
      !device.in_one_allocation(from, (height - 1) * from_pitch + width)) {
    return cudaErrorInvalidValue;
  }
  return device.submit(stream, [=] {
    for (std::size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<std::byte*>(to) + row * to_pitch, static_cast<const std::byte*>(from) + row * from_pitch,
                  width);
    }
  });
}
#if CUDART_VERSION >= 13000
cudaError_t cudaMemcpyBatchAsync(void* const* to, const void* const* from, const std::size_t* sizes, std::size_t count,
                                 cudaMemcpyAttributes*, std::size_t*, std::size_t, cudaStream_t stream) {
#else
cudaError_t cudaMemcpyBatchAsync(void** to, void** from, std::size_t* sizes, std::size_t count, cudaMemcpyAttributes*,
                                 std::size_t*, std::size_t, std::size_t*, cudaStream_t stream) {
#endif
  for (std::size_t i = 0; i < count; ++i) {
    if (const cudaError_t e = cudaMemcpyAsync(to[i], from[i], sizes[i], cudaMemcpyDefault, stream); e != cudaSuccess) {
      return e;
    }
  }
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void** arguments, std::size_t, cudaStream_t stream) {
  const auto run =
      reinterpret_cast<void (*)(const kvx::cuda_copy*, std::uint32_t)>(reinterpret_cast<std::uintptr_t>(kernel));
  return fake_cuda::instance().submit(stream,
                                      [run, list = *static_cast<const kvx::cuda_copy**>(arguments[0]),
                                       count = *static_cast<std::uint32_t*>(arguments[1])] { run(list, count); });
}

}  // extern "C"
