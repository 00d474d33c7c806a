// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>

#include <pthread.h>

#include <cerrno>
#include <csignal>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace kvx::detail {

/// Starts a thread that takes no signals (they are the engine's) and carries a name for top and debuggers.
/// Shape   name: at most 15 characters
/// Errors  throws kvx::error: the system gives no thread
template <class Body>
[[nodiscard]] std::thread start_io_thread(std::string_view name, Body&& body) {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread started;
  int failed = 0;
  try {
    started = std::thread(std::forward<Body>(body));
  } catch (const std::system_error& refused) {
    failed = refused.code().value() != 0 ? refused.code().value() : EAGAIN;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failed != 0) {
    throw error(errc::unsupported, "cannot start I/O thread '" + std::string(name) +
                                       "': " + std::generic_category().message(failed) +
                                       "; lower io_options::threads or raise the limit on processes (ulimit -u)");
  }
  ::pthread_setname_np(started.native_handle(), std::string(name.substr(0, 15)).c_str());
  return started;
}

}  // namespace kvx::detail
