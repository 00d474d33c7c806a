// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "../options.hpp"
#include "../tokenizer.hpp"
#include "engine.hpp"

namespace mini_engine::cuda {

/// The fastest of 1024 to 8192, by a few per cent.
inline constexpr std::size_t default_chunk = 4096;

/// As mini_engine::compare(), with the chunks of all runs cut where the cached part of the prompt ends, and with what
/// the link, storage and products reach at most on this machine.
bool compare(const options& o, engine& e, const tokenizer& words, const std::vector<token_id>& prompt,
             std::size_t chunk, const std::vector<std::string>& arguments);

/// The other process: serves the prompt from storage and writes its run to standard output.
void compare_child(const options& o, engine& e, const tokenizer& words, const std::vector<token_id>& prompt,
                   std::size_t chunk);

}  // namespace mini_engine::cuda
