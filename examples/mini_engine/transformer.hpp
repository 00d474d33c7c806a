// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "huge_array.hpp"
#include "matmul.hpp"
#include "model.hpp"
#include "paged_kv.hpp"
#include "thread_pool.hpp"

namespace mini_engine {

/// What one sequence contributes to a step: tokens [start, start + tokens.size()), whose predecessors' KV is in the
/// pages.
struct step {
  const sequence* of;
  std::span<const token_id> tokens;
  std::size_t start;
};

/// How a step's tokens are cut into tiles for attention: those of a tile share a pass over the keys before them.
struct attention_tiling {
  std::size_t largest = 1;  // tokens
  std::size_t least = 1;
  std::size_t heads = 1;  // tiles that the same tokens have
  std::size_t threads = 1;

  /// Tokens per tile for a sequence with so many in the step: as many as may be, but so few that all threads have work.
  std::size_t tokens(std::size_t of_step) const noexcept {
    std::size_t tile = largest;
    while (tile >= 2 * least && (of_step + tile - 1) / tile * heads < 2 * threads) tile /= 2;
    return tile;
  }
};

/// Called by the thread that runs the step, once per layer, before that layer's attention reads earlier tokens' KV from
/// the pages: the place to wait for KV that is still being copied in.
using layer_hook = std::function<void(std::size_t layer)>;

/// Asked by that thread behind each layer but the last: whether to leave the rest of the step undone.
using stop_test = std::function<bool(std::size_t layers_done)>;

/// Runs tokens of several sequences through the model at once; prefill and decode are the same computation.
/// The KV and the logits of a token depend, to the last bit, on the tokens up to it and the KV bytes of those before:
/// not on how they are cut into chunks or batched, on the number of threads, or on the pages used. (See multiply() for
/// why.) Thread  one caller at a time
class transformer {
 public:
  /// At most max_rows tokens per step.
  transformer(const model& m, paged_kv& kv, thread_pool& pool, std::size_t max_rows);

  /// Logits of each step's last token: [steps.size(), vocabulary], with a row stride of logits_stride(), valid until
  /// the next call. Null where `stop` said so: then the pages of these tokens hold nothing of use.
  /// Throws std::length_error if a step goes past the model's context, its sequence's pages or max_rows.
  const float* forward(std::span<const step> steps, const layer_hook& before_attention = {},
                       const stop_test& stop = {});

  /// One chunk of one prompt.
  std::span<const float> prefill_chunk(const sequence& of, std::span<const token_id> tokens, std::size_t start,
                                       const layer_hook& before_attention = {});

  /// Runs only the first `count` layers, without logits: what a calibration times. Returns whether all were run.
  bool run_layers(std::span<const step> steps, std::size_t count, const layer_hook& before_attention = {},
                  const stop_test& stop = {});

  const attention_tiling& tiling() const noexcept { return tiling_; }

  std::size_t logits_stride() const noexcept { return logits_.stride; }
  std::size_t max_rows() const noexcept { return max_rows_; }
  const model& weights() const noexcept { return model_; }
  const model_config& config() const noexcept { return model_.config; }
  paged_kv& kv() noexcept { return kv_; }

 private:
  struct activations {  // rows padded with zeros; 16 floats apart from a power of two, so that rows don't share cache
                        // sets
    activations(std::size_t rows, std::size_t width) : stride(simd::padded(width) + 16), memory(rows * stride) {}
    rows_of<float> rows() { return {memory.data(), stride}; }
    rows_of<const float> input() const { return {memory.data(), stride}; }
    float* operator[](std::size_t row) { return memory.data() + row * stride; }

    std::size_t stride;
    huge_array<float> memory;
  };
  struct attention_tile {  // the queries of `tokens` tokens in the heads of one group
    const step* of;
    std::size_t kv_head;
    std::size_t row;       // of the first token, in the step's activations
    std::size_t position;  // of the first token
    std::size_t tokens;
  };
  struct scratch {
    huge_array<float> query, keys, values, scores, sums, up;
    std::vector<float> row_max, row_sum;
  };

  void normalize(rows_of<const float> x, std::size_t rows, const std::vector<float>& weight, rows_of<float> to);
  void rotate_and_store(std::span<const step> steps, std::size_t layer);
  void attend(std::span<const step> steps, std::size_t layer);
  void attend_tile(const attention_tile& tile, std::size_t layer, scratch& s);
  void pack_keys_and_values(const attention_tile& tile, std::size_t layer, std::size_t first, std::size_t count,
                            scratch& s);
  void feed_forward(const model_layer& layer, std::size_t rows);

  const model& model_;
  paged_kv& kv_;
  thread_pool& pool_;
  std::size_t max_rows_;
  attention_tiling tiling_;
  activations x_, normed_, query_, key_value_, attended_, hidden_, logits_;
  std::vector<attention_tile> tiles_;
  std::vector<scratch> scratch_;
};

}  // namespace mini_engine
