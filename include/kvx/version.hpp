// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>

// The build reads the package version from these three lines.
#define KVX_VERSION_MAJOR 0
#define KVX_VERSION_MINOR 1
#define KVX_VERSION_PATCH 0

namespace kvx {

/// A release number; compares like one: 0.1.2 < 0.2.0 < 1.0.0.
struct version_number {
  int major;
  int minor;
  int patch;

  friend constexpr auto operator<=>(const version_number&, const version_number&) = default;
};

/// The version of the headers that are being compiled.
/// Until 1.0.0 a change of the minor number may break source compatibility.
inline constexpr version_number version{KVX_VERSION_MAJOR, KVX_VERSION_MINOR, KVX_VERSION_PATCH};

}  // namespace kvx
