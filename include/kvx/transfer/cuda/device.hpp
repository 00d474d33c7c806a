// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace kvx::cuda {

/// A device that kvx uses, and how to learn which devices the process uses already.
class used_device {
 public:
  explicit used_device(int index) noexcept : index_(index) {}

  [[nodiscard]] int index() const noexcept { return index_; }

  /// Finds the driver's question, without linking the driver. On a thread where the device is current, before the
  /// object is shown to other threads.
  void find_driver() noexcept {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult answer = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t e =
        ::cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &found, 7000, cudaEnableDefault, &answer);
    if (e == cudaSuccess && answer == cudaDriverEntryPointSuccess) {
      context_state_ = reinterpret_cast<context_state>(found);
    } else {
      static_cast<void>(::cudaGetLastError());
    }
  }
  /// Whether making a device current would start nothing on it; true where the driver cannot be asked.
  [[nodiscard]] bool has_context(int device) const noexcept {
    unsigned flags = 0;
    int active = 0;
    return context_state_ == nullptr || context_state_(device, &flags, &active) != 0 || active != 0;
  }

 private:
  using context_state = int (*)(int device, unsigned* flags, int* active);  // cuDevicePrimaryCtxGetState

  int index_;
  context_state context_state_ = nullptr;
};

/// Makes a device current for the calling thread, and lets it use the runtime whatever it, or another thread, captures
/// into a graph; restores both.
///
/// Without the mode, one cudaEventQuery of kvx's thread would invalidate a capture in global mode. Without the device,
/// it would start a context on device 0, of half a gigabyte, for a thread starts with that one current. For the same
/// reason a device that has no context is not made current again: such a thread stays on kvx's device.
class scope {
 public:
  explicit scope(const used_device& device) noexcept : device_(device) {
    if (::cudaGetDevice(&previous_) != cudaSuccess) previous_ = device.index();
    if (previous_ != device.index()) static_cast<void>(::cudaSetDevice(device.index()));
    // Only now: this starts a context too.
    static_cast<void>(::cudaThreadExchangeStreamCaptureMode(&mode_));
  }
  scope(const scope&) = delete;
  scope& operator=(const scope&) = delete;
  ~scope() {
    static_cast<void>(::cudaThreadExchangeStreamCaptureMode(&mode_));
    if (previous_ != device_.index() && device_.has_context(previous_)) {
      static_cast<void>(::cudaSetDevice(previous_));
    }
  }

 private:
  const used_device& device_;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  int previous_ = 0;
};

/// For constructors: turns an error of the runtime into an exception that says what was being done.
inline void require(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  static_cast<void>(::cudaGetLastError());
  throw error(errc::device_failed,
              "CUDA: " + what + ": " + ::cudaGetErrorString(code) + " (" + ::cudaGetErrorName(code) + ")");
}

struct destroy_stream {
  void operator()(cudaStream_t stream) const noexcept { static_cast<void>(::cudaStreamDestroy(stream)); }
};
struct destroy_event {
  void operator()(cudaEvent_t event) const noexcept { static_cast<void>(::cudaEventDestroy(event)); }
};
struct free_device {
  void operator()(void* at) const noexcept { static_cast<void>(::cudaFree(at)); }
};
struct free_pinned {
  void operator()(void* at) const noexcept { static_cast<void>(::cudaFreeHost(at)); }
};

using stream_handle = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, destroy_stream>;
using event_handle = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, destroy_event>;
using device_memory = std::unique_ptr<void, free_device>;
using pinned_memory = std::unique_ptr<void, free_pinned>;

/// A stream that no legacy stream waits for.
/// Errors  throws device_failed
[[nodiscard]] inline stream_handle make_stream(int priority) {
  cudaStream_t made = nullptr;
  require(::cudaStreamCreateWithPriority(&made, cudaStreamNonBlocking, priority), "a stream");
  return stream_handle(made);
}

/// Null where the runtime has no event to give.
[[nodiscard]] inline event_handle make_event(unsigned flags = cudaEventDisableTiming) noexcept {
  cudaEvent_t made = nullptr;
  if (::cudaEventCreateWithFlags(&made, flags) != cudaSuccess) {
    static_cast<void>(::cudaGetLastError());
    made = nullptr;
  }
  return event_handle(made);
}

/// Errors  throws device_failed
[[nodiscard]] inline device_memory make_device_memory(std::size_t bytes) {
  void* made = nullptr;
  require(::cudaMalloc(&made, bytes), std::to_string(bytes) + " bytes of device memory");
  return device_memory(made);
}

/// Null where there is none. Kernels may read it at the same address.
/// Shape   flags: cudaHostAllocWriteCombined where the host only writes, which spares it fetching what a device read
[[nodiscard]] inline pinned_memory make_pinned_memory(std::size_t bytes, unsigned flags = 0) noexcept {
  void* made = nullptr;
  if (::cudaHostAlloc(&made, bytes, cudaHostAllocPortable | cudaHostAllocMapped | flags) != cudaSuccess) {
    static_cast<void>(::cudaGetLastError());
    made = nullptr;
  }
  return pinned_memory(made);
}

/// Whether work may be submitted to a stream of somebody's: not while it is being captured, nor would be by that.
/// Errors  bad_argument: it is; device_failed: the runtime does not say
[[nodiscard]] inline status takes_work(cudaStream_t stream) noexcept {
  cudaStreamCaptureStatus now = cudaStreamCaptureStatusNone;
  const cudaError_t e = ::cudaStreamIsCapturing(stream, &now);
  if (e == cudaSuccess) return now == cudaStreamCaptureStatusNone ? status{} : status{errc::bad_argument};
  static_cast<void>(::cudaGetLastError());
  return e == cudaErrorStreamCaptureImplicit ? errc::bad_argument : errc::device_failed;
}

}  // namespace kvx::cuda
