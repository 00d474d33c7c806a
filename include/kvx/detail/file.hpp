// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace kvx::detail {

/// Owner of one file descriptor.
/// Thread  const members: any thread; the rest: one owner
class file {
 public:
  file() noexcept = default;
  explicit file(int fd) noexcept : fd_(fd) {}
  file(file&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  file& operator=(file&& other) noexcept {
    if (this != &other) {
      (void)close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~file() { (void)close(); }

  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

  /// Closes now, for whom a late write error (quota, network file system) matters.
  status close() noexcept {
    if (fd_ < 0) return {};
    // Linux has closed the descriptor even when it answers EINTR; trying again could close somebody else's.
    const int failed = ::close(std::exchange(fd_, -1));
    return failed != 0 && errno != EINTR ? status{errc::io_failed, errno} : status{};
  }

 private:
  int fd_ = -1;
};

/// The status for the errno of the system call that just failed.
[[nodiscard]] inline status last_error() noexcept { return {errc::io_failed, errno}; }

enum class file_access : std::uint8_t { read, read_write };

/// What the caller wishes; `opened_file::direct` says what it got.
enum class file_mode : std::uint8_t { buffered, direct };

struct opened_file {
  file handle;
  bool direct = false;  ///< reads and writes bypass the page cache and must be page-aligned
  std::uint64_t size_bytes = 0;
};

namespace file_impl {

inline int open_at(int directory, const char* name, int flags, mode_t mode = 0) noexcept {
  int fd = -1;
  do fd = ::openat(directory, name, flags | O_CLOEXEC, mode);
  while (fd < 0 && errno == EINTR);
  return fd;
}

// The same test as the kernel's at open, without the risk that open(O_CREAT | O_DIRECT) creates and then fails. It also
// clears O_NONBLOCK, which makes io_uring answer EAGAIN on file systems without asynchronous I/O.
inline result<opened_file> settle(file handle, file_mode mode) noexcept {
  struct ::stat about {};
  if (::fstat(handle.fd(), &about) != 0) return last_error();
  if (!S_ISREG(about.st_mode)) return status{errc::io_failed, EINVAL};
  const bool direct = mode == file_mode::direct && ::fcntl(handle.fd(), F_SETFL, O_DIRECT) == 0;
  if (!direct && ::fcntl(handle.fd(), F_SETFL, 0) != 0) return last_error();
  return opened_file{std::move(handle), direct, static_cast<std::uint64_t>(about.st_size)};
}

}  // namespace file_impl

/// Opens a regular file below `directory`; symbolic links, FIFOs and devices are refused without blocking.
/// Errors  io_failed: errno of the system; EINVAL: not a regular file; ELOOP: a symbolic link
inline result<opened_file> open_file(int directory, const char* name, file_access access,
                                     file_mode mode = file_mode::buffered) noexcept {
  const int flags = (access == file_access::read ? O_RDONLY : O_RDWR) | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
  file handle(file_impl::open_at(directory, name, flags));
  if (!handle) return last_error();
  return file_impl::settle(std::move(handle), mode);
}

/// Creates a file that nobody but the owner can read, whatever the umask.
/// Errors  io_failed: errno of the system; EEXIST: the name is taken, also by a dangling link
inline result<opened_file> create_file(int directory, const char* name, file_mode mode = file_mode::buffered) noexcept {
  file handle(file_impl::open_at(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
  if (!handle) return last_error();
  if (::fchmod(handle.fd(), 0600) != 0) {
    const status failure = last_error();
    (void)::unlinkat(directory, name, 0);
    return failure;
  }
  return file_impl::settle(std::move(handle), mode);
}

/// Opens a directory below `directory`; a symbolic link is refused.
inline result<file> open_directory(int directory, const char* name) noexcept {
  file handle(file_impl::open_at(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  if (!handle) return last_error();
  return handle;
}

/// Opens the directory an operator named; there a symbolic link is fine.
inline result<file> open_root(const char* path) noexcept {
  file handle(file_impl::open_at(AT_FDCWD, path, O_RDONLY | O_DIRECTORY));
  if (!handle) return last_error();
  return handle;
}

/// Makes a directory that nobody but the owner can enter, whatever the umask, and opens it.
/// Errors  io_failed: errno of the system; EEXIST: somebody else made it (a claim is lost)
inline result<file> make_directory(int directory, const char* name) noexcept {
  if (::mkdirat(directory, name, 0700) != 0) return last_error();
  auto made = open_directory(directory, name);
  if (!made && made.status().os_error() == EACCES) {
    // A umask that takes the owner's own bits; the descriptor is not to be had before they are back.
    if (::fchmodat(directory, name, 0700, 0) != 0) return last_error();
    made = open_directory(directory, name);
  }
  if (made && ::fchmod(made->fd(), 0700) != 0) return last_error();
  return made;
}

enum class preallocation : std::uint8_t {
  reserved,  ///< the space is there; writes inside it cannot meet ENOSPC
  sparse,    ///< the file system cannot reserve: only the size is set
};

/// Reserves `bytes` from the start of the file and makes it that long; zeros are read from what was never written.
/// Errors  io_failed: ENOSPC, EDQUOT, EFBIG, ...
inline result<preallocation> preallocate(int fd, std::uint64_t bytes) noexcept {
  const auto length = static_cast<off_t>(bytes);
  int failed = 0;
  do failed = ::fallocate(fd, 0, 0, length);
  while (failed != 0 && errno == EINTR);
  if (failed == 0) return preallocation::reserved;
  if (errno != EOPNOTSUPP && errno != ENOSYS) return last_error();
  struct ::stat about {};
  if (::fstat(fd, &about) != 0) return last_error();
  if (about.st_size < length && ::ftruncate(fd, length) != 0) return last_error();
  return preallocation::sparse;
}

/// Reads the whole span or fails.
/// Errors  io_failed: errno of the system; ENODATA: the file ends inside the range
inline status pread_all(int fd, std::span<std::byte> into, std::uint64_t offset) noexcept {
  while (!into.empty()) {
    const ssize_t got = ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return last_error();
    if (got == 0) return {errc::io_failed, ENODATA};
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

/// Writes the whole span or fails.
/// Errors  io_failed: errno of the system; EIO: the system accepted nothing and gave no reason
inline status pwrite_all(int fd, std::span<const std::byte> from, std::uint64_t offset) noexcept {
  while (!from.empty()) {
    const ssize_t put = ::pwrite(fd, from.data(), from.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return last_error();
    if (put == 0) return {errc::io_failed, EIO};
    from = from.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return {};
}

/// Fills from the kernel's generator.
inline status fill_random(std::span<std::byte> into) noexcept {
  while (!into.empty()) {
    const ssize_t got = ::getrandom(into.data(), into.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return last_error();
    into = into.subspan(static_cast<std::size_t>(got));
  }
  return {};
}

/// `prefix` and 32 hexadecimal digits (128 bits) that no other process draws.
inline result<std::string> random_name(std::string_view prefix) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::array<std::byte, 16> drawn{};
  if (const status failure = fill_random(drawn); !failure) return failure;
  std::string name(prefix);
  for (const std::byte b : drawn) {
    name += digits[std::to_integer<std::size_t>(b >> 4)];
    name += digits[std::to_integer<std::size_t>(b & std::byte{15})];
  }
  return name;
}

enum class file_system : std::uint8_t { local, lustre, nfs, fuse, other_network };

[[nodiscard]] constexpr std::string_view to_string(file_system kind) noexcept {
  switch (kind) {
    case file_system::local:
      return "local";
    case file_system::lustre:
      return "Lustre";
    case file_system::nfs:
      return "NFS";
    case file_system::fuse:
      return "FUSE";
    case file_system::other_network:
      return "network";
  }
  return "unknown";
}

/// What holds the file or directory.
/// Source  statfs(2), linux/magic.h; Lustre: lustre_user.h; BeeGFS: FhgfsOpsSuper.h; GPFS: statfs(2) of coreutils
inline result<file_system> file_system_of(int fd) noexcept {
  struct ::statfs about {};
  int failed = 0;
  do failed = ::fstatfs(fd, &about);
  while (failed != 0 && errno == EINTR);
  if (failed != 0) return last_error();
  switch (static_cast<std::uint32_t>(about.f_type)) {
    case 0x0BD00BD3U:
      return file_system::lustre;
    case 0x00006969U:
      return file_system::nfs;
    case 0x65735546U:
      return file_system::fuse;
    case 0x00C36400U:  // CephFS
    case 0x19830326U:  // BeeGFS
    case 0x47504653U:  // GPFS
    case 0xFF534D42U:  // CIFS
    case 0xFE534D42U:  // SMB2
    case 0x01021997U:  // 9P
      return file_system::other_network;
    default:
      return file_system::local;
  }
}

/// Whether direct I/O works in a directory, found out by a real aligned write and read of a temporary file: some file
/// systems accept O_DIRECT at open and refuse the transfer.
/// Errors  io_failed: the directory cannot be written to, or the write failed for a reason other than O_DIRECT
/// Cost    one file created, written, read and unlinked
inline result<bool> probe_direct(int directory) {
  const auto name = random_name(".kvx-probe-");
  if (!name) return name.status();
  const auto made = create_file(directory, name->c_str(), file_mode::direct);
  if (!made) return made.status();
  if (::unlinkat(directory, name->c_str(), 0) != 0) return last_error();
  if (!made->direct) return false;
  const aligned_buffer sent(2 * page_bytes), received(2 * page_bytes);
  if (const status failure = fill_random(sent.span()); !failure) return failure;
  for (const status outcome : {pwrite_all(made->handle.fd(), sent.span(), page_bytes),
                               pread_all(made->handle.fd(), received.span(), page_bytes)}) {
    if (outcome.os_error() == EINVAL || outcome.os_error() == EOPNOTSUPP) return false;
    if (!outcome) return outcome;
  }
  return std::memcmp(sent.data(), received.data(), sent.size()) == 0;
}

}  // namespace kvx::detail
