// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/key_table.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <random>
#include <unordered_map>
#include <vector>

namespace {

using kvx::detail::key_table;
using entries = std::vector<std::uint32_t>;

constexpr std::size_t ways = 10;
constexpr std::size_t buckets_of(std::size_t capacity) { return capacity / 6 + 2; }

/// A hash that belongs into a bucket, one of so many; its last 16 bits are what the bucket knows of it.
constexpr std::uint32_t hash_in(std::size_t bucket, std::size_t buckets, std::uint32_t last_bits) {
  const auto first = static_cast<std::uint32_t>((std::uint64_t{bucket} << 32U) / buckets);
  return ((first + 0x1'0000U) & 0xFFFF'0000U) | last_bits;
}

std::uint32_t first_of(const key_table& table, std::uint32_t hash) {
  return table.find(hash, [](std::uint32_t) { return true; });
}
/// Whatever is shown to who looks for a hash and takes none.
entries shown(const key_table& table, std::uint32_t hash) {
  entries all;
  const auto refuse = [&](std::uint32_t entry) {
    all.push_back(entry);
    return false;
  };
  CHECK(table.find(hash, refuse) == key_table::none);
  std::sort(all.begin(), all.end());
  return all;
}

}  // namespace

TEST_CASE("key table: random entries, some with one key, against a multimap") {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const std::size_t capacity = seed < 8 ? seed : 1 + random() % 150;
    const std::size_t buckets = buckets_of(capacity);
    // From all buckets to the last one alone, whose entries go on at the other end; and from very few keys to many.
    const std::size_t homes = seed % 3 == 0 ? buckets : 1 + random() % std::min<std::size_t>(buckets, 3);
    const std::uint32_t keys = 1U << seed % 7;
    const auto any_hash = [&] {
      return hash_in(buckets - 1 - random() % homes, buckets, static_cast<std::uint32_t>(random() % keys));
    };

    key_table table(capacity);
    std::unordered_multimap<std::uint32_t, std::uint32_t> model;
    std::unordered_map<std::uint32_t, std::uint32_t> hash_of;
    entries free(capacity);
    for (std::size_t i = 0; i < capacity; ++i) free[i] = static_cast<std::uint32_t>(i);
    const auto erase = [&](auto at) {
      table.erase(at->first, at->second);
      free.push_back(at->second);
      hash_of.erase(at->second);
      model.erase(at);
    };
    for (int step = 0; step < 2000; ++step) {
      const bool grows = step / 400 % 2 == 0;
      const std::uint32_t hash = any_hash();
      if (random() % 4 == 0 ? !grows : grows) {
        if (!free.empty()) {
          std::swap(free[random() % free.size()], free.back());
          table.insert(hash, free.back());
          model.emplace(hash, free.back());
          hash_of[free.back()] = hash;
          free.pop_back();
        }
      } else if (const std::size_t same = model.count(hash); same != 0) {
        erase(std::next(model.find(hash), static_cast<std::ptrdiff_t>(random() % same)));
      }

      const std::uint32_t asked = any_hash();
      const auto is = [&](std::uint32_t entry) { return hash_of.count(entry) != 0 && hash_of[entry] == asked; };
      const std::uint32_t found = table.find(asked, is);
      REQUIRE((found == key_table::none) == (model.count(asked) == 0));
      // All of that key, each once, and nothing that was erased.
      const entries all = shown(table, asked);
      REQUIRE(std::adjacent_find(all.begin(), all.end()) == all.end());
      REQUIRE(std::all_of(all.begin(), all.end(), [&](std::uint32_t entry) { return hash_of.count(entry) != 0; }));
      for (auto [at, end] = model.equal_range(asked); at != end; ++at)
        REQUIRE(std::binary_search(all.begin(), all.end(), at->second));
    }
    while (!model.empty()) erase(model.begin());
    for (int i = 0; i < 100; ++i) REQUIRE(shown(table, any_hash()).empty());
  }
}

