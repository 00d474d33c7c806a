// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/transfer/cuda/kernels.hpp>

namespace mini_engine::cuda {

/// kvx's kernels, compiled for this program's GPUs.
kvx::cuda_kernels link_kernels();

}  // namespace mini_engine::cuda
