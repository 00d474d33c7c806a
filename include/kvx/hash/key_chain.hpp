// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/contextual_hasher.hpp>
#include <kvx/concepts/hasher.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace kvx {

/// Version of the key encoding below; a new one means new keys, hence an empty cache.
inline constexpr std::uint32_t key_format_version = 1;

/// Turns prompts into chained keys: equal keys mean equal model, scope, and tokens from the first on.
///
///   root   = H(version, block_tokens, model, revision, dtype, adapter, tenant_salt)
///   key(i) = H(key(i - 1), tokens of block i, every extra of block i), with key(-1) = root
///
/// What is hashed is a sequence of fields: tag (1 byte), length (7 bytes), that many bytes. Two different
/// inputs therefore never give the same bytes, and the first tag tells roots, identities and blocks apart.
/// Integers and tokens are little-endian u32. The encoding is part of the on-disk format: tests/golden pins it.
/// Thread  one caller per object; the static functions any, concurrently
template <hasher H>
class key_chain {
 public:
  using hasher_type = H;
  using digest_type = typename H::digest_type;

  /// The key before the first block.
  /// Cost    one allocation
  [[nodiscard]] static digest_type root(const identity& who, std::uint32_t block_tokens, const scope& where) {
    std::vector<std::byte> bytes;
    append_identity(bytes, who, block_tokens);
    append(bytes, tag::adapter, where.adapter);
    append(bytes, tag::tenant_salt, where.tenant_salt);
    return H::hash(bytes);
  }

  /// What superblocks and slot headers carry to name the model: the identity without any scope, zero-padded.
  /// Cost    one allocation
  [[nodiscard]] static block_key identity_digest(const identity& who, std::uint32_t block_tokens) {
    std::vector<std::byte> bytes;
    append_identity(bytes, who, block_tokens);
    return to_block_key(H::hash(bytes));
  }

  /// Hashes the whole blocks in `tokens`; `parent` goes in as the key before them, comes out as the last one.
  ///
  /// Tokens after the last whole block are left out, and so are extras of other blocks than these. Several
  /// extras of one block count in the order given; an empty one is not the same as none.
  /// Shape   out: at least tokens.size() / block_tokens; block_tokens: not 0
  /// Units   first_block: index in the prompt of the first block in `tokens`, which `extras` refer to
  /// Cost    no allocation for up to 240 tokens and 64 bytes of extras per block; else the object's buffer grows
  void extend(std::span<const token_id> tokens, std::uint32_t block_tokens, std::span<const block_extra> extras,
              digest_type& parent, std::span<digest_type> out, std::size_t first_block = 0) {
    const std::size_t blocks = tokens.size() / block_tokens;
    const std::size_t token_bytes = std::size_t{block_tokens} * sizeof(token_id);
    const std::size_t fixed_bytes = tokens_at + token_bytes;
    const bool sorted = std::is_sorted(extras.begin(), extras.end(),
                                       [](const block_extra& a, const block_extra& b) { return a.block < b.block; });

    std::array<std::byte, small_bytes> small;  // left uninitialised: every byte hashed is written first
    std::byte* buffer = small.data();
    std::size_t capacity = small_bytes;
    const auto make_room = [&](std::size_t need, std::size_t used) {
      if (need <= capacity) return;
      std::vector<std::byte> larger(std::max(need, 2 * capacity));
      std::memcpy(larger.data(), buffer, used);
      buffer_.swap(larger);
      buffer = buffer_.data();
      capacity = buffer_.size();
    };
    if (fixed_bytes > capacity) {
      if (buffer_.size() < fixed_bytes) buffer_.resize(fixed_bytes);
      buffer = buffer_.data();
      capacity = buffer_.size();
    }
    put_header(buffer, tag::parent, digest_type::size());
    put_header(buffer + header_bytes + digest_type::size(), tag::tokens, token_bytes);

    digest_type key = parent;
    auto extra = extras.begin();
    for (std::size_t i = 0; i < blocks; ++i) {
      std::memcpy(buffer + header_bytes, key.bytes.data(), digest_type::size());
      put_tokens(buffer + tokens_at, tokens.subspan(i * block_tokens, block_tokens));
      std::size_t used = fixed_bytes;
      if (!extras.empty()) {
        // Extras out of order cost time, never a key that lacks one.
        const std::size_t block = first_block + i;
        if (!sorted) extra = extras.begin();
        for (; extra != extras.end() && (!sorted || extra->block <= block); ++extra) {
          if (extra->block != block) continue;
          const std::size_t need = used + header_bytes + extra->bytes.size();
          make_room(need, used);
          put_header(buffer + used, tag::extra, extra->bytes.size());
          if (!extra->bytes.empty()) {
            std::memcpy(buffer + used + header_bytes, extra->bytes.data(), extra->bytes.size());
          }
          used = need;
        }
      }
      key = hash_block(std::span<const std::byte>(buffer, used));
      out[i] = key;
    }
    parent = key;
  }

