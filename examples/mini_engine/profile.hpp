// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "transformer.hpp"

namespace mini_engine {

/// Measures, and prints, how this machine does: a plain matrix product, prefill in chunks of several sizes and its
/// share of the plain product, decode, and how good the cost estimates are. Needs room for the prompt's tokens in the
/// pool.
void print_profile(const model& m, paged_kv& kv, thread_pool& pool, std::size_t prompt_tokens,
                   std::size_t chunk_tokens);

}  // namespace mini_engine
