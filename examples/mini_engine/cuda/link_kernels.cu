// SPDX-License-Identifier: Apache-2.0
#include "link_kernels.hpp"

#include <kvx/transfer/cuda_kernels.cuh>

namespace mini_engine::cuda {

kvx::cuda_kernels link_kernels() { return kvx::cuda_kernel_table(); }

}  // namespace mini_engine::cuda
