// expect: policy\.evict\(pinned\)[^ ]* (is|would be) invalid
// SPDX-License-Identifier: Apache-2.0
#include <kvx/cache.hpp>

// A policy that does not ask what is pinned would give away blocks under a running load.
struct my_policy : kvx::archetype::eviction {
  using kvx::archetype::eviction::eviction;
#ifdef KVX_COMPILE_FAIL
  kvx::slot_index evict() { return kvx::no_slot; }
#endif
};

using my_cache =
    kvx::cache<kvx::archetype::layout, kvx::archetype::hasher, my_policy, kvx::archetype::io, kvx::archetype::transfer>;

int main() { return sizeof(my_cache) != 0 ? 0 : 1; }
