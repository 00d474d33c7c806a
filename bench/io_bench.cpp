// SPDX-License-Identifier: Apache-2.0
// I/O backends against raw loops over the same file: direct reads and overwrites of whole blocks at random places.
//
// The raw loops (pread/pwrite from plain threads, one io_uring) are swept over depth and size; the best of them is the
// ceiling. All variants take turns, in another order each round; a backend's figure is the median over the rounds of
// its ratio to the ceiling in the same round, with a 95 % bootstrap interval.
#include <kvx/concepts/io.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/io/auto_io.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/io/uring.hpp>

#include <liburing.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr std::size_t mib = std::size_t{1} << 20U;
constexpr double gib = 1024.0 * static_cast<double>(mib);

/// One round's work: whole blocks of one file, in this order.
struct workload {
  int file = -1;
  kvx::io_op op = kvx::io_op::read;
  std::size_t block_bytes = 0;
  std::vector<std::uint64_t> offsets;
  std::span<std::byte> arena;  ///< as many slots of block_bytes as fit are in flight at most

  [[nodiscard]] std::span<std::byte> slot(std::size_t i) const {
    return arena.subspan(i % (arena.size() / block_bytes) * block_bytes, block_bytes);
  }
  [[nodiscard]] double bytes() const { return static_cast<double>(offsets.size() * block_bytes); }
};

struct figure {
  double gigabytes_per_second = 0;
  double cpu_ms_per_gib = 0;
};

struct variant {
  std::string name;
  bool ceiling = false;
  std::function<void(const workload&)> run;
  std::vector<figure> rounds{};
};

[[noreturn]] void give_up(const std::string& what, int error) {
  throw std::runtime_error(what + ": " + std::generic_category().message(error));
}

double cpu_seconds() {
  ::rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const ::timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

/// Ceiling: threads that do nothing but move the next piece.
void raw_threads(const workload& work, unsigned threads, std::size_t piece_bytes) {
  const std::size_t per_block = (work.block_bytes + piece_bytes - 1) / piece_bytes;
  std::atomic<std::size_t> next{0};
  std::atomic<int> failed{0};
  std::vector<std::thread> running;
  for (unsigned t = 0; t < threads; ++t) {
    running.emplace_back([&] {
      for (std::size_t i = next++; i < work.offsets.size() * per_block && failed == 0; i = next++) {
        const std::size_t at = i % per_block * piece_bytes;
        const auto data = work.slot(i / per_block).subspan(at, std::min(piece_bytes, work.block_bytes - at));
        const std::uint64_t offset = work.offsets[i / per_block] + at;
        const kvx::status outcome = work.op == kvx::io_op::read ? kvx::detail::pread_all(work.file, data, offset)
                                                                : kvx::detail::pwrite_all(work.file, data, offset);
        if (!outcome) failed = outcome.os_error();
      }
    });
  }
  for (std::thread& each : running) each.join();
  if (failed != 0) give_up("raw threads", failed);
}

/// Ceiling: one ring, `depth` pieces in flight, registered buffer and file where allowed.
class raw_ring {
 public:
  raw_ring(std::span<std::byte> arena, int file) {
    if (const int failed = ::io_uring_queue_init(256, &ring_, 0); failed < 0) give_up("io_uring", -failed);
    const ::iovec whole{arena.data(), arena.size()};
    fixed_ = ::io_uring_register_buffers(&ring_, &whole, 1) == 0 && ::io_uring_register_files(&ring_, &file, 1) == 0;
  }
  raw_ring(const raw_ring&) = delete;
  raw_ring& operator=(const raw_ring&) = delete;
  ~raw_ring() { ::io_uring_queue_exit(&ring_); }

  void run(const workload& work, unsigned depth, std::size_t piece_bytes) {
    const std::size_t per_block = (work.block_bytes + piece_bytes - 1) / piece_bytes;
    const std::size_t total = work.offsets.size() * per_block;
    std::size_t started = 0, ended = 0;
    while (ended < total) {
      for (; started < total && started - ended < depth; ++started) prepare(work, started, piece_bytes, per_block);
      if (const int failed = ::io_uring_submit_and_wait(&ring_, 1); failed < 0) give_up("io_uring_enter", -failed);
      ::io_uring_cqe* answer = nullptr;
      unsigned head = 0, seen = 0;
      io_uring_for_each_cqe(&ring_, head, answer) {
        ++seen;
        if (answer->res < 0) give_up("io_uring", -answer->res);
        if (static_cast<std::uint64_t>(answer->res) != answer->user_data) give_up("io_uring: short", EIO);
      }
      ::io_uring_cq_advance(&ring_, seen);
      ended += seen;
    }
  }

 private:
  void prepare(const workload& work, std::size_t i, std::size_t piece_bytes, std::size_t per_block) {
    const std::size_t at = i % per_block * piece_bytes;
    const auto data = work.slot(i / per_block).subspan(at, std::min(piece_bytes, work.block_bytes - at));
    const std::uint64_t offset = work.offsets[i / per_block] + at;
    const auto bytes = static_cast<unsigned>(data.size());
    ::io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_);
    const bool read = work.op == kvx::io_op::read;
    if (fixed_) {
      read ? ::io_uring_prep_read_fixed(entry, 0, data.data(), bytes, offset, 0)
           : ::io_uring_prep_write_fixed(entry, 0, data.data(), bytes, offset, 0);
      entry->flags |= IOSQE_FIXED_FILE;
    } else {
      read ? ::io_uring_prep_read(entry, work.file, data.data(), bytes, offset)
           : ::io_uring_prep_write(entry, work.file, data.data(), bytes, offset);
    }
    ::io_uring_sqe_set_data64(entry, bytes);
  }

  ::io_uring ring_{};
  bool fixed_ = false;
};

