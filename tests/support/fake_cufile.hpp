// SPDX-License-Identifier: Apache-2.0
// libcufile without a driver: a table of functions that read with pread into the memory of fake_cuda's devices. A
// handle keeps the file that it was made of, whatever becomes of the descriptor's number. Include fake_cuda.hpp in the
// same file.
#pragma once

#include <kvx/transfer/cuda/cufile_api.hpp>
#include <kvx/types.hpp>

#include <fake_cuda.hpp>

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <set>
#include <thread>

namespace kvx_test {

/// Switches hold until they are set anew, or reset(). Faults are numbers of calls from now on: 1 is the next.
class fake_cufile {
 public:
  static fake_cufile& instance() {
    static fake_cufile library;
    return library;
  }
  [[nodiscard]] static kvx::cuda::cufile_api api() {
    return {&driver_open, &get_properties, &handle_register, &handle_deregister, &buf_register, &buf_deregister, &read};
  }

  void reset() {
    most_bytes = 0;
    refused_files = refused_buffers = refused_driver = 0;
    compatibility_mode = false;
    corrupt = false;
    delay_us = 0;
    fault_in_ = 0;
  }

  std::atomic<std::size_t> most_bytes{0};  ///< of one read; 0: all that was asked for
  std::atomic<int> refused_files{0};       ///< the code that each registration ends with, and so on
  std::atomic<int> refused_buffers{0};
  std::atomic<int> refused_driver{0};
  std::atomic<bool> compatibility_mode{false};
  std::atomic<bool> corrupt{false};  ///< one bit of each read
  std::atomic<std::int64_t> delay_us{0};

  /// The n-th read answers this and does nothing.
  void answer_in(std::uint64_t n, ::ssize_t answer, int error_number = 0) {
    answer_ = answer;
    error_number_ = error_number;
    fault_in_ = n;
  }

  [[nodiscard]] std::size_t live_handles() {
    const std::lock_guard lock(mutex_);
    return handles_.size();
  }
  [[nodiscard]] std::size_t live_buffers() {
    const std::lock_guard lock(mutex_);
    return buffers_.size();
  }
  [[nodiscard]] std::uint64_t registrations() const { return registrations_; }
  [[nodiscard]] std::uint64_t reads() const { return reads_; }

 private:
  struct handle {
    int fd = -1;
  };

  // What the library does with the device breaks captures as everything else does.
  static kvx::cuda::cufile_error outcome(int refused) {
    const bool wrong_device = fake_cuda::instance().called() != cudaSuccess;
    return {refused != 0 ? refused : wrong_device ? 5011 : 0, 0};
  }
  static kvx::cuda::cufile_error driver_open() { return outcome(instance().refused_driver); }
  static kvx::cuda::cufile_error get_properties(kvx::cuda::cufile_properties* to) {
    if (!instance().compatibility_mode) to->nvfs.minor_version = 20;
    return {};
  }
  static kvx::cuda::cufile_error handle_register(void** to, kvx::cuda::cufile_descriptor* about) {
    ++instance().registrations_;
    const kvx::cuda::cufile_error refused = outcome(instance().refused_files);
    if (refused.err != 0) return refused;
    // As the library does: CU_FILE_INVALID_FILE_OPEN_FLAG.
    constexpr int bad_flags = O_APPEND | O_NONBLOCK | O_DIRECTORY | O_NOFOLLOW;
    if ((::fcntl(about->handle.fd, F_GETFL) & bad_flags) != 0) return {5019, 0};
    auto* const made = new handle{::dup(about->handle.fd)};
    *to = made;
    const std::lock_guard lock(instance().mutex_);
    instance().handles_.insert(made);
    return {};
  }
  static void handle_deregister(void* known) {
    static_cast<void>(outcome(0));
    auto* const gone = static_cast<handle*>(known);
    {
      const std::lock_guard lock(instance().mutex_);
      instance().handles_.erase(gone);
    }
    ::close(gone->fd);
    delete gone;
  }
  static kvx::cuda::cufile_error buf_register(const void* base, std::size_t, int) {
    const kvx::cuda::cufile_error refused = outcome(instance().refused_buffers);
    const std::lock_guard lock(instance().mutex_);
    if (refused.err == 0) instance().buffers_.insert(base);
    return refused;
  }
  static kvx::cuda::cufile_error buf_deregister(const void* base) {
    const std::lock_guard lock(instance().mutex_);
    return {instance().buffers_.erase(base) == 1 ? 0 : 5024, 0};
  }
  static ::ssize_t read(void* known, void* base, std::size_t bytes, ::off_t offset, ::off_t base_offset) {
    fake_cufile& self = instance();
    ++self.reads_;
    if (fake_cuda::instance().called() != cudaSuccess || fake_cuda::instance().broken()) return -5011;
    auto* const to = static_cast<std::byte*>(base) + base_offset;
    const cudaPointerAttributes where = fake_cuda::instance().attributes(to);
    if (where.type != cudaMemoryTypeDevice) return -5012;
    if (where.device != fake_cuda::current_device()) return -5015;
    {
      const std::lock_guard lock(self.mutex_);
      if (self.handles_.count(static_cast<handle*>(known)) == 0) return -5027;
    }
    std::this_thread::sleep_for(std::chrono::microseconds{self.delay_us});
    if (self.fault_in_ > 0 && --self.fault_in_ == 0) {
      errno = self.error_number_;
      return self.answer_;
    }
    const std::size_t most = self.most_bytes;
    if (most != 0) bytes = std::min(bytes, most);
    const ::ssize_t moved = read_anywhere(static_cast<handle*>(known)->fd, to, bytes, offset);
    if (moved > 0 && self.corrupt) to[moved - 1] ^= std::byte{1};
    return moved;
  }
  // Direct I/O wants aligned offsets, which cuFile does not ask for.
  static ::ssize_t read_anywhere(int fd, std::byte* to, std::size_t bytes, ::off_t offset) {
    std::size_t moved = 0;
    void* room = nullptr;
    if (::posix_memalign(&room, kvx::page_bytes, kvx::page_bytes) != 0) return -5043;
    auto* const page = static_cast<std::byte*>(room);
    int failed = 0;
    while (moved < bytes) {
      const auto at = static_cast<std::size_t>(offset) + moved;
      const std::size_t inside = at % kvx::page_bytes;
      const ::ssize_t got = ::pread(fd, page, kvx::page_bytes, static_cast<::off_t>(at - inside));
      if (got < 0) failed = errno;
      if (got <= static_cast<::ssize_t>(inside)) break;
      const std::size_t now = std::min(static_cast<std::size_t>(got) - inside, bytes - moved);
      std::copy_n(page + inside, now, to + moved);
      moved += now;
    }
    std::free(room);
    errno = failed;
    return moved == 0 && failed != 0 ? -1 : static_cast<::ssize_t>(moved);
  }

  std::mutex mutex_;
  std::set<handle*> handles_;
  std::set<const void*> buffers_;
  std::atomic<std::uint64_t> registrations_{0};
  std::atomic<std::uint64_t> reads_{0};
  std::atomic<std::uint64_t> fault_in_{0};
  std::atomic<::ssize_t> answer_{0};
  std::atomic<int> error_number_{0};
};

}  // namespace kvx_test
