// SPDX-License-Identifier: Apache-2.0
// c++ -std=c++20 -O2 -Iinclude examples/02_own_layout.cpp -pthread -o 02_own_layout && ./02_own_layout
//
// Three engines keep the same keys and values in different memory, and each tells the cache how: by hand, as regions
// and axes; with a description that kvx has; with a type of its own.

#include <kvx/kvx.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "02_own_layout: failed: %s\n", what);
  std::exit(1);
}

constexpr std::uint32_t tokens_per_block = 16;
constexpr std::size_t layers = 3;
constexpr std::size_t heads = 2;
constexpr std::size_t head_dim = 8;
constexpr std::size_t tokens_in_pool = 512;

/// Where one number is, whatever the memory looks like.
struct place {
  std::size_t layer = 0;
  std::size_t half = 0;  ///< 0: key, 1: value
  std::size_t token = 0;
  std::size_t head = 0;
  std::size_t channel = 0;
};

/// Heads outermost: [heads][pages][16 tokens][channels]. A page is one row per head, the rows far apart: what most
/// call HND, with a stride. Written down field by field.
class head_major_engine {
 public:
  static constexpr std::size_t ids_per_block = 1;

  head_major_engine() : tensors_(2 * layers, std::vector<float>(tokens_in_pool * heads * head_dim)) {}

  [[nodiscard]] kvx::layout layout() {
    kvx::layer_group group;
    group.element = kvx::element_type::f32;
    group.page_count = tokens_in_pool / tokens_per_block;
    group.pages_per_block = 1;
    for (std::size_t l = 0; l < layers; ++l) {
      kvx::layer_regions layer;
      for (std::size_t half = 0; half < 2; ++half) {
        kvx::region tensor;
        tensor.role = half == 0 ? kvx::tensor_role::key : kvx::tensor_role::value;
        tensor.axes = {{kvx::axis::head, heads}, {kvx::axis::token, tokens_per_block}, {kvx::axis::channel, head_dim}};
        tensor.base = reinterpret_cast<std::byte*>(tensors_[2 * l + half].data());
        tensor.bytes = tensors_[2 * l + half].size() * sizeof(float);
        tensor.rows = heads;
        tensor.row_bytes = tokens_per_block * head_dim * sizeof(float);
        tensor.row_stride = tokens_in_pool * head_dim * sizeof(float);
        tensor.page_stride = tensor.row_bytes;
        layer.regions.push_back(tensor);
      }
      group.layers.push_back(layer);
    }
    return kvx::layout(tokens_per_block, {group});
  }

  [[nodiscard]] float& at(const place& p, std::span<const kvx::block_id> table) {
    const std::size_t token = table[p.token / tokens_per_block] * tokens_per_block + p.token % tokens_per_block;
    return tensors_[2 * p.layer + p.half][(p.head * tokens_in_pool + token) * head_dim + p.channel];
  }

 private:
  std::vector<std::vector<float>> tensors_;
};

/// No pages at all: any free token of a pool follows any other, so a block is 16 ids.
class token_pool_engine {
 public:
  static constexpr std::size_t ids_per_block = tokens_per_block;

  token_pool_engine() : tensors_(2 * layers, std::vector<float>(tokens_in_pool * heads * head_dim)) {}

  [[nodiscard]] kvx::layout layout() {
    std::vector<std::byte*> keys;
    std::vector<std::byte*> values;
    for (std::size_t l = 0; l < layers; ++l) {
      keys.push_back(reinterpret_cast<std::byte*>(tensors_[2 * l].data()));
      values.push_back(reinterpret_cast<std::byte*>(tensors_[2 * l + 1].data()));
    }
    kvx::token_pool_kv pool;
    pool.shape = {.block_tokens = tokens_per_block,
                  .layers = layers,
                  .heads = heads,
                  .head_dim = head_dim,
                  .element = kvx::element_type::f32};
    pool.token_count = tokens_in_pool;
    pool.keys = keys;
    pool.values = values;
    pool.tensor_bytes = tensors_[0].size() * sizeof(float);
    return kvx::layout(tokens_per_block, {pool});
  }

  [[nodiscard]] float& at(const place& p, std::span<const kvx::block_id> table) {
    return tensors_[2 * p.layer + p.half][(table[p.token] * heads + p.head) * head_dim + p.channel];
  }

 private:
  std::vector<std::vector<float>> tensors_;
};

/// A page holds every layer: [pages][layers][2][16 tokens][heads][channels]. One fragment per layer, which the
/// compiler knows, because the type says so itself. (kvx::cross_layer_kv would describe it too.)
class whole_page_layout {
 public:
  static constexpr std::size_t floats_per_layer = 2 * tokens_per_block * heads * head_dim;

  whole_page_layout(float* base, std::size_t pages) : base_(base), pages_(pages) {}

