// SPDX-License-Identifier: Apache-2.0
#include "inputs.hpp"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string_view>

namespace mini_engine {

std::string model_name(const options& o) { return o.checkpoint.empty() ? o.model : o.checkpoint; }

model load_model(const options& o) {
  if (!o.checkpoint.empty()) return model::load(o.checkpoint);
  constexpr std::string_view prefix = "random:";
  if (!o.model.starts_with(prefix)) {
    throw std::runtime_error("--model " + o.model +
                             ": only random:tiny, random:100m and random:1b have names; a file is a --checkpoint");
  }
  return model::random(o.model.substr(prefix.size()), o.seed);
}

namespace {

std::string read_prompt(const options& o) {
  if (o.prompt_file.empty()) return o.prompt;
  std::ifstream file(o.prompt_file, std::ios::binary);
  if (!file) throw std::runtime_error("--prompt-file '" + o.prompt_file + "' cannot be opened");
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

tokenizer load_tokenizer(const options& o, const model_config& config) {
  return o.tokenizer.empty() ? tokenizer{} : tokenizer(o.tokenizer, config.vocabulary);
}

std::vector<token_id> load_prompt(const options& o, const tokenizer& words, const model_config& config) {
  std::vector<token_id> prompt;
  if (o.prompt_tokens == 0) prompt = words.encode(read_prompt(o));
  std::mt19937_64 random(o.seed);
  for (std::size_t i = 0; i < o.prompt_tokens; ++i)
    prompt.push_back(static_cast<token_id>(random() % config.vocabulary));
  if (prompt.empty()) throw std::runtime_error("the prompt is empty; give one with --prompt or --prompt-file");
  if (prompt.size() + o.tokens > config.context_tokens) {
    throw std::runtime_error("a prompt of " + std::to_string(prompt.size()) + " tokens and --tokens " +
                             std::to_string(o.tokens) + " exceed the model's context of " +
                             std::to_string(config.context_tokens) + "; shorten one");
  }
  return prompt;
}

void print(const std::string& text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= ' ' || c == '\n' || c == '\t') std::putchar(c);
  }
  std::fflush(stdout);
}

}  // namespace mini_engine
