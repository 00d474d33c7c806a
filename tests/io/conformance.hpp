// SPDX-License-Identifier: Apache-2.0
// What every I/O backend must do. A new backend writes a fixture and one TEST_CASE_TEMPLATE_INVOKE line; see
// posix_test.cpp. A fixture has
//   backend            the backend's type
//   make(options)      a std::unique_ptr to one; null, after skip(), where it cannot work
//   moves_files        whether bytes really reach the files (not so for memory_io)
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/types.hpp>

#include <doctest/doctest.h>
#include <unistd.h>
#include <bytes.hpp>
#include <file_size_limit.hpp>
#include <patient_options.hpp>
#include <skip.hpp>
#include <temporary_directory.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace kvx_test {

using namespace std::chrono_literals;
using kvx::page_bytes;

inline constexpr std::size_t mib = std::size_t{1} << 20U;

/// A temporary directory that is open, to make files in.
class scratch_directory {
 public:
  scratch_directory() {
    auto opened = kvx::detail::open_root(path().c_str());
    REQUIRE(opened.ok());
    handle_ = std::move(*opened);
  }

  [[nodiscard]] int fd() const { return handle_.fd(); }
  [[nodiscard]] std::string path() const { return directory_.path(); }

  /// A new file of that size, without content.
  [[nodiscard]] kvx::detail::file make(const std::string& name, std::size_t bytes,
                                       kvx::detail::file_mode mode = kvx::detail::file_mode::buffered) const {
    auto made = kvx::detail::create_file(fd(), name.c_str(), mode);
    REQUIRE(made.ok());
    REQUIRE(::ftruncate(made->handle.fd(), static_cast<off_t>(bytes)) == 0);
    return std::move(made->handle);
  }

 private:
  temporary_directory directory_;
  kvx::detail::file handle_;
};

/// Every eight bytes say where in which content they belong.
inline void fill(std::span<std::byte> into, std::uint64_t offset, std::uint64_t content) {
  for (std::size_t at = 0; at < into.size(); at += 8) {
    std::uint64_t word = (offset + at) ^ (content << 40U);
    word = (word ^ (word >> 31U)) * 0x9E3779B97F4A7C15U;
    std::memcpy(into.data() + at, &word, std::min<std::size_t>(8, into.size() - at));
  }
}
inline bool holds(std::span<const std::byte> found, std::uint64_t offset, std::uint64_t content) {
  std::vector<std::byte> wanted(found.size());
  fill(wanted, offset, content);
  return same_bytes(found, wanted);
}

/// Requests, what became of them, and how often each was reported.
class request_log {
 public:
  struct entry {
    request_log* log = nullptr;
    kvx::io_request request;
    kvx::io_result result;
    int calls = 0;
    std::size_t order = 0;  ///< of completion, from 0
  };

  kvx::io_request& add(kvx::io_op op, kvx::io_class priority, int file, std::uint64_t offset,
                       std::span<std::byte> data) {
    entry& added = entries_.emplace_back();
    added.log = this;
    added.request = {.op = op,
                     .priority = priority,
                     .file = file,
                     .offset = offset,
                     .data = data.data(),
                     .bytes = data.size(),
                     .cancelled = nullptr,
                     .context = &added,
                     .done = [](void* context, const kvx::io_result& outcome) noexcept {
                       entry& one = *static_cast<entry*>(context);
                       const std::lock_guard lock(one.log->mutex_);
                       one.result = outcome;
                       one.order = one.log->completed_++;
                       ++one.calls;
                       one.log->changed_.notify_all();
                     }};
    return added.request;
  }
  kvx::io_request& read(int file, std::uint64_t offset, std::span<std::byte> data) {
    return add(kvx::io_op::read, kvx::io_class::load, file, offset, data);
  }
  kvx::io_request& write(int file, std::uint64_t offset, std::span<std::byte> data) {
    return add(kvx::io_op::write, kvx::io_class::save, file, offset, data);
  }

