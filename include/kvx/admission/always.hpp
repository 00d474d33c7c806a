// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/admission.hpp>

#include <cstddef>

namespace kvx {

/// Admits every block: the default, and right for memory.
/// Cost    none: no state, and the question is compiled away
class always {
 public:
  explicit always(std::size_t) noexcept {}
  [[nodiscard]] bool admit(const admission_candidate&) const noexcept { return true; }
};

static_assert(admission_policy<always>);

}  // namespace kvx
