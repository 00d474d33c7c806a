// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace kvx::detail {

/// One contiguous piece to copy between engine memory and a slot, the same for both directions.
struct copy_run {
  std::byte* engine = nullptr;
  std::byte* slot = nullptr;
  std::size_t bytes = 0;
};

/// Appends the runs of some layers of one block, neighbours on both sides merged.
/// Shape   first <= last <= layers of the batch; the batch passed check_batch
/// Cost    a few nanoseconds per fragment; no allocation once `out` has grown
template <kv_layout Layout>
void append_runs(const Layout& layout, const transfer_batch& batch, const block_copy& block, std::size_t first,
                 std::size_t last, std::vector<copy_run>& out) {
  const std::size_t begin = out.size();
  for (std::size_t layer = first; layer < last; ++layer) {
    std::byte* const slot = block.payload + batch.layer_offsets[layer];
    layout.for_each_fragment(batch.group, layer, block.pages, [&](const fragment& f) {
      std::byte* const at = slot + f.offset;
      if (out.size() > begin && out.back().engine + out.back().bytes == f.data &&
          out.back().slot + out.back().bytes == at) {
        out.back().bytes += f.bytes;
      } else if (f.bytes != 0) {
        out.push_back({f.data, at, f.bytes});
      }
    });
  }
}

/// A way to see runs as matrices: with period p, runs i, i + p, i + 2p, ... are the rows of matrix i.
struct strided_view {
  std::size_t period = 1;
  std::size_t rows = 1;
};

/// Whether runs lie at constant distances on both sides, so that few copies of matrices move all of them.
/// Shape   layers: of which the runs are; largest_pitch: of a row, what the device can do
/// Cost    a pass over the runs
[[nodiscard]] inline std::optional<strided_view> find_strides(std::span<const copy_run> runs, std::size_t layers,
                                                              std::size_t largest_pitch) noexcept {
  const auto constant = [&](std::size_t period) {
    for (std::size_t i = 0; i < period; ++i) {
      if (i + period >= runs.size()) return false;
      const std::ptrdiff_t engine = runs[i + period].engine - runs[i].engine;
      const std::ptrdiff_t slot = runs[i + period].slot - runs[i].slot;
      const auto row = static_cast<std::ptrdiff_t>(runs[i].bytes);
      const auto most = static_cast<std::ptrdiff_t>(largest_pitch);
      if (engine < row || slot < row || engine > most || slot > most) return false;
      for (std::size_t j = i + period; j < runs.size(); j += period) {
        if (runs[j].bytes != runs[i].bytes || runs[j].engine - runs[j - period].engine != engine ||
            runs[j].slot - runs[j - period].slot != slot) {
          return false;
        }
      }
    }
    return true;
  };
  if (runs.size() == 1) return strided_view{};
  if (runs.empty()) return std::nullopt;
  if (constant(1)) return strided_view{1, runs.size()};
  if (layers < 2 || runs.size() % layers != 0 || runs.size() == layers) return std::nullopt;
  const std::size_t period = runs.size() / layers;
  if (!constant(period)) return std::nullopt;
  return strided_view{period, layers};
}

/// How many groups of layers a load is cut into, so that the first may be used while the others arrive.
///
/// Pieces of less than `least_piece` bytes would cost more than the head start is worth.
/// Shape   bytes: of one block for engines that copy block by block, of the whole batch for the others
[[nodiscard]] constexpr std::size_t layer_groups(std::size_t layers, std::size_t bytes, std::size_t least_piece,
                                                 std::size_t at_most) noexcept {
  const std::size_t by_size = least_piece == 0 ? at_most : bytes / least_piece;
  return std::max<std::size_t>(1, std::min({layers, by_size, at_most}));
}

}  // namespace kvx::detail