/// A backend as a cache uses it: every slot of the arena in flight, the next block submitted by a completion.
template <class Backend>
void through(Backend& backend, const workload& work) {
  struct state {
    Backend* backend;
    const workload* work;
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t started = 0;
    std::size_t ended = 0;
    int error = 0;
  } shared{.backend = &backend, .work = &work, .mutex = {}, .changed = {}};
  struct lane {
    state* shared;
    kvx::io_request request;
  };
  std::vector<lane> lanes(std::min(work.arena.size() / work.block_bytes, work.offsets.size()));
  std::vector<kvx::io_request> first;
  shared.started = lanes.size();
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    lanes[i] = {.shared = &shared,
                .request = {.op = work.op,
                            .priority = work.op == kvx::io_op::read ? kvx::io_class::load : kvx::io_class::save,
                            .file = work.file,
                            .offset = work.offsets[i],
                            .data = work.slot(i).data(),
                            .bytes = work.block_bytes,
                            .context = &lanes[i],
                            .done = [](void* context, const kvx::io_result& outcome) noexcept {
                              lane& self = *static_cast<lane*>(context);
                              state& all = *self.shared;
                              {
                                const std::lock_guard lock(all.mutex);
                                if (outcome.error != 0) all.error = outcome.error;
                                if (++all.ended == all.work->offsets.size()) all.changed.notify_all();
                                if (all.started == all.work->offsets.size()) return;
                                self.request.offset = all.work->offsets[all.started++];
                              }
                              all.backend->submit({&self.request, 1});
                            }}};
    first.push_back(lanes[i].request);
  }
  backend.submit(first);
  std::unique_lock lock(shared.mutex);
  shared.changed.wait(lock, [&] { return shared.ended == work.offsets.size(); });
  if (shared.error != 0) give_up(std::string(backend.name()), shared.error);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::pair<double, double> interval(const std::vector<double>& values) {
  std::mt19937_64 random{1};
  std::vector<double> medians;
  for (int i = 0; i < 2000; ++i) {
    std::vector<double> drawn;
    for (std::size_t k = 0; k < values.size(); ++k) drawn.push_back(values[random() % values.size()]);
    medians.push_back(median(drawn));
  }
  std::sort(medians.begin(), medians.end());
  return {medians[50], medians[1949]};
}

