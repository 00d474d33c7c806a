// SPDX-License-Identifier: Apache-2.0
#include "other_process.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>

namespace mini_engine {

cache_directory::cache_directory(const std::string& given) : path_(given), temporary_(given.empty()) {
  if (!temporary_) return;
  path_ = (std::filesystem::temp_directory_path() / "mini_engine-XXXXXX").string();
  if (::mkdtemp(path_.data()) == nullptr)
    throw std::runtime_error("cannot make " + path_ + "; name a directory with --cache-dir");
}

cache_directory::~cache_directory() {
  std::error_code ignored;
  if (temporary_) std::filesystem::remove_all(path_, ignored);
}

void drop_page_cache(const std::string& directory) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory, ignored)) {
    if (!entry.is_regular_file(ignored)) continue;
    const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    ::fdatasync(file);
    ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    ::close(file);
  }
}

std::string output_of_another(std::vector<std::string> arguments) {
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  const auto require = [](int error) {
    if (error != 0) throw std::runtime_error(std::string("cannot start another process: ") + std::strerror(error));
  };
  int ends[2];
  require(::pipe2(ends, O_CLOEXEC) == 0 ? 0 : errno);
  posix_spawn_file_actions_t actions;
  require(::posix_spawn_file_actions_init(&actions));
  require(::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO));
  pid_t child = 0;
  const int spawned = ::posix_spawn(&child, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n = 1; spawned == 0 && n != 0;) {
    n = ::read(ends[0], buffer, sizeof buffer);
    if (n > 0)
      text.append(buffer, static_cast<std::size_t>(n));
    else if (n < 0 && errno != EINTR)
      break;
  }
  ::close(ends[0]);
  require(spawned);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw std::runtime_error("the process that loads from storage failed, see above");
  return text;
}

std::optional<std::pair<std::size_t, std::size_t>> swapped_blocks(const std::string& text) {
  if (text.empty()) return std::nullopt;
  std::size_t i = 0, j = 0;
  int end = 0;
  if (std::sscanf(text.c_str(), "%zu:%zu%n", &i, &j, &end) != 2 || text[static_cast<std::size_t>(end)] != '\0') {
    throw std::runtime_error("--swap-block '" + text + "' is not two numbers of blocks, I:J");
  }
  return std::pair(i, j);
}

}  // namespace mini_engine
