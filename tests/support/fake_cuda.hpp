// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA runtime that cuda_transfer and cufile use, on the CPU: streams whose work runs late and in any
// order that streams and events allow (deferred_core), so that a missing wait shows without a GPU. Each thread has a
// current device and a capture mode: calls start a context on the device that is current, are refused where what they
// are given is another device's, and break a capture of another thread's unless they are made in relaxed mode. Include
// it in one file of a program: it defines the runtime's functions, which then take the place of the library's.
#pragma once

#include <kvx/detail/deferred_core.hpp>
#include <kvx/detail/page_checksum.hpp>
#include <kvx/transfer/cuda/kernels.hpp>
#include <kvx/types.hpp>

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
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

/// The devices. Faults are numbers of calls from now on: 1 is the next.
class fake_cuda {
 public:
  static constexpr int devices = 2;

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
  /// Bytes of the device and of pinned memory that were not given back.
  [[nodiscard]] std::size_t allocated() {
    const std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const auto& [at, made] : memory_) sum += made.size;
    return sum;
  }
  /// From here on each copy to the device takes at least so long.
  void slow_copies_in(std::chrono::microseconds delay) { copy_in_us_ = delay.count(); }
  /// The n-th allocation of device or pinned memory finds none.
  void refuse_allocation(std::uint64_t n) { refuse_allocation_in_ = n; }

  /// Whether anything was started on a device; forgotten on request, as if the process began anew.
  [[nodiscard]] bool has_context(int device) { return contexts_.at(static_cast<std::size_t>(device)); }
  void forget_contexts() {
    for (std::atomic<bool>& each : contexts_) each = false;
  }
  /// From here on the calling thread captures in global mode, until it ends that; whether the capture came through.
  void begin_capture() {
    capturing_ = true;
    broken_capture_ = false;
  }
  [[nodiscard]] bool end_capture() {
    capturing_ = false;
    return !broken_capture_;
  }

  // What follows is called by the runtime's functions.

  struct event {
    std::shared_ptr<kvx::detail::deferred_event> last;
    int device = 0;
  };
  /// Each thread has its own.
  static int& current_device() {
    thread_local int device = 0;
    return device;
  }
  static cudaStreamCaptureMode& mode() {
    thread_local cudaStreamCaptureMode now = cudaStreamCaptureModeGlobal;
    return now;
  }
  /// A call was made that starts a context where there is none.
  void starts_context() { contexts_.at(static_cast<std::size_t>(current_device())) = true; }
  /// A call was made that a capture does not bear, for something of a device's, or of any's (-1).
  cudaError_t called(int device = -1) {
    starts_context();
    if (capturing_ && mode() != cudaStreamCaptureModeRelaxed) {
      broken_capture_ = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    return device >= 0 && device != current_device() ? cudaErrorInvalidResourceHandle : cudaSuccess;
  }
  cudaStream_t create_stream() {
    auto* const made = core_->create_queue();
    const std::lock_guard lock(mutex_);
    device_of_[made] = current_device();
    return reinterpret_cast<cudaStream_t>(made);
  }
  int device_of(cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    return device_of_.at(&queue(stream));
  }

  kvx::detail::deferred_core& core() { return *core_; }
  static kvx::detail::deferred_queue& queue(cudaStream_t stream) {
    return *reinterpret_cast<kvx::detail::deferred_queue*>(stream);
  }
  cudaError_t submit(cudaStream_t stream, std::function<void()> work) {
    if (const cudaError_t e = called(device_of(stream)); e != cudaSuccess) return e;
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

  [[nodiscard]] bool refuses_allocation() { return refuse_allocation_in_ > 0 && --refuse_allocation_in_ == 0; }
  /// Shape   device: -1 for pinned memory
  void* allocate(std::size_t size, int device) {
    void* const at = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    const std::lock_guard lock(mutex_);
    ++made_;
    memory_[static_cast<std::byte*>(at)] = {size, device};
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
    if (begin < before->first + before->second.size) return begin + size <= before->first + before->second.size;
    return after == memory_.end() || begin + size <= after->first;
  }
  cudaPointerAttributes attributes(const void* asked) {
    const std::lock_guard lock(mutex_);
    const auto* const at = static_cast<const std::byte*>(asked);
    cudaPointerAttributes found{};
    found.type = cudaMemoryTypeUnregistered;
    for (const auto& [first, size] : pinned_) {
      if (at >= first && at < static_cast<const std::byte*>(first) + size) found.type = cudaMemoryTypeHost;
    }
    for (const auto& [first, made] : memory_) {
      if (at < first || at >= first + made.size) continue;
      found.type = made.device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
      found.device = made.device < 0 ? 0 : made.device;
    }
    return found;
  }
  std::atomic<unsigned> last_grid{0};  ///< blocks of threads of the last kernel
  [[nodiscard]] std::chrono::microseconds copy_in_delay() const { return std::chrono::microseconds{copy_in_us_}; }
  cudaError_t pin(void* at, std::size_t size) {
    const std::lock_guard lock(mutex_);
    if (refuses_pinning_) return cudaErrorMemoryAllocation;
    if (::msync(at, size, MS_ASYNC) != 0) return cudaErrorInvalidValue;  // not all of it is mapped
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
  struct allocation {
    std::size_t size = 0;
    int device = -1;
  };
  std::map<std::byte*, allocation> memory_;
  std::map<void*, std::size_t> pinned_;
  std::map<const kvx::detail::deferred_queue*, int> device_of_;
  std::size_t made_ = 0;
  std::array<std::atomic<bool>, devices> contexts_{};
  std::atomic<bool> capturing_{false};
  std::atomic<bool> broken_capture_{false};
  std::atomic<std::uint64_t> refuse_allocation_in_{0};
  std::atomic<std::uint64_t> refuse_in_{0};
  std::atomic<bool> broken_{false};
  std::atomic<bool> refuses_pinning_{false};
  std::atomic<std::int64_t> copy_in_us_{0};
};

inline void fake_copy_pieces(const kvx::cuda_copy* copies, std::uint32_t count) {
  for (std::uint32_t i = 0; i < count; ++i) {
    std::memcpy(reinterpret_cast<void*>(copies[i].to), reinterpret_cast<const void*>(copies[i].from), copies[i].bytes);
  }
}

inline void fake_page_values(const std::byte* pages, std::uint64_t count, std::uint64_t* values) {
  for (std::uint64_t i = 0; i < count; ++i) values[i] = kvx::detail::page_checksum(pages + i * kvx::page_bytes);
}

/// What `cuda_kernel_table()` is on a device.
inline kvx::cuda_kernels fake_kernels() {
  kvx::cuda_kernels table;
  table.copy = reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(&fake_copy_pieces));
  table.page_values = reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(&fake_page_values));
  return table;
}

}  // namespace kvx_test

