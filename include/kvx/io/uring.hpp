// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<liburing.h>)
#error \
    "kvx: <kvx/io/uring.hpp> needs liburing: install liburing-dev (Debian, Ubuntu) or liburing-devel (Fedora) and use find_package(kvx COMPONENTS uring)"
#endif

#include <kvx/concepts/io.hpp>
#include <kvx/detail/io_chunks.hpp>
#include <kvx/detail/io_mailbox.hpp>
#include <kvx/detail/io_piece.hpp>
#include <kvx/detail/io_queue.hpp>
#include <kvx/detail/io_registered_files.hpp>
#include <kvx/detail/io_thread.hpp>
#include <kvx/result.hpp>

#include <liburing.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace kvx {
namespace detail {

/// One io_uring and what only its own thread touches. Since one thread alone submits and reaps, nothing is handed over
/// through the memory shared with the kernel, and race detectors see every hand-over.
class io_uring_ring {
 public:
  static constexpr bool wakes_during_io = true;
  static constexpr unsigned most_pieces = 127;  // with the wake-up read they fill a queue of 128
  static constexpr unsigned file_slots = 256;

  io_uring_ring() : slots_(most_pieces) {
    free_slots_.reserve(most_pieces);
    for (unsigned i = most_pieces; i != 0; --i) free_slots_.push_back(i - 1);
  }

  [[nodiscard]] io_mailbox& mailbox() noexcept { return mailbox_; }
  void wake() noexcept { mailbox_.wake(); }

  // All below: the ring's thread, which io_uring holds to be the single issuer from open() to close().

  /// Errors  io_failed: errno of io_uring_setup or eventfd; unsupported: the kernel lacks the operations
  status open() {
    if (const status failure = mailbox_.open(); !failure) return failure;
    int failed = -EINVAL;
    for (const unsigned flags :
         {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN, 0U}) {
      failed = ::io_uring_queue_init(most_pieces + 1, &ring_, flags);
      if (failed != -EINVAL) break;
    }
    if (failed < 0) return {errc::io_failed, -failed};
    if (!knows_operations()) {
      ::io_uring_queue_exit(&ring_);
      return errc::unsupported;
    }
    const std::vector<int> nothing(file_slots, -1);
    has_file_table_ = ::io_uring_register_files(&ring_, nothing.data(), file_slots) == 0;
    return {};
  }

  /// Serves the queue until it is closed, with `share_bytes` in flight, or less than a piece above it.
  template <class Files>
  void run(io_queue<io_uring_ring>& queue, Files& files, std::size_t share_bytes) {
    io_batch batch;
    batch.pieces.reserve(most_pieces);
    const auto inside_one_buffer = [this](const std::byte* data, std::size_t bytes) {
      return chunks_.shorten(data, bytes);
    };
    for (;;) {
      mailbox_.obey();
      const std::size_t room = share_bytes > busy_bytes_ ? share_bytes - busy_bytes_ : 0;
      queue.take(*this, free_slots_.size(), room, inside_one_buffer, batch);
      for (const io_piece& piece : batch.pieces) start(piece, has_file_table_ ? files.acquire(piece.file) : -1);
      if (!batch.finished.empty()) {
        // The device goes on while the completions run; they tend to bring more, so look again before sleeping.
        (void)::io_uring_submit(&ring_);
        queue.complete(batch.finished);
        continue;
      }
      if (batch.closed) return;
      wait();
      for_each_answer([&](unsigned number, int answer) {
        slot& one = slots_[number];
        int error = 0;
        if (!ended(one, answer, error)) return prepare(number);
        if (one.file_slot >= 0) files.release(one.file_slot);
        busy_bytes_ -= one.rest.charged_bytes;
        free_slots_.push_back(number);
        queue.finish(one.rest, error, batch.finished);
      });
    }
  }

  /// Ends the ring; the wake-up read writes into this object, so it must have ended before.
  void close() {
    mailbox_.end();
    if (waking_) mailbox_.wake();
    while (waking_) {
      (void)::io_uring_submit_and_wait(&ring_, 1);
      for_each_answer([](unsigned, int) {});
    }
    ::io_uring_queue_exit(&ring_);
  }

  /// Prepares for pinning the arena chunk by chunk.
  /// Errors  io_failed: errno of io_uring_register
  status open_buffers(std::span<std::byte> arena) {
    const std::vector<iovec> empty(io_chunks::count_of(arena), iovec{nullptr, 0});
    if (const int failed = ::io_uring_register_buffers(&ring_, empty.data(), static_cast<unsigned>(empty.size()));
        failed != 0)
      return {errc::io_failed, -failed};
    // Whether it works at all is better known now than after the first chunk.
    if (const status failure = set_buffer(0, arena.first(std::min(arena.size(), page_bytes))); !failure) return failure;
    if (const status failure = set_buffer(0, {}); !failure) return failure;
    chunks_.open(arena);
    return {};
  }
  /// Bytes of the arena that this ring has pinned.
  [[nodiscard]] std::size_t pinned_bytes() const noexcept { return chunks_.pinned_bytes(); }
  [[nodiscard]] bool set_file(std::size_t file_slot, int fd) noexcept {
    return has_file_table_ && ::io_uring_register_files_update(&ring_, static_cast<unsigned>(file_slot), &fd, 1) == 1;
  }
  [[nodiscard]] unsigned setup_flags() const noexcept { return ring_.flags; }

