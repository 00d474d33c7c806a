// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "huge_array.hpp"
#include "matmul.hpp"
#include "thread_pool.hpp"

namespace mini_engine {

/// The fastest plain product of 2048 x 2048 matrices there is here: the engine's own, and OpenBLAS's where its library
/// is found. Measured again beside every prefill and the best kept, because a moment when the machine was busy must not
/// lower the mark.
class plain_product {
 public:
  explicit plain_product(thread_pool& pool);
  plain_product(const plain_product&) = delete;
  plain_product& operator=(const plain_product&) = delete;
  ~plain_product();

  void measure();
  /// Units   floating-point operations per second
  double best() const;
  void print() const;

 private:
  static constexpr std::size_t n = 2048, stride = n + 16;

  struct open_blas;

  thread_pool& pool_;
  std::unique_ptr<open_blas> blas_library_;
  huge_array<float> x_{n * stride}, y_{n * stride};
  packed_matrix w_{n, n};
  double own_ = 0, blas_ = 0;
  std::string kernel_;
};

}  // namespace mini_engine
