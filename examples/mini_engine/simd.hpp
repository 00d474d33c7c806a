// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace mini_engine::simd {

// Compiler vectors instead of intrinsics, as wide as one register: g++ breaks wider ones up into scalars. Sources that
// compute are compiled for this machine's instructions; data is packed by panels, which are the same in all sources.
#if defined(__AVX512F__)
constexpr std::size_t lanes = 16;
#else
constexpr std::size_t lanes = 8;
#endif

typedef float vec __attribute__((vector_size(lanes * sizeof(float)), aligned(alignof(float)), may_alias));
typedef std::int32_t ivec __attribute__((vector_size(lanes * sizeof(float)), aligned(alignof(float)), may_alias));

/// Numbers of a row are rounded up to a whole number of these; the padding is zero and stays zero.
inline constexpr std::size_t panel = 32;
static_assert(panel % lanes == 0);

constexpr std::size_t padded(std::size_t n) { return (n + panel - 1) / panel * panel; }

[[gnu::always_inline]] inline vec& at(float* p) { return *reinterpret_cast<vec*>(p); }
[[gnu::always_inline]] inline const vec& at(const float* p) { return *reinterpret_cast<const vec*>(p); }

[[gnu::always_inline]] inline float sum(const vec& v) {
  float s = 0;
  for (std::size_t i = 0; i < lanes; ++i) s += v[i];
  return s;
}

[[gnu::always_inline]] inline float max(const vec& v) {
  float m = v[0];
  for (std::size_t i = 1; i < lanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

/// Transposes lanes x lanes numbers: perfect shuffles of the rows, one for each bit of a row's number.
[[gnu::always_inline]] inline void transpose(vec (&rows)[lanes]) {
#pragma GCC unroll 4
  for (std::size_t round = 1; round < lanes; round *= 2) {
    vec shuffled[lanes];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < lanes / 2; ++i) {
      const vec &a = rows[i], &b = rows[i + lanes / 2];
#if defined(__AVX512F__)
      shuffled[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      shuffled[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
      shuffled[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      shuffled[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < lanes; ++i) rows[i] = shuffled[i];
  }
}

/// e^x for x <= 88, relative error under 2e-7; exactly zero below -87, so that a masked score of minus infinity has no
/// weight.
[[gnu::always_inline]] inline void exp(vec& x) {
  constexpr float lowest = -87.0f;
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  const ivec vanishes = x < lowest;
  const vec clamped = vanishes ? vec{} + lowest : x;
  const vec shifted = clamped * 1.44269504f + round;
  const vec n = shifted - round;
  const vec r = clamped - n * 0.693145752f - n * 1.42860677e-6f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const ivec exponent = (reinterpret_cast<const ivec&>(shifted) - 0x4B400000 + 127) << 23;
  x = vanishes ? vec{} : p * reinterpret_cast<const vec&>(exponent);
}

}  // namespace mini_engine::simd
