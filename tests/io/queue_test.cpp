// SPDX-License-Identifier: Apache-2.0
// What backends share, driven by a mover that is cut short, interrupted and refused on purpose.
#include <kvx/detail/io_pool.hpp>
#include <kvx/detail/io_registered_files.hpp>

#include "conformance.hpp"

#include <tuple>
#include <utility>

using namespace kvx_test;
using kvx::detail::io_limits;
using kvx::detail::io_piece;

namespace {

/// A file in memory whose calls do less than they were asked for.
struct difficult_file {
  std::vector<std::byte> content;
  std::mutex mutex;
  std::mt19937_64 random{3};
  std::size_t calls = 0;
  std::size_t busy_bytes = 0;
  std::size_t most_busy_bytes = 0;

  std::int64_t move(const io_piece& piece) {
    std::unique_lock lock(mutex);
    ++calls;
    busy_bytes += piece.charged_bytes;
    most_busy_bytes = std::max(most_busy_bytes, busy_bytes);
    lock.unlock();
    std::this_thread::sleep_for(50us);  // long enough for other threads to come
    lock.lock();
    busy_bytes -= piece.charged_bytes;
    if (random() % 3 == 0) return -EINTR;
    if (piece.offset >= content.size()) return 0;
    std::size_t bytes = std::min<std::size_t>(piece.bytes, content.size() - piece.offset);
    bytes = 1 + random() % bytes;
    if (piece.op == kvx::io_op::read) {
      std::memcpy(piece.data, content.data() + piece.offset, bytes);
    } else {
      std::memcpy(content.data() + piece.offset, piece.data, bytes);
    }
    return static_cast<std::int64_t>(bytes);
  }
};

struct mover {
  difficult_file* file;
  std::int64_t operator()(const io_piece& piece) const { return file->move(piece); }
};

}  // namespace

TEST_CASE("io queue: short and interrupted calls are continued at the right place") {
  difficult_file file;
  file.content.resize(8 * mib);
  kvx::detail::io_pool<mover> pool("kvx-test", {.threads = 4, .in_flight_bytes = mib / 2}, 64 * page_bytes,
                                   mover{&file});
  kvx::detail::aligned_buffer memory(8 * mib), read(8 * mib);
  fill(memory.span(), 0, 1);
  request_log saves, loads, beyond;
  for (std::size_t i = 0; i < 8; ++i) saves.write(3, i * mib, memory.span().subspan(i * mib, mib));
  saves.run(pool);
  CHECK(saves.all_good());
  CHECK(std::memcmp(file.content.data(), memory.data(), memory.size()) == 0);
  for (std::size_t i = 0; i < 8; ++i) loads.read(3, i * mib, read.span().subspan(i * mib, mib));
  loads.run(pool);
  CHECK(loads.all_good());
  CHECK(holds(read.span(), 0, 1));
  beyond.read(3, 7 * mib, read.span().first(2 * mib));
  beyond.write(3, 8 * mib, memory.span().first(mib));
  beyond.run(pool);
  CHECK(beyond[0].error == ENODATA);
  CHECK(beyond[0].bytes <= mib);
  CHECK(beyond[1].error == EIO);
  CHECK(beyond[1].bytes == 0);
  CHECK(pool.stop(patience));
  CHECK(file.calls > 32);
  CHECK(file.most_busy_bytes <= mib / 2);
  CHECK(file.most_busy_bytes > 64 * page_bytes);
}

TEST_CASE("io queue: an answer is booked as what it means") {
  std::vector<std::byte> memory(8192);
  const auto after = [&memory](io_piece piece, std::int64_t answer) {
    int error = -1;
    piece.data = memory.data();
    const auto step = kvx::detail::advance(piece, answer, error);
    return std::tuple(step, error, piece.offset, piece.bytes);
  };
  using kvx::detail::io_step;
  const io_piece read{.op = kvx::io_op::read, .offset = 8192, .bytes = 8192};
  const io_piece write{.op = kvx::io_op::write, .offset = 8192, .bytes = 8192};
  const io_piece inside{.op = kvx::io_op::read, .offset = 8192 + 904, .bytes = 8192 - 904};
  CHECK(after(read, 8192) == std::tuple(io_step::ended, 0, 16384U, 0U));
  CHECK(after(read, 4096) == std::tuple(io_step::again, 0, 12288U, 4096U));
  CHECK(after(read, 1) == std::tuple(io_step::again, 0, 8193U, 8191U));
  CHECK(after(read, 0) == std::tuple(io_step::ended, ENODATA, 8192U, 8192U));
  CHECK(after(write, 0) == std::tuple(io_step::ended, EIO, 8192U, 8192U));
  CHECK(after(read, -EINTR) == std::tuple(io_step::again, 0, 8192U, 8192U));
  CHECK(after(read, -EIO) == std::tuple(io_step::ended, EIO, 8192U, 8192U));
  CHECK(after(read, -EINVAL) == std::tuple(io_step::ended, EINVAL, 8192U, 8192U));
  // Direct I/O cannot go on inside a page; the read that led there had met the end of the file.
  CHECK(after(inside, -EINVAL) == std::tuple(io_step::ended, ENODATA, 8192U + 904U, 8192U - 904U));
}

