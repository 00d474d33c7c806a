// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace kvx::store {

// Every name in a root is a fixed word, a decimal number or 32 hexadecimal digits: nothing a user chose.
inline constexpr const char* root_file_name = "root";
inline constexpr const char* extents_name = "extents";
inline constexpr const char* writers_name = "writers";
inline constexpr const char* heartbeat_name = "heartbeat";
inline constexpr std::string_view slab_suffix = ".slab";
inline constexpr std::string_view segment_suffix = ".journal";
inline constexpr std::string_view checkpoint_suffix = ".checkpoint";
inline constexpr std::string_view temporary_suffix = ".tmp";

/// 32 lower-case hexadecimal digits.
[[nodiscard]] inline std::string to_name(const writer_id& id) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string name;
  name.reserve(2 * id.bytes.size());
  for (const std::byte b : id.bytes) {
    name += digits[std::to_integer<std::size_t>(b >> 4)];
    name += digits[std::to_integer<std::size_t>(b & std::byte{15})];
  }
  return name;
}

/// Accepts exactly what to_name() gives.
[[nodiscard]] inline std::optional<writer_id> parse_writer(std::string_view name) noexcept {
  writer_id id;
  if (name.size() != 2 * id.bytes.size()) return std::nullopt;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'a' || c > 'f')) return std::nullopt;
    const auto value = static_cast<unsigned>(digit ? c - '0' : c - 'a' + 10);
    std::byte& to = id.bytes[i / 2];
    to = (i % 2 == 0) ? static_cast<std::byte>(value << 4U) : to | static_cast<std::byte>(value);
  }
  return id;
}

/// Decimal without sign or leading zeros.
[[nodiscard]] inline std::optional<std::uint64_t> parse_number(std::string_view name) noexcept {
  if (name.empty() || (name.size() > 1 && name[0] == '0')) return std::nullopt;
  std::uint64_t value = 0;
  const auto [end, failure] = std::from_chars(name.data(), name.data() + name.size(), value);
  if (failure != std::errc{} || end != name.data() + name.size()) return std::nullopt;
  return value;
}

/// What precedes `suffix`, if the name ends so.
[[nodiscard]] inline std::optional<std::string_view> before_suffix(std::string_view name,
                                                                   std::string_view suffix) noexcept {
  if (!name.ends_with(suffix)) return std::nullopt;
  return name.substr(0, name.size() - suffix.size());
}

[[nodiscard]] inline std::string slab_name(const writer_id& id) { return to_name(id).append(slab_suffix); }
[[nodiscard]] inline std::string segment_name(std::uint64_t number) {
  return std::to_string(number).append(segment_suffix);
}
[[nodiscard]] inline std::string checkpoint_name(std::uint64_t number) {
  return std::to_string(number).append(checkpoint_suffix);
}

[[nodiscard]] inline std::optional<writer_id> parse_slab_name(std::string_view name) noexcept {
  const auto stem = before_suffix(name, slab_suffix);
  return stem ? parse_writer(*stem) : std::nullopt;
}
[[nodiscard]] inline std::optional<std::uint64_t> parse_segment_name(std::string_view name) noexcept {
  const auto stem = before_suffix(name, segment_suffix);
  return stem ? parse_number(*stem) : std::nullopt;
}
[[nodiscard]] inline std::optional<std::uint64_t> parse_checkpoint_name(std::string_view name) noexcept {
  const auto stem = before_suffix(name, checkpoint_suffix);
  return stem ? parse_number(*stem) : std::nullopt;
}

}  // namespace kvx::store
