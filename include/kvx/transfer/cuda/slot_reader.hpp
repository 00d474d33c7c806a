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
#include <string>

namespace kvx::cuda {

/// What one thread needs to read slots into device memory: a stream, and pinned memory for a slot and its page values.
/// Thread  one, with the device current
/// Stream  its own; each call waits for it
class slot_reader {
 public:
  /// Read at once by the host, so that its copy to the device overlaps with reading the next.
  static constexpr std::size_t piece_bytes = 1U << 20U;

  /// Shape   block_bytes: the largest slot, a multiple of page_bytes
  /// Errors  throws device_failed: no stream, or no pinned memory
  slot_reader(const cuda_kernels& kernels, std::size_t block_bytes, int priority)
      : kernels_(kernels),
        block_bytes_(block_bytes),
        stream_(make_stream(priority)),
        slot_(pinned(block_bytes)),
        values_(pinned(block_bytes / page_bytes * sizeof(std::uint64_t))) {}

  /// Reads one slot and fills `header` and `page_values`. When it returns nothing writes the place any more.
  /// Shape   place: device memory of block_bytes; driver: null to read through the host; payload: where it lies then
  /// Errors  errno; ENODATA: the file ends early; EMSGSIZE: larger than a place; EIO: also what the device reports
  [[nodiscard]] io_result read(const direct_request& request, std::byte* place, cufile_driver* driver,
                               std::byte*& payload) noexcept {
    const std::size_t header_bytes = request.header.size();
    // A payload begins inside of its place, also an empty one.
    if (header_bytes >= block_bytes_ || request.payload_bytes > block_bytes_ - header_bytes) return {EMSGSIZE, 0};
    if (request.page_values.size() > request.payload_bytes / page_bytes) return {EINVAL, 0};
    void* const handle = driver != nullptr ? driver->find(request.file).handle : nullptr;
    const std::size_t bytes = header_bytes + request.payload_bytes;
    detail::io_piece rest;
    rest.op = io_op::read;
    rest.file = request.file;
    rest.offset = request.offset;
    rest.bytes = bytes;
    int failed = 0;
    cudaError_t device = cudaSuccess;
    if (handle != nullptr) {
      rest.data = place;
      payload = place + header_bytes;
      failed = read_by_cufile(rest, *driver, handle);
      if (failed == 0 && header_bytes != 0) {
        device = ::cudaMemcpyAsync(slot_.get(), place, header_bytes, cudaMemcpyDeviceToHost, stream_.get());
      }
    } else {
      rest.data = slot();
      payload = place;
      failed = read_by_host(rest, header_bytes, payload, device);
    }
    if (failed == 0 && device == cudaSuccess) {
      const status launched = cuda_page_values(kernels_, payload, request.page_values.size(), values(), stream_.get());
      if (!launched) device = cudaErrorUnknown;
    }
    // Also after an error: copies may be under way to a place that somebody else gets next.
    if (const cudaError_t e = ::cudaStreamSynchronize(stream_.get()); e != cudaSuccess) device = e;
    if (device != cudaSuccess) {
      static_cast<void>(::cudaGetLastError());
      return {EIO, 0};
    }
    if (failed != 0) return {failed, bytes - rest.bytes};
    if (header_bytes != 0) std::memcpy(request.header.data(), slot(), header_bytes);
    std::copy_n(values(), request.page_values.size(), request.page_values.begin());
    return {0, bytes};
  }

 private:
  [[nodiscard]] std::byte* slot() const noexcept { return static_cast<std::byte*>(slot_.get()); }
  [[nodiscard]] std::uint64_t* values() const noexcept { return static_cast<std::uint64_t*>(values_.get()); }

  static pinned_memory pinned(std::size_t bytes) {
    pinned_memory made = make_pinned_memory(bytes);
    if (made == nullptr) {
      require(cudaErrorMemoryAllocation,
              std::to_string(bytes) + " bytes of pinned memory for a thread; lower cufile_options::threads");
    }
    return made;
  }

  [[nodiscard]] static int read_by_cufile(detail::io_piece& rest, const cufile_driver& driver, void* handle) noexcept {
    int failed = 0;
    while (rest.bytes != 0 && failed == 0) {
      static_cast<void>(detail::advance(rest, driver.read(handle, rest.data, rest.bytes, rest.offset), failed));
    }
    return failed;
  }

  // Header and payload to pinned memory, and each piece of the payload from there to the device.
  [[nodiscard]] int read_by_host(detail::io_piece& rest, std::size_t header_bytes, std::byte* payload,
                                 cudaError_t& device) noexcept {
    int failed = 0;
    while (rest.bytes != 0 && failed == 0 && device == cudaSuccess) {
      std::byte* const before = std::max(rest.data, slot() + header_bytes);
      const ::ssize_t moved =
          ::pread(rest.file, rest.data, std::min(rest.bytes, piece_bytes), static_cast<::off_t>(rest.offset));
      static_cast<void>(detail::advance(rest, moved < 0 ? -static_cast<std::int64_t>(errno) : moved, failed));
      if (rest.data <= before) continue;
      device = ::cudaMemcpyAsync(payload + (before - (slot() + header_bytes)), before,
                                 static_cast<std::size_t>(rest.data - before), cudaMemcpyHostToDevice, stream_.get());
    }
    return failed;
  }

  cuda_kernels kernels_;
  std::size_t block_bytes_;
  stream_handle stream_;
  pinned_memory slot_;
  pinned_memory values_;
};

}  // namespace kvx::cuda