double median_of(const variant& one, double figure::*what) {
  std::vector<double> values;
  for (const figure& each : one.rounds) values.push_back(each.*what);
  return median(values);
}

void report(std::vector<variant>& variants) {
  constexpr double wanted = 0.95;
  const variant* best = nullptr;
  for (const variant& each : variants) {
    if (!each.ceiling) continue;
    const double speed = median_of(each, &figure::gigabytes_per_second);
    if (best == nullptr || speed > median_of(*best, &figure::gigabytes_per_second)) best = &each;
  }
  for (const variant& each : variants) {
    std::printf("  %-34s %7.3f GB/s %8.2f CPU-ms/GiB", each.name.c_str(),
                median_of(each, &figure::gigabytes_per_second), median_of(each, &figure::cpu_ms_per_gib));
    if (each.ceiling) {
      std::printf("%s\n", &each == best ? "  ceiling" : "");
      continue;
    }
    std::vector<double> ratios;
    for (std::size_t r = 0; r < each.rounds.size(); ++r) {
      ratios.push_back(each.rounds[r].gigabytes_per_second / best->rounds[r].gigabytes_per_second);
    }
    const auto [low, high] = interval(ratios);
    std::printf("  %.3f of ceiling [%.3f, %.3f] %s\n", median(ratios), low, high,
                low >= wanted   ? "reached"
                : high < wanted ? "missed"
                                : "inconclusive");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  std::string directory = ".";
  std::size_t file_mib = 4096, round_mib = 1024, arena_mib = 64, rounds = 7;
  std::vector<std::size_t> block_kib{2048, 5120};
  std::vector<unsigned> threads{2, 4, 8}, depths{8, 16, 32};
  std::vector<std::size_t> thread_piece_kib{4096, 8192}, ring_piece_kib{512, 1024};
  CLI::App app{"I/O backends against raw loops over the same file"};
  app.add_option("--directory", directory, "where the file is made");
  app.add_option("--file-mib", file_mib, "size of the file; far above the drive's own cache");
  app.add_option("--round-mib", round_mib, "moved per variant and round");
  app.add_option("--arena-mib", arena_mib, "memory whose slots are in flight");
  app.add_option("--rounds", rounds, "rounds")->check(CLI::PositiveNumber);
  app.add_option("--block-kib", block_kib, "block sizes");
  app.add_option("--threads", threads, "raw threads and posix pool sizes");
  app.add_option("--thread-piece-kib", thread_piece_kib, "largest pread or pwrite");
  app.add_option("--depth", depths, "raw io_uring: pieces in flight");
  app.add_option("--ring-piece-kib", ring_piece_kib, "io_uring: piece sizes");
  CLI11_PARSE(app, argc, argv);

  const auto root = kvx::detail::open_root(directory.c_str());
  if (!root) give_up(directory, root.status().os_error());
  const std::string name = *kvx::detail::random_name("kvx-io-bench-");
  const auto made = kvx::detail::create_file(root->fd(), name.c_str(), kvx::detail::file_mode::direct);
  if (!made) give_up(name, made.status().os_error());
  ::unlinkat(root->fd(), name.c_str(), 0);
  if (!made->direct) std::printf("no direct I/O in %s: buffered\n", directory.c_str());
  const int file = made->handle.fd();

  const std::size_t arena_bytes = arena_mib * mib;
  void* const mapped = ::mmap(nullptr, arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) give_up("arena", errno);
  (void)::madvise(mapped, arena_bytes, MADV_HUGEPAGE);
  const std::span<std::byte> arena(static_cast<std::byte*>(mapped), arena_bytes);
  std::mt19937_64 random{7};
  for (std::byte& each : arena) each = static_cast<std::byte>(random());

  // Written once, so that no variant pays for allocation.
  if (const auto reserved = kvx::detail::preallocate(file, file_mib * mib); !reserved) {
    give_up("preallocating " + std::to_string(file_mib) + " MiB", reserved.status().os_error());
  }
  for (std::size_t at = 0; at < file_mib * mib; at += arena_bytes) {
    const auto part = arena.first(std::min(arena_bytes, file_mib * mib - at));
    if (const auto outcome = kvx::detail::pwrite_all(file, part, at); !outcome) give_up("writing", outcome.os_error());
  }

  for (const std::size_t block_bytes_kib : block_kib) {
    for (const kvx::io_op op : {kvx::io_op::read, kvx::io_op::write}) {
      std::vector<variant> variants;
      for (const unsigned t : threads) {
        for (const std::size_t piece : thread_piece_kib) {
          const std::string sweep = std::to_string(t) + " x " + std::to_string(piece) + " KiB";
          variants.push_back(
              {"raw threads " + sweep, true, [=](const workload& w) { raw_threads(w, t, piece << 10U); }});
          variants.push_back({"kvx::posix " + sweep, false,
                              [=, backend = std::make_shared<kvx::posix>(kvx::io_options{
                                      .threads = t, .piece_bytes = piece << 10U, .in_flight_bytes = arena_bytes})](
                                  const workload& w) { through(*backend, w); }});
        }
      }
      try {
        const auto ring = std::make_shared<raw_ring>(arena, file);
        for (const unsigned depth : depths) {
          for (const std::size_t piece : ring_piece_kib) {
            variants.push_back({"raw io_uring " + std::to_string(depth) + " x " + std::to_string(piece) + " KiB", true,
                                [=](const workload& w) { ring->run(w, depth, piece << 10U); }});
          }
        }
        for (const unsigned rings : {1U, 2U}) {
          for (const std::size_t piece : ring_piece_kib) {
            const auto backend =
                std::make_shared<kvx::uring>(kvx::io_options{.threads = rings, .piece_bytes = piece << 10U});
            if (!backend->register_arena(arena)) std::printf("arena not registered: raise ulimit -l\n");
            backend->attach(file);
            variants.push_back({"kvx::uring " + std::to_string(rings) + " rings, " + std::to_string(piece) + " KiB",
                                false, [=](const workload& w) { through(*backend, w); }});
          }
        }
      } catch (const std::exception& refused) {
        std::printf("without io_uring: %s\n", refused.what());
      }
      const auto chosen = std::make_shared<kvx::auto_io>(kvx::io_options{}, directory);
      (void)chosen->register_arena(arena);
      chosen->attach(file);
      variants.push_back({"kvx::auto_io, defaults (" + std::string(chosen->name()) + ")", false,
                          [=](const workload& w) { through(*chosen, w); }});

      workload work{.file = file, .op = op, .block_bytes = block_bytes_kib << 10U, .offsets = {}, .arena = arena};
      const std::size_t slots = file_mib * mib / work.block_bytes;
      const std::size_t blocks = std::max<std::size_t>(round_mib * mib / work.block_bytes, 1);
      std::vector<std::size_t> order(variants.size());
      for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
      for (std::size_t round = 0; round < rounds; ++round) {
        work.offsets.clear();
        for (std::size_t i = 0; i < blocks; ++i) work.offsets.push_back(random() % slots * work.block_bytes);
        std::shuffle(order.begin(), order.end(), random);
        for (const std::size_t v : order) {
          const double cpu = cpu_seconds();
          const auto begin = std::chrono::steady_clock::now();
          variants[v].run(work);
          const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
          variants[v].rounds.push_back(
              {work.bytes() / seconds / 1e9, (cpu_seconds() - cpu) * 1e3 / (work.bytes() / gib)});
        }
      }
      std::printf("%s, blocks of %zu KiB, %zu rounds of %zu MiB\n", op == kvx::io_op::read ? "load" : "save",
                  block_bytes_kib, rounds, blocks * work.block_bytes / mib);
      report(variants);
    }
  }
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "io_bench: %s\n", failure.what());
  return 1;
}
