// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace kvx {

/// For how long what a match found is kept from eviction.
struct lease {
  std::uint64_t id = 0;
  /// Of the matching process; after it a block may be gone, which is a miss, never an error.
  std::chrono::steady_clock::time_point expires_at{};
};

/// What a match found: which prefix of a prompt need not be computed. Plain data, so that a scheduler can
/// match in one process and workers load in others.
/// Shape   keys: blocks(); tiers: group-major, groups x blocks(); tokens: blocks() x block_tokens, or empty
///         when the engine hashes itself
struct plan {
  std::uint32_t block_tokens = 0;
  std::uint32_t groups = 1;
  kvx::lease lease{};
  block_key root{};
  std::vector<block_key> keys;
  std::vector<tier> tiers;
  std::vector<token_id> tokens;
  /// Extra bytes of blocks that have some: (block, bytes).
  std::vector<std::pair<std::uint32_t, std::vector<std::byte>>> extras;

  [[nodiscard]] std::size_t blocks() const noexcept { return keys.size(); }
  [[nodiscard]] std::size_t matched_tokens() const noexcept { return keys.size() * block_tokens; }
  [[nodiscard]] bool empty() const noexcept { return keys.empty(); }
  [[nodiscard]] tier where(std::size_t block, std::size_t group = 0) const noexcept {
    return tiers[group * keys.size() + block];
  }
  [[nodiscard]] const block_key& parent(std::size_t block) const noexcept {
    return block == 0 ? root : keys[block - 1];
  }
  [[nodiscard]] std::span<const token_id> block(std::size_t index) const noexcept {
    if (tokens.empty()) return {};
    return std::span<const token_id>(tokens).subspan(index * block_tokens, block_tokens);
  }
  [[nodiscard]] std::span<const std::byte> extra(std::size_t block) const noexcept {
    for (const auto& [index, bytes] : extras)
      if (index == block) return bytes;
    return {};
  }

  /// Several extras of one block are kept as one, in the order given.
  void add_extra(std::size_t block, std::span<const std::byte> bytes) {
    auto at = std::find_if(extras.begin(), extras.end(), [block](const auto& extra) { return extra.first == block; });
    if (at == extras.end()) at = extras.emplace(at, static_cast<std::uint32_t>(block), std::vector<std::byte>{});
    at->second.insert(at->second.end(), bytes.begin(), bytes.end());
  }

  /// Keeps the first `count` blocks, e.g. the least that every rank has.
  void truncate(std::size_t count) {
    const std::size_t old = keys.size();
    if (count >= old) return;
    for (std::size_t g = 1; g < groups; ++g)
      std::copy_n(tiers.begin() + static_cast<std::ptrdiff_t>(g * old), count,
                  tiers.begin() + static_cast<std::ptrdiff_t>(g * count));
    keys.resize(count);
    tiers.resize(groups * count);
    if (!tokens.empty()) tokens.resize(count * block_tokens);
    std::erase_if(extras, [count](const auto& extra) { return extra.first >= count; });
  }

  void clear() noexcept {
    keys.clear();
    tiers.clear();
    tokens.clear();
    extras.clear();
    lease = {};
  }

  /// Bytes for another process on the same architecture and build.
  [[nodiscard]] std::vector<std::byte> serialize() const;
  /// Errors  bad_argument: not what serialize() wrote
  [[nodiscard]] static result<plan> deserialize(std::span<const std::byte> bytes);
};

