// SPDX-License-Identifier: Apache-2.0

// The tests of key_table for what processors without SSE2 do. What the standard library has for SSE2 comes before it is
// taken away.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wbuiltin-macro-redefined"
#endif
#undef __SSE2__

#include "key_table_test.cpp"
