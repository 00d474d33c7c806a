// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace kvx::detail {

/// What a policy remembers of a request that it is told of in parts: a load, and a save every few blocks.
struct request_so_far {
  /// Blocks told of, from the front; 0: none yet.
  std::size_t blocks = 0;
  std::size_t new_blocks = 0;
  std::uint64_t deepest_key = 0;
  double lead = 0;
  std::uint32_t began = 0;
  float worth = std::numeric_limits<float>::max();
  /// The age at which its known prefix was used, plus one.
  unsigned gap = 0;
  /// Whether all of its blocks so far were in the history, and for each of those compared, whether it had them.
  bool known = true;
  std::array<bool, 3> hitting{true, true, true};

  /// Its next block, which the history has, and which of those compared have.
  void meet(unsigned used_gap, const std::array<bool, 3>& here, std::array<double, 3>& hits) noexcept {
    if (known) gap = used_gap;
    if (!known) ++new_blocks;
    for (std::size_t w = 0; w < here.size(); ++w) {
      hitting[w] = hitting[w] && here[w];
      if (hitting[w]) ++hits[w];
    }
  }
  /// Its next block, of which nothing is known.
  void meet_unknown() noexcept {
    known = false;
    ++new_blocks;
    hitting.fill(false);
  }
};

}  // namespace kvx::detail
