// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>

#include <sys/eventfd.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace kvx::detail {

/// Commands for one thread that waits in the kernel, and the eventfd that interrupts it.
/// Thread  post, wake: any; the rest: the owner
class io_mailbox {
 public:
  status open() noexcept {
    event_ = file(::eventfd(0, EFD_CLOEXEC));
    return event_ ? status{} : last_error();
  }
  [[nodiscard]] int fd() const noexcept { return event_.fd(); }

  void wake() noexcept {
    const std::uint64_t one = 1;
    ssize_t written = 0;
    do written = ::write(event_.fd(), &one, sizeof one);
    while (written < 0 && errno == EINTR);
  }

  /// False when the owner has ended: the command will not run.
  [[nodiscard]] bool post(std::function<void()> command) {
    {
      const std::lock_guard lock(mutex_);
      if (ended_) return false;
      commands_.push_back(std::move(command));
    }
    wake();
    return true;
  }

  void obey() {
    std::vector<std::function<void()>> taken;
    {
      const std::lock_guard lock(mutex_);
      taken.swap(commands_);
    }
    for (const auto& command : taken) command();
  }

  /// Runs what was posted before the end; nothing is accepted afterwards.
  void end() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    obey();
  }

 private:
  file event_;
  std::mutex mutex_;
  std::vector<std::function<void()>> commands_;
  bool ended_ = false;
};

}  // namespace kvx::detail