TEST_CASE("io queue: pieces are page multiples of equal size that fit every limit") {
  const io_limits usual({.in_flight_bytes = 32 * mib}, mib);
  CHECK(usual.piece_bytes == mib);
  CHECK(usual.next_bytes(mib) == mib);
  CHECK(usual.next_bytes(5 * mib + page_bytes) == 214 * page_bytes);
  const io_limits odd({.piece_bytes = 10000, .in_flight_bytes = 32 * mib}, mib);
  CHECK(odd.piece_bytes == 2 * page_bytes);
  const io_limits tight({.in_flight_bytes = 1}, mib);
  CHECK(tight.in_flight_bytes == 2 * page_bytes);
  CHECK(tight.piece_bytes == page_bytes);
  const io_limits huge({.piece_bytes = std::size_t{1} << 40U, .in_flight_bytes = std::size_t{1} << 42U}, mib);
  CHECK(huge.piece_bytes == std::size_t{1} << 30U);
  for (std::size_t pages = 1; pages < 3000; pages += 7) {
    std::size_t rest = pages * page_bytes, parts = 0;
    for (; rest != 0; ++parts) {
      const std::size_t next = usual.next_bytes(rest);
      REQUIRE(next <= usual.piece_bytes);
      REQUIRE(next % page_bytes == 0);
      REQUIRE(next <= rest);
      rest -= next;
    }
    REQUIRE(parts == (pages * page_bytes + mib - 1) / mib);
  }
}

TEST_CASE("io queue: a waiting piece wakes every idle thread") {
  struct meeting {
    std::mutex mutex;
    std::condition_variable changed;
    int present = 0;
    bool met = false;
  } place;
  struct meets {
    meeting* place;
    std::int64_t operator()(const io_piece& piece) const {
      std::unique_lock lock(place->mutex);
      if (++place->present == 4) place->met = true;
      place->changed.notify_all();
      place->changed.wait_for(lock, patience, [this] { return place->met; });
      return static_cast<std::int64_t>(piece.bytes);
    }
  };
  kvx::detail::io_pool<meets> pool("kvx-test", {.threads = 4}, page_bytes, meets{&place});
  kvx::detail::aligned_buffer memory(4 * page_bytes);
  std::this_thread::sleep_for(20ms);  // all four asleep, most likely
  request_log log;
  log.read(3, 0, memory.span());  // one request, four pieces: they meet only if four threads move it
  log.run(pool);
  CHECK(log.all_good());
  CHECK(place.met);
  CHECK(pool.stop(patience));
}

TEST_CASE("io queue: registered files change slots only when nobody uses them") {
  std::vector<std::pair<std::size_t, int>> posted;
  kvx::detail::io_registered_files files(2, 2, [&](std::size_t slot, int fd) { posted.emplace_back(slot, fd); });
  files.attach(7);
  REQUIRE(posted.size() == 1);
  CHECK(files.acquire(7) == -1);
  files.applied(0, true);
  CHECK(files.acquire(7) == -1);  // one ring does not have it yet
  files.applied(0, true);
  CHECK(files.acquire(7) == 0);
  files.detach(7);
  CHECK(files.acquire(7) == -1);
  CHECK(posted.size() == 1);  // a piece still names the slot
  files.attach(7);            // the number came back for another file
  CHECK(posted.back() == std::pair<std::size_t, int>(1, 7));
  files.attach(8);  // full
  CHECK(posted.size() == 2);
  files.release(0);
  CHECK(posted.back() == std::pair<std::size_t, int>(0, -1));
  files.attach(8);  // not emptied yet
  CHECK(posted.size() == 3);
  files.applied(0, true);
  files.applied(0, true);
  files.attach(8);
  CHECK(posted.back() == std::pair<std::size_t, int>(0, 8));
  // Detached before the rings had it: emptied right after.
  files.detach(8);
  files.applied(0, true);
  CHECK(posted.size() == 4);
  files.applied(0, true);
  CHECK(posted.back() == std::pair<std::size_t, int>(0, -1));
  // A ring that refuses leaves the file unregistered.
  files.applied(1, false);
  files.applied(1, true);
  CHECK(files.acquire(7) == -1);
}
