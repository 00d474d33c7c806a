// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "protocol.hpp"
#include "scheduler.hpp"
#include "worker.hpp"

namespace connector {

struct launch_options {
  std::uint64_t requests = 2'000;
  std::uint64_t seed = 1;
  /// Storage root of all ranks; empty: one that goes at the end.
  std::string directory;
  planted mistake = planted::nothing;
  /// What did not come from storage by then is computed.
  std::chrono::milliseconds load_deadline{500};
};

/// The storage root: the one that was given, or one under the system's temporary directory for as long as this lives.
class storage_root {
 public:
  explicit storage_root(std::string given) : path_(std::move(given)), temporary_(path_.empty()) {
    if (!temporary_) return;
    path_ = (std::filesystem::temp_directory_path() / "kvx-connector-XXXXXX").string();
    if (::mkdtemp(path_.data()) == nullptr)
      throw std::system_error(errno, std::generic_category(), "connector: cannot make " + path_ + "; name a directory");
  }
  ~storage_root() {
    std::error_code ignored;
    if (temporary_) std::filesystem::remove_all(path_, ignored);
  }
  storage_root(const storage_root&) = delete;
  storage_root& operator=(const storage_root&) = delete;

  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
  bool temporary_;
};

/// What a rank's process does from its start to its end.
[[nodiscard]] inline int run_rank(const worker_options& with, channel to_scheduler) {
  try {
    worker(with, std::move(to_scheduler)).run();
    return 0;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "connector: rank %u: %s\n", static_cast<unsigned>(with.rank), failure.what());
    return 1;
  }
}

/// Starts two ranks and runs the scheduler over them in this process.
///
/// Processes come first and caches afterwards: threads, rings and pinned memory do not survive a fork.
template <class Progress>
totals launch(const launch_options& with, Progress&& progress) {
  constexpr std::uint16_t ranks = 2;
  const storage_root root(with.directory);
  std::vector<channel> to_ranks;
  std::vector<::pid_t> children;
  std::fflush(nullptr);  // or each rank would write once more at its end what waits in the buffers
  for (std::uint16_t rank = 0; rank < ranks; ++rank) {
    auto [here, there] = channel::make_pair();
    const ::pid_t child = ::fork();
    if (child < 0) throw std::system_error(errno, std::generic_category(), "connector: cannot fork");
    if (child == 0) {
      // A rank sees that the scheduler is gone when nobody else holds the other ends.
      to_ranks.clear();
      { const channel not_mine(std::move(here)); }
      std::exit(run_rank({rank, ranks, root.path(), with.mistake == planted::unscoped_save, with.load_deadline},
                         std::move(there)));
    }
    to_ranks.push_back(std::move(here));
    children.push_back(child);
  }
  totals all;
  std::exception_ptr failed;
  try {
    all = scheduler(std::move(to_ranks), with.seed, with.mistake).run(with.requests, std::forward<Progress>(progress));
  } catch (...) {
    failed = std::current_exception();
  }
  bool well = true;
  for (const ::pid_t child : children) {
    int ended = 0;
    well &= ::waitpid(child, &ended, 0) == child && WIFEXITED(ended) && WEXITSTATUS(ended) == 0;
  }
  if (failed) std::rethrow_exception(failed);
  if (!well) throw std::runtime_error("connector: a rank ended badly");
  return all;
}

}  // namespace connector
