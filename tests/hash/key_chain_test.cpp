// SPDX-License-Identifier: Apache-2.0
#include <kvx/hash/key_chain.hpp>
#include <kvx/hash/xxh3_128.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace {

// Keeps what it was asked to hash, so that the encoding itself is visible.
struct recording_hasher {
  using digest_type = kvx::digest<16>;
  static constexpr std::uint32_t id = 0xFFFF'FF01U;
  static constexpr bool collision_resistant = false;
  static inline std::vector<std::vector<std::byte>> seen;

  [[nodiscard]] static digest_type hash(std::span<const std::byte> bytes) noexcept {
    seen.emplace_back(bytes.begin(), bytes.end());
    return kvx::xxh3_128::hash(bytes);
  }
};
static_assert(kvx::hasher<recording_hasher>);

using chain = kvx::key_chain<kvx::xxh3_128>;
using key = chain::digest_type;

std::vector<kvx::token_id> random_tokens(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<kvx::token_id> tokens(count);
  for (kvx::token_id& t : tokens) t = static_cast<kvx::token_id>(random() % 128'000U);
  return tokens;
}

template <class H = kvx::xxh3_128>
std::vector<typename H::digest_type> keys_of(const std::vector<kvx::token_id>& tokens, std::uint32_t block_tokens,
                                             std::span<const kvx::block_extra> extras = {},
                                             const kvx::scope& where = {}) {
  kvx::key_chain<H> running;
  auto parent = running.root({"model", "revision", "bf16"}, block_tokens, where);
  std::vector<typename H::digest_type> keys(tokens.size() / block_tokens);
  running.extend(tokens, block_tokens, extras, parent, keys);
  if (!keys.empty()) CHECK(parent == keys.back());
  return keys;
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

}  // namespace

TEST_CASE("every field of identity and scope reaches the root, at its own place") {
  std::vector<key> roots;
  const auto add = [&](const char* model, const char* revision, const char* dtype, const char* adapter,
                       const char* salt, std::uint32_t block_tokens) {
    roots.push_back(chain::root({model, revision, dtype}, block_tokens, {adapter, salt}));
  };
  add("", "", "", "", "", 16);
  add("a", "bc", "", "", "", 16);
  add("ab", "c", "", "", "", 16);
  add("abc", "", "", "", "", 16);
  add("", "abc", "", "", "", 16);
  add("", "", "abc", "", "", 16);
  add("", "", "", "abc", "", 16);
  add("", "", "", "", "abc", 16);
  add("", "", "", "a", "bc", 16);
  add("", "", "", "ab", "c", 16);
  add("m", "r", "d", "x", "y", 16);
  add("m", "r", "d", "y", "x", 16);
  add("m", "r", "x", "d", "y", 16);
  add("m", "r", "d", "x", "y", 32);
  add("m", "r", "d", "", "", 16);
  CHECK(std::set<key>(roots.begin(), roots.end()).size() == roots.size());
}

TEST_CASE("a field cannot imitate the next field's header") {
  const std::string adapter_header("\x06\0\0\0\0\0\0\0", 8);
  const std::string salt_header("\x07\0\0\0\0\0\0\0", 8);
  CHECK(chain::root({"m", "r", "d"}, 16, {}) != chain::root({"m", "r", "d" + adapter_header}, 16, {}));
  CHECK(chain::root({"m", "r", "d"}, 16, {salt_header, ""}) != chain::root({"m", "r", "d"}, 16, {"", salt_header}));
}

TEST_CASE("the identity digest ignores the scope, is no root, and is zero-padded") {
  const kvx::identity who{"m", "r", "d"};
  const kvx::block_key digest = chain::identity_digest(who, 16);
  CHECK(digest != chain::identity_digest(who, 32));
  CHECK(digest != chain::identity_digest({"m", "r2", "d"}, 16));
  CHECK(digest != kvx::to_block_key(chain::root(who, 16, {})));
  CHECK(std::all_of(digest.bytes.begin() + 16, digest.bytes.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_CASE("a key depends on every token before it and on none after it") {
  const std::vector<kvx::token_id> tokens = random_tokens(64, 1);
  const std::vector<key> keys = keys_of(tokens, 16);
  for (std::size_t changed = 0; changed < tokens.size(); ++changed) {
    std::vector<kvx::token_id> other = tokens;
    other[changed] ^= 1U;
    const std::vector<key> others = keys_of(other, 16);
    for (std::size_t block = 0; block < keys.size(); ++block) {
      CHECK((keys[block] == others[block]) == (block < changed / 16));
    }
  }
}

TEST_CASE("equal blocks at different depths have different keys") {
  const std::vector<kvx::token_id> tokens(128, 7);
  const std::vector<key> keys = keys_of(tokens, 16);
  CHECK(std::set<key>(keys.begin(), keys.end()).size() == keys.size());
}

TEST_CASE("the scope separates every block") {
  const std::vector<kvx::token_id> tokens = random_tokens(64, 2);
  const std::vector<key> plain = keys_of(tokens, 16);
  const std::vector<key> salted = keys_of(tokens, 16, {}, {"", "secret"});
  const std::vector<key> adapted = keys_of(tokens, 16, {}, {"secret", ""});
  for (std::size_t i = 0; i < plain.size(); ++i) {
    CHECK(plain[i] != salted[i]);
    CHECK(plain[i] != adapted[i]);
    CHECK(salted[i] != adapted[i]);
  }
}

TEST_CASE("the same tokens in blocks of another size have other keys") {
  const std::vector<kvx::token_id> tokens = random_tokens(64, 3);
  CHECK(keys_of(tokens, 32)[0] != keys_of(tokens, 16)[1]);
  CHECK(keys_of(tokens, 16)[0] != keys_of(tokens, 32)[0]);
}

TEST_CASE("extras: none, empty, one, split, swapped and moved all differ") {
  const std::vector<kvx::token_id> tokens = random_tokens(48, 4);
  const std::string image = "imagedigest";
  const std::string left = "image";
  const std::string right = "digest";
  const std::string none;
  using extras = std::vector<kvx::block_extra>;
  const std::vector<extras> cases{
      {},
      {{1, bytes_of(none)}},
      {{1, bytes_of(image)}},
      {{1, bytes_of(left)}, {1, bytes_of(right)}},
      {{1, bytes_of(right)}, {1, bytes_of(left)}},
      {{1, bytes_of(image)}, {1, bytes_of(none)}},
      {{2, bytes_of(image)}},
      {{0, bytes_of(image)}},
  };
  std::set<key> last;
  for (const extras& e : cases) last.insert(keys_of(tokens, 16, e).back());
  CHECK(last.size() == cases.size());

  const std::vector<key> plain = keys_of(tokens, 16);
  CHECK(keys_of(tokens, 16, cases[2])[0] == plain[0]);
  CHECK(keys_of(tokens, 16, cases[2])[1] != plain[1]);
  const extras outside{{3, bytes_of(image)}};
  CHECK(keys_of(tokens, 16, outside) == plain);
}

TEST_CASE("extras out of order give the same keys as in order") {
  const std::vector<kvx::token_id> tokens = random_tokens(64, 5);
  const std::string a = "first";
  const std::string b = "second";
  const std::vector<kvx::block_extra> sorted{{0, bytes_of(a)}, {2, bytes_of(b)}, {3, bytes_of(a)}};
  const std::vector<kvx::block_extra> shuffled{{3, bytes_of(a)}, {0, bytes_of(a)}, {2, bytes_of(b)}};
  CHECK(keys_of(tokens, 16, sorted) == keys_of(tokens, 16, shuffled));
}

TEST_CASE("in increments or at once: the same keys") {
  constexpr std::uint32_t block_tokens = 16;
  const std::vector<kvx::token_id> tokens = random_tokens(40 * block_tokens + 5, 6);
  const std::string image(5000, 'x');
  const std::string other(300, 'y');
  const std::vector<kvx::block_extra> extras{
      {3, bytes_of(image)}, {17, bytes_of(other)}, {17, bytes_of(image)}, {39, bytes_of(other)}};
  const std::vector<key> whole = keys_of(tokens, block_tokens, extras);
  REQUIRE(whole.size() == 40);

  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    chain running;
    key parent = running.root({"model", "revision", "bf16"}, block_tokens, {});
    std::vector<key> keys(whole.size());
    std::size_t done = 0;
    while (done < keys.size()) {
      const std::size_t take = std::min<std::size_t>(1 + random() % 9, keys.size() - done);
      running.extend(std::span(tokens).subspan(done * block_tokens, take * block_tokens), block_tokens, extras, parent,
                     std::span(keys).subspan(done, take), done);
      done += take;
    }
    CHECK(keys == whole);
  }
}

TEST_CASE("blocks of every size are hashed from exactly these bytes") {
  for (const std::uint32_t block_tokens : {2U, 4U, 16U, 240U, 264U, 265U, 512U, 4096U}) {
    CAPTURE(block_tokens);
    const std::vector<kvx::token_id> tokens = random_tokens(std::size_t{block_tokens} * 4 - 1, block_tokens);
    const std::string image(700, 'i');
    const std::vector<kvx::block_extra> extras{{1, bytes_of(image)}};
    recording_hasher::seen.clear();
    const std::vector<key> keys = keys_of<recording_hasher>(tokens, block_tokens, extras);
    REQUIRE(keys.size() == 3);
    REQUIRE(recording_hasher::seen.size() == 4);
    key parent = kvx::xxh3_128::hash(recording_hasher::seen[0]);
    for (std::size_t block = 0; block < 3; ++block) {
      std::vector<std::byte> expected;
      const auto field = [&](unsigned tag, std::span<const std::byte> bytes) {
        expected.push_back(static_cast<std::byte>(tag));
        for (unsigned i = 0; i < 7; ++i) expected.push_back(static_cast<std::byte>(bytes.size() >> (8U * i)));
        expected.insert(expected.end(), bytes.begin(), bytes.end());
      };
      std::vector<std::byte> encoded;
      for (std::size_t t = block * block_tokens; t < (block + 1) * block_tokens; ++t) {
        for (unsigned i = 0; i < 4; ++i) encoded.push_back(static_cast<std::byte>(tokens[t] >> (8U * i)));
      }
      field(16, parent.bytes);
      field(17, encoded);
      if (block == 1) field(18, bytes_of(image));
      CHECK(recording_hasher::seen[block + 1] == expected);
      parent = keys[block];
    }
  }
}

TEST_CASE("the encoding is injective over random inputs") {
  std::mt19937 random(11);
  std::set<std::vector<std::byte>> encodings;
  std::set<std::vector<std::string>> inputs;
  const auto text = [&] {
    std::string s(random() % 4, ' ');
    for (char& c : s) c = static_cast<char>(random() % 9);  // the values of tags and small lengths
    return s;
  };
  for (int i = 0; i < 20'000; ++i) {
    const std::vector<std::string> in{text(), text(), text(), text(), text()};
    recording_hasher::seen.clear();
    (void)kvx::key_chain<recording_hasher>::root({in[0], in[1], in[2]}, 16, {in[3], in[4]});
    CHECK(inputs.insert(in).second == encodings.insert(recording_hasher::seen.at(0)).second);
  }
}

TEST_CASE("no block is no work") {
  chain running;
  const key root = running.root({"m", "r", "d"}, 16, {});
  key parent = root;
  std::array<key, 1> out{};
  running.extend(std::vector<kvx::token_id>(15, 1), 16, {}, parent, out);
  CHECK(parent == root);
  CHECK(out[0] == key{});
}
