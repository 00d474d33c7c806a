// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/cache.hpp>
#include <kvx/eviction/learned_hazard.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/auto_io.hpp>
#include <kvx/layout.hpp>
#include <kvx/transfer/host.hpp>

namespace kvx {

/// For engines on the CPU with a local drive: io_uring where the kernel and the file system of options::root
/// allow it, threads where not. Needs the component `uring`.
template <kv_layout Layout = layout>
using local_cache = cache<Layout, xxh3_128, learned_hazard, auto_io, host_transfer>;

}  // namespace kvx
