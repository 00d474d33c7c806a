// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

namespace kvx::detail {

/// The checksum of one page as the slot format has it: XXH3 with 64 bits, seed 0.
/// Shape   page: page_bytes
[[nodiscard]] inline std::uint64_t page_checksum(const std::byte* page) noexcept {
  return XXH3_64bits(page, page_bytes);
}

#if defined(__x86_64__) && defined(__GNUC__)

/// XXH3 of one page for processors that are found to have AVX2 only at run time: xxHash chooses by the compiler's
/// target, and its dispatcher is no header. Equal to `page_checksum` and 1.5 times as fast from memory; copying on the
/// way is three times as fast as a copy and a checksum after it (bench/hash_bench.cpp).
/// Source  xxHash, doc/xxhash_spec.md, "XXH3 Algorithm (for inputs longer than 240 bytes)"
namespace avx2_page {

using lanes [[gnu::vector_size(32)]] = unsigned long long;
using half_lanes [[gnu::vector_size(32)]] = int;

// <immintrin.h> has names for these, and takes longer to compile than all of kvx.
[[gnu::target("avx2"), gnu::always_inline]] inline lanes load(const void* from) noexcept {
  lanes value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
[[gnu::target("avx2"), gnu::always_inline]] inline void store_past_caches(void* to, lanes value) noexcept {
#if defined(__clang__)
  __builtin_nontemporal_store(value, static_cast<lanes*>(to));
#else
  using words [[gnu::vector_size(32)]] = long long;
  __builtin_ia32_movntdq256(static_cast<words*>(to), reinterpret_cast<words>(value));
#endif
}
[[gnu::target("avx2"), gnu::always_inline]] inline lanes multiply_low_halves(lanes a, lanes b) noexcept {
#if defined(__clang__)
  constexpr unsigned long long low = 0xFFFF'FFFFU;
  return (a & low) * (b & low);
#else
  return reinterpret_cast<lanes>(
      __builtin_ia32_pmuludq256(reinterpret_cast<half_lanes>(a), reinterpret_cast<half_lanes>(b)));
#endif
}
[[gnu::target("avx2"), gnu::always_inline]] inline lanes swap_pairs(lanes value) noexcept {
  return __builtin_shufflevector(value, value, 1, 0, 3, 2);
}

struct accumulators {
  lanes low, high;
};

inline constexpr std::size_t stripe_bytes = 64;
inline constexpr std::size_t secret_bytes = 192;

[[gnu::target("avx2"), gnu::always_inline]] inline void add(lanes& sum, lanes data,
                                                            const unsigned char* secret) noexcept {
  const lanes keyed = data ^ load(secret);
  sum += multiply_low_halves(keyed, keyed >> 32) + swap_pairs(data);
}
[[gnu::target("avx2"), gnu::always_inline]] inline void scramble(lanes& sum, const unsigned char* secret) noexcept {
  constexpr unsigned long long prime = XXH_PRIME32_1;
  const lanes primes = {prime, prime, prime, prime};
  const lanes mixed = sum ^ (sum >> 47) ^ load(secret);
  sum = multiply_low_halves(mixed, primes) + (multiply_low_halves(mixed >> 32, primes) << 32);
}
template <bool Copy>
[[gnu::target("avx2"), gnu::always_inline]] inline void stripe(accumulators& sums, const std::byte* from, std::byte* to,
                                                               const unsigned char* secret) noexcept {
  const lanes low = load(from);
  const lanes high = load(from + sizeof(lanes));
  if constexpr (Copy) {
    store_past_caches(to, low);
    store_past_caches(to + sizeof(lanes), high);
  }
  add(sums.low, low, secret);
  add(sums.high, high, secret + sizeof(lanes));
}

/// Shape   from, to: page_bytes; to: aligned to 32 bytes, null unless Copy
template <bool Copy>
[[gnu::target("avx2")]] inline std::uint64_t checksum(const std::byte* from, std::byte* to) noexcept {
  constexpr std::size_t stripes_per_block = (secret_bytes - stripe_bytes) / 8;
  constexpr std::size_t block_bytes = stripes_per_block * stripe_bytes;
  constexpr std::size_t last_at = page_bytes - stripe_bytes;
  static_assert(page_bytes % block_bytes == 0 && sizeof(XXH3_kSecret) == secret_bytes);
  const auto* const secret = reinterpret_cast<const unsigned char*>(XXH3_kSecret);
  accumulators sums{{XXH_PRIME32_3, XXH_PRIME64_1, XXH_PRIME64_2, XXH_PRIME64_3},
                    {XXH_PRIME64_4, XXH_PRIME32_2, XXH_PRIME64_5, XXH_PRIME32_1}};
  for (std::size_t block = 0; block < page_bytes; block += block_bytes) {
    for (std::size_t i = 0; i < stripes_per_block; ++i) {
      const std::size_t at = block + i * stripe_bytes;
      if (at == last_at) break;
      // Far enough ahead that memory keeps up, into the next page as well; a prefetch never faults.
      __builtin_prefetch(from + at + block_bytes);
      stripe<Copy>(sums, from + at, Copy ? to + at : nullptr, secret + 8 * i);
    }
    if (block + block_bytes == page_bytes) break;
    scramble(sums.low, secret + secret_bytes - stripe_bytes);
    scramble(sums.high, secret + secret_bytes - stripe_bytes + sizeof(lanes));
  }
  constexpr std::size_t last_secret = secret_bytes - stripe_bytes - 7;
  stripe<Copy>(sums, from + last_at, Copy ? to + last_at : nullptr, secret + last_secret);
  alignas(64) std::uint64_t merged[8];
  __builtin_memcpy(merged, &sums, sizeof sums);
  constexpr std::size_t merge_secret = 11;
  return XXH3_mergeAccs(merged, secret + merge_secret, page_bytes * XXH_PRIME64_1);
}

}  // namespace avx2_page

[[nodiscard]] inline bool has_wide_pages() noexcept { return __builtin_cpu_supports("avx2") != 0; }

#endif

/// Checksums of consecutive pages.
/// Shape   pages: to.size() pages
/// Cost    one pass: 13 GB/s from memory with AVX2, 8 without
inline void page_checksums(const std::byte* pages, std::span<std::uint64_t> to) noexcept {
#if defined(__x86_64__) && defined(__GNUC__)
  if (has_wide_pages()) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = avx2_page::checksum<false>(pages + i * page_bytes, nullptr);
    return;
  }
#endif
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = page_checksum(pages + i * page_bytes);
}

/// Copies consecutive pages and says their checksums.
/// Shape   from: checksums.size() pages, of any alignment; to: aligned to a page
/// Cost    one pass over both; with AVX2 what was written bypasses the caches
inline void copy_pages(const std::byte* from, std::byte* to, std::span<std::uint64_t> checksums) noexcept {
#if defined(__x86_64__) && defined(__GNUC__)
  if (has_wide_pages()) {
    for (std::size_t i = 0; i < checksums.size(); ++i)
      checksums[i] = avx2_page::checksum<true>(from + i * page_bytes, to + i * page_bytes);
    __builtin_ia32_sfence();  // whoever is told of the copy must see it
    return;
  }
#endif
  for (std::size_t i = 0; i < checksums.size(); ++i) {
    std::memcpy(to + i * page_bytes, from + i * page_bytes, page_bytes);
    checksums[i] = page_checksum(to + i * page_bytes);
  }
}

}  // namespace kvx::detail
