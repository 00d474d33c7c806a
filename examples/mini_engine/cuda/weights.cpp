// SPDX-License-Identifier: Apache-2.0
#include "weights.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>

#include "kernels.hpp"

namespace mini_engine::cuda {
namespace {

using bf16 = __nv_bfloat16;

constexpr std::size_t alignment = 128;  // elements

void upload(bf16* to, const std::vector<bf16>& from, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(bf16), cudaMemcpyHostToDevice, stream),
        "weights cannot be copied to the GPU");
  check(cudaStreamSynchronize(stream), "weights cannot be copied to the GPU");
}

/// Rows of the matrices given, one after the other, each padded with zeros to `columns`; and zeros up to `rows` for
/// each matrix.
std::vector<bf16> rounded(std::span<const packed_matrix* const> matrices, std::size_t rows, std::size_t columns) {
  std::vector<bf16> to(matrices.size() * rows * columns, __float2bfloat16(0.0f));
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    for (std::size_t r = 0; r < matrices[m]->rows(); ++r) {
      const float* from = matrices[m]->panel(r / simd::panel) + r % simd::panel;
      for (std::size_t c = 0; c < matrices[m]->columns(); ++c)
        to[(m * rows + r) * columns + c] = __float2bfloat16(from[c * simd::panel]);
    }
  }
  return to;
}

std::vector<bf16> rounded(const float* from, std::size_t count) {
  std::vector<bf16> to(count);
  std::transform(from, from + count, to.begin(), [](float each) { return __float2bfloat16(each); });
  return to;
}

}  // namespace

std::optional<model_config> weights::shape_of(const std::string& name) {
  constexpr std::size_t context = std::size_t{1} << 18;
  if (name == "llama-8b") return model_config{4096, 14336, 32, 32, 8, 128256, context, false};
  if (name == "llama-70b-tp8") return model_config{8192, 28672 / 8, 80, 8, 1, 128256 / 8, context, false, 128};
  return std::nullopt;
}

attention_shape weights::attention_of(std::size_t page_tokens) const {
  return {static_cast<std::uint32_t>(config_.heads), static_cast<std::uint32_t>(config_.kv_heads),
          static_cast<std::uint32_t>(config_.head_dim()), static_cast<std::uint32_t>(page_tokens)};
}

std::size_t weights::matmul_parameters() const {
  return config_.layers *
         (config_.dim * (2 * config_.query_dim() + 2 * config_.kv_dim()) + 3 * config_.dim * config_.hidden_dim);
}

void weights::place() {
  if (config_.dim % 8 != 0 || config_.head_dim() % 2 != 0) {
    throw std::runtime_error("--device cuda needs a model whose dimension is a multiple of 8, not " +
                             std::to_string(config_.dim));
  }
  std::size_t total = 0;
  const auto room = [&total](std::size_t elements) {
    const std::size_t at = total;
    total += (elements + alignment - 1) / alignment * alignment;
    return at;
  };
  const std::size_t dim = config_.dim, qkv = config_.query_dim() + 2 * config_.kv_dim();
  struct offsets {
    std::size_t attention_norm, qkv, output, feed_forward_norm, gate_up, down;
  };
  std::vector<offsets> at;
  const std::size_t embedding = room(config_.vocabulary * dim), final_norm = room(dim);
  const std::size_t classifier = config_.shared_classifier ? embedding : room(config_.vocabulary * dim);
  for (std::size_t l = 0; l < config_.layers; ++l) {
    offsets o{};
    o.attention_norm = room(dim);
    o.qkv = room(qkv * dim);
    o.output = room(dim * config_.query_dim());
    o.feed_forward_norm = room(dim);
    o.gate_up = room(2 * hidden() * dim);
    o.down = room(dim * hidden());
    at.push_back(o);
  }
  memory_ = device_buffer<bf16>(total);
  bf16* const base = memory_.data();
  embedding_ = base + embedding;
  final_norm_ = base + final_norm;
  classifier_ = base + classifier;
  for (const offsets& o : at) {
    layers_.push_back({base + o.attention_norm, base + o.qkv, base + o.output, base + o.feed_forward_norm,
                       base + o.gate_up, base + o.down});
  }
}

