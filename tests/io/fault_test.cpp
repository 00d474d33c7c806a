// SPDX-License-Identifier: Apache-2.0
#include <kvx/io/fault.hpp>
#include <kvx/io/memory.hpp>
#include <kvx/io/posix.hpp>

#include "conformance.hpp"

#include <memory>
#include <vector>

using namespace kvx_test;
using kvx::fault_kind;
using kvx::fault_rule;
using kvx::fault_scope;

namespace {

/// A file of `pages` pages, all of content 1, behind a backend whose faults are ordered through `control`.
struct bench_of_faults {
  explicit bench_of_faults(std::uint64_t seed = 1, std::size_t pages = 16)
      : control(std::make_shared<kvx::fault_control>(seed)),
        backend({}, control),
        memory(pages * page_bytes),
        file(directory.make("f", pages * page_bytes, kvx::detail::file_mode::direct)) {
    fill(memory.span(), 0, 1);
    REQUIRE(write(0, memory.size()).error == 0);
  }

  kvx::io_result one(kvx::io_op op, std::size_t at, std::size_t bytes) {
    request_log log;
    log.add(op, kvx::io_class::load, file.fd(), at, memory.span().subspan(at, bytes));
    log.run(backend);
    CHECK(log.all_once());
    return log[0];
  }
  kvx::io_result write(std::size_t at, std::size_t bytes) { return one(kvx::io_op::write, at, bytes); }
  kvx::io_result read(std::size_t at, std::size_t bytes) {
    std::memset(memory.data() + at, 0xEE, bytes);
    return one(kvx::io_op::read, at, bytes);
  }
  /// What the pages of the file hold: the content's number, or -1 for neither.
  std::vector<int> stored() const {
    kvx::detail::aligned_buffer now(memory.size());
    REQUIRE(kvx::detail::pread_all(file.fd(), now.span(), 0).ok());
    std::vector<int> found;
    for (std::size_t at = 0; at < now.size(); at += page_bytes) {
      const auto page = now.span().subspan(at, page_bytes);
      found.push_back(holds(page, at, 1) ? 1 : holds(page, at, 2) ? 2 : -1);
    }
    return found;
  }

  scratch_directory directory;
  std::shared_ptr<kvx::fault_control> control;
  kvx::fault<kvx::posix> backend;
  kvx::detail::aligned_buffer memory;
  kvx::detail::file file;
};

}  // namespace

TEST_CASE("io fault: the N-th operation fails, once or from then on") {
  for (std::uint64_t n = 1; n <= 5; ++n) {
    for (const bool for_ever : {false, true}) {
      bench_of_faults bench;
      bench.control->arm({.first = n, .count = for_ever ? fault_rule::for_ever : 1, .error = ESTALE});
      for (std::uint64_t i = 1; i <= 6; ++i) {
        const bool hit = for_ever ? i >= n : i == n;
        const auto outcome = bench.read(0, 4 * page_bytes);
        CHECK(outcome.error == (hit ? ESTALE : 0));
        CHECK(outcome.bytes == (hit ? 0 : 4 * page_bytes));
      }
      CHECK(bench.control->operations() == 7);
      CHECK(bench.control->injected(fault_kind::error) == (for_ever ? 7 - n : 1));
      bench.control->disarm();
      CHECK(bench.read(0, page_bytes).error == 0);
      CHECK(bench.backend.stop(patience));
    }
  }
}

TEST_CASE("io fault: scopes count their own operations") {
  bench_of_faults bench;
  bench.control->arm({.scope = fault_scope::writes, .first = 2, .error = ENOSPC});
  CHECK(bench.read(0, page_bytes).error == 0);
  CHECK(bench.write(0, page_bytes).error == 0);
  CHECK(bench.read(0, page_bytes).error == 0);
  CHECK(bench.write(0, page_bytes).error == ENOSPC);
  CHECK(bench.write(0, page_bytes).error == 0);
}

