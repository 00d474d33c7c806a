// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <cstdio>

namespace mini_engine::cuda {

/// Runs the test cases where there is a GPU; says so and ends as skipped where there is none.
inline int run_on_device(int argc, char** argv) {
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no GPU to run on (%s)\n", found == cudaSuccess ? "no device" : cudaGetErrorString(found));
    return 77;
  }
  doctest::Context context(argc, argv);
  return context.run();
}

}  // namespace mini_engine::cuda
