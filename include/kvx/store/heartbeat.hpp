// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/bytes.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/store/checksum.hpp>
#include <kvx/store/directory.hpp>
#include <kvx/store/names.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace kvx::store {

using steady_time = std::chrono::steady_clock::time_point;

inline constexpr std::uint32_t heartbeat_format_version = 1;
inline constexpr std::size_t heartbeat_bytes = page_bytes;

namespace heartbeat_impl {

inline constexpr std::array<std::byte, 8> magic{std::byte{0x89}, std::byte{'k'}, std::byte{'v'}, std::byte{'x'},
                                                std::byte{'b'},  std::byte{'e'}, std::byte{'a'}, std::byte{'t'}};
inline constexpr std::size_t sealed_bytes = heartbeat_bytes - 8;
inline constexpr std::uint32_t flag_closed = 1;

}  // namespace heartbeat_impl

/// Shape   to: heartbeat_bytes
/// Units   shown_ms: wall clock since 1970, for people only
inline void encode_heartbeat(std::span<std::byte> to, const writer_id& writer, std::uint64_t counter, bool closed,
                             std::uint64_t shown_ms) noexcept {
  detail::le_writer out(to);
  out.put(heartbeat_impl::magic).put(heartbeat_format_version).put(closed ? heartbeat_impl::flag_closed : 0U);
  out.put(writer.bytes).put(counter).put(shown_ms).pad_to(heartbeat_impl::sealed_bytes);
  out.put(checksum(to.first(heartbeat_impl::sealed_bytes)));
}

/// Whether a heartbeat is whole and says that its writer will not write again.
[[nodiscard]] inline bool says_closed(std::span<const std::byte> from, const writer_id& writer) noexcept {
  using namespace heartbeat_impl;
  if (from.size() != heartbeat_bytes || !std::equal(magic.begin(), magic.end(), from.begin())) return false;
  detail::le_reader in(from, magic.size());
  const bool closed = in.get<std::uint32_t>() == heartbeat_format_version && in.get<std::uint32_t>() == flag_closed;
  const auto named = closed ? in.get(writer.bytes.size()) : std::span<const std::byte>{};
  return closed && std::equal(named.begin(), named.end(), writer.bytes.begin()) &&
         detail::load_le<std::uint64_t>(from.data() + sealed_bytes) == checksum(from.first(sealed_bytes));
}

/// The file by which a writer shows that it lives.
class heartbeat {
 public:
  /// Makes the file with a first beat in it.
  static result<heartbeat> make(int writer_directory, const writer_id& writer) {
    auto made = detail::create_file(writer_directory, heartbeat_name);
    if (!made) return made.status();
    heartbeat first(std::move(made->handle), writer);
    if (const status failure = first.beat(); !failure) return failure;
    return first;
  }

  status beat() noexcept { return write(false); }
  /// Says that the writer's extents may be taken at once.
  status close() noexcept { return write(true); }

 private:
  heartbeat(detail::file handle, const writer_id& writer) noexcept : file_(std::move(handle)), writer_(writer) {}

  status write(bool closed) noexcept {
    const auto shown =
        std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch());
    std::array<std::byte, heartbeat_bytes> page;
    encode_heartbeat(page, writer_, ++counter_, closed, static_cast<std::uint64_t>(shown.count()));
    return detail::pwrite_all(file_.fd(), page, 0);
  }

  detail::file file_;
  writer_id writer_;
  std::uint64_t counter_ = 0;
};

/// One look at somebody's heartbeat.
struct heartbeat_sight {
  std::uint64_t fingerprint = 0;  ///< of the file's bytes, whatever version wrote them; 0: there is no file
  bool closed = false;
};

/// Looks at a writer's heartbeat.
/// Errors  io_failed: the file may be there and could not be read, so nothing was learned
/// Cost    two opens and a read of one page
inline result<heartbeat_sight> see_heartbeat(int writers_directory, const writer_id& writer) {
  const auto absent = [](const status& failure) -> result<heartbeat_sight> {
    if (is_gone(failure)) return heartbeat_sight{};
    return failure;
  };
  const auto directory = detail::open_directory(writers_directory, to_name(writer).c_str());
  if (!directory) return absent(directory.status());
  const auto opened = detail::open_file(directory->fd(), heartbeat_name, detail::file_access::read);
  if (!opened) return absent(opened.status());
  std::array<std::byte, heartbeat_bytes> page{};
  const std::size_t there = static_cast<std::size_t>(std::min<std::uint64_t>(opened->size_bytes, page.size()));
  if (const status failure = detail::pread_all(opened->handle.fd(), std::span(page).first(there), 0); !failure) {
    return absent(failure);
  }
  return heartbeat_sight{checksum(page) | 1U, says_closed(page, writer)};
}

/// Judges by one's own monotonic clock whether something stands still.
///
/// Each look counts for at most half of `dead_after`, so that an observer that slept itself needs more than one look.
class stillness {
 public:
  void look(std::uint64_t fingerprint, steady_time now, std::chrono::milliseconds dead_after) noexcept {
    if (!last_look_ || fingerprint != fingerprint_) {
      still_ = {};
    } else if (now > *last_look_) {
      still_ += std::min<std::chrono::nanoseconds>(now - *last_look_, dead_after / 2);
    }
    fingerprint_ = fingerprint;
    last_look_ = now;
  }
  [[nodiscard]] bool lasts(std::chrono::milliseconds dead_after) const noexcept {
    return last_look_.has_value() && still_ >= dead_after;
  }
  [[nodiscard]] std::uint64_t fingerprint() const noexcept { return fingerprint_; }

 private:
  std::optional<steady_time> last_look_;
  std::chrono::nanoseconds still_{};
  std::uint64_t fingerprint_ = 0;
};

}  // namespace kvx::store