using kvx_test::fake_cuda;

// What the driver answers to cuDevicePrimaryCtxGetState.
inline int fake_context_state(int device, unsigned* flags, int* active) {
  *flags = 0;
  *active = fake_cuda::instance().has_context(device) ? 1 : 0;
  return 0;
}

extern "C" {

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  fake_cuda::instance().starts_context();
  std::swap(*mode, fake_cuda::mode());
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = fake_cuda::current_device();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= fake_cuda::devices) return cudaErrorInvalidDevice;
  fake_cuda::current_device() = device;
  fake_cuda::instance().starts_context();
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** to, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  fake_cuda::instance().starts_context();
  const bool known = std::strcmp(symbol, "cuDevicePrimaryCtxGetState") == 0;
  *to = known ? reinterpret_cast<void*>(&fake_context_state) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the fake device"; }
const char* cudaGetErrorName(cudaError_t) { return "fake"; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = fake_cuda::devices;
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
  return fake_cuda::instance().called();
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return fake_cuda::instance().called(); }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* to, unsigned, int) {
  if (const cudaError_t e = fake_cuda::instance().called(); e != cudaSuccess) return e;
  *to = fake_cuda::instance().create_stream();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* to, unsigned) { return cudaStreamCreateWithPriority(to, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return fake_cuda::instance().called(); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t e = fake_cuda::instance().called(fake_cuda::instance().device_of(stream)); e != cudaSuccess) {
    return e;
  }
  auto& queue = fake_cuda::queue(stream);
  fake_cuda::instance().core().wait([&] { return queue.items.empty(); });
  return fake_cuda::instance().broken() ? cudaErrorLaunchFailure : cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* to) {
  *to = cudaStreamCaptureStatusNone;
  fake_cuda::instance().starts_context();
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (const cudaError_t e = fake_cuda::instance().called(fake_cuda::instance().device_of(stream)); e != cudaSuccess) {
    return e;
  }
  const auto& last = reinterpret_cast<fake_cuda::event*>(event)->last;
  if (last == nullptr) return cudaSuccess;
  kvx::detail::deferred_item item;
  item.awaited = last;
  fake_cuda::instance().core().submit(fake_cuda::queue(stream), std::move(item));
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* to, unsigned) {
  if (const cudaError_t e = fake_cuda::instance().called(); e != cudaSuccess) return e;
  fake_cuda::instance().count_allocation();
  *to = reinterpret_cast<cudaEvent_t>(new fake_cuda::event{nullptr, fake_cuda::current_device()});
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<fake_cuda::event*>(event);
  return fake_cuda::instance().called();
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const int device = fake_cuda::instance().device_of(stream);
  if (const cudaError_t e = fake_cuda::instance().called(device); e != cudaSuccess) return e;
  if (device != reinterpret_cast<fake_cuda::event*>(event)->device) return cudaErrorInvalidResourceHandle;
  kvx::detail::deferred_item item;
  item.work = [] {};
  item.fires = reinterpret_cast<fake_cuda::event*>(event)->last = std::make_shared<kvx::detail::deferred_event>();
  fake_cuda::instance().core().submit(fake_cuda::queue(stream), std::move(item));
  return cudaSuccess;
}
// An event that was never recorded has nothing to wait for.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const auto& asked = *reinterpret_cast<fake_cuda::event*>(event);
  if (const cudaError_t e = fake_cuda::instance().called(asked.device); e != cudaSuccess) return e;
  auto& core = fake_cuda::instance().core();
  const std::lock_guard lock(core.mutex);
  if (fake_cuda::instance().broken()) return cudaErrorLaunchFailure;
  return asked.last == nullptr || asked.last->fired ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto& asked = *reinterpret_cast<fake_cuda::event*>(event);
  if (const cudaError_t e = fake_cuda::instance().called(asked.device); e != cudaSuccess) return e;
  const auto last = asked.last;
  fake_cuda::instance().core().wait([&] { return last == nullptr || last->fired || fake_cuda::instance().broken(); });
  return fake_cuda::instance().broken() ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaMalloc(void** to, std::size_t bytes) {
  if (const cudaError_t e = fake_cuda::instance().called(); e != cudaSuccess) return e;
  if (fake_cuda::instance().refuses_allocation()) return cudaErrorMemoryAllocation;
  *to = fake_cuda::instance().allocate(bytes, fake_cuda::current_device());
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  // Given back all the same: what is freed at the wrong moment breaks a capture, and is freed.
  const cudaError_t e = fake_cuda::instance().called();
  fake_cuda::instance().release(at);
  return e;
}
cudaError_t cudaHostAlloc(void** to, std::size_t bytes, unsigned) {
  if (const cudaError_t e = fake_cuda::instance().called(); e != cudaSuccess) return e;
  if (fake_cuda::instance().refuses_allocation()) return cudaErrorMemoryAllocation;
  *to = fake_cuda::instance().allocate(bytes, -1);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* at) { return cudaFree(at); }