  [[nodiscard]] std::uint32_t block_tokens() const { return tokens_per_block; }
  [[nodiscard]] std::size_t group_count() const { return 1; }
  [[nodiscard]] kvx::attention_kind kind(std::size_t) const { return kvx::attention_kind::full; }
  [[nodiscard]] std::uint32_t window_tokens(std::size_t) const { return 0; }
  [[nodiscard]] std::size_t layer_count(std::size_t) const { return layers; }
  [[nodiscard]] std::size_t layer_bytes(std::size_t, std::size_t) const { return floats_per_layer * sizeof(float); }
  [[nodiscard]] std::size_t pages_per_block(std::size_t) const { return 1; }
  [[nodiscard]] std::size_t page_count(std::size_t) const { return pages_; }
  /// The meaning of a slot's bytes, never the addresses. Whoever changes the order of the axes changes this.
  [[nodiscard]] std::uint64_t fingerprint(std::size_t) const {
    kvx::fingerprint_hash hash;
    for (const std::uint64_t fact : {1UL, layers, 2UL, std::size_t{tokens_per_block}, heads, head_dim, sizeof(float)})
      hash.add(fact);
    return hash.value();
  }

  template <class Sink>
  void for_each_fragment(std::size_t, std::size_t layer, std::span<const kvx::block_id> pages, Sink&& sink) const {
    float* const at = base_ + (pages[0] * layers + layer) * floats_per_layer;
    sink(kvx::fragment{reinterpret_cast<std::byte*>(at), floats_per_layer * sizeof(float), 0});
  }

 private:
  float* base_;
  std::size_t pages_;
};

static_assert(kvx::kv_layout<whole_page_layout>);

class whole_page_engine {
 public:
  static constexpr std::size_t ids_per_block = 1;

  whole_page_engine() : memory_(tokens_in_pool / tokens_per_block * layers * whole_page_layout::floats_per_layer) {}

  [[nodiscard]] whole_page_layout layout() { return {memory_.data(), tokens_in_pool / tokens_per_block}; }

  [[nodiscard]] float& at(const place& p, std::span<const kvx::block_id> table) {
    const std::size_t page = table[p.token / tokens_per_block];
    const std::size_t row = ((page * layers + p.layer) * 2 + p.half) * tokens_per_block + p.token % tokens_per_block;
    return memory_[(row * heads + p.head) * head_dim + p.channel];
  }

 private:
  std::vector<float> memory_;
};

/// Visits every number of a prompt.
template <class Visit>
void each_place(std::size_t tokens, Visit visit) {
  place p;
  for (p.layer = 0; p.layer < layers; ++p.layer)
    for (p.half = 0; p.half < 2; ++p.half)
      for (p.token = 0; p.token < tokens; ++p.token)
        for (p.head = 0; p.head < heads; ++p.head)
          for (p.channel = 0; p.channel < head_dim; ++p.channel) visit(p);
}

/// Saves three blocks from some pages and loads them into others.
template <class Engine>
void round_trip(const char* name) {
  constexpr std::size_t blocks = 3;
  constexpr std::size_t tokens = blocks * tokens_per_block;
  Engine engine;
  const auto layout = engine.layout();
  kvx::options options;
  options.identity = {"toy-model", "weights-1", "f32"};
  options.memory_bytes = 4U << 20U;
  kvx::host_cache<decltype(engine.layout())> cache(options, layout);

  std::vector<kvx::token_id> prompt(tokens + 1);
  for (std::size_t t = 0; t < prompt.size(); ++t) prompt[t] = static_cast<kvx::token_id>(t * t + 1);
  // Every second id, so that nothing works only because neighbours follow each other.
  std::vector<kvx::block_id> from(blocks * Engine::ids_per_block);
  std::vector<kvx::block_id> to(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    from[i] = static_cast<kvx::block_id>(2 * i + 1);
    to[i] = static_cast<kvx::block_id>(2 * (from.size() + i));
  }

  float next = 0;
  each_place(tokens, [&](const place& p) { engine.at(p, from) = ++next; });
  const auto save = cache.save(cache.make_sequence(prompt), 0, from);
  check(save.wait_stored(std::chrono::seconds(10)) && save.outcome().ok(), "the blocks are saved");
  const kvx::plan plan = cache.match(prompt);
  check(plan.blocks() == blocks, "all three blocks are found");
  const auto load = cache.load(plan, to);
  load.wait();
  check(load.loaded_blocks() == blocks && load.outcome().ok(), "all three blocks are loaded");
  next = 0;
  each_place(tokens, [&](const place& p) { check(engine.at(p, to) == ++next, "every number is where it belongs"); });

  std::size_t fragments = 0;
  layout.for_each_fragment(0, 0, std::span<const kvx::block_id>(from).first(Engine::ids_per_block),
                           [&](const kvx::fragment&) { ++fragments; });
  std::printf("%-12s %2zu ids per block, %2zu fragments per layer, fingerprint %016llx\n", name, Engine::ids_per_block,
              fragments, static_cast<unsigned long long>(layout.fingerprint(0)));
}

}  // namespace

int main() {
  round_trip<head_major_engine>("head-major");
  round_trip<token_pool_engine>("token pool");
  round_trip<whole_page_engine>("whole pages");

  // Blocks of equal size whose bytes mean something else are never mistaken for each other.
  head_major_engine hnd;
  token_pool_engine nhd;
  check(hnd.layout().layer_bytes(0, 0) == nhd.layout().layer_bytes(0, 0), "the sizes are the same");
  check(hnd.layout().fingerprint(0) != nhd.layout().fingerprint(0), "the meanings are not");
}
