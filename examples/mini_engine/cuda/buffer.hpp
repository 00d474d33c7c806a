// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

namespace mini_engine::cuda {

/// Throws std::runtime_error, with what was tried and CUDA's reason, unless a call succeeded.
inline void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(result) + " (" + cudaGetErrorName(result) +
                           ")");
}

/// Memory of the GPU for `size` elements; not initialised.
template <class T>
class device_buffer {
 public:
  device_buffer() = default;
  explicit device_buffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    void* memory = nullptr;
    const std::string what = "the GPU has no room for " + std::to_string(size * sizeof(T)) + " bytes more";
    check(cudaMalloc(&memory, size * sizeof(T)), what.c_str());
    data_ = static_cast<T*>(memory);
  }
  device_buffer(device_buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  device_buffer& operator=(device_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~device_buffer() { cudaFree(data_); }

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t bytes() const noexcept { return size_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Memory of the host that the GPU copies from and to without detours.
template <class T>
class pinned_buffer {
 public:
  pinned_buffer() = default;
  explicit pinned_buffer(std::size_t size) : size_(size) {
    if (size == 0) return;
    void* memory = nullptr;
    check(cudaMallocHost(&memory, size * sizeof(T)), "no pinned memory for the engine's own copies");
    data_ = static_cast<T*>(memory);
  }
  pinned_buffer(pinned_buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  pinned_buffer& operator=(pinned_buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~pinned_buffer() { cudaFreeHost(data_); }

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  T& operator[](std::size_t i) const noexcept { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A stream of one's own, never the legacy one.
class stream {
 public:
  stream() { check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "no CUDA stream"); }
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() { cudaStreamDestroy(handle_); }

  operator cudaStream_t() const noexcept { return handle_; }
  void wait() const { check(cudaStreamSynchronize(handle_), "the GPU failed"); }

 private:
  cudaStream_t handle_ = nullptr;
};

/// A point in a stream, with its time.
class event {
 public:
  event() { check(cudaEventCreate(&handle_), "no CUDA event"); }
  event(const event&) = delete;
  event& operator=(const event&) = delete;
  ~event() { cudaEventDestroy(handle_); }

  void record(cudaStream_t on) const { check(cudaEventRecord(handle_, on), "a CUDA event cannot be recorded"); }
  double seconds_since(const event& begin) const {
    check(cudaEventSynchronize(handle_), "the GPU failed");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin.handle_, handle_), "CUDA events cannot be compared");
    return static_cast<double>(milliseconds) * 1e-3;
  }
  operator cudaEvent_t() const noexcept { return handle_; }

 private:
  cudaEvent_t handle_ = nullptr;
};

}  // namespace mini_engine::cuda
