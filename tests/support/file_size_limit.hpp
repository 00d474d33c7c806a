// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <system_error>

namespace kvx_test {

/// While it lives, writes beyond that offset of any file fail with EFBIG, and earlier ones end short there.
class file_size_limit {
 public:
  explicit file_size_limit(std::uint64_t bytes) : old_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    if (::getrlimit(RLIMIT_FSIZE, &old_) != 0) throw std::system_error(errno, std::generic_category(), "getrlimit");
    const ::rlimit lower{bytes, old_.rlim_max};
    if (::setrlimit(RLIMIT_FSIZE, &lower) != 0) throw std::system_error(errno, std::generic_category(), "setrlimit");
  }
  file_size_limit(const file_size_limit&) = delete;
  file_size_limit& operator=(const file_size_limit&) = delete;
  ~file_size_limit() {
    (void)::setrlimit(RLIMIT_FSIZE, &old_);
    (void)std::signal(SIGXFSZ, old_handler_);
  }

 private:
  ::rlimit old_{};
  void (*old_handler_)(int);
};

}  // namespace kvx_test
