// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/cache.hpp>
#include <kvx/eviction/learned_hazard.hpp>
#include <kvx/hash/sha256.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/layout.hpp>
#include <kvx/transfer/host.hpp>

namespace kvx {

/// For engines on the CPU whose tenants, or strangers' prompts, share a store: keys are SHA-256, so nobody can
/// craft a prompt that is served another's blocks. Needs the component `openssl`.
template <kv_layout Layout = layout>
using shared_cache = cache<Layout, sha256, learned_hazard, posix, host_transfer>;

}  // namespace kvx
