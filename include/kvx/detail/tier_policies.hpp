// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/admission/always.hpp>
#include <kvx/concepts/admission.hpp>

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvx::detail {

/// The policies of a cache's tiers, as one type.
template <class Eviction, class MemoryAdmission, class StorageAdmission>
struct tier_policies {
  using eviction = Eviction;
  using memory_admission = MemoryAdmission;
  using storage_admission = StorageAdmission;
};

/// An admission policy, and the rule that what nobody could reach is refused.
template <admission_policy Policy>
class tier_admission {
 public:
  static constexpr bool asks = true;

  explicit tier_admission(std::size_t slots) : policy_(slots) {}

  /// Shape   reachable: the block before is in the tier, or on its way there, or not needed
  [[nodiscard]] bool admit(const admission_candidate& block, bool reachable) {
    const bool wanted = policy_.admit(block);
    return wanted && reachable;
  }
  /// Shape   keys: deepest first
  void used(std::span<const std::uint64_t> keys) {
    if constexpr (usage_observer<Policy>) policy_.used(keys);
  }

 private:
  Policy policy_;
};

/// Nobody is asked, and nothing is looked up to ask.
template <>
class tier_admission<always> {
 public:
  static constexpr bool asks = false;

  explicit tier_admission(std::size_t) noexcept {}
  void used(std::span<const std::uint64_t>) const noexcept {}
};

}  // namespace kvx::detail
