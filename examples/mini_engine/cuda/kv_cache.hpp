// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/any_cache.hpp>
#include <kvx/layout.hpp>

#include <cuda_runtime_api.h>

#include <functional>
#include <optional>
#include <string>

#include "../kv_cache.hpp"
#include "../serve.hpp"
#include "../single_run.hpp"
#include "engine.hpp"

namespace mini_engine::cuda {

/// The cache as this engine stores it: its stream is the GPU's.
using external_cache = kvx::any_cache<cudaStream_t>;

/// The engine's pages, described for kvx: one tensor per layer, in each page the keys and then the values.
kvx::layout describe(const model_config& config, const paged_kv& kv);

/// Memory in which the cache holds `tokens` tokens; it is pinned.
std::uint64_t memory_for(std::size_t tokens, const engine& e);

/// As mini_engine::open_cache().
external_cache open_cache(const cache_settings& settings, engine& e, const std::function<void()>& memory_is_there);

/// A cache that opens on a thread of its own.
class opening_cache : public basic_opening_cache<external_cache> {
 public:
  opening_cache(const cache_settings& settings, engine& e)
      : basic_opening_cache([=, &e](const auto& memory_is_there) { return open_cache(settings, e, memory_is_there); },
                            settings.memory_bytes) {}
};

/// Gives the engine a reader where the settings ask for one, or where one that serves a single prompt is better off
/// with it. Throws kvx::error where what was asked for is not to be had.
void read_straight(const cache_settings& settings, bool single_prompt, engine& e);

using server = basic_server<transformer, cudaStream_t>;

/// A server of this engine, which loads by its reader if it has one. As basic_server's constructor.
server make_server(engine& e, opening_cache* cache, std::size_t chunk_tokens, bool patient);

/// Blocks that a server on a GPU asks for at a time: the first are on their way while the next are looked up.
inline constexpr std::size_t stretch_blocks = 256;

/// As mini_engine::run_alone().
single_run run_alone(std::string name, engine& e, request& from, std::optional<opening_cache>& cache,
                     const cache_settings* to_open, const single_run_settings& how);

}  // namespace mini_engine::cuda

namespace mini_engine {
extern template class basic_server<cuda::transformer, cudaStream_t>;
}
