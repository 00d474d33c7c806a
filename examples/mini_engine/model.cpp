// SPDX-License-Identifier: Apache-2.0
#include "model.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <stdexcept>

namespace mini_engine {
namespace {

class digester {
 public:
  digester() : state_(XXH3_createState()) {
    if (state_ == nullptr) throw std::bad_alloc{};
    XXH3_128bits_reset(state_);
  }
  digester(const digester&) = delete;
  digester& operator=(const digester&) = delete;
  ~digester() { XXH3_freeState(state_); }

  void update(const void* bytes, std::size_t count) { XXH3_128bits_update(state_, bytes, count); }

  std::array<std::uint8_t, 16> digest() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_));
    std::array<std::uint8_t, 16> bytes{};
    std::copy_n(canonical.digest, bytes.size(), bytes.begin());
    return bytes;
  }

 private:
  XXH3_state_t* state_;
};

std::uint64_t mix(std::uint64_t x) {  // SplitMix64
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

}  // namespace

model::model(const model_config& shape) : config(shape), embedding(shape.vocabulary * shape.dim), layers(shape.layers) {
  const std::size_t pairs = shape.head_dim() / 2;
  rope_cos.resize(shape.context_tokens * pairs);
  rope_sin.resize(shape.context_tokens * pairs);
  for (std::size_t i = 0; i < pairs; ++i) {
    const float frequency = 1.0f / std::pow(10000.0f, static_cast<float>(2 * i) / static_cast<float>(shape.head_dim()));
    for (std::size_t position = 0; position < shape.context_tokens; ++position) {
      rope_cos[position * pairs + i] = std::cos(static_cast<float>(position) * frequency);
      rope_sin[position * pairs + i] = std::sin(static_cast<float>(position) * frequency);
    }
  }
  for (auto& l : layers) {
    l.query = packed_matrix(shape.dim, shape.dim);
    l.key_value = packed_matrix(2 * shape.kv_dim(), shape.dim);
    l.output = packed_matrix(shape.dim, shape.dim);
    l.gate = packed_matrix(shape.hidden_dim, shape.dim);
    l.up = packed_matrix(shape.hidden_dim, shape.dim);
    l.down = packed_matrix(shape.dim, shape.hidden_dim);
  }
  classifier = packed_matrix(shape.vocabulary, shape.dim);
}

template <class Source>
void model::fill(const Source& source) {
  const std::size_t dim = config.dim, kv_dim = config.kv_dim(), hidden = config.hidden_dim;
  std::vector<float> tensor;
  const auto norm = [&](std::vector<float>& weights) {
    weights.resize(simd::padded(dim));
    source(weights.data(), dim, std::size_t{0});
  };
  const auto matrix = [&](packed_matrix& weights, std::size_t first_row, std::size_t rows) {
    tensor.resize(rows * weights.columns());
    source(tensor.data(), tensor.size(), weights.columns());
    for (std::size_t r = 0; r < rows; ++r) weights.set_row(first_row + r, tensor.data() + r * weights.columns());
  };

  source(embedding.data(), embedding.size(), std::size_t{1});
  for (auto& l : layers) norm(l.attention_norm);
  for (auto& l : layers) matrix(l.query, 0, dim);
  for (auto& l : layers) matrix(l.key_value, 0, kv_dim);
  for (auto& l : layers) matrix(l.key_value, kv_dim, kv_dim);
  for (auto& l : layers) matrix(l.output, 0, dim);
  for (auto& l : layers) norm(l.feed_forward_norm);
  for (auto& l : layers) matrix(l.gate, 0, hidden);
  for (auto& l : layers) matrix(l.down, 0, dim);
  for (auto& l : layers) matrix(l.up, 0, hidden);
  norm(final_norm);
  // Two tables of rotations, which this engine computes itself.
  tensor.resize(config.context_tokens * config.head_dim());
  source(tensor.data(), tensor.size(), std::size_t{0});
  if (config.shared_classifier) {
    for (std::size_t r = 0; r < config.vocabulary; ++r) classifier.set_row(r, embedding.data() + r * dim);
  } else {
    matrix(classifier, 0, config.vocabulary);
  }
}

std::size_t model::matmul_parameters() const {
  return config.layers *
         (2 * config.dim * config.dim + 2 * config.dim * config.kv_dim() + 3 * config.dim * config.hidden_dim);
}

