// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most: what the engine's figures are compared with, in the same run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "transformer.hpp"

namespace mini_engine::cuda {

/// Operations per second of a product of 8192 x 8192 x 8192 in bfloat16, on random numbers.
double measure_plain_product(transformer& compute);

/// Bytes per second of one copy of 1 GiB between pinned memory and the GPU.
struct link_rates {
  double in = 0, out = 0;
};
link_rates measure_link(cudaStream_t stream);

/// Bytes per second at which a loop of plain reads, around the page cache where the file system can, gets at most
/// `bytes` of the files in a directory into memory: the best of several numbers of threads and sizes of pieces. A RAM
/// file system is slower where a page is read for the first time; what is measured behind this finds none of those.
double measure_storage(const std::string& directory, std::uint64_t bytes);

}  // namespace mini_engine::cuda
