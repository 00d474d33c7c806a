// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>

namespace mini_engine {

/// A bar on standard error, if that is a terminal or the user asks for it.
class progress_bar {
 public:
  progress_bar(std::string what, std::size_t total, bool asked_for)
      : what_(std::move(what)), total_(total), shown_(asked_for || ::isatty(STDERR_FILENO) != 0) {
    show();
  }
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;
  ~progress_bar() { finish(); }

  void advance() {
    ++done_;
    show();
  }

  /// Leaves the terminal's line to others.
  void finish() {
    if (std::exchange(shown_, false)) std::fputs("\r\033[K", stderr);
  }

 private:
  void show() const {
    constexpr std::size_t width = 40;
    if (!shown_ || total_ == 0) return;
    const std::size_t filled = done_ < total_ ? done_ * width / total_ : width;
    std::fprintf(stderr, "\r%s [%s%s] %zu/%zu", what_.c_str(), std::string(filled, '#').c_str(),
                 std::string(width - filled, ' ').c_str(), done_, total_);
  }

  std::string what_;
  std::size_t total_;
  std::size_t done_ = 0;
  bool shown_;
};

}  // namespace mini_engine