TEST_CASE("io fault: rates are kept, and a seed repeats them") {
  const auto run = [](std::uint64_t seed) {
    auto control = std::make_shared<kvx::fault_control>(seed);
    kvx::fault<kvx::memory_io> backend({}, control);
    control->arm({.count = fault_rule::for_ever, .rate = 0.1});
    const scratch_directory directory;
    const auto file = directory.make("f", page_bytes);
    kvx::detail::aligned_buffer memory(page_bytes);
    request_log log;
    for (int i = 0; i < 2000; ++i) log.read(file.fd(), 0, memory.span());
    log.run(backend);
    std::vector<int> errors;
    for (const auto& each : log.entries()) errors.push_back(each.result.error);
    CHECK(control->injected(fault_kind::error) > 140);
    CHECK(control->injected(fault_kind::error) < 260);
    return errors;
  };
  const auto first = run(42);
  CHECK(first == run(42));
  CHECK(first != run(43));
}

TEST_CASE("io fault: short transfers, reported and continued") {
  bench_of_faults bench;
  bench.control->arm({.kind = fault_kind::short_transfer, .count = 2});
  const auto read = bench.read(0, 8 * page_bytes);
  CHECK(read.error == ENODATA);
  CHECK(read.bytes < 8 * page_bytes);
  CHECK(holds(bench.memory.span().first(read.bytes), 0, 1));
  CHECK(bench.memory.data()[read.bytes] == std::byte{0xEE});
  fill(bench.memory.span(), 0, 2);
  const auto written = bench.write(0, 8 * page_bytes);
  CHECK(written.error == ENOSPC);
  const auto found = bench.stored();
  for (std::size_t page = 0; page < 8; ++page) CHECK(found[page] == (page < written.bytes / page_bytes ? 2 : 1));

  bench.control->arm({.kind = fault_kind::short_continued, .count = 2});
  CHECK(bench.write(0, bench.memory.size()).error == 0);
  CHECK(bench.stored() == std::vector<int>(16, 2));
  const auto whole = bench.read(0, bench.memory.size());
  CHECK(whole.error == 0);
  CHECK(whole.bytes == bench.memory.size());
  CHECK(holds(bench.memory.span(), 0, 2));
  CHECK(bench.control->injected(fault_kind::short_continued) == 2);
}

TEST_CASE("io fault: a torn write reports success and leaves old pages") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    bench_of_faults bench(seed);
    bench.control->arm({.kind = fault_kind::torn_write});
    CHECK(bench.read(0, page_bytes).error == 0);  // not a write: does not use the rule up
    fill(bench.memory.span(), 0, 2);
    const auto outcome = bench.write(0, bench.memory.size());
    CHECK(outcome.error == 0);
    CHECK(outcome.bytes == bench.memory.size());
    const auto found = bench.stored();
    CHECK(std::count(found.begin(), found.end(), 1) >= 1);
    CHECK(std::count(found.begin(), found.end(), 2) >= 1);
    CHECK(std::count(found.begin(), found.end(), -1) == 0);
    CHECK(bench.control->injected(fault_kind::torn_write) == 1);
  }
  bench_of_faults single;
  single.control->arm({.kind = fault_kind::torn_write});
  fill(single.memory.span(), 0, 2);
  CHECK(single.write(0, page_bytes).bytes == page_bytes);
  CHECK(single.stored() == std::vector<int>(16, 1));
}

TEST_CASE("io fault: a stale read returns what the last write replaced") {
  bench_of_faults bench;
  bench.control->arm({.kind = fault_kind::stale_read});
  CHECK(bench.read(0, page_bytes).error == 0);
  CHECK(bench.control->injected(fault_kind::stale_read) == 0);  // nothing was kept
  bench.control->keep_shadows(4 * page_bytes);
  fill(bench.memory.span(), 0, 2);
  CHECK(bench.write(4 * page_bytes, 4 * page_bytes).error == 0);
  bench.control->disarm();
  bench.control->arm({.kind = fault_kind::stale_read});
  const auto stale = bench.read(2 * page_bytes, 6 * page_bytes);
  CHECK(stale.error == 0);
  CHECK(holds(bench.memory.span().subspan(2 * page_bytes, 6 * page_bytes), 2 * page_bytes, 1));
  CHECK(bench.control->injected(fault_kind::stale_read) == 1);
  CHECK(bench.read(4 * page_bytes, 4 * page_bytes).error == 0);
  CHECK(holds(bench.memory.span().subspan(4 * page_bytes, 4 * page_bytes), 4 * page_bytes, 2));
  // Another write pushes the first shadow out.
  CHECK(bench.write(8 * page_bytes, 4 * page_bytes).error == 0);
  bench.control->disarm();
  bench.control->arm({.kind = fault_kind::stale_read});
  CHECK(bench.read(4 * page_bytes, 4 * page_bytes).error == 0);
  CHECK(bench.control->injected(fault_kind::stale_read) == 1);
}

