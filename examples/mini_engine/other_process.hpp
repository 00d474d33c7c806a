// SPDX-License-Identifier: Apache-2.0
// What --compare needs to serve a prompt once more in a new process.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mini_engine {

/// A directory of one's own, removed at the end, unless the user named one.
class cache_directory {
 public:
  explicit cache_directory(const std::string& given);
  cache_directory(const cache_directory&) = delete;
  cache_directory& operator=(const cache_directory&) = delete;
  ~cache_directory();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool temporary_;
};

/// Storage shall answer, not what the kernel happens to remember.
void drop_page_cache(const std::string& directory);

/// Runs this program once more, with more arguments, and returns what it prints.
std::string output_of_another(std::vector<std::string> arguments);

/// Two numbers of blocks, "I:J"; nothing where there is no text. Throws std::runtime_error if it is something else.
std::optional<std::pair<std::size_t, std::size_t>> swapped_blocks(const std::string& text);

}  // namespace mini_engine
