// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/options.hpp>

#include <chrono>
#include <string>
#include <utility>

namespace kvx_test {

/// How long a test waits for what must come. Only a test that hangs gets this far, however slow the machine.
inline constexpr std::chrono::seconds patience{60};

/// Options of a cache whose deadlines do not pass because a machine is slow. A test about a deadline shortens it.
/// Shape   root: empty for a cache without storage
[[nodiscard]] inline kvx::options patient_options(std::string root = {}) {
  kvx::options o;
  o.identity = {"test-model", "r1", "f32"};
  o.root = std::move(root);
  o.prompts_trusted = true;
  o.load_deadline = patience;
  o.save_deadline = patience;
  o.drain_deadline = patience;
  return o;
}

}  // namespace kvx_test
