// SPDX-License-Identifier: Apache-2.0
#include <kvx/index.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <vector>

namespace {

using key = kvx::digest<16>;
using index_type = kvx::block_index<key>;

key key_of(std::uint64_t n) {
  key out;
  const std::uint64_t words[2] = {n * 0x9E37'79B9'7F4A'7C15U, ~n};
  std::memcpy(out.bytes.data(), words, sizeof words);
  return out;
}

}  // namespace

TEST_CASE("a block is where it was put last, and nowhere once it left every tier") {
  index_type index(8);
  const kvx::node_id n = index.insert(key_of(1), kvx::no_node);
  REQUIRE(n != kvx::no_node);
  CHECK(index.lookup(key_of(1), 0) == kvx::tier::miss);
  index.set_memory(n, 5, true);
  CHECK(index.lookup(key_of(1), 0) == kvx::tier::pending);
  index.set_memory(n, 5, false);
  CHECK(index.lookup(key_of(1), 0) == kvx::tier::memory);
  index.set_storage(n, 7, true);
  CHECK(index.lookup(key_of(1), 0) == kvx::tier::memory);
  index.clear_memory(n);
  CHECK(index.lookup(key_of(1), 0) == kvx::tier::pending);
  index.set_storage(n, 7, false);
  CHECK(index.lookup(key_of(1), 0) == kvx::tier::storage);
  CHECK(index.storage_slot(n) == 7);
  index.clear_storage(n);
  CHECK(index.lookup(key_of(1), 0) == kvx::tier::miss);
  index.erase_if_unused(n);
  CHECK(index.find(key_of(1)) == kvx::no_node);
  CHECK(index.size() == 0);
}

TEST_CASE("a parent keeps its node while a child is cached, and counts children per tier") {
  index_type index(8);
  const kvx::node_id parent = index.insert(key_of(1), kvx::no_node);
  index.set_memory(parent, 0, false);
  const kvx::node_id child = index.insert(key_of(2), parent);
  index.set_memory(child, 1, false);
  index.set_storage(child, 1, false);
  CHECK(index.has_children_in_memory(parent));
  CHECK(index.has_children_in_storage(parent));
  index.clear_memory(parent);
  index.erase_if_unused(parent);
  CHECK(index.find(key_of(1)) == parent);
  index.clear_memory(child);
  CHECK_FALSE(index.has_children_in_memory(parent));
  CHECK(index.has_children_in_storage(parent));
  index.clear_storage(child);
  CHECK(index.find(key_of(1)) == kvx::no_node);
  index.erase_if_unused(child);
  CHECK(index.size() == 0);
}

TEST_CASE("a block that left every tier does not hold its former parent") {
  index_type index(8);
  const kvx::node_id first = index.insert(key_of(1), kvx::no_node);
  index.set_memory(first, 0, false);
  const kvx::node_id middle = index.insert(key_of(2), first);
  index.set_memory(middle, 1, false);
  const kvx::node_id last = index.insert(key_of(3), middle);
  index.set_memory(last, 2, false);
  index.clear_memory(middle);  // still there, for its child's sake
  index.clear_memory(first);
  index.erase_if_unused(first);
  CHECK(index.find(key_of(1)) == kvx::no_node);
  const kvx::node_id reused = index.insert(key_of(4), kvx::no_node);
  index.set_memory(reused, 3, false);
  const kvx::node_id again = index.insert(key_of(2), kvx::no_node);
  CHECK(again == middle);
  index.set_memory(again, 4, false);
  CHECK_FALSE(index.has_children_in_memory(reused));
}

TEST_CASE("a parent that came after its child is given to it, with the places that the child has by then") {
  index_type index(8);
  const kvx::node_id child = index.insert(key_of(2), kvx::no_node);
  index.set_storage(child, 1, false);
  const kvx::node_id parent = index.insert(key_of(1), kvx::no_node);
  index.set_storage(parent, 0, false);
  index.adopt(child, parent);
  CHECK(index.has_children_in_storage(parent));
  CHECK_FALSE(index.has_children_in_memory(parent));
  index.adopt(child, parent);  // it has its parent already
  index.set_memory(child, 5, false);
  CHECK(index.has_children_in_memory(parent));
  index.clear_memory(child);
  index.clear_storage(child);
  CHECK_FALSE(index.has_children_in_memory(parent));
  CHECK_FALSE(index.has_children_in_storage(parent));
  index.adopt(parent, parent);
  CHECK_FALSE(index.has_children_in_storage(parent));
}

TEST_CASE("the index agrees with a map over random operations, and fills to its capacity") {
  constexpr std::size_t capacity = 3000;
  index_type index(capacity);
  std::map<std::uint64_t, kvx::node_id> model;
  std::mt19937_64 random(1);
  for (int i = 0; i < 200'000; ++i) {
    const std::uint64_t n = random() % 4000;
    if (random() % 2 == 0) {
      const kvx::node_id at = index.insert(key_of(n), kvx::no_node);
      if (model.count(n) != 0) {
        CHECK(at == model[n]);
      } else if (model.size() == capacity) {
        CHECK(at == kvx::no_node);
      } else {
        REQUIRE(at != kvx::no_node);
        index.set_storage(at, static_cast<kvx::slot_index>(n), false);
        model[n] = at;
      }
    } else if (const auto found = model.find(n); found != model.end()) {
      index.clear_storage(found->second);
      index.erase_if_unused(found->second);
      model.erase(found);
    }
  }
  CHECK(index.size() == model.size());
  for (std::uint64_t n = 0; n < 4000; ++n) {
    CHECK((index.lookup(key_of(n), 0) == kvx::tier::storage) == (model.count(n) != 0));
    if (model.count(n) != 0) CHECK(index.storage_slot(index.find(key_of(n))) == n);
  }
}

TEST_CASE("a lookup leases what it finds, and never shortens a lease") {
  index_type index(4);
  const kvx::node_id n = index.insert(key_of(1), kvx::no_node);
  index.set_memory(n, 0, false);
  CHECK(index.lease(n) == 0);
  static_cast<void>(index.lookup(key_of(1), 9));
  static_cast<void>(index.lookup(key_of(1), 5));
  CHECK(index.lease(n) == 9);
}

TEST_CASE("readers see every block that is always there, whatever a writer does around it") {
  constexpr std::uint64_t stable = 512;
  index_type index(4096);
  for (std::uint64_t n = 0; n < stable; ++n)
    index.set_memory(index.insert(key_of(n), kvx::no_node), static_cast<kvx::slot_index>(n), false);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&, r] {
      std::mt19937_64 random(static_cast<std::uint64_t>(r));
      while (!stop.load()) {
        if (index.lookup(key_of(random() % stable), 1) != kvx::tier::memory) ++wrong;
        if (index.lookup(key_of(1'000'000 + random() % 1000), 1) != kvx::tier::miss) ++wrong;
      }
    });
  }
  std::mt19937_64 random(7);
  for (int i = 0; i < 100'000; ++i) {
    const std::uint64_t n = stable + random() % 6000;
    if (const kvx::node_id known = index.find(key_of(n)); known != kvx::no_node) {
      index.clear_memory(known);
      index.erase_if_unused(known);
    } else if (const kvx::node_id fresh = index.insert(key_of(n), kvx::no_node); fresh != kvx::no_node) {
      index.set_memory(fresh, static_cast<kvx::slot_index>(n), false);
    }
  }
  stop = true;
  for (std::thread& t : readers) t.join();
  CHECK(wrong == 0);
}

TEST_CASE("a million blocks with keys of 16 bytes take at most 48 bytes each") {
  const index_type index(1'000'000);
  CHECK(index.memory_bytes() <= 48'000'000);
}
