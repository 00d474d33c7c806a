// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/detail/leak.hpp>
#include <kvx/result.hpp>
#include <kvx/tier/arena.hpp>

#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace kvx {

/// What several caches of a process can share: the arena, and the I/O backend with its threads and rings.
///
/// Construct it after fork(). It outlives every cache built on it, which shared ownership sees to.
/// Thread  any
/// Errors  the constructor throws what the arena or the backend throws
template <io_backend Io>
class runtime {
 public:
  /// Units   memory_bytes: of the whole arena, to be shared by all caches
  /// Shape   root: the directory the I/O will be in, for backends that choose by it; made if it is not there
  explicit runtime(std::uint64_t memory_bytes, const io_options& io = {}, const std::string& root = {})
      : runtime(memory_bytes, make_io(io, root)) {}
  /// Takes a backend that was built with more than io_options.
  runtime(std::uint64_t memory_bytes, std::unique_ptr<Io> io)
      : arena_(std::make_unique<kvx::arena>(static_cast<std::size_t>(memory_bytes))),
        io_(std::move(io)),
        registered_(io_->register_arena(arena_->bytes())) {}

  /// Leaks arena and backend when requests never completed: the kernel may still write.
  ~runtime() {
    if (io_->stop(drain_deadline_)) return;
    detail::leak_deliberately(std::move(arena_));
    detail::leak_deliberately(std::move(io_));
  }
  runtime(const runtime&) = delete;
  runtime& operator=(const runtime&) = delete;

  [[nodiscard]] kvx::arena& memory() noexcept { return *arena_; }
  [[nodiscard]] Io& io() noexcept { return *io_; }
  /// Whether the backend took the arena as registered buffers; unsupported or io_failed cost CPU, nothing else.
  [[nodiscard]] status registered() const noexcept { return registered_; }
  /// What caches left behind at their end, because the kernel or a device could still write it: buffers in I/O, and
  /// bytes of memory.
  [[nodiscard]] std::uint64_t leaked_buffers() const noexcept {
    return leaked_buffers_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint64_t leaked_bytes() const noexcept { return leaked_bytes_.load(std::memory_order_relaxed); }
  void count_leak(std::uint64_t buffers, std::uint64_t bytes) noexcept {
    leaked_buffers_.fetch_add(buffers, std::memory_order_relaxed);
    leaked_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  }
  void drain_deadline(std::chrono::milliseconds deadline) noexcept { drain_deadline_ = deadline; }

 private:
  static std::unique_ptr<Io> make_io(const io_options& io, const std::string& root) {
    if constexpr (std::constructible_from<Io, const io_options&, const std::string&>) {
      // A root that cannot be made is the backend's to report: it names the directory and the reason.
      if (!root.empty()) {
        static_cast<void>(::mkdir(root.c_str(), 0700));
        return std::make_unique<Io>(io, root);
      }
    }
    return std::make_unique<Io>(io);
  }

  std::unique_ptr<kvx::arena> arena_;
  std::unique_ptr<Io> io_;
  status registered_;
  std::chrono::milliseconds drain_deadline_{10'000};
  std::atomic<std::uint64_t> leaked_buffers_{0};
  std::atomic<std::uint64_t> leaked_bytes_{0};
};

}  // namespace kvx
