// SPDX-License-Identifier: Apache-2.0
#include <kvx/hash/key_chain.hpp>
#include <kvx/hash/sha256.hpp>
#include <kvx/types.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string hex(const kvx::digest<32>& value) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte b : value.bytes) {
    text += digits[static_cast<unsigned>(b) >> 4U];
    text += digits[static_cast<unsigned>(b) & 15U];
  }
  return text;
}

}  // namespace

TEST_CASE("FIPS 180-4 examples") {
  CHECK(hex(kvx::sha256::hash({})) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hex(kvx::sha256::hash(bytes_of("abc"))) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hex(kvx::sha256::hash(bytes_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"))) ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(hex(kvx::sha256::hash(bytes_of(std::string(1'000'000, 'a')))) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("a context gives the same digests as the function, copied or reused") {
  kvx::sha256::context context;
  for (std::size_t length = 0; length < 300; ++length) {
    const std::string text(length, static_cast<char>(length));
    CHECK(context.hash(bytes_of(text)) == kvx::sha256::hash(bytes_of(text)));
    kvx::sha256::context copy = context;
    CHECK(copy.hash(bytes_of(text)) == kvx::sha256::hash(bytes_of(text)));
  }
  kvx::sha256::context moved = std::move(context);
  CHECK(moved.hash({}) == kvx::sha256::hash({}));
}

TEST_CASE("a copied chain continues where the original does") {
  const std::vector<kvx::token_id> tokens(32, 5);
  kvx::key_chain<kvx::sha256> chain;
  kvx::digest<32> parent = chain.root({"m", "r", "d"}, 16, {});
  std::vector<kvx::digest<32>> first(1);
  chain.extend(std::span(tokens).first(16), 16, {}, parent, first);
  kvx::key_chain<kvx::sha256> copy = chain;
  kvx::digest<32> other = parent;
  std::vector<kvx::digest<32>> a(1);
  std::vector<kvx::digest<32>> b(1);
  chain.extend(std::span(tokens).last(16), 16, {}, parent, a);
  copy.extend(std::span(tokens).last(16), 16, {}, other, b);
  CHECK(a == b);
  CHECK(a != first);
}
