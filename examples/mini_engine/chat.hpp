// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model.hpp"
#include "options.hpp"

namespace mini_engine {

/// Several users talk with the model at once, all behind one system prompt, each turn's prompt being all that was said
/// before: prints the time to the first token per turn and how much of the prompts the cache held. The seed decides
/// what is said.
void chat(const options& o, model m);

}  // namespace mini_engine
