// expect: layout\.fingerprint\(group\)[^ ]* (is|would be) invalid
// SPDX-License-Identifier: Apache-2.0
#include <kvx/cache.hpp>

// Without a fingerprint, blocks of equal size and another order of axes would be taken for each other.
struct my_layout : kvx::archetype::layout {
  using kvx::archetype::layout::layout;
#ifdef KVX_COMPILE_FAIL
  std::uint64_t fingerprint(std::size_t group) const = delete;
#endif
};

using my_cache = kvx::cache<my_layout, kvx::archetype::hasher, kvx::archetype::eviction, kvx::archetype::io,
                            kvx::archetype::transfer>;

int main() { return sizeof(my_cache) != 0 ? 0 : 1; }