TEST_CASE("io fault: misdirected transfers hit another place of the same file") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    bench_of_faults bench(seed);
    bench.control->arm({.kind = fault_kind::misdirected, .count = 2});
    CHECK(bench.read(0, 2 * page_bytes).error == 0);
    CHECK_FALSE(holds(bench.memory.span().first(2 * page_bytes), 0, 1));
    fill(bench.memory.span(), 0, 2);
    CHECK(bench.write(4 * page_bytes, page_bytes).bytes == page_bytes);
    const auto found = bench.stored();
    CHECK(found[4] == 1);
    CHECK(std::count(found.begin(), found.end(), -1) == 1);
    CHECK(bench.control->injected(fault_kind::misdirected) == 2);
  }
}

TEST_CASE("io fault: one bit flips, in what is read or in what is stored, never in the caller's source") {
  bench_of_faults bench;
  kvx::detail::aligned_buffer wanted(bench.memory.size());
  fill(wanted.span(), 0, 1);
  const auto different_bits = [&](std::span<const std::byte> found) {
    int bits = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      bits += __builtin_popcount(std::to_integer<unsigned>(found[i] ^ wanted.data()[i]));
    }
    return bits;
  };
  bench.control->arm({.kind = fault_kind::bit_flip});
  CHECK(bench.read(0, bench.memory.size()).error == 0);
  CHECK(different_bits(bench.memory.span()) == 1);
  CHECK(bench.read(0, bench.memory.size()).error == 0);
  CHECK(different_bits(bench.memory.span()) == 0);
  bench.control->arm({.kind = fault_kind::bit_flip});
  CHECK(bench.write(0, bench.memory.size()).error == 0);
  CHECK(different_bits(bench.memory.span()) == 0);
  CHECK(bench.read(0, bench.memory.size()).error == 0);
  CHECK(different_bits(bench.memory.span()) == 1);
}

TEST_CASE("io fault: late means late") {
  bench_of_faults bench;
  bench.control->arm({.kind = fault_kind::late, .delay = 2s});
  const auto begin = std::chrono::steady_clock::now();
  request_log log;
  std::memset(bench.memory.data(), 0xEE, page_bytes);
  log.read(bench.file.fd(), 0, bench.memory.span().first(page_bytes));
  log.read(bench.file.fd(), page_bytes, bench.memory.span().subspan(page_bytes, page_bytes));
  log.run(bench.backend);
  CHECK(std::chrono::steady_clock::now() - begin >= 2s);
  CHECK(log.all_good());
  CHECK(log.entries()[1].order == 0);
  CHECK(holds(bench.memory.span().first(page_bytes), 0, 1));
}

TEST_CASE("io fault: what never ends keeps its buffer, and writes into it when released") {
  bench_of_faults bench;
  bench.control->arm({.kind = fault_kind::never, .scope = fault_scope::reads});
  std::memset(bench.memory.data(), 0xEE, page_bytes);
  request_log log;
  log.read(bench.file.fd(), 0, bench.memory.span().first(page_bytes));
  log.submit(bench.backend);
  CHECK(bench.control->withheld() == 1);
  CHECK_FALSE(bench.backend.stop(20ms));
  CHECK_FALSE(bench.backend.stop(20ms));
  CHECK(log.completed() == 0);
  CHECK(bench.memory.data()[0] == std::byte{0xEE});
  // Whoever took the buffer back by now is overwritten.
  std::memset(bench.memory.data(), 0x11, page_bytes);
  bench.control->release_all();
  log.wait();
  CHECK(log.all_good());
  CHECK(holds(bench.memory.span().first(page_bytes), 0, 1));
  CHECK(bench.control->withheld() == 0);
  CHECK(bench.control->injected(fault_kind::never) == 1);
  CHECK(bench.backend.stop(patience));
}

