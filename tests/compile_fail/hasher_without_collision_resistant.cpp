// expect: H::collision_resistant[^ ]* (is|would be) invalid
// SPDX-License-Identifier: Apache-2.0
#include <kvx/cache.hpp>

// Whether strangers may choose the bytes is a question that no hasher may leave open.
struct my_hasher {
  using digest_type = kvx::digest<16>;
  static constexpr std::uint32_t id = 1000;
#ifndef KVX_COMPILE_FAIL
  static constexpr bool collision_resistant = false;
#endif
  static digest_type hash(std::span<const std::byte> bytes) noexcept { return kvx::archetype::hasher::hash(bytes); }
};

using my_cache = kvx::cache<kvx::archetype::layout, my_hasher, kvx::archetype::eviction, kvx::archetype::io,
                            kvx::archetype::transfer>;

int main() { return sizeof(my_cache) != 0 ? 0 : 1; }
