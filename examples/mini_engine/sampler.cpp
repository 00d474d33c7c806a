// SPDX-License-Identifier: Apache-2.0
#include "sampler.hpp"

#include <algorithm>
#include <cmath>

namespace mini_engine {

token_id sampler::sample(std::span<const float> logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (temperature_ <= 0) return static_cast<token_id>(best - logits.begin());

  candidates_.clear();
  float total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    candidates_.push_back({std::exp((logits[i] - *best) / temperature_), static_cast<token_id>(i)});
    total += candidates_.back().probability;
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const candidate& a, const candidate& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
  });
  std::size_t kept = 0;
  float mass = 0;
  while (kept < candidates_.size() && mass < top_p_ * total) mass += candidates_[kept++].probability;

  // Not std::uniform_real_distribution: a seed should give the same text with every standard library.
  float left = static_cast<float>(random_() >> 40) * 0x1p-24f * mass;
  for (std::size_t i = 0; i < kept; ++i) {
    left -= candidates_[i].probability;
    if (left < 0) return candidates_[i].token;
  }
  return candidates_[kept == 0 ? 0 : kept - 1].token;
}

}  // namespace mini_engine