TEST_CASE("io fault: a withheld operation that was cancelled ends as cancelled") {
  bench_of_faults bench;
  bench.control->arm({.kind = fault_kind::never});
  std::atomic<bool> given_up{false};
  std::memset(bench.memory.data(), 0xEE, page_bytes);
  request_log log;
  log.read(bench.file.fd(), 0, bench.memory.span().first(page_bytes)).cancelled = &given_up;
  log.submit(bench.backend);
  given_up = true;
  bench.control->release_all();
  log.wait();
  CHECK(log[0].error == ECANCELED);
  CHECK(bench.memory.data()[0] == std::byte{0xEE});
}

TEST_CASE("io fault: released by destruction at the latest") {
  request_log log;
  kvx::detail::aligned_buffer memory(page_bytes);
  const scratch_directory directory;
  const auto file = directory.make("f", page_bytes);
  {
    kvx::fault<kvx::posix> backend({});
    backend.control()->arm({.kind = fault_kind::never, .count = fault_rule::for_ever});
    log.read(file.fd(), 0, memory.span());
    log.submit(backend);
  }
  CHECK(log.all_good());
}

TEST_CASE("io fault: latency and bandwidth are at least what was asked for") {
  bench_of_faults bench;
  bench.control->throttle(std::uint64_t{1} << 20U);
  const auto begin = std::chrono::steady_clock::now();
  request_log log;
  for (std::size_t i = 0; i < 16; ++i) {
    log.read(bench.file.fd(), i * page_bytes, bench.memory.span().subspan(i * page_bytes, page_bytes));
  }
  log.run(bench.backend);
  CHECK(log.all_good());
  const auto taken = std::chrono::steady_clock::now() - begin;
  CHECK(taken >= 62ms);  // 64 KiB at 1 MiB/s
  bench.control->throttle(0, 20ms);
  const auto again = std::chrono::steady_clock::now();
  CHECK(bench.read(0, page_bytes).error == 0);
  CHECK(std::chrono::steady_clock::now() - again >= 20ms);
  bench.control->throttle(0);
}

TEST_CASE("io fault: a storm of everything completes each request once") {
  auto control = std::make_shared<kvx::fault_control>(99);
  const scratch_directory directory;
  const auto file = directory.make("f", 4 * mib);
  kvx::detail::aligned_buffer memory(3 * 300 * 16 * page_bytes);
  kvx::fault<kvx::posix> backend({.threads = 3, .piece_bytes = 4 * page_bytes}, control);
  // Something stale everywhere from the start.
  control->keep_shadows(32 * mib);
  request_log first;
  first.write(file.fd(), 0, memory.span().first(4 * mib));
  first.run(backend);
  CHECK(first.all_good());
  for (std::size_t kind = 0; kind < kvx::fault_kinds; ++kind) {
    control->arm({.kind = static_cast<fault_kind>(kind), .count = fault_rule::for_ever, .rate = 0.05, .delay = 1ms});
  }
  std::atomic<bool> given_up{false};
  std::deque<request_log> logs(3);
  std::vector<std::thread> submitters;
  for (std::size_t t = 0; t < logs.size(); ++t) {
    submitters.emplace_back([&, t] {
      for (std::size_t i = 0; i < 300; ++i) {
        const std::size_t at = (i * 7 % 63) * 16 * page_bytes;
        const auto own = memory.span().subspan((t * 300 + i) * 16 * page_bytes, (1 + i % 16) * page_bytes);
        auto& request = i % 2 == 0 ? logs[t].read(file.fd(), at, own) : logs[t].write(file.fd(), at, own);
        if (i % 10 == 0) request.cancelled = &given_up;
        logs[t].submit(backend);
      }
    });
  }
  for (auto& each : submitters) each.join();
  given_up = true;
  control->disarm();
  control->release_all();
  for (auto& log : logs) {
    log.wait();
    CHECK(log.all_once());
  }
  for (std::size_t kind = 0; kind < kvx::fault_kinds; ++kind) {
    CAPTURE(kind);
    CHECK(control->injected(static_cast<fault_kind>(kind)) > 0);
  }
  CHECK(control->withheld() == 0);
  CHECK(backend.stop(patience));
}
