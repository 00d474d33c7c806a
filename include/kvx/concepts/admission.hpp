// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvx {

/// A block that a save wants to put into a tier, as an admission policy sees it.
struct admission_candidate {
  /// 64 bits of its key.
  std::uint64_t key = 0;
  /// Likewise of the block before it in the prompt, or of the chain's root: what `key` was of that one.
  std::uint64_t parent = 0;
  /// Position in the prompt, from 0.
  std::uint32_t block = 0;
  /// Blocks of the same save after it.
  std::uint32_t behind = 0;
};

/// Decides which blocks are worth a slot of a tier at all, and so how much is written there.
///
/// Asked once for every block of a save that is not in the tier, front first. A refused block is not saved there, and
/// no block behind it either, since nobody could reach it; those are asked about as well, so that the policy has seen
/// them. A block that was refused may be offered again. Blocks that are read back into the tier are not asked about.
/// Shape   constructed with the tier's number of slots
/// Thread  one caller at a time
/// Cost    O(1) per block, allocations only in the constructor
template <class A>
concept admission_policy = std::constructible_from<A, std::size_t> && std::movable<A> &&
    requires(A policy, const admission_candidate& block) {
  { policy.admit(block) } -> std::same_as<bool>;
};

/// An admission policy that also wants to know which blocks requests used in the tier.
/// Shape   keys: of one request's prefix, deepest block first, as candidates had them
template <class A>
concept usage_observer = admission_policy<A> && requires(A policy, std::span<const std::uint64_t> keys) {
  policy.used(keys);
};

namespace archetype {

/// The least that models `admission_policy`: refuses every other block.
class admission {
 public:
  explicit admission(std::size_t) {}
  [[nodiscard]] bool admit(const admission_candidate&) { return wanted_ = !wanted_; }

 private:
  bool wanted_ = false;
};

}  // namespace archetype

static_assert(admission_policy<archetype::admission>);
static_assert(!usage_observer<archetype::admission>);

}  // namespace kvx
