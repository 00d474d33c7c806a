// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/any_cache.hpp>
#include <kvx/layout.hpp>
#include <kvx/options.hpp>
#include <kvx/transfer/host.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "model.hpp"
#include "opening_cache.hpp"
#include "paged_kv.hpp"
#include "prefill_cost.hpp"

namespace mini_engine {

/// The cache as this engine stores it: behind one indirect call per batch, whatever does the I/O.
using external_cache = kvx::any_cache<kvx::host_stream>;

/// Who moves bytes to and from storage.
enum class io_kind { automatic, uring, posix };

/// Whether blocks go from storage straight into the pages of a GPU, past the cache's memory, and how they are read.
/// automatic: of a process that serves one prompt, through the host, where storage is no local drive
enum class straight_kind { automatic, never, host, cufile };

/// Whether this build can be asked for io_uring.
bool has_uring() noexcept;

/// What the user says about the cache.
struct cache_settings {
  std::string directory;           // empty: in memory only
  std::uint64_t memory_bytes = 0;  // 0: what the requests need, see memory_for()
  std::uint64_t storage_bytes = std::uint64_t{16} << 30;
  io_kind io = io_kind::automatic;
  unsigned io_threads = 0;  // 0: kvx's default, or for a GPU what the file system is worth
  straight_kind straight = straight_kind::automatic;
  std::chrono::milliseconds load_deadline{2000}, save_deadline{30'000};
};

/// The engine's pages, described for kvx: per layer an array of keys and one of values, a page as one block.
kvx::layout describe(const model_config& config, paged_kv& kv);

/// What prefilling `prompt_tokens` costs, in kvx's two terms.
kvx::prefill_cost in_kvx_terms(const prefill_cost& cost, std::size_t prompt_tokens);

/// Memory in which the cache holds `tokens` tokens. Touching it is what opening the cache takes where storage is fast,
/// so a process that has one request to serve asks for no more. Units   layer_bytes: of one layer of a page, keys and
/// values
std::uint64_t memory_for(std::size_t tokens, std::size_t layers, std::size_t block_tokens, std::size_t layer_bytes);
std::uint64_t memory_for(std::size_t tokens, const model_config& config, const paged_kv& kv);

/// What decides which KV means the same.
struct kv_identity {
  std::array<std::uint8_t, 16> digest;  // of the model
  std::string dtype;
};

/// kvx's options for this model and these settings.
kvx::options options_for(const cache_settings& settings, const kv_identity& identity, const prefill_cost& cost,
                         std::size_t context_tokens);
kvx::options options_for(const cache_settings& settings, const model& m, const prefill_cost& cost);

/// Opens the cache with the backend that the settings name. Calls memory_is_there once what is left to do is to read
/// the directory. Throws kvx::error if the directory or the sizes don't do, std::runtime_error if io_uring is asked for
/// and not built in.
external_cache open_cache(const cache_settings& settings, const model& m, paged_kv& kv, const prefill_cost& cost,
                          const std::function<void()>& memory_is_there);

/// A cache that opens on a thread of its own.
class opening_cache : public basic_opening_cache<external_cache> {
 public:
  using basic_opening_cache::basic_opening_cache;
  opening_cache(const cache_settings& settings, const model& m, paged_kv& kv, const prefill_cost& cost)
      : basic_opening_cache(
            [=, &m, &kv](const auto& memory_is_there) { return open_cache(settings, m, kv, cost, memory_is_there); },
            settings.memory_bytes) {}
};

}  // namespace mini_engine
