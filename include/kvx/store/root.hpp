// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/bytes.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/detail/random.hpp>
#include <kvx/result.hpp>
#include <kvx/store/checksum.hpp>
#include <kvx/store/directory.hpp>
#include <kvx/store/names.hpp>
#include <kvx/store/slot_geometry.hpp>
#include <kvx/store/store_options.hpp>
#include <kvx/types.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

namespace kvx::store {

inline constexpr std::uint32_t root_format_version = 1;

/// What the root file says: all that every user of a root must agree on.
struct root_facts {
  std::uint64_t extent_bytes = 0;
  digest<16> id;  ///< drawn when the root is made; slabs and journals carry it
};

namespace root_impl {

inline constexpr std::array<std::byte, 8> magic{std::byte{0x89}, std::byte{'k'}, std::byte{'v'}, std::byte{'x'},
                                                std::byte{'r'},  std::byte{'o'}, std::byte{'o'}, std::byte{'t'}};
inline constexpr std::size_t sealed_bytes = page_bytes - 8;

}  // namespace root_impl

/// Shape   to: page_bytes
inline void encode_root(std::span<std::byte> to, const root_facts& facts) noexcept {
  detail::le_writer out(to);
  out.put(root_impl::magic).put(root_format_version).put<std::uint32_t>(page_bytes).put(facts.extent_bytes);
  out.put(facts.id.bytes).pad_to(root_impl::sealed_bytes);
  out.put(checksum(to.first(root_impl::sealed_bytes)));
}

/// Shape   from: page_bytes
/// Errors  unsupported: another version; bad_argument: not a root file, or damaged
inline result<root_facts> parse_root(std::span<const std::byte> from) noexcept {
  using namespace root_impl;
  if (from.size() != page_bytes || !std::equal(magic.begin(), magic.end(), from.begin())) return errc::bad_argument;
  detail::le_reader in(from, magic.size());
  if (in.get<std::uint32_t>() != root_format_version) return errc::unsupported;
  if (detail::load_le<std::uint64_t>(from.data() + sealed_bytes) != checksum(from.first(sealed_bytes))) {
    return errc::bad_argument;
  }
  if (in.get<std::uint32_t>() != page_bytes) return errc::unsupported;
  root_facts facts;
  facts.extent_bytes = in.get<std::uint64_t>();
  const auto id = in.get(facts.id.bytes.size());
  std::memcpy(facts.id.bytes.data(), id.data(), id.size());
  return facts;
}

/// Publishes a file of one page under a name that nobody has taken, whole or not at all.
///
/// Written under a name of its own, then linked: a reader never sees half of it, and of two writers one wins.
/// Errors  io_failed: EEXIST: another one was first; errno of the system
inline status publish_file(int directory, const char* name, std::span<const std::byte> bytes) {
  const auto own = detail::random_id();
  if (!own) return own.status();
  const std::string temporary = to_name(*own).append(temporary_suffix);
  auto made = detail::create_file(directory, temporary.c_str());
  if (!made) return made.status();
  status outcome = detail::pwrite_all(made->handle.fd(), bytes, 0);
  if (outcome) outcome = made->handle.close();
  if (outcome && ::linkat(directory, temporary.c_str(), directory, name, 0) != 0) {
    outcome = detail::last_error();
    // File systems without hard links.
    if (outcome.os_error() == EPERM || outcome.os_error() == EOPNOTSUPP || outcome.os_error() == ENOSYS ||
        outcome.os_error() == EMLINK) {
      outcome = ::renameat2(directory, temporary.c_str(), directory, name, RENAME_NOREPLACE) == 0
                    ? status{}
                    : detail::last_error();
    }
  }
  (void)remove_file(directory, temporary.c_str());
  return outcome;
}

/// The directory that stores share: three descriptors and the facts everybody agrees on.
/// Thread  const members: any
class root {
 public:
  /// Errors  throws: the path is no directory of ours, or its facts contradict the options
  root(const store_options& options, const slot_geometry& geometry) : path_(options.root) {
    while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
    if (path_.empty()) refuse(errc::bad_argument, "is empty", "name a directory in store_options::root");
    directory_ = open_or_make(AT_FDCWD, path_, path_);
    check_owner(options.allow_shared_root);
    extents_ = open_or_make(directory_.fd(), extents_name, path_ + "/" + extents_name);
    writers_ = open_or_make(directory_.fd(), writers_name, path_ + "/" + writers_name);
    facts_ = agree(options, geometry);
  }

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] int directory() const noexcept { return directory_.fd(); }
  [[nodiscard]] int extents() const noexcept { return extents_.fd(); }
  [[nodiscard]] int writers() const noexcept { return writers_.fd(); }
  [[nodiscard]] const root_facts& facts() const noexcept { return facts_; }

 private:
  [[noreturn]] void refuse(errc code, const std::string& reason, const std::string& remedy) const {
    throw error(code, "store root '" + path_ + "' " + reason + "; " + remedy);
  }
  [[noreturn]] static void fail(const std::string& path, const status& failure, const std::string& remedy) {
    throw error(failure.code(), "'" + path + "': " + std::strerror(failure.os_error()) + "; " + remedy);
  }

