// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "model.hpp"
#include "options.hpp"
#include "tokenizer.hpp"

namespace mini_engine {

std::string model_name(const options& o);

/// What --checkpoint or --model names. Throws std::runtime_error if that is none.
model load_model(const options& o);

tokenizer load_tokenizer(const options& o, const model_config& config);

/// The prompt that the options name. Throws std::runtime_error if there is none, or if it and what is to be generated
/// exceed the context.
std::vector<token_id> load_prompt(const options& o, const tokenizer& words, const model_config& config);

/// Prints what a model said, but no control sequences, which a random one would write to the terminal.
void print(const std::string& text);

}  // namespace mini_engine
