// expect: return.type.requirement|admit\(block\)|same_as|constraint
// SPDX-License-Identifier: Apache-2.0
#include <kvx/cache.hpp>

// A policy that does not say whether it wants a block decides nothing.
struct my_policy : kvx::archetype::admission {
  using kvx::archetype::admission::admission;
#ifdef KVX_COMPILE_FAIL
  void admit(const kvx::admission_candidate&) {}
#endif
};

using my_cache = kvx::cache<kvx::archetype::layout, kvx::archetype::hasher, kvx::archetype::eviction,
                            kvx::archetype::io, kvx::archetype::transfer, my_policy, my_policy>;

int main() { return sizeof(my_cache) != 0 ? 0 : 1; }
