// SPDX-License-Identifier: Apache-2.0
#include "transformer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace mini_engine {
namespace {

// Keys are attended to in blocks that start at multiples of this position, wherever the chunk starts: a row's softmax
// is rescaled at the same positions however the prompt was cut.
constexpr std::size_t key_block = 256;
constexpr std::size_t tile_query_rows = block_rows;  // tokens of a tile times heads of a group
constexpr std::size_t least_tile_query_rows = 96;    // fewer would not pay for the keys packed for them
constexpr std::size_t elementwise_rows = 16;         // rows per task of what is not a product

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

template <class Body>
void for_each_row(thread_pool& pool, std::size_t rows, const Body& body) {
  pool.for_each((rows + elementwise_rows - 1) / elementwise_rows, [&](std::size_t task, std::size_t) {
    const std::size_t end = std::min(rows, (task + 1) * elementwise_rows);
    for (std::size_t r = task * elementwise_rows; r < end; ++r) body(r);
  });
}

/// Rotates the pairs (2i, 2i + 1) of every head.
void rotate(float* x, std::size_t heads, std::size_t pairs, const float* cosines, const float* sines) {
  for (std::size_t h = 0; h < heads; ++h, x += 2 * pairs) {
    for (std::size_t i = 0; i < pairs; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosines[i] - b * sines[i];
      x[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
  }
}

}  // namespace

transformer::transformer(const model& m, paged_kv& kv, thread_pool& pool, std::size_t max_rows)
    : model_(m),
      kv_(kv),
      pool_(pool),
      max_rows_(max_rows),
      tiling_{std::max<std::size_t>(1, tile_query_rows / m.config.group()),
              std::max<std::size_t>(1, least_tile_query_rows / m.config.group()), m.config.kv_heads, pool.size()},
      x_(max_rows, m.config.dim),
      normed_(max_rows, m.config.dim),
      query_(max_rows, m.config.dim),
      key_value_(max_rows, 2 * m.config.kv_dim()),
      attended_(max_rows, m.config.dim),
      hidden_(max_rows, m.config.hidden_dim),
      logits_(max_rows, m.config.vocabulary) {
  const std::size_t head = m.config.head_dim();
  const std::size_t rows = std::max(tile_query_rows, m.config.group());
  for (std::size_t i = 0; i < pool.size(); ++i) {
    scratch s;
    s.query = huge_array<float>(rows * head);
    s.keys = huge_array<float>(key_block * head);
    s.values = huge_array<float>(key_block * simd::padded(head));
    s.scores = huge_array<float>(rows * key_block);
    s.sums = huge_array<float>(rows * simd::padded(head));
    s.up = huge_array<float>(block_rows * block_panels * simd::panel);
    s.row_max.resize(rows);
    s.row_sum.resize(rows);
    scratch_.push_back(std::move(s));
  }
}

std::span<const float> transformer::prefill_chunk(const sequence& of, std::span<const token_id> tokens,
                                                  std::size_t start, const layer_hook& before_attention) {
  const step chunk{&of, tokens, start};
  return {forward({&chunk, 1}, before_attention), model_.config.vocabulary};
}

const float* transformer::forward(std::span<const step> steps, const layer_hook& before_attention,
                                  const stop_test& stop) {
  if (!run_layers(steps, model_.config.layers, before_attention, stop)) return nullptr;
  std::size_t end = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    end += steps[i].tokens.size();
    std::copy_n(x_[end - 1], simd::padded(model_.config.dim), query_[i]);  // query_ is free by now
  }
  normalize(query_.input(), steps.size(), model_.final_norm, normed_.rows());
  multiply(pool_, normed_.input(), steps.size(), model_.classifier, logits_.rows(), false);
  return logits_[0];
}

bool transformer::run_layers(std::span<const step> steps, std::size_t count, const layer_hook& before_attention,
                             const stop_test& stop) {
  const std::size_t dim = model_.config.dim;
  std::size_t rows = 0;
  for (const step& s : steps) {
    const std::size_t end = s.start + s.tokens.size();
    if (s.tokens.empty() || end > model_.config.context_tokens || end > s.of->pages.size() * kv_.block_tokens() ||
        s.tokens.size() > max_rows_ - rows) {
      throw std::length_error("a step of " + std::to_string(s.tokens.size()) + " tokens from " +
                              std::to_string(s.start) +
                              " on exceeds the context, the sequence's pages or the rows of a step");
    }
    for (const token_id token : s.tokens) {
      if (token >= model_.config.vocabulary)
        throw std::out_of_range("token " + std::to_string(token) + " is not in the vocabulary");
      std::copy_n(model_.embedding.data() + token * dim, dim, x_[rows++]);
    }
  }
  for (std::size_t l = 0; l < count; ++l) {
    const model_layer& layer = model_.layers[l];
    normalize(x_.input(), rows, layer.attention_norm, normed_.rows());
    multiply(pool_, normed_.input(), rows, layer.query, query_.rows(), false);
    multiply(pool_, normed_.input(), rows, layer.key_value, key_value_.rows(), false);
    rotate_and_store(steps, l);
    if (before_attention) before_attention(l);
    attend(steps, l);
    multiply(pool_, attended_.input(), rows, layer.output, x_.rows(), true);
    normalize(x_.input(), rows, layer.feed_forward_norm, normed_.rows());
    feed_forward(layer, rows);
    multiply(pool_, hidden_.input(), rows, layer.down, x_.rows(), true);
    if (stop && l + 1 < count && stop(l + 1)) return false;
  }
  return true;
}

void transformer::normalize(rows_of<const float> x, std::size_t rows, const std::vector<float>& weight,
                            rows_of<float> to) {
  using simd::at, simd::lanes;
  const std::size_t width = simd::padded(model_.config.dim);
  for_each_row(pool_, rows, [&](std::size_t r) {
    simd::vec squares{};
    for (std::size_t i = 0; i < width; i += lanes) squares += at(x[r] + i) * at(x[r] + i);
    const float scale = 1.0f / std::sqrt(simd::sum(squares) / static_cast<float>(model_.config.dim) + 1e-5f);
    for (std::size_t i = 0; i < width; i += lanes) at(to[r] + i) = at(x[r] + i) * scale * at(weight.data() + i);
  });
}

void transformer::rotate_and_store(std::span<const step> steps, std::size_t layer) {
  const std::size_t pairs = model_.config.head_dim() / 2, kv_dim = model_.config.kv_dim();
  std::size_t first = 0;
  for (const step& s : steps) {
    for_each_row(pool_, s.tokens.size(), [&](std::size_t t) {
      const std::size_t position = s.start + t, to = kv_.offset(s.of->pages, position);
      const float* cosines = model_.rope_cos.data() + position * pairs;
      const float* sines = model_.rope_sin.data() + position * pairs;
      float* kv = key_value_[first + t];
      rotate(query_[first + t], model_.config.heads, pairs, cosines, sines);
      rotate(kv, model_.config.kv_heads, pairs, cosines, sines);
      std::copy_n(kv, kv_dim, kv_.k(layer) + to);
      std::copy_n(kv + kv_dim, kv_dim, kv_.v(layer) + to);
    });
    first += s.tokens.size();
  }
}

void transformer::attend(std::span<const step> steps, std::size_t layer) {
  tiles_.clear();
  std::size_t first = 0;
  for (const step& s : steps) {
    const std::size_t per_tile = tiling_.tokens(s.tokens.size());
    for (std::size_t t = 0; t < s.tokens.size(); t += per_tile) {
      for (std::size_t head = 0; head < model_.config.kv_heads; ++head) {
        tiles_.push_back({&s, head, first + t, s.start + t, std::min(per_tile, s.tokens.size() - t)});
      }
    }
    first += s.tokens.size();
  }
  // Later tokens have more keys: starting with them leaves small tiles to even out the threads' ends.
  pool_.for_each(tiles_.size(), [&](std::size_t i, std::size_t worker) {
    attend_tile(tiles_[tiles_.size() - 1 - i], layer, scratch_[worker]);
  });
}

void transformer::pack_keys_and_values(const attention_tile& tile, std::size_t layer, std::size_t first,
                                       std::size_t count, scratch& s) {
  using simd::at, simd::lanes, simd::panel;
  const std::size_t head = model_.config.head_dim(), whole = head / lanes * lanes;
  for (std::size_t j = 0; j < count; j += lanes) {
    std::size_t from[lanes];  // the last key repeats to fill the lanes: nobody may see those
    for (std::size_t n = 0; n < lanes; ++n) {
      from[n] = kv_.offset(tile.of->of->pages, first + std::min(count - 1, j + n)) + tile.kv_head * head;
    }
    float* to = s.keys.data() + j / panel * panel * head + j % panel;
    for (std::size_t i = 0; i < whole; i += lanes) {
      simd::vec k[lanes];
      for (std::size_t n = 0; n < lanes; ++n) k[n] = at(kv_.k(layer) + from[n] + i);
      simd::transpose(k);
      for (std::size_t n = 0; n < lanes; ++n) at(to + (i + n) * panel) = k[n];
    }
    for (std::size_t i = whole; i < head; ++i) {
      for (std::size_t n = 0; n < lanes; ++n) to[i * panel + n] = kv_.k(layer)[from[n] + i];
    }
    for (std::size_t n = 0; n < lanes; ++n) {
      const float* v = kv_.v(layer) + from[n];
      float* v_to = s.values.data() + (j + n) * panel;  // and a block's length further on for every other panel
      for (std::size_t i = 0; i < whole; i += lanes) at(v_to + i / panel * key_block * panel + i % panel) = at(v + i);
      for (std::size_t i = whole; i < head; ++i) v_to[i / panel * key_block * panel + i % panel] = v[i];
    }
  }
}

void transformer::attend_tile(const attention_tile& tile, std::size_t layer, scratch& s) {
  using simd::at, simd::lanes, simd::panel;
  const std::size_t head = model_.config.head_dim(), padded_head = simd::padded(head), group = model_.config.group();
  const std::size_t rows = tile.tokens * group, end = tile.position + tile.tokens;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head));
  for (std::size_t r = 0; r < rows; ++r) {
    const float* q = query_[tile.row + r / group] + (tile.kv_head * group + r % group) * head;
    for (std::size_t i = 0; i < head; ++i) s.query[r * head + i] = q[i] * scale;
  }
  std::fill_n(s.row_max.begin(), rows, minus_infinity);
  std::fill_n(s.row_sum.begin(), rows, 0.0f);

  for (std::size_t block = 0; block < end; block += key_block) {
    const std::size_t keys = std::min(key_block, end - block), key_panels = simd::padded(keys) / panel;
    pack_keys_and_values(tile, layer, block, keys, s);
    const rows_of<float> scores{s.scores.data(), key_block}, sums{s.sums.data(), padded_head};
    multiply({s.query.data(), head}, rows, head, s.keys.data(), panel * head, key_panels, scores, false);

    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t position = tile.position + r / group;
      const std::size_t visible = position < block ? 0 : std::min(keys, position + 1 - block);
      float* row = scores[r];
      std::fill(row + visible, row + key_panels * panel, minus_infinity);

      simd::vec largest = simd::vec{} + s.row_max[r];
      for (std::size_t i = 0; i < visible; i += lanes) largest = at(row + i) > largest ? at(row + i) : largest;
      const float new_max = simd::max(largest);
      const float rescale = std::exp(s.row_max[r] - new_max);
      simd::vec total{};
      for (std::size_t i = 0; i < keys; i += lanes) {
        simd::vec weight = at(row + i) - new_max;
        simd::exp(weight);
        total += weight;
        at(row + i) = weight;
      }
      s.row_max[r] = new_max;
      s.row_sum[r] = s.row_sum[r] * rescale + simd::sum(total);
      if (block > 0 && rescale != 1.0f) {
        for (std::size_t i = 0; i < padded_head; i += lanes) at(sums[r] + i) *= rescale;
      }
    }
    multiply({s.scores.data(), key_block}, rows, keys, s.values.data(), key_block * panel, padded_head / panel, sums,
             block > 0);
  }

  for (std::size_t r = 0; r < rows; ++r) {
    float* to = attended_[tile.row + r / group] + (tile.kv_head * group + r % group) * head;
    const float normalization = 1.0f / s.row_sum[r];
    for (std::size_t i = 0; i < head; ++i) to[i] = s.sums[r * padded_head + i] * normalization;
  }
}

