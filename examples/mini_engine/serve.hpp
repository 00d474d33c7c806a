// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/direct_ticket.hpp>
#include <kvx/load_race.hpp>
#include <kvx/plan.hpp>
#include <kvx/sequence.hpp>
#include <kvx/tickets.hpp>

#include <chrono>
#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kv_cache.hpp"
#include "model.hpp"
#include "paged_kv.hpp"
#include "prefill_cost.hpp"
#include "sampler.hpp"
#include "transformer.hpp"

namespace mini_engine {

/// What a client asks for, and what became of it.
struct request {
  std::vector<token_id> prompt;
  std::size_t tokens = 0;  // at least 1
  sampler choose{0, 1, 1};
  std::function<bool(token_id)> ends = [](token_id) { return false; };
  std::size_t chunk_end =
      0;  // a chunk of the prompt ends here, so that other runs can start here; 0: where chunks happen to end
  // Computed that far, the prompt goes on from here anew, as behind a hit; 0: no. It is within the prompt, and nothing
  // is cached meanwhile.
  std::size_t restart_at = 0;

  // Called while the request is served; may be empty.
  std::function<void(token_id)> on_token;
  std::function<void(std::span<const float>)> on_logits;  // of every generated token
  // The cached blocks are in the pages, and nothing is computed yet: not called where computing began before that.
  std::function<void(std::size_t blocks)> on_loaded;
  std::function<void(std::size_t tokens)> on_finished;  // KV of so many tokens is in the pages, which go next

  sequence kv;  // the engine's pages, while the request is served
  std::vector<token_id> output;
  std::size_t cached_tokens = 0;  // of the prompt, that were not computed
  std::chrono::steady_clock::time_point submitted{};
  double load_seconds = 0;  // from the match until the cached blocks were in the pages
  double ttft_seconds = 0;  // from submission until the first token
  bool done = false;        // finished, and the pages are given back
};

/// What a server did.
struct serving_figures {
  std::size_t steps = 0;             // that computed something
  std::size_t prefilled_tokens = 0;  // of prompts, that were computed
  std::size_t rows_decoded = 0;      // over all steps
  std::size_t decoding_steps = 0;    // that generated a token
  std::size_t largest_batch = 0;     // requests that generated a token in one step

  double mean_batch() const {
    return decoding_steps == 0 ? 0 : static_cast<double>(rows_decoded) / static_cast<double>(decoding_steps);
  }
};

/// Serves requests as a scheduler does: a step computes the next token of every running request and one chunk of one
/// prompt, and prompts whose KV is on its way from storage wait beside that.
///
/// A request's life: submit (match, prefetch) - pages - blocks are copied into the pages as they arrive, while that
/// beats computing - the rest of the prompt is computed, in chunks, and saved - tokens are generated, full blocks saved
/// - the pages go back when no save reads them any more.
///
/// While the cache is still opening, or storage has not shown that it is fast, a request waits a little, then computes.
/// An engine whose steps can be stopped computes while blocks still arrive: should they be there before the chunk is
/// done, it is left. Others take what is left from the cache between two chunks.
///
/// Where blocks go past the cache's memory, straight into the pages, a request first gets its pages, and computes
/// nothing before the load ended: they are the load's until then.
///
/// An Engine has what `transformer` has: forward() and the shape of what it returns, config(), max_rows(), and in kv()
/// the pages. The member functions are defined in serve_definitions.hpp, for whoever brings another engine.
/// Thread  one
/// Stream  the engine's: pages are read and written in its order
template <class Engine, class Stream>
class basic_server {
 public:
  using cache_type = kvx::any_cache<Stream>;
  using opening_type = basic_opening_cache<cache_type>;
  /// Loads a plan's blocks from one on straight into these pages.
  using straight_load = std::function<kvx::direct_load_ticket(cache_type& from, const kvx::plan& what,
                                                              std::span<const page_id> pages, std::size_t first)>;

  /// Shape   cache: null to compute everything; chunk_tokens: at most engine.max_rows()
  /// patient: to wait for cached blocks even where computing is expected to be faster
  /// stretch_blocks: that are asked for at a time; where copies go on by themselves, asking for more goes on beside
  /// them
  /// straight: how blocks get past the cache's memory; empty: they do not
  basic_server(Engine& engine, const prefill_cost& cost, opening_type* cache, std::size_t chunk_tokens,
               bool patient = false, Stream stream = {}, std::size_t stretch_blocks = ~std::size_t{0},
               straight_load straight = {});
  /// Waits until nothing reads the pages any more.
  ~basic_server();
  basic_server(const basic_server&) = delete;
  basic_server& operator=(const basic_server&) = delete;

  /// Takes a request on; it must live until it is done. `submitted` is now, unless it is set already.
  /// Throws std::length_error if the request can never fit the pages or the context.
  void submit(request& from);

  /// One step. False, and nothing done, when every request is done.
  bool step();

  void run() {
    while (step()) {
    }
  }

  const serving_figures& figures() const noexcept { return figures_; }

 private:
  /// A request on its way.
  struct flight {
    request* of;
    std::chrono::steady_clock::time_point wait_until;  // for the cache to open, before anything is computed
    std::chrono::steady_clock::time_point matched;
    kvx::sequence chain;  // the keys of the prompt's and the answer's blocks; once the cache is open
    kvx::plan plan;
    // A stretch of cached blocks on its way into the cache's memory, and whether it is worth waiting for.
    kvx::prefetch_ticket stretch;
    kvx::direct_load_ticket direct;  // instead, straight into the pages
    std::optional<kvx::load_race> race;
    std::size_t stretch_end = 0;  // in the plan's blocks
    std::vector<kvx::load_ticket<Stream>> loads;
    std::vector<kvx::save_ticket> saves;
    std::size_t loaded_blocks = 0;
    std::size_t saved_blocks = 0;
    std::size_t computed = 0;  // tokens whose KV is in the pages
    std::size_t saves_seen = 0;
    bool racing = false;   // it is computed while a stretch arrives
    bool started = false;  // a chunk of the prompt was computed
    bool finished = false;

    bool arriving() const { return race.has_value(); }
    bool in_prefill() const { return computed < of->prompt.size(); }
    bool has_keys() const { return chain.block_tokens() != 0; }
  };

  bool waits_for_cache(const flight& f) const;
  bool waits_for_blocks(flight& f);
  bool waits_for_direct(flight& f);
  void request_blocks(flight& f);
  void request_stretch(flight& f);
  void look_up(flight& f);
  void look_up_again();
  void take_arrived(flight& f);
  void end_arriving(flight& f);
  void begin_race(flight& f);
  void follow_race(flight& f);
  bool lost_race(flight& f, std::size_t chunk, std::size_t layers_done);
  void gather(std::vector<flight*>& moving, std::vector<mini_engine::step>& steps);
  void account(flight& f, std::size_t tokens, const float* logits);
  void save_full_blocks(flight& f);
  bool retire_finished();

  Engine& engine_;
  const prefill_cost& cost_;
  opening_type* opening_;
  cache_type* cache_ = nullptr;  // once it is open
  std::size_t chunk_tokens_;
  bool patient_;
  Stream stream_;
  std::size_t stretch_blocks_;
  straight_load straight_;
  serving_figures figures_;
  std::size_t saves_ = 0;
  std::list<flight> waiting_;  // for pages, in order
  std::list<flight> flights_;  // with pages
};

extern template class basic_server<transformer, kvx::host_stream>;

/// The server of the engine on the CPU.
using server = basic_server<transformer, kvx::host_stream>;

}  // namespace mini_engine