void weights::make_angles(cudaStream_t stream) {
  const std::size_t pairs = config_.head_dim() / 2;
  std::vector<float> frequencies;
  for (std::size_t i = 0; i < pairs; ++i) {
    frequencies.push_back(1.0f /
                          std::pow(10000.0f, static_cast<float>(2 * i) / static_cast<float>(config_.head_dim())));
  }
  const device_buffer<float> on_device(pairs);
  check(cudaMemcpyAsync(on_device.data(), frequencies.data(), on_device.bytes(), cudaMemcpyHostToDevice, stream),
        "rotations cannot be computed");
  angles_ = device_buffer<float2>(config_.context_tokens * pairs);
  fill_angles(angles_.data(), config_.context_tokens, pairs, on_device.data(), stream);
  check(cudaStreamSynchronize(stream), "rotations cannot be computed");
}

weights::weights(const model& from, cudaStream_t stream) : config_(from.config), digest_(from.digest) {
  place();
  const std::size_t dim = config_.dim;
  upload(embedding_, rounded(from.embedding.data(), config_.vocabulary * dim), stream);
  upload(final_norm_, rounded(from.final_norm.data(), dim), stream);
  const packed_matrix* classifier[] = {&from.classifier};
  if (!config_.shared_classifier) upload(classifier_, rounded(classifier, config_.vocabulary, dim), stream);
  for (std::size_t l = 0; l < config_.layers; ++l) {
    const model_layer& given = from.layers[l];
    const packed_matrix *query[] = {&given.query}, *key_value[] = {&given.key_value}, *output[] = {&given.output};
    const packed_matrix *gate_up[] = {&given.gate, &given.up}, *down[] = {&given.down};
    upload(layers_[l].attention_norm, rounded(given.attention_norm.data(), dim), stream);
    upload(layers_[l].qkv, rounded(query, dim, dim), stream);
    upload(layers_[l].qkv + dim * dim, rounded(key_value, 2 * config_.kv_dim(), dim), stream);
    upload(layers_[l].output, rounded(output, dim, dim), stream);
    upload(layers_[l].feed_forward_norm, rounded(given.feed_forward_norm.data(), dim), stream);
    upload(layers_[l].gate_up, rounded(gate_up, hidden(), dim), stream);
    upload(layers_[l].down, rounded(down, dim, hidden()), stream);
  }
  make_angles(stream);
}

weights::weights(const std::string& shape, std::uint64_t seed, cudaStream_t stream) : config_(shape_of(shape).value()) {
  place();
  const std::string name = "mini_engine random model on a GPU 1: " + shape + " " + std::to_string(seed);
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(name.data(), name.size()));
  std::copy_n(canonical.digest, digest_.size(), digest_.begin());

  std::uint64_t tensor = 0;
  // As in model::random(): of variance 3 / fan_in, so that attention prefers some tokens over others.
  const auto matrix = [&](bf16* to, std::size_t rows, std::size_t fan_in) {
    fill_random(to, rows * fan_in, (seed << 16) + tensor++, 3.0f / std::sqrt(static_cast<float>(fan_in)), stream);
  };
  const auto norm = [&](bf16* to) { fill(to, config_.dim, 1.0f, stream); };
  const std::size_t dim = config_.dim;
  fill_random(embedding_, config_.vocabulary * dim, (seed << 16) + tensor++, 3.0f, stream);
  for (const weights::layer& each : layers_) {
    norm(each.attention_norm);
    matrix(each.qkv, config_.query_dim() + 2 * config_.kv_dim(), dim);
    matrix(each.output, dim, config_.query_dim());
    norm(each.feed_forward_norm);
    matrix(each.gate_up, 2 * hidden(), dim);
    matrix(each.down, dim, hidden());
  }
  norm(final_norm_);
  matrix(classifier_, config_.vocabulary, dim);
  make_angles(stream);
}

}  // namespace mini_engine::cuda