  /// Submits what was not yet, in one call.
  template <class Backend>
  void submit(Backend& backend) {
    std::vector<kvx::io_request> requests;
    for (; submitted_ < entries_.size(); ++submitted_) requests.push_back(entries_[submitted_].request);
    backend.submit(requests);
  }
  void wait() {
    std::unique_lock lock(mutex_);
    REQUIRE_MESSAGE(changed_.wait_for(lock, patience, [this] { return completed_ >= submitted_; }),
                    "requests never completed");
  }
  template <class Backend>
  void run(Backend& backend) {
    submit(backend);
    wait();
  }

  [[nodiscard]] std::size_t completed() {
    const std::lock_guard lock(mutex_);
    return completed_;
  }
  [[nodiscard]] const std::deque<entry>& entries() const { return entries_; }
  [[nodiscard]] const kvx::io_result& operator[](std::size_t i) const { return entries_[i].result; }
  /// All ended well, once.
  [[nodiscard]] bool all_good() const {
    return std::all_of(entries_.begin(), entries_.end(), [](const entry& each) {
      return each.calls == 1 && each.result.error == 0 && each.result.bytes == each.request.bytes;
    });
  }
  [[nodiscard]] bool all_once() const {
    return std::all_of(entries_.begin(), entries_.end(), [](const entry& each) { return each.calls == 1; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<entry> entries_;
  std::size_t submitted_ = 0;
  std::size_t completed_ = 0;
};

/// Keeps a backend's only thread busy: inside the completion of an empty request, until open().
class gate {
 public:
  template <class Backend>
  explicit gate(Backend& backend) {
    const kvx::io_request request{.context = this, .done = [](void* context, const kvx::io_result&) noexcept {
                                    gate& self = *static_cast<gate*>(context);
                                    std::unique_lock lock(self.mutex_);
                                    self.reached_ = true;
                                    self.changed_.notify_all();
                                    self.changed_.wait(lock, [&self] { return self.open_; });
                                    self.left_ = true;
                                    self.changed_.notify_all();
                                  }};
    backend.submit({&request, 1});
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, patience, [this] { return reached_; }));
  }
  gate(const gate&) = delete;
  gate& operator=(const gate&) = delete;
  ~gate() {
    open();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return left_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  bool open_ = false;
  bool left_ = false;
};

}  // namespace kvx_test

TEST_CASE_TEMPLATE_DEFINE("io: what is written is read back, byte for byte", Fixture, io_round_trip) {
  using namespace kvx_test;
  const scratch_directory directory;
  constexpr std::size_t file_bytes = 24 * mib;
  std::vector<std::byte> content(file_bytes);
  fill(content, 0, 1);
  kvx::detail::aligned_buffer written(file_bytes), read(file_bytes);
  for (const bool direct : {false, true}) {
    for (const std::size_t piece_bytes : {std::size_t{0}, 16 * page_bytes}) {
      for (const bool registered : {false, true}) {
        CAPTURE(direct);
        CAPTURE(piece_bytes);
        CAPTURE(registered);
        const auto backend = Fixture::make({.piece_bytes = piece_bytes});
        if (backend == nullptr) return;
        const std::string name = std::to_string(direct) + std::to_string(piece_bytes) + std::to_string(registered);
        const auto file = directory.make(name, file_bytes,
                                         direct ? kvx::detail::file_mode::direct : kvx::detail::file_mode::buffered);
        if (registered) {
          // Without the right to pin memory all of it must work just as well.
          (void)backend->register_arena(read.span());
          backend->attach(file.fd());
        }
        std::mt19937_64 random{7};
        std::copy(content.begin(), content.end(), written.data());
        std::vector<std::pair<std::size_t, std::size_t>> ranges;
        for (std::size_t at = 0; at < file_bytes;) {
          const std::size_t largest = random() % 8 == 0 ? 2000 : 8;
          const std::size_t bytes = std::min((1 + random() % largest) * page_bytes, file_bytes - at);
          ranges.emplace_back(at, bytes);
          at += bytes;
        }
        request_log saves, loads;
        std::shuffle(ranges.begin(), ranges.end(), random);
        for (const auto& [at, bytes] : ranges) saves.write(file.fd(), at, written.span().subspan(at, bytes));
        saves.run(*backend);
        CHECK(saves.all_good());
        std::shuffle(ranges.begin(), ranges.end(), random);
        std::fill(read.span().begin(), read.span().end(), std::byte{0xA5});
        for (const auto& [at, bytes] : ranges) loads.read(file.fd(), at, read.span().subspan(at, bytes));
        loads.run(*backend);
        CHECK(loads.all_good());
        CHECK(same_bytes(content, read.span()));
        if (Fixture::moves_files && !direct) {
          std::fill(read.span().begin(), read.span().end(), std::byte{0});
          CHECK(kvx::detail::pread_all(file.fd(), read.span(), 0).ok());
          CHECK(same_bytes(content, read.span()));
        }
        backend->detach(file.fd());
        CHECK(backend->in_flight_bytes() == 0);
        CHECK(backend->stop(patience));
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("io: thousands at once, each completed exactly once", Fixture, io_thousands) {
  using namespace kvx_test;
  const scratch_directory directory;
  constexpr std::size_t count = 4096;
  const auto backend = Fixture::make({.threads = 3});
  if (backend == nullptr) return;
  const auto file = directory.make("f", count * page_bytes, kvx::detail::file_mode::direct);
  kvx::detail::aligned_buffer memory(count * page_bytes);
  fill(memory.span(), 0, 3);
  request_log saves, loads;
  for (std::size_t i = 0; i < count; ++i) {
    saves.write(file.fd(), i * page_bytes, memory.span().subspan(i * page_bytes, page_bytes));
  }
  saves.run(*backend);
  CHECK(saves.all_good());
  std::memset(memory.data(), 0, memory.size());
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937_64{5});
  for (const std::size_t i : order) {
    loads.read(file.fd(), i * page_bytes, memory.span().subspan(i * page_bytes, page_bytes));
  }
  loads.run(*backend);
  CHECK(loads.all_good());
  CHECK(holds(memory.span(), 0, 3));
  CHECK(backend->stop(patience));
  // A second report could come late.
  CHECK(saves.all_once());
  CHECK(loads.all_once());
}

TEST_CASE_TEMPLATE_DEFINE("io: a file that ends early is ENODATA, never success", Fixture, io_end_of_file) {
  using namespace kvx_test;
  const scratch_directory directory;
  const auto backend = Fixture::make({});
  if (backend == nullptr) return;
  kvx::detail::aligned_buffer memory(8 * page_bytes);
  for (const bool direct : {false, true}) {
    for (const std::size_t size : {std::size_t{0}, std::size_t{5000}, 3 * page_bytes, 8 * page_bytes - 1}) {
      CAPTURE(direct);
      CAPTURE(size);
      const auto file = directory.make(std::to_string(direct) + std::to_string(size), size,
                                       direct ? kvx::detail::file_mode::direct : kvx::detail::file_mode::buffered);
      request_log log;
      log.read(file.fd(), 0, memory.span());
      log.read(file.fd(), 64 * page_bytes, memory.span().first(page_bytes));
      log.run(*backend);
      CHECK(log[0].error == ENODATA);
      CHECK(log[0].bytes < memory.size());
      CHECK(log[0].bytes <= size);
      CHECK(log[1].error == ENODATA);
      CHECK(log[1].bytes == 0);
      request_log whole;
      if (size / page_bytes != 0) {
        whole.read(file.fd(), 0, memory.span().first(size / page_bytes * page_bytes));
        whole.run(*backend);
        CHECK(whole.all_good());
      }
    }
  }
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: a file that shrinks and grows under its readers", Fixture, io_truncated_while_read) {
  using namespace kvx_test;
  const scratch_directory directory;
  const auto backend = Fixture::make({.piece_bytes = 32 * page_bytes});
  if (backend == nullptr) return;
  constexpr std::size_t file_bytes = 2 * mib;
  const auto file = directory.make("f", file_bytes);
  kvx::detail::aligned_buffer memory(16 * file_bytes);
  std::atomic<bool> over{false};
  std::thread truncater([&] {
    std::mt19937_64 random{11};
    while (!over) {
      (void)!::ftruncate(file.fd(), static_cast<off_t>(random() % file_bytes));
      (void)!::ftruncate(file.fd(), static_cast<off_t>(file_bytes));
    }
  });
  for (int round = 0; round < 10; ++round) {
    request_log log;
    for (std::size_t i = 0; i < 16; ++i) log.read(file.fd(), 0, memory.span().subspan(i * file_bytes, file_bytes));
    log.run(*backend);
    CHECK(log.all_once());
    for (const auto& each : log.entries()) {
      CHECK((each.result.error == 0 || each.result.error == ENODATA));
      CHECK((each.result.error == 0) == (each.result.bytes == file_bytes));
    }
  }
  over = true;
  truncater.join();
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: errors of the system arrive in the completion", Fixture, io_errors) {
  using namespace kvx_test;
  const scratch_directory directory;
  const auto backend = Fixture::make({.piece_bytes = page_bytes});
  if (backend == nullptr) return;
  kvx::detail::aligned_buffer memory(4 * page_bytes);
  { const auto made = directory.make("f", 4 * page_bytes); }
  const auto read_only = kvx::detail::open_file(directory.fd(), "f", kvx::detail::file_access::read);
  REQUIRE(read_only.ok());
  const int closed = ::dup(read_only->handle.fd());
  ::close(closed);
  request_log log;
  log.read(-1, 0, memory.span());
  log.read(closed, 0, memory.span());
  log.write(closed, 0, memory.span());
  log.write(read_only->handle.fd(), 0, memory.span());
  log.read(read_only->handle.fd(), 0, memory.span());
  log.read(read_only->handle.fd(), 0, {});
  backend->attach(closed);  // no file behind it: must change nothing
  backend->attach(-1);
  backend->detach(12345);
  log.run(*backend);
  for (std::size_t i = 0; i < 4; ++i) {
    CAPTURE(i);
    CHECK(log[i].error == EBADF);
    CHECK(log[i].bytes == 0);
  }
  CHECK(log[4].error == 0);
  CHECK(log[5].error == 0);
  CHECK(log[5].bytes == 0);
  CHECK(backend->stop(patience));
  CHECK(log.all_once());
}

TEST_CASE_TEMPLATE_DEFINE("io: a write that the system cuts short is continued, then fails", Fixture, io_short_write) {
  using namespace kvx_test;
  if (!Fixture::moves_files) return;
  const scratch_directory directory;
  const auto backend = Fixture::make({});
  if (backend == nullptr) return;
  const auto file = directory.make("f", 0);
  kvx::detail::aligned_buffer memory(mib), read(mib / 2);
  fill(memory.span(), 0, 4);
  request_log log;
  log.write(file.fd(), 0, memory.span());
  {
    const file_size_limit limit(mib / 2);
    log.run(*backend);
  }
  CHECK(log[0].error == EFBIG);
  CHECK(log[0].bytes == mib / 2);
  CHECK(kvx::detail::pread_all(file.fd(), read.span(), 0).ok());
  CHECK(holds(read.span(), 0, 4));
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: what was cancelled before it started never starts", Fixture, io_cancel) {
  using namespace kvx_test;
  const scratch_directory directory;
  const auto backend = Fixture::make({.threads = 1});
  if (backend == nullptr) return;
  const auto file = directory.make("f", 64 * page_bytes);
  kvx::detail::aligned_buffer memory(64 * page_bytes);
  std::fill(memory.span().begin(), memory.span().end(), std::byte{0xA5});
  std::atomic<bool> given_up{false}, kept{false};
  request_log log;
  {
    gate busy(*backend);
    for (std::size_t i = 0; i < 64; ++i) {
      auto& request = i % 4 < 2
                          ? log.read(file.fd(), i * page_bytes, memory.span().subspan(i * page_bytes, page_bytes))
                          : log.write(file.fd(), i * page_bytes, memory.span().subspan(i * page_bytes, page_bytes));
      request.cancelled = i % 2 == 0 ? &given_up : &kept;
    }
    log.submit(*backend);
    given_up = true;
  }
  log.wait();
  CHECK(log.all_once());
  for (std::size_t i = 0; i < 64; ++i) {
    CAPTURE(i);
    CHECK(log[i].error == (i % 2 == 0 ? ECANCELED : 0));
    CHECK(log[i].bytes == (i % 2 == 0 ? 0 : page_bytes));
    const bool untouched = memory.data()[i * page_bytes] == std::byte{0xA5};
    CHECK(untouched == (i % 4 != 1));
  }
  request_log reread;
  kvx::detail::aligned_buffer stored(64 * page_bytes);
  reread.read(file.fd(), 0, stored.span());
  reread.run(*backend);
  for (std::size_t i = 0; i < 64; ++i) CHECK((stored.data()[i * page_bytes] == std::byte{0xA5}) == (i % 4 == 3));
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: cancelled halfway, a request ends once and says how far it came", Fixture,
                          io_cancel_late) {
  using namespace kvx_test;
  const scratch_directory directory;
  const auto backend = Fixture::make({.threads = 2, .piece_bytes = page_bytes, .in_flight_bytes = 4 * page_bytes});
  if (backend == nullptr) return;
  const auto file = directory.make("f", 4 * mib);
  kvx::detail::aligned_buffer memory(4 * mib);
  std::size_t halfway = 0;
  for (int round = 0; round < 20; ++round) {
    std::atomic<bool> given_up{false};
    request_log log;
    log.read(file.fd(), 0, memory.span()).cancelled = &given_up;
    log.submit(*backend);
    std::this_thread::sleep_for(std::chrono::microseconds{100 * round});
    given_up = true;
    log.wait();
    CHECK((log[0].error == 0 || log[0].error == ECANCELED));
    CHECK((log[0].error == 0) == (log[0].bytes == memory.size()));
    if (log[0].error == ECANCELED && log[0].bytes != 0) ++halfway;
  }
  MESSAGE("cancelled halfway: " << halfway << " of 20");
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: no save starts while a load waits", Fixture, io_loads_first) {
  using namespace kvx_test;
  const scratch_directory directory;
  // Two pages in flight, of which saves may have one.
  const auto backend = Fixture::make({.threads = 1, .piece_bytes = page_bytes, .in_flight_bytes = 2 * page_bytes});
  if (backend == nullptr) return;
  constexpr std::size_t count = 64;
  const auto file = directory.make("f", 2 * count * page_bytes);
  kvx::detail::aligned_buffer memory(2 * count * page_bytes);
  request_log log;
  {
    gate busy(*backend);
    for (std::size_t i = 0; i < count; ++i) {
      log.write(file.fd(), i * page_bytes, memory.span().subspan(i * page_bytes, page_bytes));
    }
    log.submit(*backend);
    for (std::size_t i = count; i < 2 * count; ++i) {
      log.read(file.fd(), i * page_bytes, memory.span().subspan(i * page_bytes, page_bytes));
    }
    log.submit(*backend);
  }
  log.wait();
  CHECK(log.all_good());
  // One load may still be in flight when the first save starts, and be overtaken.
  for (std::size_t i = 0; i < count; ++i) CHECK(log.entries()[i].order >= count - 1);
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: bytes in flight stay below the limit", Fixture, io_in_flight) {
  using namespace kvx_test;
  const scratch_directory directory;
  constexpr std::size_t limit = mib;
  const auto backend = Fixture::make({.threads = 3, .piece_bytes = 64 * page_bytes, .in_flight_bytes = limit});
  if (backend == nullptr) return;
  const auto file = directory.make("f", 64 * mib, kvx::detail::file_mode::direct);
  kvx::detail::aligned_buffer memory(32 * mib);
  std::atomic<bool> over{false};
  std::atomic<std::size_t> most{0};
  std::thread watcher([&] {
    while (!over) most = std::max(most.load(), backend->in_flight_bytes());
  });
  request_log log;
  // Until the watcher, which may have to wait for a processor, has seen some.
  const auto end = std::chrono::steady_clock::now() + patience;
  do {
    for (std::size_t i = 0; i < 32; ++i) {
      log.write(file.fd(), i * mib, memory.span().subspan(i * mib, mib));
      log.read(file.fd(), (i + 32) * mib, memory.span().subspan(i * mib, mib));
    }
    log.run(*backend);
  } while (most == 0 && std::chrono::steady_clock::now() < end);
  over = true;
  watcher.join();
  CHECK(log.all_good());
  CHECK(most <= limit);
  CHECK(most > 0);
  CHECK(backend->in_flight_bytes() == 0);
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: submitted by many threads and from completions", Fixture, io_submitters) {
  using namespace kvx_test;
  const scratch_directory directory;
  const auto backend = Fixture::make({});
  if (backend == nullptr) return;
  constexpr std::size_t threads = 4, each = 200;
  const auto file = directory.make("f", threads * each * page_bytes);
  kvx::detail::aligned_buffer memory(threads * each * page_bytes), read(threads * each * page_bytes);
  fill(memory.span(), 0, 6);
  std::deque<request_log> logs(threads);
  std::vector<std::thread> submitters;
  for (std::size_t t = 0; t < threads; ++t) {
    submitters.emplace_back([&, t] {
      for (std::size_t i = 0; i < each; ++i) {
        const std::size_t at = (t * each + i) * page_bytes;
        logs[t].write(file.fd(), at, memory.span().subspan(at, page_bytes));
        logs[t].submit(*backend);
        if (i % 16 == 0) {
          backend->attach(file.fd());
          backend->detach(file.fd());
        }
      }
    });
  }
  for (auto& submitter : submitters) submitter.join();
  for (auto& log : logs) {
    log.wait();
    CHECK(log.all_good());
  }

  // A chain: each completion submits the next read.
  struct chain {
    typename Fixture::backend* backend;
    kvx::io_request request;
    std::byte* begin;
    std::size_t left;
    std::mutex mutex;
    std::condition_variable changed;
    int error = 0;
    bool over = false;
  };
  chain links{.backend = backend.get(),
              .request = {},
              .begin = read.data(),
              .left = threads * each,
              .mutex = {},
              .changed = {}};
  links.request = {.file = file.fd(),
                   .data = read.data(),
                   .bytes = page_bytes,
                   .context = &links,
                   .done = [](void* context, const kvx::io_result& outcome) noexcept {
                     chain& self = *static_cast<chain*>(context);
                     if (outcome.error == 0 && --self.left != 0) {
                       self.request.offset += page_bytes;
                       self.request.data += page_bytes;
                       self.backend->attach(self.request.file);
                       self.backend->submit({&self.request, 1});
                       self.backend->detach(self.request.file);
                       return;
                     }
                     const std::lock_guard lock(self.mutex);
                     self.error = outcome.error;
                     self.over = true;
                     self.changed.notify_all();
                   }};
  backend->submit({&links.request, 1});
  {
    std::unique_lock lock(links.mutex);
    REQUIRE(links.changed.wait_for(lock, patience, [&] { return links.over; }));
  }
  CHECK(links.error == 0);
  CHECK(holds(read.span(), 0, 6));
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: descriptor numbers that pass from file to file", Fixture, io_attach) {
  using namespace kvx_test;
  const scratch_directory directory;
  const auto backend = Fixture::make({});
  if (backend == nullptr) return;
  kvx::detail::aligned_buffer memory(2 * page_bytes);
  const auto sent = memory.span().first(page_bytes), received = memory.span().last(page_bytes);
  // More at once than a table of registered files holds.
  std::deque<kvx::detail::file> open;
  for (std::size_t i = 0; i < 600; ++i) {
    auto file = directory.make(std::to_string(i), page_bytes);
    backend->attach(file.fd());
    if (i % 3 == 0) {
      // Time for the attachment to take effect.
      request_log pause;
      pause.read(file.fd(), 0, received);
      pause.run(*backend);
    }
    fill(sent, 0, i);
    request_log save, load;
    save.write(file.fd(), 0, sent);
    save.run(*backend);
    load.read(file.fd(), 0, received);
    load.run(*backend);
    REQUIRE((save.all_good() && load.all_good()));
    REQUIRE(holds(received, 0, i));
    open.push_back(std::move(file));
    if (open.size() > 300 || i % 2 == 0) {
      const std::size_t victim = i % 2 == 0 ? open.size() - 1 : 0;
      backend->detach(open[victim].fd());
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(victim));
    }
  }
  CHECK(backend->stop(patience));
}

TEST_CASE_TEMPLATE_DEFINE("io: stop drains, and gives up in time what was not started", Fixture, io_stop) {
  using namespace kvx_test;
  const scratch_directory directory;
  const auto file = directory.make("f", 32 * mib);
  kvx::detail::aligned_buffer memory(32 * mib);
  SUBCASE("idle") {
    const auto backend = Fixture::make({});
    if (backend == nullptr) return;
    CHECK(backend->stop(0ms));
    CHECK(backend->stop(0ms));
  }
  SUBCASE("busy, with time") {
    const auto backend = Fixture::make({});
    if (backend == nullptr) return;
    request_log log;
    for (std::size_t i = 0; i < 32; ++i) log.write(file.fd(), i * mib, memory.span().subspan(i * mib, mib));
    log.submit(*backend);
    CHECK(backend->stop(patience));
    CHECK(log.all_good());
  }
  SUBCASE("busy, by destruction") {
    auto backend = Fixture::make({});
    if (backend == nullptr) return;
    request_log log;
    for (std::size_t i = 0; i < 32; ++i) log.read(file.fd(), i * mib, memory.span().subspan(i * mib, mib));
    log.submit(*backend);
    backend.reset();
    CHECK(log.all_good());
  }
  SUBCASE("busy, without time") {
    const auto backend = Fixture::make({.threads = 1});
    if (backend == nullptr) return;
    request_log log;
    std::thread opener;
    {
      gate busy(*backend);
      for (std::size_t i = 0; i < 32; ++i) log.write(file.fd(), i * mib, memory.span().subspan(i * mib, mib));
      log.submit(*backend);
      CHECK_FALSE(backend->stop(40ms));  // the gate's request is still out
      CHECK(log.completed() == 0);
    }
    log.wait();
    CHECK(backend->stop(patience));
    CHECK(log.all_once());
    for (const auto& each : log.entries()) CHECK(each.result.error == ECANCELED);
  }
}

/// All of the above for one fixture.
#define KVX_IO_CONFORMANCE(...)                                    \
  TEST_CASE_TEMPLATE_INVOKE(io_round_trip, __VA_ARGS__);           \
  TEST_CASE_TEMPLATE_INVOKE(io_thousands, __VA_ARGS__);            \
  TEST_CASE_TEMPLATE_INVOKE(io_end_of_file, __VA_ARGS__);          \
  TEST_CASE_TEMPLATE_INVOKE(io_truncated_while_read, __VA_ARGS__); \
  TEST_CASE_TEMPLATE_INVOKE(io_errors, __VA_ARGS__);               \
  TEST_CASE_TEMPLATE_INVOKE(io_short_write, __VA_ARGS__);          \
  TEST_CASE_TEMPLATE_INVOKE(io_cancel, __VA_ARGS__);               \
  TEST_CASE_TEMPLATE_INVOKE(io_cancel_late, __VA_ARGS__);          \
  TEST_CASE_TEMPLATE_INVOKE(io_loads_first, __VA_ARGS__);          \
  TEST_CASE_TEMPLATE_INVOKE(io_in_flight, __VA_ARGS__);            \
  TEST_CASE_TEMPLATE_INVOKE(io_submitters, __VA_ARGS__);           \
  TEST_CASE_TEMPLATE_INVOKE(io_attach, __VA_ARGS__);               \
  TEST_CASE_TEMPLATE_INVOKE(io_stop, __VA_ARGS__)
