// SPDX-License-Identifier: Apache-2.0
#include <kvx/io/auto_io.hpp>
#include <kvx/io/fault.hpp>
#include <kvx/io/uring.hpp>

#include "conformance.hpp"

#include <sys/mman.h>

#include <memory>
#include <string>
#include <string_view>

using namespace kvx_test;

namespace {

/// Null, and said so, where the kernel or the container denies io_uring.
template <class Backend>
std::unique_ptr<Backend> make_or_skip(const kvx::io_options& options) {
  try {
    return std::make_unique<Backend>(options);
  } catch (const kvx::error& refused) {
    skip(refused.what());
    return nullptr;
  }
}

template <class Backend>
struct where_allowed {
  using backend = Backend;
  static constexpr bool moves_files = true;
  static std::unique_ptr<Backend> make(const kvx::io_options& options) { return make_or_skip<Backend>(options); }
};

}  // namespace

TYPE_TO_STRING(where_allowed<kvx::uring>);
TYPE_TO_STRING(where_allowed<kvx::fault<kvx::uring>>);
TYPE_TO_STRING(where_allowed<kvx::auto_io>);
KVX_IO_CONFORMANCE(where_allowed<kvx::uring>, where_allowed<kvx::fault<kvx::uring>>, where_allowed<kvx::auto_io>);

TEST_CASE("io uring: memory is pinned as it is used, and requests cross the seams") {
  const auto backend = make_or_skip<kvx::uring>({.threads = 1});
  if (backend == nullptr) return;
  constexpr std::size_t chunk = kvx::detail::io_chunks::least_chunk_bytes;
  constexpr std::size_t arena_bytes = 2 * chunk + 4 * mib;
  void* const mapped = ::mmap(nullptr, arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(mapped != MAP_FAILED);
  (void)::madvise(mapped, arena_bytes, MADV_HUGEPAGE);
  const std::span<std::byte> arena(static_cast<std::byte*>(mapped), arena_bytes);
  const kvx::status registered = backend->register_arena(arena);
  const scratch_directory directory;
  const auto file = directory.make("f", 8 * mib, kvx::detail::file_mode::direct);
  const auto round_trip = [&](std::span<std::byte> at, unsigned seed) {
    request_log save, load;
    fill(at, 0, seed);
    save.write(file.fd(), 0, at);
    save.run(*backend);
    CHECK(save.all_good());
    std::memset(at.data(), 0, at.size());
    load.read(file.fd(), 0, at);
    load.run(*backend);
    CHECK(load.all_good());
    CHECK(holds(at, 0, seed));
  };
  if (registered.ok()) {
    CHECK(backend->register_arena(arena).os_error() == EBUSY);
    CHECK(backend->registered_bytes() == 0);
    // Each turn moves 8 MiB, 4 of them in the first chunk.
    for (unsigned turn = 0; turn < 16; ++turn) round_trip(arena.subspan(chunk - 2 * mib, 4 * mib), turn);
    CHECK(backend->registered_bytes() == 2 * chunk);
    round_trip(arena.subspan(chunk - 3 * mib / 2, 3 * mib), 99);
    // 4 MiB of these 6 are in the last chunk, which has no more.
    round_trip(arena.subspan(2 * chunk - mib, 3 * mib), 100);
    CHECK(backend->registered_bytes() == arena_bytes);
    round_trip(arena.subspan(2 * chunk - mib, 3 * mib), 101);
  } else {
    skip("registered buffers: the kernel refused (errno " + std::to_string(registered.os_error()) +
         "), perhaps for the memlock limit");
    round_trip(arena.subspan(chunk - mib, 3 * mib), 1);
  }
  CHECK(backend->stop(patience));
  ::munmap(mapped, arena_bytes);
}

TEST_CASE("io uring: what cannot be registered goes on unregistered") {
  const auto backend = make_or_skip<kvx::uring>({});
  if (backend == nullptr) return;
  kvx::detail::aligned_buffer memory(4 * page_bytes);
  CHECK(backend->register_arena({}).code() == kvx::errc::bad_argument);
  // Nothing is mapped behind the last page of the address space that a process may use.
  auto* const nowhere = reinterpret_cast<std::byte*>(std::uintptr_t{0x7FFF'FFFF'0000U} - 16 * mib);
  const kvx::status refused = backend->register_arena({nowhere, 8 * mib});
  CHECK(refused.code() == kvx::errc::io_failed);
  CHECK(refused.os_error() != 0);
  CHECK(backend->registered_bytes() == 0);
  const scratch_directory directory;
  const auto file = directory.make("f", 4 * page_bytes);
  request_log log;
  log.read(file.fd(), 0, memory.span());
  log.run(*backend);
  CHECK(log.all_good());
  CHECK(backend->stop(patience));
  CHECK(backend->register_arena(memory.span()).code() == kvx::errc::closed);
}

TEST_CASE("io auto: network file systems and kernels decide, and the reason says so") {
  const scratch_directory directory;
  const auto choice = kvx::auto_io::choose(directory.fd());
  REQUIRE(choice.ok());
  CHECK_FALSE(choice->reason.empty());
  kvx::auto_io judged({}, directory.path());
  CHECK((judged.chosen() == choice->backend || judged.reason().find("io_uring") != std::string_view::npos));
  CHECK(std::filesystem::is_empty(directory.path()));

  kvx::auto_io threads({}, {kvx::auto_io::kind::posix, "a test wants it"});
  CHECK(threads.name() == "posix");
  CHECK(threads.reason() == "a test wants it");
  kvx::detail::aligned_buffer memory(page_bytes);
  CHECK(threads.register_arena(memory.span()).code() == kvx::errc::unsupported);

  try {
    kvx::auto_io nowhere({}, directory.path() + "/missing");
    FAIL("a missing directory was accepted");
  } catch (const kvx::error& refused) {
    CHECK(std::string_view(refused.what()).find("missing") != std::string_view::npos);
  }
  CHECK_FALSE(kvx::auto_io::choose(-1).ok());
}