void transformer::feed_forward(const model_layer& layer, std::size_t rows) {
  using simd::at, simd::lanes, simd::panel;
  const std::size_t panels = layer.gate.panels(), dim = model_.config.dim, width = block_panels * panel;
  const blocking cut = blocks_for(rows, panels, pool_.size());
  pool_.for_each(cut.tasks(), [&](std::size_t task, std::size_t worker) {
    const std::size_t row = task / cut.groups * cut.rows, m = std::min(cut.rows, rows - row);
    const std::size_t p = task % cut.groups * cut.panels, count = std::min(cut.panels, panels - p);
    const rows_of<float> gate{hidden_[row] + p * panel, hidden_.stride}, up{scratch_[worker].up.data(), width};
    multiply({normed_[row], normed_.stride}, m, dim, layer.gate.panel(p), panel * dim, count, gate, false);
    multiply({normed_[row], normed_.stride}, m, dim, layer.up.panel(p), panel * dim, count, up, false);
    for (std::size_t r = 0; r < m; ++r) {
      for (std::size_t i = 0; i < count * panel; i += lanes) {
        simd::vec& g = at(gate[r] + i);
        simd::vec e = -g;
        simd::exp(e);
        g = g / (1.0f + e) * at(up[r] + i);
      }
    }
  });
}

}  // namespace mini_engine
