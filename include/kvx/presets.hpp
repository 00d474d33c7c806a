// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/cache.hpp>
#include <kvx/eviction/learned_hazard.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/layout.hpp>
#include <kvx/transfer/host.hpp>

namespace kvx {

/// For engines on the CPU, with nothing but the standard library and xxHash: a thread pool does the I/O, which
/// is also the right choice on Lustre and NFS. The hash is fast and not collision resistant: see
/// options::prompts_trusted. Presets that need a component are in kvx/presets/.
template <kv_layout Layout = layout>
using host_cache = cache<Layout, xxh3_128, learned_hazard, posix, host_transfer>;

}  // namespace kvx
