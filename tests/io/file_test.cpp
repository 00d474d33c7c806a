// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/file.hpp>

#include "conformance.hpp"

#include <sys/stat.h>

#include <set>
#include <string>

using namespace kvx::detail;
using kvx_test::scratch_directory;

namespace {

mode_t mode_of(int fd) {
  struct ::stat about {};
  REQUIRE(::fstat(fd, &about) == 0);
  return about.st_mode & 07777U;
}

struct umask_guard {
  explicit umask_guard(mode_t mask) : before(::umask(mask)) {}
  ~umask_guard() { ::umask(before); }
  mode_t before;
};

}  // namespace

TEST_CASE("file: created for the owner alone, whatever the umask") {
  const scratch_directory directory;
  for (const mode_t mask : {0000U, 0022U, 0077U, 0177U, 0777U}) {
    CAPTURE(mask);
    const std::string name = std::to_string(mask);
    const umask_guard guard(mask);
    const auto made = create_file(directory.fd(), name.c_str());
    REQUIRE(made.ok());
    CHECK(mode_of(made->handle.fd()) == 0600U);
    const auto inside = make_directory(directory.fd(), (name + "d").c_str());
    REQUIRE(inside.ok());
    CHECK(mode_of(inside->fd()) == 0700U);
    CHECK(create_file(inside->fd(), "x").ok());
  }
}

TEST_CASE("file: names are claimed once") {
  const scratch_directory directory;
  REQUIRE(create_file(directory.fd(), "f").ok());
  CHECK(create_file(directory.fd(), "f").status().os_error() == EEXIST);
  REQUIRE(make_directory(directory.fd(), "d").ok());
  CHECK(make_directory(directory.fd(), "d").status().os_error() == EEXIST);
  REQUIRE(::symlinkat("nowhere", directory.fd(), "dangling") == 0);
  CHECK(create_file(directory.fd(), "dangling").status().os_error() == EEXIST);
  CHECK(make_directory(directory.fd(), "dangling").status().os_error() == EEXIST);
}

TEST_CASE("file: links, FIFOs, devices and directories are refused without blocking") {
  const scratch_directory directory;
  REQUIRE(create_file(directory.fd(), "f").ok());
  REQUIRE(make_directory(directory.fd(), "d").ok());
  REQUIRE(::symlinkat("f", directory.fd(), "link") == 0);
  REQUIRE(::symlinkat("d", directory.fd(), "dlink") == 0);
  REQUIRE(::symlinkat("/dev/zero", directory.fd(), "device") == 0);
  REQUIRE(::mkfifoat(directory.fd(), "fifo", 0600) == 0);
  for (const file_access access : {file_access::read, file_access::read_write}) {
    CHECK(open_file(directory.fd(), "f", access).ok());
    CHECK(open_file(directory.fd(), "link", access).status().os_error() == ELOOP);
    CHECK(open_file(directory.fd(), "device", access).status().os_error() == ELOOP);
    CHECK(open_file(directory.fd(), "fifo", access).status().os_error() == EINVAL);
    CHECK_FALSE(open_file(directory.fd(), "d", access).ok());
    CHECK(open_file(directory.fd(), "missing", access).status().os_error() == ENOENT);
  }
  CHECK(open_file(AT_FDCWD, "/dev/zero", file_access::read).status().os_error() == EINVAL);
  CHECK(open_directory(directory.fd(), "d").ok());
  CHECK_FALSE(open_directory(directory.fd(), "dlink").ok());
  CHECK_FALSE(open_directory(directory.fd(), "f").ok());
  CHECK(open_root((directory.path() + "/dlink").c_str()).ok());
}

TEST_CASE("file: descriptors are closed on exec, blocking and direct when told so") {
  const scratch_directory directory;
  const bool can_be_direct = *probe_direct(directory.fd());
  for (const file_mode mode : {file_mode::buffered, file_mode::direct}) {
    const std::string name = mode == file_mode::direct ? "direct" : "buffered";
    const auto made = create_file(directory.fd(), name.c_str(), mode);
    REQUIRE(made.ok());
    REQUIRE(::ftruncate(made->handle.fd(), 12345) == 0);
    const auto opened = open_file(directory.fd(), name.c_str(), file_access::read_write, mode);
    REQUIRE(opened.ok());
    CHECK(opened->size_bytes == 12345);
    for (const opened_file* each : {&*made, &*opened}) {
      const int flags = ::fcntl(each->handle.fd(), F_GETFL);
      CHECK((flags & O_NONBLOCK) == 0);
      CHECK(((flags & O_DIRECT) != 0) == each->direct);
      if (mode == file_mode::buffered) CHECK_FALSE(each->direct);
      if (mode == file_mode::direct && can_be_direct) CHECK(each->direct);
      CHECK((::fcntl(each->handle.fd(), F_GETFD) & FD_CLOEXEC) != 0);
    }
  }
  // A file system that knows no direct I/O: the answer is a buffered file, not an error.
  const auto status = open_file(AT_FDCWD, "/proc/self/status", file_access::read, file_mode::direct);
  REQUIRE(status.ok());
  CHECK_FALSE(status->direct);
}

