// SPDX-License-Identifier: Apache-2.0
#include "transformer.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace mini_engine::cuda {
namespace {

constexpr std::uint32_t most_parts = 128;
constexpr std::size_t section_alignment = 16;

std::uint32_t multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "no GPU");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "the GPU does not say what it is");
  return static_cast<std::uint32_t>(count);
}

constexpr std::size_t aligned(std::size_t bytes) {
  return (bytes + section_alignment - 1) / section_alignment * section_alignment;
}

}  // namespace

transformer::transformer(const weights& w, paged_kv& kv, cudaStream_t stream, std::size_t max_rows,
                         std::size_t max_sequences)
    : weights_(w),
      kv_(kv),
      stream_(stream),
      max_rows_(max_rows),
      max_sequences_(max_sequences),
      products_(stream),
      plan_(w.attention_of(kv.block_tokens()), multiprocessors(), most_parts),
      attend_(w.attention_of(kv.block_tokens()), most_parts),
      x_(max_rows * w.config().dim),
      normed_(std::max(max_rows, max_sequences) * w.config().dim),
      qkv_(max_rows * attend_.shape().qkv_width()),
      attended_(max_rows * attend_.shape().out_width()),
      gate_up_(max_rows * 2 * w.hidden()),
      hidden_(max_rows * w.hidden()),
      last_(max_sequences * w.config().dim),
      logits_(max_sequences * w.config().vocabulary),
      host_logits_(logits_.size()) {
  const std::size_t bytes = aligned(max_rows * sizeof(row_place)) + aligned(max_sequences * sizeof(std::uint32_t)) +
                            aligned(kv.pages() * sizeof(std::uint32_t)) +
                            aligned(plan_.most_tiles(max_rows, max_sequences) * sizeof(attention_tile)) +
                            aligned(most_parts * sizeof(attention_merge));
  host_step_ = pinned_buffer<std::byte>(bytes);
  step_ = device_buffer<std::byte>(bytes);
}

void transformer::prepare(std::span<const step> steps) {
  std::size_t rows = 0, pages = 0;
  for (const step& s : steps) {
    const std::size_t end = s.start + s.tokens.size();
    if (s.tokens.empty() || end > config().context_tokens || end > s.of->pages.size() * kv_.block_tokens() ||
        s.tokens.size() > max_rows_ - rows || steps.size() > max_sequences_) {
      throw std::length_error("a step of " + std::to_string(s.tokens.size()) + " tokens from " +
                              std::to_string(s.start) +
                              " on exceeds the context, the sequence's pages, or the rows or sequences of a step");
    }
    rows += s.tokens.size();
    pages += (end + kv_.block_tokens() - 1) / kv_.block_tokens();
  }
  if (pages > kv_.pages()) throw std::length_error("a page is in two places of one step");
  std::size_t used = 0;
  const auto section = [&used](std::size_t bytes) {
    const std::size_t at = used;
    used += aligned(bytes);
    return at;
  };
  std::byte *const host = host_step_.data(), *const device = step_.data();
  const std::size_t rows_at = section(rows * sizeof(row_place)),
                    last_at = section(steps.size() * sizeof(std::uint32_t)),
                    tables_at = section(pages * sizeof(std::uint32_t));
  auto* const places = reinterpret_cast<row_place*>(host + rows_at);
  auto* const last = reinterpret_cast<std::uint32_t*>(host + last_at);
  auto* const tables = reinterpret_cast<std::uint32_t*>(host + tables_at);
  plan_.clear();
  std::uint32_t row = 0, table = 0;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const step& s = steps[i];
    const auto tokens = static_cast<std::uint32_t>(s.tokens.size()), start = static_cast<std::uint32_t>(s.start);
    const auto page_tokens = static_cast<std::uint32_t>(kv_.block_tokens());
    plan_.add(row, tokens, start, table);
    for (std::uint32_t t = 0; t < tokens; ++t) {
      if (s.tokens[t] >= config().vocabulary)
        throw std::out_of_range("token " + std::to_string(s.tokens[t]) + " is not in the vocabulary");
      const std::uint32_t position = start + t;
      places[row++] = {s.tokens[t], position,
                       s.of->pages[position / page_tokens] * page_tokens + position % page_tokens};
    }
    last[i] = row - 1;
    for (std::size_t p = 0; p < (start + tokens + page_tokens - 1) / page_tokens; ++p) tables[table++] = s.of->pages[p];
  }
  plan_.finish();
  const std::size_t tiles_at = section(plan_.tiles().size_bytes()), merges_at = section(plan_.merges().size_bytes());
  std::memcpy(host + tiles_at, plan_.tiles().data(), plan_.tiles().size_bytes());
  std::memcpy(host + merges_at, plan_.merges().data(), plan_.merges().size_bytes());
  check(cudaMemcpyAsync(device, host, used, cudaMemcpyHostToDevice, stream_), "a step cannot be copied to the GPU");
  of_step_ = {reinterpret_cast<const row_place*>(device + rows_at),
              reinterpret_cast<const std::uint32_t*>(device + last_at),
              reinterpret_cast<const std::uint32_t*>(device + tables_at),
              reinterpret_cast<const attention_tile*>(device + tiles_at),
              reinterpret_cast<const attention_merge*>(device + merges_at),
              rows};
}

const float* transformer::forward(std::span<const step> steps, const layer_hook& before_attention) {
  prepare(steps);
  const std::size_t rows = of_step_.row_count, dim = config().dim, hidden = weights_.hidden();
  const attention_shape& shape = attend_.shape();
  gather_embeddings(weights_.embedding(), of_step_.rows, rows, dim, x_.data(), stream_);
  for (std::size_t l = 0; l < config().layers; ++l) {
    const weights::layer& layer = weights_.layers()[l];
    normalize(x_.data(), layer.attention_norm, rows, dim, normed_.data(), stream_);
    products_.multiply(normed_.data(), rows, layer.qkv, shape.qkv_width(), dim, qkv_.data());
    rotate_and_store(qkv_.data(), of_step_.rows, rows, shape, weights_.angles(), kv_.layer(l), stream_);
    if (before_attention) before_attention(l);
    attend_.run(qkv_.data(), kv_.layer(l), of_step_.tables, of_step_.tiles, plan_.tiles().size(), of_step_.merges,
                plan_.merges().size(), attended_.data(), stream_);
    products_.multiply(attended_.data(), rows, layer.output, dim, shape.out_width(), x_.data(), true);
    normalize(x_.data(), layer.feed_forward_norm, rows, dim, normed_.data(), stream_);
    products_.multiply(normed_.data(), rows, layer.gate_up, 2 * hidden, dim, gate_up_.data());
    gate(gate_up_.data(), rows, hidden, hidden_.data(), stream_);
    products_.multiply(hidden_.data(), rows, layer.down, dim, hidden, x_.data(), true);
  }
  gather_rows(x_.data(), of_step_.last, steps.size(), dim, last_.data(), stream_);
  normalize(last_.data(), weights_.final_norm(), steps.size(), dim, normed_.data(), stream_);
  products_.multiply(normed_.data(), steps.size(), weights_.classifier(), config().vocabulary, dim, logits_.data());
  check(cudaMemcpyAsync(host_logits_.data(), logits_.data(), steps.size() * config().vocabulary * sizeof(float),
                        cudaMemcpyDeviceToHost, stream_),
        "logits cannot be copied from the GPU");
  check(cudaStreamSynchronize(stream_), "the GPU failed in a step");
  return host_logits_.data();
}

}  // namespace mini_engine::cuda
