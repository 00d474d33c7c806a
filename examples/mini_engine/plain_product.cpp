// SPDX-License-Identifier: Apache-2.0
#include "plain_product.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "stopwatch.hpp"

namespace mini_engine {

/// Opened when it is measured, not linked: OpenBLAS starts threads, and they spin.
struct plain_product::open_blas {
  using sgemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a,
                         int lda, const float* b, int ldb, float beta, float* c, int ldc);

  open_blas() : library(::dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL)) {
    if (library == nullptr) return;
    multiply = reinterpret_cast<sgemm>(::dlsym(library, "cblas_sgemm"));
    set_threads = reinterpret_cast<void (*)(int)>(::dlsym(library, "openblas_set_num_threads"));
    core_name = reinterpret_cast<char* (*)()>(::dlsym(library, "openblas_get_corename"));
  }
  // The library stays: its threads may still run in it.

  bool complete() const { return multiply != nullptr && set_threads != nullptr && core_name != nullptr; }

  void* library;
  sgemm multiply = nullptr;
  void (*set_threads)(int) = nullptr;
  char* (*core_name)() = nullptr;
};

plain_product::plain_product(thread_pool& pool) : pool_(pool), blas_library_(std::make_unique<open_blas>()) {}
plain_product::~plain_product() = default;

void plain_product::measure() {
  constexpr double flops = 2.0 * n * n * n;
  own_ = std::max(own_, flops / best_seconds(3, [&] {
                          multiply(pool_, {x_.data(), stride}, n, w_, {y_.data(), stride}, false);
                        }));
  if (!blas_library_->complete()) return;
  constexpr int row_major = 101, plain = 111, transposed = 112, size = n, leading = stride;
  blas_library_->set_threads(static_cast<int>(pool_.size()));
  blas_ = std::max(blas_, flops / best_seconds(3, [&] {
                            blas_library_->multiply(row_major, plain, transposed, size, size, size, 1.0f, x_.data(),
                                                    leading, w_.panel(0), size, 0.0f, y_.data(), leading);
                          }));
  kernel_ = std::string("OpenBLAS, ") + blas_library_->core_name();
  std::this_thread::sleep_for(
      std::chrono::milliseconds{100});  // until its threads sleep, so that they take nothing from what is next
}

double plain_product::best() const { return std::max(own_, blas_); }

void plain_product::print() const {
  std::printf("plain product 2048^3  %7.1f GFLOP/s (mini_engine)\n", own_ * 1e-9);
  if (blas_ > 0) std::printf("plain product 2048^3  %7.1f GFLOP/s (%s)\n", blas_ * 1e-9, kernel_.c_str());
}

}  // namespace mini_engine
