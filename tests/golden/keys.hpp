// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/hash/key_chain.hpp>
#include <kvx/types.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvx_test {

/// What one hasher has to give for the inputs below, in hexadecimal. Keys are an on-disk format: when one of
/// these changes, every existing cache is lost, and `key_format_version` has to change with it. They were computed
/// by another program from the format's description, with the hash libraries' own builds.
struct golden_keys {
  std::string_view hash_of_nothing;
  std::string_view hash_of_0_to_255;
  std::string_view empty_identity;
  std::string_view identity;
  std::string_view empty_root;
  std::string_view root;
  std::string_view scoped_root;
  std::array<std::string_view, 4> keys;          ///< blocks of 16; an empty extra at 1, two extras at 2
  std::array<std::string_view, 2> keys_of_1024;  ///< blocks too large for the stack buffer
  std::array<std::string_view, 2> keys_of_1;     ///< tokens 0 and 0xffffffff
};

template <std::size_t Bytes>
std::string to_hex(const kvx::digest<Bytes>& value, std::size_t bytes = Bytes) {
  static constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < bytes; ++i) {
    text += digits[static_cast<unsigned>(value.bytes[i]) >> 4U];
    text += digits[static_cast<unsigned>(value.bytes[i]) & 15U];
  }
  return text;
}

inline std::vector<kvx::token_id> golden_tokens(std::uint32_t seed, std::size_t count) {
  std::vector<kvx::token_id> tokens(count);
  for (kvx::token_id& token : tokens) {
    seed = seed * 1664525U + 1013904223U;
    token = seed >> 15U;
  }
  return tokens;
}

template <class H>
void check_golden_keys(const golden_keys& expected) {
  using chain = kvx::key_chain<H>;
  using key = typename H::digest_type;
  constexpr std::size_t bytes = key::size();

  std::array<std::byte, 256> ramp{};
  for (std::size_t i = 0; i < ramp.size(); ++i) ramp[i] = static_cast<std::byte>(i);
  CHECK(to_hex(H::hash({})) == expected.hash_of_nothing);
  CHECK(to_hex(H::hash(ramp)) == expected.hash_of_0_to_255);

  const kvx::identity who{"llama-70b", "a1b2c3", "bf16"};
  CHECK(to_hex(chain::identity_digest({}, 16), bytes) == expected.empty_identity);
  CHECK(to_hex(chain::identity_digest(who, 16), bytes) == expected.identity);
  CHECK(to_hex(chain::root({}, 16, {})) == expected.empty_root);
  CHECK(to_hex(chain::root(who, 16, {})) == expected.root);
  const kvx::scope where{"lora", "salt"};
  CHECK(to_hex(chain::root(who, 16, where)) == expected.scoped_root);

  chain running;
  const auto check_blocks = [&](key parent, const std::vector<kvx::token_id>& tokens, std::uint32_t block_tokens,
                                std::span<const kvx::block_extra> extras,
                                std::span<const std::string_view> expected_keys) {
    std::vector<key> keys(expected_keys.size());
    REQUIRE(tokens.size() == keys.size() * block_tokens);
    running.extend(tokens, block_tokens, extras, parent, keys);
    for (std::size_t i = 0; i < keys.size(); ++i) CHECK(to_hex(keys[i]) == expected_keys[i]);
  };
  const std::string image = "image";
  const std::array<kvx::block_extra, 3> extras{
      {{1, {}}, {2, std::as_bytes(std::span(image))}, {2, std::span<const std::byte>(ramp).first(200)}}};
  check_blocks(chain::root(who, 16, where), golden_tokens(1, 64), 16, extras, expected.keys);
  check_blocks(chain::root({"m", "r", "d"}, 1024, {}), golden_tokens(2, 2048), 1024, {}, expected.keys_of_1024);
  check_blocks(chain::root({"m", "r", "d"}, 1, {}), {0, 0xFFFF'FFFFU}, 1, {}, expected.keys_of_1);
}

}  // namespace kvx_test
