// expect: engine\.load\(layout, batch, stream\)[^ ]* (is|would be) invalid
// SPDX-License-Identifier: Apache-2.0
#include <kvx/cache.hpp>

// An engine that copies on streams of another kind than it says could not be ordered after the engine's work.
struct my_transfer : kvx::archetype::transfer {
#ifdef KVX_COMPILE_FAIL
  struct stream_type {};
#endif
};

using my_cache = kvx::cache<kvx::archetype::layout, kvx::archetype::hasher, kvx::archetype::eviction,
                            kvx::archetype::io, my_transfer>;

int main() { return sizeof(my_cache) != 0 ? 0 : 1; }
