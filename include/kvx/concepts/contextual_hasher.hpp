// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/hasher.hpp>

#include <concepts>
#include <cstddef>
#include <span>

namespace kvx {

/// Optional ability of a hasher: an object that hashes faster than the static function, to the same digests.
/// Thread  one caller per object
template <class H>
concept contextual_hasher = hasher<H> && std::copyable<typename H::context> &&
    std::default_initializable<typename H::context> &&
    requires(typename H::context context, std::span<const std::byte> bytes) {
  { context.hash(bytes) }
  noexcept->std::same_as<typename H::digest_type>;
};

}  // namespace kvx
