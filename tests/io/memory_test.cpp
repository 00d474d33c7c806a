// SPDX-License-Identifier: Apache-2.0
#include <kvx/io/memory.hpp>

#include "conformance.hpp"

#include <memory>

using namespace kvx_test;

namespace {

struct in_memory {
  using backend = kvx::memory_io;
  static constexpr bool moves_files = false;
  static std::unique_ptr<backend> make(const kvx::io_options& options) { return std::make_unique<backend>(options); }
};

}  // namespace

TYPE_TO_STRING(in_memory);
KVX_IO_CONFORMANCE(in_memory);

TEST_CASE("io memory: contents outlive a backend when they are shared, and a file only as long as it lives") {
  const scratch_directory directory;
  kvx::detail::aligned_buffer memory(page_bytes);
  const auto contents = std::make_shared<kvx::detail::io_memory_files>();
  const auto move = [&](kvx::io_op op, int fd) {
    kvx::memory_io backend({}, contents);
    request_log log;
    log.add(op, kvx::io_class::load, fd, 0, memory.span());
    log.run(backend);
    return log[0].error;
  };
  {
    const auto file = directory.make("f", page_bytes);
    fill(memory.span(), 0, 1);
    CHECK(move(kvx::io_op::write, file.fd()) == 0);
    const auto again = kvx::detail::open_file(directory.fd(), "f", kvx::detail::file_access::read);
    REQUIRE(again.ok());
    std::memset(memory.data(), 0, memory.size());
    CHECK(move(kvx::io_op::read, again->handle.fd()) == 0);
    CHECK(holds(memory.span(), 0, 1));
    // The file itself was not written.
    CHECK(kvx::detail::pread_all(file.fd(), memory.span(), 0).ok());
    CHECK(std::all_of(memory.span().begin(), memory.span().end(), [](std::byte b) { return b == std::byte{0}; }));
  }
  // The same inode number, most likely.
  REQUIRE(::unlinkat(directory.fd(), "f", 0) == 0);
  const auto fresh = directory.make("f", page_bytes);
  std::memset(memory.data(), 1, memory.size());
  CHECK(move(kvx::io_op::read, fresh.fd()) == 0);
  CHECK(std::all_of(memory.span().begin(), memory.span().end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_CASE("io memory: a write beyond the end extends the content") {
  const scratch_directory directory;
  kvx::memory_io backend({});
  const auto file = directory.make("f", 0);
  kvx::detail::aligned_buffer memory(3 * page_bytes);
  fill(memory.span(), 0, 2);
  request_log save, load;
  save.write(file.fd(), 2 * page_bytes, memory.span().first(page_bytes));
  save.run(backend);
  CHECK(save.all_good());
  load.read(file.fd(), 0, memory.span());
  load.read(file.fd(), 0, memory.span().first(page_bytes));
  load.run(backend);
  CHECK(load.all_good());
  CHECK(memory.data()[page_bytes] == std::byte{0});
  CHECK(holds(memory.span().last(page_bytes), 0, 2));
}