 private:
  static constexpr std::uint64_t wake_mark = ~std::uint64_t{0};
  static constexpr unsigned most_refusals = 64;  // EAGAIN in a row before it is believed

  struct slot {
    io_piece rest;
    int buffer = -1;
    int file_slot = -1;
    unsigned refusals = 0;
  };

  [[nodiscard]] bool knows_operations() noexcept {
    io_uring_probe* const probe = ::io_uring_get_probe_ring(&ring_);
    if (probe == nullptr) return false;
    bool all = true;
    for (const int op : {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED}) {
      all = all && ::io_uring_opcode_supported(probe, op) != 0;
    }
    ::io_uring_free_probe(probe);
    return all;
  }

  status set_buffer(std::size_t number, std::span<std::byte> memory) noexcept {
    const iovec buffer{memory.empty() ? nullptr : memory.data(), memory.size()};
    const __u64 no_tag = 0;
    const int updated =
        ::io_uring_register_buffers_update_tag(&ring_, static_cast<unsigned>(number), &buffer, &no_tag, 1);
    if (updated == 1) return {};
    return {errc::io_failed, updated < 0 ? -updated : EINVAL};
  }

  void start(const io_piece& piece, int file_slot) {
    const unsigned number = free_slots_.back();
    free_slots_.pop_back();
    const int buffer = chunks_.use(piece.data, piece.bytes, [this](std::size_t chunk, std::span<std::byte> memory) {
      return set_buffer(chunk, memory).ok();
    });
    slots_[number] = {.rest = piece, .buffer = buffer, .file_slot = file_slot};
    busy_bytes_ += piece.charged_bytes;
    prepare(number);
  }

  // There is an entry for every slot and the wake-up read, so get_sqe() cannot fail.
  void prepare(unsigned number) noexcept {
    const slot& one = slots_[number];
    const io_piece& rest = one.rest;
    const int file = one.file_slot >= 0 ? one.file_slot : rest.file;
    const auto bytes = static_cast<unsigned>(rest.bytes);
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);
    if (rest.op == io_op::read && one.buffer >= 0) {
      ::io_uring_prep_read_fixed(entry, file, rest.data, bytes, rest.offset, one.buffer);
    } else if (rest.op == io_op::read) {
      ::io_uring_prep_read(entry, file, rest.data, bytes, rest.offset);
    } else if (one.buffer >= 0) {
      ::io_uring_prep_write_fixed(entry, file, rest.data, bytes, rest.offset, one.buffer);
    } else {
      ::io_uring_prep_write(entry, file, rest.data, bytes, rest.offset);
    }
    if (one.file_slot >= 0) entry->flags |= IOSQE_FIXED_FILE;
    ::io_uring_sqe_set_data64(entry, number);
  }

  [[nodiscard]] static bool ended(slot& one, int answer, int& error) noexcept {
    one.refusals = answer == -EAGAIN ? one.refusals + 1 : 0;
    if (one.refusals != 0 && one.refusals < most_refusals) return false;
    return advance(one.rest, answer, error) == io_step::ended;
  }

  void wait() noexcept {
    if (!waking_) {
      io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);
      ::io_uring_prep_read(entry, mailbox_.fd(), &wake_count_, sizeof wake_count_, 0);
      ::io_uring_sqe_set_data64(entry, wake_mark);
      waking_ = true;
    }
    // EINTR, EAGAIN and EBUSY leave the entries in place for the next round.
    (void)::io_uring_submit_and_wait(&ring_, 1);
  }

  template <class Handle>
  void for_each_answer(Handle&& handle) {
    unsigned head = 0;
    unsigned seen = 0;
    io_uring_cqe* answer = nullptr;
    io_uring_for_each_cqe(&ring_, head, answer) {
      ++seen;
      if (answer->user_data == wake_mark) {
        waking_ = false;
      } else {
        handle(static_cast<unsigned>(answer->user_data), answer->res);
      }
    }
    ::io_uring_cq_advance(&ring_, seen);
  }

  io_uring ring_{};
  io_mailbox mailbox_;
  bool has_file_table_ = false;
  bool waking_ = false;
  std::uint64_t wake_count_ = 0;
  io_chunks chunks_;
  std::vector<slot> slots_;
  std::vector<unsigned> free_slots_;
  std::size_t busy_bytes_ = 0;
};

}  // namespace detail

/// Moves with io_uring: one ring per I/O thread, registered buffers and files where the kernel grants them.
///
/// For local drives. `io_options::threads` is the number of rings; one keeps up with several drives.
/// Units   piece_bytes: 512 KiB to 1 MiB suit local drives
/// Thread  submit, attach, detach: any, completions included; register_arena, stop: not from a completion
/// Errors  constructor throws kvx::error: io_uring is not to be had here, with the remedy; requests: errno in their
/// completion
/// Cost    at most one system call per piece, about one per batch; a chunk of the arena is pinned once per ring, while
/// requests use it
/// Source  io_uring_setup(2), io_uring_register(2), io_uring_enter(2)
class uring {
 public:
  static constexpr std::size_t default_piece_bytes = std::size_t{1} << 20U;

