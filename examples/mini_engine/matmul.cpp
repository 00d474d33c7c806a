// SPDX-License-Identifier: Apache-2.0
#include "matmul.hpp"

#include <algorithm>
#include <array>
#include <utility>

namespace mini_engine {
namespace {

// A panel slice of this many columns stays in the first-level cache while the rows of x pass by.
constexpr std::size_t slice = 256;

// A tile is two vectors wide, and as many rows high as leave its sums in the registers.
constexpr std::size_t vectors = 2;
constexpr std::size_t tile_columns = vectors * simd::lanes;
static_assert(simd::panel % tile_columns == 0);
#if defined(__AVX512F__)
constexpr std::size_t tile_rows = 12;
#else
constexpr std::size_t tile_rows = 6;
#endif

template <std::size_t Rows>
void multiply_tile(const float* x, std::size_t x_stride, std::size_t k, const float* w, float* y, std::size_t y_stride,
                   bool accumulate) {
  using simd::at, simd::lanes;
  simd::vec sums[Rows][vectors];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (std::size_t v = 0; v < vectors; ++v) sums[r][v] = accumulate ? at(y + r * y_stride + v * lanes) : simd::vec{};
  for (std::size_t i = 0; i < k; ++i, w += simd::panel) {
    simd::vec columns[vectors];
#pragma GCC unroll 4
    for (std::size_t v = 0; v < vectors; ++v) columns[v] = at(w + v * lanes);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (std::size_t v = 0; v < vectors; ++v) sums[r][v] += x[r * x_stride + i] * columns[v];
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (std::size_t v = 0; v < vectors; ++v) at(y + r * y_stride + v * lanes) = sums[r][v];
}

using tile_function = decltype(&multiply_tile<1>);

template <std::size_t... I>
constexpr std::array<tile_function, sizeof...(I)> tiles_of(std::index_sequence<I...>) {
  return {&multiply_tile<I + 1>...};
}

constexpr auto tiles = tiles_of(std::make_index_sequence<tile_rows>{});  // tiles[r - 1] multiplies r rows

}  // namespace

void multiply(rows_of<const float> x, std::size_t m, std::size_t k, const float* w, std::size_t w_stride,
              std::size_t panels, rows_of<float> y, bool accumulate) {
  for (std::size_t first = 0; first < k; first += slice) {
    const std::size_t columns = std::min(slice, k - first);
    for (std::size_t p = 0; p < panels; ++p) {
      const float* const from = w + p * w_stride + first * simd::panel;
      for (std::size_t r = 0; r < m; r += tile_rows) {
        const tile_function tile = tiles[std::min(tile_rows, m - r) - 1];
        for (std::size_t c = 0; c < simd::panel; c += tile_columns)
          tile(x[r] + first, x.stride, columns, from + c, y[r] + p * simd::panel + c, y.stride,
               accumulate || first > 0);
      }
    }
  }
}

blocking blocks_for(std::size_t m, std::size_t panels, std::size_t threads) {
  constexpr std::size_t tasks_per_thread = 4, least_rows = 4 * tile_rows;
  blocking b{block_rows, block_panels, 0, 0};
  for (;;) {
    // Blocks of equal height, in whole tiles.
    b.row_blocks = (m + b.rows - 1) / b.rows;
    b.rows = ((m + b.row_blocks - 1) / b.row_blocks + tile_rows - 1) / tile_rows * tile_rows;
    b.row_blocks = (m + b.rows - 1) / b.rows;
    b.groups = (panels + b.panels - 1) / b.panels;
    if (threads == 1 || b.tasks() >= tasks_per_thread * threads) return b;
    if (b.rows >= 2 * least_rows && (b.panels == 1 || b.rows > b.panels * simd::panel))
      b.rows /= 2;
    else if (b.panels > 1)
      b.panels /= 2;
    else
      return b;
  }
}

void multiply(thread_pool& pool, rows_of<const float> x, std::size_t m, const packed_matrix& w, rows_of<float> y,
              bool accumulate) {
  const blocking cut = blocks_for(m, w.panels(), pool.size());
  pool.for_each(cut.tasks(), [&](std::size_t task, std::size_t) {
    const std::size_t row = task / cut.groups * cut.rows, p = task % cut.groups * cut.panels;
    multiply({x[row], x.stride}, std::min(cut.rows, m - row), w.columns(), w.panel(p), simd::panel * w.columns(),
             std::min(cut.panels, w.panels() - p), {y[row] + p * simd::panel, y.stride}, accumulate);
  });
}

}  // namespace mini_engine
