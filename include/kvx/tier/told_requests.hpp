// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx {

/// How many blocks of each request a policy was told of, for the requests of late.
///
/// A request comes in parts: what is loaded, then what is saved, a few blocks at a time. Each block is told once.
/// Thread  one caller at a time
/// Cost    O(1), 32 KiB
class told_requests {
 public:
  told_requests() : all_(sets * ways) {}

  /// Blocks from the front; 0 for a request that was never heard of, or not for long.
  [[nodiscard]] std::size_t blocks(std::uint64_t request) const noexcept {
    const std::size_t at = first_of(request);
    for (std::size_t i = at; i < at + ways && request != 0; ++i)
      if (all_[i].request == request) return all_[i].blocks;
    return 0;
  }
  /// Shape   blocks: from the front; request: 0 is remembered by nobody
  void note(std::uint64_t request, std::size_t blocks) noexcept {
    if (request == 0) return;
    const std::size_t at = first_of(request);
    one* best = &all_[at];
    for (std::size_t i = at; i < at + ways; ++i) {
      if (all_[i].request == request) {
        best = &all_[i];
        break;
      }
      if (all_[i].when < best->when) best = &all_[i];
    }
    if (best->request != request) *best = {request, 0, 0};
    best->blocks = std::max(best->blocks, static_cast<std::uint32_t>(blocks));
    best->when = ++now_;
  }

 private:
  struct one {
    std::uint64_t request = 0;
    std::uint32_t blocks = 0;
    std::uint32_t when = 0;
  };
  static constexpr std::size_t sets = 512;
  static constexpr std::size_t ways = 4;

  [[nodiscard]] static std::size_t first_of(std::uint64_t request) noexcept { return request % sets * ways; }

  std::vector<one> all_;
  std::uint32_t now_ = 0;
};

}  // namespace kvx