  explicit uring(const io_options& options)
      : rings_(std::max(options.threads, 1U)),
        queue_(detail::io_limits(options, default_piece_bytes), rings_.size()),
        files_(detail::io_uring_ring::file_slots, rings_.size(),
               [this](std::size_t file_slot, int fd) { post_file(file_slot, fd); }) {
    const std::size_t limit_bytes = queue_.limits().in_flight_bytes;
    const std::size_t share_bytes = (limit_bytes + rings_.size() - 1) / rings_.size();
    std::vector<std::future<status>> opened;
    threads_.reserve(rings_.size());
    try {
      for (detail::io_uring_ring& ring : rings_) {
        std::promise<status> promise;
        opened.push_back(promise.get_future());
        threads_.push_back(
            detail::start_io_thread("kvx-uring", [this, &ring, share_bytes, answer = std::move(promise)]() mutable {
              const status outcome = ring.open();
              const bool usable = outcome.ok();
              answer.set_value(outcome);
              if (!usable) return;
              ring.run(queue_, files_, share_bytes);
              ring.close();
            }));
      }
      for (auto& each : opened) {
        if (const status outcome = each.get(); !outcome) throw refusal(outcome);
      }
    } catch (...) {
      (void)stop(std::chrono::milliseconds::max());
      throw;
    }
    setup_flags_ = rings_.front().setup_flags();
  }
  uring(const uring&) = delete;
  uring& operator=(const uring&) = delete;
  ~uring() { (void)stop(std::chrono::milliseconds::max()); }

  void submit(std::span<const io_request> requests) { queue_.submit(requests); }

  /// Lets every ring pin the arena, chunk by chunk, as it comes into use. Once; after a failure requests go on without.
  /// Errors  io_failed: ENOMEM: above the memlock limit; EBUSY: there is an arena already; closed: after stop(). Where
  /// the limit is met later, what is pinned by then stays so
  status register_arena(std::span<std::byte> arena) {
    if (arena.empty()) return errc::bad_argument;
    for (detail::io_uring_ring& ring : rings_) {
      std::promise<status> answer;
      auto outcome = answer.get_future();
      if (!ring.mailbox().post([&] { answer.set_value(ring.open_buffers(arena)); })) return errc::closed;
      if (const status failure = outcome.get(); !failure) return failure;
    }
    return {};
  }

  void attach(int file) { files_.attach(file); }
  void detach(int file) { files_.detach(file); }
  [[nodiscard]] std::size_t in_flight_bytes() const noexcept { return queue_.in_flight_bytes(); }
  [[nodiscard]] std::string_view name() const noexcept { return "uring"; }

  /// Bytes of the arena that the rings have pinned, all rings together; requests elsewhere pin their own pages.
  [[nodiscard]] std::size_t registered_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const detail::io_uring_ring& ring : rings_) bytes += ring.pinned_bytes();
    return bytes;
  }
  /// IORING_SETUP_ flags that the kernel granted.
  [[nodiscard]] unsigned setup_flags() const noexcept { return setup_flags_; }

  bool stop(std::chrono::milliseconds deadline) {
    if (!queue_.drain(deadline)) return false;
    for (std::thread& each : threads_) {
      if (each.joinable()) each.join();
    }
    return true;
  }

 private:
  static error refusal(const status& outcome) {
    const int os_error = outcome.os_error();
    const auto remedy = [os_error]() -> std::string_view {
      switch (os_error) {
        case EPERM:
          return "the container's seccomp profile or kernel.io_uring_disabled forbids it: allow io_uring_setup, "
                 "io_uring_enter and io_uring_register there, or use kvx::posix";
        case ENOMEM:
          return "locked memory is used up: raise the memlock limit (ulimit -l), or use kvx::posix";
        case EMFILE:
        case ENFILE:
          return "descriptors are used up: raise the limit on open files (ulimit -n)";
        default:
          return "this kernel lacks what is needed (Linux 5.6 or newer): use kvx::posix";
      }
    }();
    const std::string reason =
        os_error != 0 ? std::generic_category().message(os_error) : std::string("operations are missing");
    return error(errc::unsupported, "io_uring is not available (" + reason + "): " + std::string(remedy));
  }

  void post_file(std::size_t file_slot, int fd) {
    for (detail::io_uring_ring& ring : rings_) {
      // A ring that has ended has no piece in flight: what its table holds no longer matters.
      (void)ring.mailbox().post(
          [this, &ring, file_slot, fd] { files_.applied(file_slot, ring.set_file(file_slot, fd)); });
    }
  }

  std::vector<detail::io_uring_ring> rings_;
  detail::io_queue<detail::io_uring_ring> queue_;
  detail::io_registered_files files_;
  std::vector<std::thread> threads_;
  unsigned setup_flags_ = 0;
};

static_assert(io_backend<uring>);

}  // namespace kvx
