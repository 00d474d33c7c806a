// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace kvx {

/// Why an operation did not do what was asked; `ok` is success.
///
/// A block that is absent, stale or damaged is always `miss`: to an engine they are one case.
enum class errc : std::uint8_t {
  ok = 0,
  miss,           ///< not cached here, or what was found did not prove itself
  bad_argument,   ///< the caller's arguments contradict the layout, the plan or each other
  unsupported,    ///< this build, kernel or file system cannot do it
  io_failed,      ///< the operating system reported an error; `status::os_error` holds it
  no_space,       ///< the tier is full and nothing may be evicted
  timed_out,      ///< the deadline passed; buffers stay owned until their own completion
  cancelled,      ///< the caller gave the operation up
  dropped,        ///< a save that was given up to protect loads; nothing is lost but the saving
  device_failed,  ///< the GPU, or whatever moves bytes to engine memory, failed
  closed,         ///< the cache is shutting down
  refused,        ///< a save that the admission policy found not worth its place; nothing is lost but the saving
};

[[nodiscard]] constexpr std::string_view to_string(errc code) noexcept {
  switch (code) {
    case errc::ok:
      return "ok";
    case errc::miss:
      return "miss";
    case errc::bad_argument:
      return "bad argument";
    case errc::unsupported:
      return "unsupported";
    case errc::io_failed:
      return "I/O failed";
    case errc::no_space:
      return "no space";
    case errc::timed_out:
      return "timed out";
    case errc::cancelled:
      return "cancelled";
    case errc::dropped:
      return "dropped";
    case errc::device_failed:
      return "device failed";
    case errc::closed:
      return "closed";
    case errc::refused:
      return "refused";
  }
  return "unknown";
}

/// Outcome of an operation that returns nothing else; never allocates.
class [[nodiscard]] status {
 public:
  constexpr status() noexcept = default;
  constexpr status(errc code, int os_error = 0) noexcept : code_(code), os_error_(os_error) {}

  [[nodiscard]] constexpr bool ok() const noexcept { return code_ == errc::ok; }
  [[nodiscard]] constexpr explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] constexpr errc code() const noexcept { return code_; }
  /// The errno behind `io_failed`, 0 where there is none.
  [[nodiscard]] constexpr int os_error() const noexcept { return os_error_; }

  friend constexpr bool operator==(const status&, const status&) noexcept = default;

 private:
  errc code_ = errc::ok;
  int os_error_ = 0;
};

/// What constructors throw: the text names the option or file, the reason and the remedy.
class error : public std::runtime_error {
 public:
  error(errc code, const std::string& text) : std::runtime_error("kvx: " + text), code_(code) {}
  [[nodiscard]] errc code() const noexcept { return code_; }

 private:
  errc code_;
};

/// A value or the status that explains its absence.
template <class T>
class [[nodiscard]] result {
 public:
  result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  result(kvx::status failure) noexcept : state_(std::in_place_index<1>, failure) {}
  result(errc code) noexcept : state_(std::in_place_index<1>, kvx::status{code}) {}

  [[nodiscard]] bool ok() const noexcept { return state_.index() == 0; }
  [[nodiscard]] explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] kvx::status status() const noexcept { return ok() ? kvx::status{} : *std::get_if<1>(&state_); }

  /// Precondition: ok().
  [[nodiscard]] T& operator*() & noexcept { return *std::get_if<0>(&state_); }
  [[nodiscard]] const T& operator*() const& noexcept { return *std::get_if<0>(&state_); }
  [[nodiscard]] T&& operator*() && noexcept { return std::move(*std::get_if<0>(&state_)); }
  [[nodiscard]] T* operator->() noexcept { return std::get_if<0>(&state_); }
  [[nodiscard]] const T* operator->() const noexcept { return std::get_if<0>(&state_); }

 private:
  std::variant<T, kvx::status> state_;
};

}  // namespace kvx