  [[nodiscard]] static detail::file open_or_make(int at, const std::string& name, const std::string& shown) {
    auto made = detail::make_directory(at, name.c_str());
    if (!made && made.status().os_error() == EEXIST) made = detail::open_directory(at, name.c_str());
    if (made) return std::move(*made);
    switch (made.status().os_error()) {
      case ELOOP:
      case ENOTDIR:
        fail(shown, made.status(),
             "a store needs a real directory here, not a symbolic link or a file: give its own path");
      case ENOENT:
        fail(shown, made.status(), "make the directory above it first");
      default:
        fail(shown, made.status(), "the store must be able to read and write there");
    }
  }

  void check_owner(bool allow_shared) const {
    struct ::stat about {};
    if (::fstat(directory_.fd(), &about) != 0) fail(path_, detail::last_error(), "the store must be able to stat it");
    if (allow_shared) return;
    if (about.st_uid != ::geteuid()) {
      refuse(errc::bad_argument, "belongs to user " + std::to_string(about.st_uid) + ", not to us",
             "who owns it can replace what is in it: chown it, or set store_options::allow_shared_root");
    }
    if ((about.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
      refuse(errc::bad_argument, "can be written by its group or by everybody",
             "chmod 700 it, or set store_options::allow_shared_root");
    }
  }

  [[nodiscard]] static std::uint64_t choose_extent_bytes(const store_options& options, const slot_geometry& geometry) {
    if (options.extent_bytes != 0) return options.extent_bytes;
    constexpr std::uint64_t usual = std::uint64_t{1} << 30U;
    // Several extents fit, and several slots fit an extent, as far as the capacity allows both.
    const std::uint64_t several_slots = page_bytes + 4 * static_cast<std::uint64_t>(geometry.stride);
    const std::uint64_t wanted = std::max({std::min(usual, options.capacity_bytes / 8), several_slots});
    return std::min(wanted, options.capacity_bytes) / page_bytes * page_bytes;
  }

  [[nodiscard]] root_facts agree(const store_options& options, const slot_geometry& geometry) const {
    root_facts facts;
    if (auto found = read_facts()) {
      facts = *found;
    } else {
      facts.extent_bytes = choose_extent_bytes(options, geometry);
      check_extent(facts.extent_bytes, options, geometry);
      const auto id = detail::random_id();
      if (!id) fail(path_, id.status(), "the kernel gives no random numbers");
      facts.id = *id;
      std::array<std::byte, page_bytes> page;
      encode_root(page, facts);
      const status made = publish_file(directory_.fd(), root_file_name, page);
      if (made.ok()) return facts;
      if (made.os_error() != EEXIST) fail(path_ + "/" + root_file_name, made, "the store must be able to write there");
      found = read_facts();
      if (!found) refuse(errc::io_failed, "has a root file that comes and goes", "see who else uses the directory");
      facts = *found;
    }
    if (options.extent_bytes != 0 && options.extent_bytes != facts.extent_bytes) {
      refuse(errc::bad_argument,
             "has extents of " + std::to_string(facts.extent_bytes) + " bytes, store_options::extent_bytes says " +
                 std::to_string(options.extent_bytes),
             "leave the option at 0, or take another root");
    }
    check_extent(facts.extent_bytes, options, geometry);
    return facts;
  }

  void check_extent(std::uint64_t extent_bytes, const store_options& options, const slot_geometry& geometry) const {
    if (extent_bytes < page_bytes + static_cast<std::uint64_t>(geometry.stride)) {
      refuse(errc::bad_argument,
             "has extents of " + std::to_string(extent_bytes) + " bytes, and one slot with its superblock needs " +
                 std::to_string(page_bytes + geometry.stride),
             "raise store_options::capacity_bytes or extent_bytes, or take another root");
    }
    if (options.capacity_bytes < extent_bytes) {
      refuse(errc::bad_argument,
             "has extents of " + std::to_string(extent_bytes) + " bytes, store_options::capacity_bytes is " +
                 std::to_string(options.capacity_bytes),
             "raise the capacity to one extent at least, or take another root");
    }
  }

  [[nodiscard]] std::optional<root_facts> read_facts() const {
    const std::string shown = path_ + "/" + root_file_name;
    const auto opened = detail::open_file(directory_.fd(), root_file_name, detail::file_access::read);
    if (!opened) {
      if (opened.status().os_error() == ENOENT) return std::nullopt;
      fail(shown, opened.status(), "a store keeps a regular file of its own there");
    }
    std::array<std::byte, page_bytes> page;
    if (const status failure = detail::pread_all(opened->handle.fd(), page, 0); !failure) {
      fail(shown, failure, "the file is cut short: remove the whole root, it is only a cache");
    }
    const auto facts = parse_root(page);
    if (facts) return *facts;
    if (facts.status().code() == errc::unsupported) {
      refuse(errc::unsupported, "was made by another version of kvx", "take another root, or remove this one");
    }
    refuse(errc::bad_argument, "has a damaged root file", "remove the whole root, it is only a cache");
  }

  std::string path_;
  detail::file directory_;
  detail::file extents_;
  detail::file writers_;
  root_facts facts_;
};

}  // namespace kvx::store