 private:
  enum class tag : std::uint8_t {
    format_version = 1,
    block_tokens = 2,
    model = 3,
    revision = 4,
    dtype = 5,
    adapter = 6,
    tenant_salt = 7,
    parent = 16,
    tokens = 17,
    extra = 18,
  };

  // Headers of eight bytes keep the digest and the tokens aligned in the buffer, so that the hash's loads
  // are forwarded from the stores before them.
  static constexpr std::size_t header_bytes = 8;
  static constexpr std::size_t tokens_at = header_bytes + digest_type::size() + header_bytes;
  static constexpr std::size_t small_bytes = 1088;

  struct no_context {};
  template <class T>
  struct context_of {
    using type = no_context;
  };
  template <contextual_hasher T>
  struct context_of<T> {
    using type = typename T::context;
  };

  [[nodiscard]] digest_type hash_block(std::span<const std::byte> bytes) noexcept {
    if constexpr (contextual_hasher<H>) {
      return context_.hash(bytes);
    } else {
      return H::hash(bytes);
    }
  }

  static void put_header(std::byte* at, tag field, std::uint64_t length) noexcept {
    const std::uint64_t word = (length << 8U) | static_cast<std::uint64_t>(field);
    for (unsigned i = 0; i < header_bytes; ++i) at[i] = static_cast<std::byte>(word >> (8U * i));
  }

  static void put_u32(std::byte* at, std::uint32_t value) noexcept {
    for (unsigned i = 0; i < sizeof value; ++i) at[i] = static_cast<std::byte>(value >> (8U * i));
  }

  static void put_tokens(std::byte* at, std::span<const token_id> tokens) noexcept {
    if constexpr (std::endian::native == std::endian::little) {
      std::memcpy(at, tokens.data(), tokens.size_bytes());
    } else {
      for (std::size_t i = 0; i < tokens.size(); ++i) put_u32(at + i * sizeof(token_id), tokens[i]);
    }
  }

  static void append(std::vector<std::byte>& to, tag field, std::span<const std::byte> bytes) {
    std::array<std::byte, header_bytes> header;
    put_header(header.data(), field, bytes.size());
    to.insert(to.end(), header.begin(), header.end());
    to.insert(to.end(), bytes.begin(), bytes.end());
  }
  static void append(std::vector<std::byte>& to, tag field, std::string_view text) {
    append(to, field, std::as_bytes(std::span(text.data(), text.size())));
  }
  static void append(std::vector<std::byte>& to, tag field, std::uint32_t value) {
    std::array<std::byte, sizeof value> bytes;
    put_u32(bytes.data(), value);
    append(to, field, std::span<const std::byte>(bytes));
  }
  static void append_identity(std::vector<std::byte>& to, const identity& who, std::uint32_t block_tokens) {
    append(to, tag::format_version, key_format_version);
    append(to, tag::block_tokens, block_tokens);
    append(to, tag::model, std::string_view(who.model));
    append(to, tag::revision, std::string_view(who.revision));
    append(to, tag::dtype, std::string_view(who.dtype));
  }

  [[no_unique_address]] typename context_of<H>::type context_;
  std::vector<std::byte> buffer_;  // for blocks that do not fit on the stack
};

}  // namespace kvx
