// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "model.hpp"
#include "options.hpp"
#include "tokenizer.hpp"

namespace mini_engine {

/// Serves the prompt without the cache, with it and nothing in it, from its memory, and from storage in a process of
/// its own; prints what each took. True when all computed the same, to the last bit. Shape   arguments: the command
/// line, by which the other process is started
bool compare(const options& o, model m, const tokenizer& words, const std::vector<token_id>& prompt,
             const std::vector<std::string>& arguments);

/// The other process: serves the prompt from storage and writes its run to standard output.
void compare_child(const options& o, model m, const tokenizer& words, const std::vector<token_id>& prompt);

}  // namespace mini_engine