TEST_CASE("key table: what a full bucket has no room for is behind it, around the end, until it is erased") {
  constexpr std::size_t capacity = 60, buckets = buckets_of(capacity), last = buckets - 1;
  key_table table(capacity);
  // Two buckets full and a bit, all of them at home in the last one, and one in the bucket behind those.
  constexpr std::uint32_t count = 2 * ways + 3;
  for (std::uint32_t i = 0; i < count; ++i) table.insert(hash_in(last, buckets, 100 + i), i);
  table.insert(hash_in(1, buckets, 7), 1000);
  for (std::uint32_t i = 0; i < count; ++i) CHECK(first_of(table, hash_in(last, buckets, 100 + i)) == i);
  CHECK(shown(table, hash_in(last, buckets, 7)) == entries{1000});  // which only the entry itself can tell apart

  for (std::uint32_t i = 0; i < count; i += 2) table.erase(hash_in(last, buckets, 100 + i), i);
  for (std::uint32_t i = 0; i < count; ++i)
    CHECK(first_of(table, hash_in(last, buckets, 100 + i)) == (i % 2 == 0 ? key_table::none : i));
  for (std::uint32_t i = 1; i < count; i += 2) table.erase(hash_in(last, buckets, 100 + i), i);
  // Nobody passed on any more: a look-up ends where it begins.
  CHECK(shown(table, hash_in(last, buckets, 7)).empty());
  CHECK(first_of(table, hash_in(1, buckets, 7)) == 1000);
}

TEST_CASE("key table: of several entries with one key the last one is found, also where its bucket is full") {
  constexpr std::size_t capacity = 60, buckets = buckets_of(capacity);
  const std::uint32_t hash = hash_in(3, buckets, 500);
  for (std::uint32_t others = 0; others < ways; ++others) {
    CAPTURE(others);
    key_table table(capacity);
    for (std::uint32_t i = 0; i < others; ++i) table.insert(hash_in(3, buckets, 100 + i), 100 + i);
    for (std::uint32_t entry = 0; entry < 2 * ways; ++entry) {
      table.insert(hash, entry);
      CHECK(first_of(table, hash) == entry);
    }
    for (std::uint32_t i = 0; i < others; ++i) CHECK(first_of(table, hash_in(3, buckets, 100 + i)) == 100 + i);
    CHECK(shown(table, hash).size() == 2 * ways);
  }
}

TEST_CASE("key table: no last bits of a hash are taken for a free place") {
  key_table table(600);
  constexpr std::size_t buckets = buckets_of(600);
  for (std::uint32_t bits = 0; bits < 6; ++bits) table.insert(hash_in(50, buckets, bits), 1000 + bits);
  for (std::uint32_t bits = 0; bits < 6; ++bits) {
    CAPTURE(bits);
    const auto is = [&](std::uint32_t entry) { return entry == 1000 + bits; };
    CHECK(table.find(hash_in(50, buckets, bits), is) == 1000 + bits);
  }
}

TEST_CASE("key table: a look-up of what was never there ends from every bucket when all were passed") {
  for (const std::size_t capacity : {0U, 5U, 6U, 60U, 200U}) {
    CAPTURE(capacity);
    const std::size_t buckets = buckets_of(capacity);
    key_table table(capacity);
    // Fills each bucket and lets one pass on, which stays when the others go. More than `capacity`, but it has room.
    for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
      const auto entry = [&](std::uint32_t which) { return static_cast<std::uint32_t>(bucket * 100) + which; };
      for (std::uint32_t i = 0; i <= ways; ++i) table.insert(hash_in(bucket, buckets, 100 + i), entry(i));
      const std::uint32_t fit = bucket == 0 ? ways : ways - 1;  // one came from the bucket before
      for (std::uint32_t i = 0; i < fit; ++i) table.erase(hash_in(bucket, buckets, 100 + i), entry(i));
    }
    for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
      CHECK(first_of(table, hash_in(bucket, buckets, 5000)) == key_table::none);
      // Every bucket is looked at, once.
      CHECK(shown(table, hash_in(bucket, buckets, 100 + ways)).size() == buckets);
    }
  }
}