TEST_CASE("file: preallocated space is there, zero, and has a limit") {
  const scratch_directory directory;
  const auto made = create_file(directory.fd(), "f");
  REQUIRE(made.ok());
  const auto outcome = preallocate(made->handle.fd(), 1U << 20U);
  REQUIRE(outcome.ok());
  struct ::stat about {};
  REQUIRE(::fstat(made->handle.fd(), &about) == 0);
  CHECK(about.st_size == 1 << 20);
  if (*outcome == preallocation::reserved) CHECK(about.st_blocks * 512 >= 1 << 20);
  aligned_buffer read(4096);
  CHECK(pread_all(made->handle.fd(), read.span(), 0).ok());
  CHECK(std::all_of(read.span().begin(), read.span().end(), [](std::byte b) { return b == std::byte{0}; }));
  // No file system here holds an exbibyte: reported, and not made up for by a sparse file.
  const auto too_much = preallocate(made->handle.fd(), std::uint64_t{1} << 60U);
  CHECK_FALSE(too_much.ok());
  REQUIRE(::fstat(made->handle.fd(), &about) == 0);
  CHECK(about.st_size == 1 << 20);
}

TEST_CASE("file: whole ranges or an error") {
  const scratch_directory directory;
  const auto made = create_file(directory.fd(), "f");
  REQUIRE(made.ok());
  aligned_buffer sent(3 * 4096), received(3 * 4096);
  kvx_test::fill(sent.span(), 0, 1);
  CHECK(pwrite_all(made->handle.fd(), sent.span(), 100).ok());
  CHECK(pread_all(made->handle.fd(), received.span(), 100).ok());
  CHECK(kvx_test::holds(received.span(), 0, 1));
  CHECK(pread_all(made->handle.fd(), received.span(), 101).os_error() == ENODATA);
  CHECK(pread_all(-1, received.span(), 0).os_error() == EBADF);
  CHECK(pwrite_all(-1, sent.span(), 0).os_error() == EBADF);
  const auto read_only = open_file(directory.fd(), "f", file_access::read);
  CHECK(pwrite_all(read_only->handle.fd(), sent.span(), 0).os_error() == EBADF);
}

TEST_CASE("file: an owner closes once and can be moved and released") {
  const scratch_directory directory;
  auto first = directory.make("a", 0);
  const int number = first.fd();
  file second = std::move(first);
  CHECK_FALSE(first);
  CHECK(second.fd() == number);
  second = directory.make("b", 0);
  CHECK(::fcntl(number, F_GETFD) == -1);
  CHECK(second.close().ok());
  CHECK(second.close().ok());
  file third = directory.make("c", 0);
  const int kept = third.release();
  CHECK_FALSE(third);
  CHECK(::close(kept) == 0);
}

TEST_CASE("file: a directory is probed without leaving anything behind") {
  const scratch_directory directory;
  const auto direct = probe_direct(directory.fd());
  REQUIRE(direct.ok());
  MESSAGE("direct I/O in " << directory.path() << ": " << *direct);
  CHECK(std::filesystem::is_empty(directory.path()));
  const auto kind = file_system_of(directory.fd());
  REQUIRE(kind.ok());
  MESSAGE("file system: " << std::string(to_string(*kind)));
  CHECK_FALSE(file_system_of(-1).ok());
  CHECK(probe_direct(-1).status().os_error() == EBADF);
}

TEST_CASE("file: random names differ") {
  std::set<std::string> names;
  for (int i = 0; i < 1000; ++i) names.insert(*random_name("p-"));
  CHECK(names.size() == 1000);
  CHECK(names.begin()->size() == 34);
  CHECK(names.begin()->find_first_not_of("0123456789abcdef", 2) == std::string::npos);
}
