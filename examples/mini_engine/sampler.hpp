// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "model.hpp"

namespace mini_engine {

/// Chooses the next token from logits: the best one at temperature zero, otherwise a random one of the most probable
/// tokens whose probabilities add up to top_p.
class sampler {
 public:
  sampler(float temperature, float top_p, std::uint64_t seed)
      : temperature_(temperature), top_p_(top_p), random_(seed) {}

  token_id sample(std::span<const float> logits);

 private:
  struct candidate {
    float probability;
    token_id token;
  };

  float temperature_;
  float top_p_;
  std::mt19937_64 random_;
  std::vector<candidate> candidates_;
};

}  // namespace mini_engine
