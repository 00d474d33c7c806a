// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/direct_reader.hpp>
#include <kvx/concepts/io.hpp>
#include <kvx/detail/io_piece.hpp>
#include <kvx/transfer/cuda/checksum.hpp>
#include <kvx/transfer/cuda/cufile_driver.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/transfer/cuda/kernels.hpp>
#include <kvx/types.hpp>

#include <cuda_runtime_api.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kvx::cuda {

/// Reads a slot at a time into device memory: a stream, and pinned memory for a slot and its page values.
/// Thread  one, with the device current
/// Stream  its own; end() waits for it
class slot_reader {
 public:
  /// Read at once by the host, so that its copy to the device overlaps with reading the next.
  static constexpr std::size_t piece_bytes = 4U << 20U;

  /// Pinned memory that one needs for slots of block_bytes, a multiple of page_bytes.
  [[nodiscard]] static constexpr std::size_t host_bytes(std::size_t block_bytes) noexcept {
    return (block_bytes + block_bytes / page_bytes * sizeof(std::uint64_t) + page_bytes - 1) / page_bytes * page_bytes;
  }

  /// Shape   block_bytes: the largest slot, a multiple of page_bytes; host: pinned memory of host_bytes(), aligned to
  ///         page_bytes, which outlives this
  /// Errors  throws device_failed: no stream
  slot_reader(const cuda_kernels& kernels, std::size_t block_bytes, std::byte* host, int priority)
      : kernels_(kernels),
        block_bytes_(block_bytes),
        stream_(make_stream(priority)),
        slot_(host),
        values_(reinterpret_cast<std::uint64_t*>(host + block_bytes)) {}

  /// Reads one slot and starts what proves it; end() tells how it went.
  /// Shape   place: device memory of block_bytes; driver: null to read through the host
  void begin(const direct_request& request, std::byte* place, cufile_driver* driver) noexcept {
    const std::size_t header_bytes = request.header.size();
    request_ = request;
    read_bytes_ = 0;
    failed_ = 0;
    device_ = cudaSuccess;
    // A payload begins inside of its place, also an empty one.
    if (header_bytes >= block_bytes_ || request.payload_bytes > block_bytes_ - header_bytes) failed_ = EMSGSIZE;
    if (request.page_values.size() > request.payload_bytes / page_bytes) failed_ = EINVAL;
    if (failed_ != 0) return;
    void* const handle = driver != nullptr ? driver->find(request.file).handle : nullptr;
    detail::io_piece rest;
    rest.op = io_op::read;
    rest.file = request.file;
    rest.offset = request.offset;
    rest.bytes = header_bytes + request.payload_bytes;
    const std::size_t all = rest.bytes;
    if (handle != nullptr) {
      rest.data = place;
      payload_ = place + header_bytes;
      failed_ = read_by_cufile(rest, *driver, handle);
      if (failed_ == 0 && header_bytes != 0) {
        device_ = ::cudaMemcpyAsync(slot_, place, header_bytes, cudaMemcpyDeviceToHost, stream_.get());
      }
    } else {
      rest.data = slot_;
      payload_ = place;
      failed_ = read_by_host(rest, header_bytes);
    }
    read_bytes_ = all - rest.bytes;
    if (failed_ != 0 || device_ != cudaSuccess) return;
    if (!cuda_page_values(kernels_, payload_, request.page_values.size(), values_, stream_.get())) {
      device_ = cudaErrorUnknown;
    }
  }

  /// Waits for what was begun, and fills `header` and `page_values`. When it returns nothing writes the place any more.
  /// Shape   payload: where it lies
  /// Errors  errno; ENODATA: the file ends early; EMSGSIZE: larger than a place; EIO: also what the device reports
  [[nodiscard]] io_result end(std::byte*& payload) noexcept {
    // Also after an error: copies may be under way to a place that somebody else gets next.
    if (const cudaError_t e = ::cudaStreamSynchronize(stream_.get()); e != cudaSuccess) device_ = e;
    if (device_ != cudaSuccess) {
      static_cast<void>(::cudaGetLastError());
      return {EIO, 0};
    }
    if (failed_ != 0) return {failed_, read_bytes_};
    if (!request_.header.empty()) std::memcpy(request_.header.data(), slot_, request_.header.size());
    std::copy_n(values_, request_.page_values.size(), request_.page_values.begin());
    payload = payload_;
    return {0, read_bytes_};
  }

  [[nodiscard]] const direct_request& request() const noexcept { return request_; }

 private:
  [[nodiscard]] static int read_by_cufile(detail::io_piece& rest, const cufile_driver& driver, void* handle) noexcept {
    int failed = 0;
    while (rest.bytes != 0 && failed == 0) {
      static_cast<void>(detail::advance(rest, driver.read(handle, rest.data, rest.bytes, rest.offset), failed));
    }
    return failed;
  }

  // Header and payload to pinned memory, and each piece of the payload from there to the device.
  [[nodiscard]] int read_by_host(detail::io_piece& rest, std::size_t header_bytes) noexcept {
    int failed = 0;
    while (rest.bytes != 0 && failed == 0 && device_ == cudaSuccess) {
      std::byte* const before = std::max(rest.data, slot_ + header_bytes);
      const ::ssize_t moved =
          ::pread(rest.file, rest.data, std::min(rest.bytes, piece_bytes), static_cast<::off_t>(rest.offset));
      static_cast<void>(detail::advance(rest, moved < 0 ? -static_cast<std::int64_t>(errno) : moved, failed));
      if (rest.data <= before) continue;
      device_ = ::cudaMemcpyAsync(payload_ + (before - (slot_ + header_bytes)), before,
                                  static_cast<std::size_t>(rest.data - before), cudaMemcpyHostToDevice, stream_.get());
    }
    return failed;
  }

  cuda_kernels kernels_;
  std::size_t block_bytes_;
  stream_handle stream_;
  std::byte* slot_;
  std::uint64_t* values_;

  // What was begun.
  direct_request request_{};
  std::byte* payload_ = nullptr;
  std::size_t read_bytes_ = 0;
  int failed_ = 0;
  cudaError_t device_ = cudaSuccess;
};

}  // namespace kvx::cuda