model model::load(const std::string& path) {
  const auto refuse = [&](const std::string& reason) {
    return std::runtime_error("checkpoint '" + path + "': " + reason + "; expected a llama2.c checkpoint, version 0");
  };
  std::ifstream file(path, std::ios::binary);
  std::error_code failed;
  const std::uintmax_t file_bytes = std::filesystem::file_size(path, failed);
  if (!file || failed) throw refuse("cannot be opened");

  std::array<std::int32_t, 7> header{};
  static_assert(sizeof(header) == 28);
  if (!file.read(reinterpret_cast<char*>(header.data()), sizeof(header))) throw refuse("is shorter than its header");
  constexpr const char* names[] = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"};
  constexpr std::int32_t largest[] = {1 << 16, 1 << 18, 1 << 12, 1 << 12, 1 << 12, 1 << 22, 1 << 22};
  std::array<std::size_t, 7> value{};
  for (std::size_t i = 0; i < header.size(); ++i) {
    // A negative vocabulary says that the classifier is a tensor of its own.
    const std::int64_t v = i == 5 ? std::abs(std::int64_t{header[i]}) : header[i];
    if (v < 1 || v > largest[i]) throw refuse(std::string(names[i]) + " is " + std::to_string(header[i]));
    value[i] = static_cast<std::size_t>(v);
  }
  const model_config shape{value[0], value[1], value[2], value[3], value[4], value[5], value[6], header[5] > 0};
  if (shape.dim % shape.heads != 0 || shape.head_dim() % 2 != 0) throw refuse("dim is not an even multiple of n_heads");
  if (shape.heads % shape.kv_heads != 0) throw refuse("n_heads is not a multiple of n_kv_heads");

  const std::size_t per_layer =
      2 * shape.dim + 2 * shape.dim * shape.dim + 2 * shape.dim * shape.kv_dim() + 3 * shape.dim * shape.hidden_dim;
  const std::size_t floats = shape.vocabulary * shape.dim * (shape.shared_classifier ? 1 : 2) +
                             shape.layers * per_layer + shape.dim + shape.context_tokens * shape.head_dim();
  const std::uintmax_t expected_bytes = sizeof(header) + floats * sizeof(float);
  if (file_bytes != expected_bytes) {
    throw refuse("has " + std::to_string(file_bytes) + " bytes, but its header asks for " +
                 std::to_string(expected_bytes));
  }

  model m(shape);
  digester hash;
  hash.update(header.data(), sizeof(header));
  m.fill([&](float* to, std::size_t count, std::size_t) {
    const std::size_t bytes = count * sizeof(float);
    if (!file.read(reinterpret_cast<char*>(to), static_cast<std::streamsize>(bytes)))
      throw refuse("cannot be read to its end");
    hash.update(to, bytes);
  });
  m.digest = hash.digest();
  return m;
}

model model::random(const std::string& shape, std::uint64_t seed) {
  model_config config{};
  if (shape == "tiny") {
    config = {64, 192, 4, 8, 4, 512, 8192, false};
  } else if (shape == "100m") {
    config = {768, 2048, 16, 12, 4, 512, 16384, false};
  } else if (shape == "1b") {
    config = {2048, 8192, 16, 32, 8, 512, 32768, false};
  } else {
    throw std::runtime_error("--model random:" + shape +
                             ": there is no such shape; choose random:tiny, random:100m or random:1b");
  }
  return random(config, shape, seed);
}

model model::random(const model_config& config, const std::string& shape, std::uint64_t seed) {
  model m(config);
  std::uint64_t tensor = 0;
  m.fill([&](float* to, std::size_t count, std::size_t fan_in) {
    const std::uint64_t stream = mix(seed ^ mix(tensor++));
    // Uniform with variance 3 / fan_in: sharper than the usual 1 / fan_in, so that attention prefers some tokens over
    // others and the logits tell candidates apart. Normalisation keeps the activations in bounds. No fan-in: a norm's
    // weights.
    const float scale = fan_in == 0 ? 0.0f : 3.0f / std::sqrt(static_cast<float>(fan_in));
    for (std::size_t i = 0; i < count; ++i) {
      const float uniform = static_cast<float>(mix(stream + i) >> 40) * 0x1p-23f - 1.0f;
      to[i] = fan_in == 0 ? 1.0f : scale * uniform;
    }
  });
  digester hash;
  const std::string name = "mini_engine random model 1: " + shape + " " + std::to_string(seed);
  hash.update(name.data(), name.size());
  m.digest = hash.digest();
  return m;
}

}  // namespace mini_engine