namespace detail {

inline constexpr std::uint32_t plan_magic = 0x3150'564BU;  // "KVP1"

struct plan_writer {
  std::vector<std::byte> out;
  void bytes(const void* from, std::size_t size) {
    const auto* at = static_cast<const std::byte*>(from);
    out.insert(out.end(), at, at + size);
  }
  void number(std::uint64_t value) { bytes(&value, sizeof value); }
};

struct plan_reader {
  std::span<const std::byte> in;
  bool ok = true;
  void bytes(void* to, std::size_t size) {
    if (size > in.size()) ok = false;
    if (!ok || size == 0) return;
    std::memcpy(to, in.data(), size);
    in = in.subspan(size);
  }
  std::uint64_t number() {
    std::uint64_t value = 0;
    bytes(&value, sizeof value);
    return value;
  }
  /// A count of things of `each` bytes that must all still be in the input.
  std::size_t count(std::size_t each) {
    const std::uint64_t n = number();
    if (n > in.size() / each) ok = false;
    return ok ? static_cast<std::size_t>(n) : 0;
  }
};

}  // namespace detail

inline std::vector<std::byte> plan::serialize() const {
  detail::plan_writer to;
  to.out.reserve(128 + keys.size() * (sizeof(block_key) + groups) + tokens.size() * sizeof(token_id));
  to.number(detail::plan_magic);
  to.number(block_tokens);
  to.number(groups);
  to.number(lease.id);
  to.number(static_cast<std::uint64_t>(lease.expires_at.time_since_epoch().count()));
  to.bytes(root.bytes.data(), root.bytes.size());
  to.number(keys.size());
  to.bytes(keys.data(), keys.size() * sizeof(block_key));
  to.number(tiers.size());
  to.bytes(tiers.data(), tiers.size() * sizeof(tier));
  to.number(tokens.size());
  to.bytes(tokens.data(), tokens.size() * sizeof(token_id));
  to.number(extras.size());
  for (const auto& [block, bytes] : extras) {
    to.number(block);
    to.number(bytes.size());
    to.bytes(bytes.data(), bytes.size());
  }
  return std::move(to.out);
}

inline result<plan> plan::deserialize(std::span<const std::byte> bytes) {
  detail::plan_reader from{bytes};
  if (from.number() != detail::plan_magic) return errc::bad_argument;
  plan out;
  const std::uint64_t block_tokens = from.number();
  const std::uint64_t groups = from.number();
  out.lease.id = from.number();
  out.lease.expires_at = std::chrono::steady_clock::time_point(
      std::chrono::steady_clock::duration(static_cast<std::chrono::steady_clock::rep>(from.number())));
  from.bytes(out.root.bytes.data(), out.root.bytes.size());
  out.keys.resize(from.count(sizeof(block_key)));
  from.bytes(out.keys.data(), out.keys.size() * sizeof(block_key));
  out.tiers.resize(from.count(sizeof(tier)));
  from.bytes(out.tiers.data(), out.tiers.size() * sizeof(tier));
  out.tokens.resize(from.count(sizeof(token_id)));
  from.bytes(out.tokens.data(), out.tokens.size() * sizeof(token_id));
  const std::size_t extras = from.count(2 * sizeof(std::uint64_t));
  for (std::size_t i = 0; i < extras && from.ok; ++i) {
    const std::uint64_t block = from.number();
    std::vector<std::byte> data(from.count(1));
    from.bytes(data.data(), data.size());
    if (block >= out.keys.size()) return errc::bad_argument;
    out.extras.emplace_back(static_cast<std::uint32_t>(block), std::move(data));
  }
  const std::uint64_t largest = std::max(block_tokens, groups);
  if (!from.ok || !from.in.empty() || block_tokens == 0 || groups == 0 || largest > 0xFFFF'FFFFU)
    return errc::bad_argument;
  out.block_tokens = static_cast<std::uint32_t>(block_tokens);
  out.groups = static_cast<std::uint32_t>(groups);
  const bool shapes = out.tiers.size() == out.keys.size() * groups &&
                      (out.tokens.empty() || out.tokens.size() == out.keys.size() * block_tokens) &&
                      std::all_of(out.tiers.begin(), out.tiers.end(), [](tier t) { return t <= tier::memory; });
  if (!shapes) return errc::bad_argument;
  return out;
}

}  // namespace kvx
