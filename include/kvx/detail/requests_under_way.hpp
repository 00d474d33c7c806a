// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace kvx::detail {

/// What a policy remembers of a request that it is told of in parts: a load, and a save every few blocks.
struct request_so_far {
  std::uint64_t id = 0;
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

/// The requests told of lately, by their ids. One that comes back after some thousand others begins anew.
/// Cost    O(1), 150 KiB
class requests_under_way {
 public:
  requests_under_way() : all_(sets * ways) {}

  /// The request of that id, or a new one in place of the oldest; 0 is a new one each time.
  [[nodiscard]] request_so_far& of(std::uint64_t id) noexcept {
    request_so_far* oldest = &all_[first_of(id)];
    for (std::size_t i = 0; i < ways && id != 0; ++i) {
      request_so_far& r = all_[first_of(id) + i];
      if (r.id == id) return r;
      if (r.began < oldest->began) oldest = &r;
    }
    if (id == 0) oldest = &single_;
    *oldest = {};
    oldest->id = id;
    return *oldest;
  }

 private:
  static constexpr std::size_t sets = 512;
  static constexpr std::size_t ways = 4;

  [[nodiscard]] static std::size_t first_of(std::uint64_t id) noexcept { return id % sets * ways; }

  std::vector<request_so_far> all_;
  request_so_far single_;
};

}  // namespace kvx::detail