cudaError_t cudaHostRegister(void* at, std::size_t bytes, unsigned) {
  if (const cudaError_t e = fake_cuda::instance().called(); e != cudaSuccess) return e;
  return fake_cuda::instance().pin(at, bytes);
}
cudaError_t cudaHostUnregister(void* at) {
  if (const cudaError_t e = fake_cuda::instance().called(); e != cudaSuccess) return e;
  return fake_cuda::instance().unpin(at);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* to, const void* at) {
  *to = fake_cuda::instance().attributes(at);
  return fake_cuda::instance().called();
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return fake_cuda::instance().submit(stream, [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return fake_cuda::instance().submit(stream, [=] {
    if (kind == cudaMemcpyHostToDevice) std::this_thread::sleep_for(fake_cuda::instance().copy_in_delay());
    std::memcpy(to, from, bytes);
  });
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
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3, void** arguments, std::size_t, cudaStream_t stream) {
  fake_cuda::instance().last_grid = grid.x;
  if (kernel == kvx_test::fake_kernels().page_values) {
    return fake_cuda::instance().submit(
        stream,
        [pages = *static_cast<const std::byte**>(arguments[0]), count = *static_cast<std::uint64_t*>(arguments[1]),
         values = *static_cast<std::uint64_t**>(arguments[2])] { kvx_test::fake_page_values(pages, count, values); });
  }
  const auto run =
      reinterpret_cast<void (*)(const kvx::cuda_copy*, std::uint32_t)>(reinterpret_cast<std::uintptr_t>(kernel));
  return fake_cuda::instance().submit(stream,
                                      [run, list = *static_cast<const kvx::cuda_copy**>(arguments[0]),
                                       count = *static_cast<std::uint32_t*>(arguments[1])] { run(list, count); });
}

}  // extern "C"
