// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "huge_array.hpp"
#include "simd.hpp"
#include "thread_pool.hpp"

namespace mini_engine {

/// A weight matrix [rows, columns], packed once: panels of simd::panel rows, each stored column by column.
class packed_matrix {
 public:
  packed_matrix() = default;
  packed_matrix(std::size_t rows, std::size_t columns)
      : rows_(rows), columns_(columns), data_(simd::padded(rows) * columns) {}

  void set_row(std::size_t row, const float* values) {
    float* to = data_.data() + row / simd::panel * simd::panel * columns_ + row % simd::panel;
    for (std::size_t c = 0; c < columns_; ++c) to[c * simd::panel] = values[c];
  }

  std::size_t rows() const noexcept { return rows_; }
  std::size_t columns() const noexcept { return columns_; }
  std::size_t panels() const noexcept { return simd::padded(rows_) / simd::panel; }
  const float* panel(std::size_t i) const noexcept { return data_.data() + i * simd::panel * columns_; }

 private:
  std::size_t rows_ = 0;
  std::size_t columns_ = 0;
  huge_array<float> data_;
};

/// A row-major matrix of activations: row r starts at data + r * stride.
template <class T>
struct rows_of {
  T* data;
  std::size_t stride;
  T* operator[](std::size_t row) const { return data + row * stride; }
};

/// y[m, panels * simd::panel] = x[m, k] * w, or += when accumulating, on the calling thread. Panel i of w starts at w +
/// i * w_stride. Every element is one chain of fused multiply-adds over k in ascending order: its bits depend on its
/// row of x, its column of w and nothing else, whatever m is. Prefill in any chunks, and decode in any batch, therefore
/// agree to the last bit.
void multiply(rows_of<const float> x, std::size_t m, std::size_t k, const float* w, std::size_t w_stride,
              std::size_t panels, rows_of<float> y, bool accumulate);

/// The largest blocks that a product is cut into, one per task.
inline constexpr std::size_t block_rows = 384;
inline constexpr std::size_t block_panels = 4;

/// How a product of m rows and so many panels is cut into tasks.
struct blocking {
  std::size_t rows, panels;        // of a block; the last ones may have less
  std::size_t row_blocks, groups;  // how many there are
  std::size_t tasks() const { return row_blocks * groups; }
};

/// Blocks as large as they may be, since each loads its rows and its weights anew, but so many that threads which end
/// early have something left to do.
/// Shape   m, panels: at least 1
blocking blocks_for(std::size_t m, std::size_t panels, std::size_t threads);

/// y[m, w.rows()] = x[m, w.columns()] * transpose(w), or += when accumulating, on all threads.
void multiply(thread_pool& pool, rows_of<const float> x, std::size_t m, const packed_matrix& w, rows_of<float> y,
              bool accumulate);

}  // namespace mini_engine
