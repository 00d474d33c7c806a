// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "../options.hpp"

namespace mini_engine::cuda {

/// What the program does with --device cuda; the exit code. Throws no_device if there is none that this program can
/// use.
int run(const options& o, const std::vector<std::string>& arguments);

}  // namespace mini_engine::cuda
