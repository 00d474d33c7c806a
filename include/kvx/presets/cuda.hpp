// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/cache.hpp>
#include <kvx/eviction/learned_hazard.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/layout.hpp>
#include <kvx/transfer/cuda.hpp>

namespace kvx {

/// For engines on an NVIDIA GPU: blocks move between its memory and pinned host memory, and threads do the I/O.
/// Give the cache a `cuda_transfer` with the kernels of the engine. Needs the component `cuda`. On a local drive
/// `cache<Layout, xxh3_128, learned_hazard, auto_io, cuda_transfer>`, with the component `uring`, costs less CPU.
template <kv_layout Layout = layout>
using gpu_cache = cache<Layout, xxh3_128, learned_hazard, posix, cuda_transfer>;

}  // namespace kvx
