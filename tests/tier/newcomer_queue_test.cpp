// SPDX-License-Identifier: Apache-2.0
#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/tier/newcomer_queue.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

TEST_CASE("newcomers reach the policy deepest first, in whatever order their copies and writes ended") {
  kvx::newcomer_queue<kvx::fifo> queue(8);
  for (const kvx::slot_index block : {2U, 0U, 3U, 1U, 4U}) queue.add({block, 100U + block, 16 * block});
  queue.settle();
  for (const kvx::slot_index deepest : {4U, 3U, 2U, 1U, 0U})
    CHECK(queue.evict(0, [](kvx::slot_index) { return false; }) == deepest);
}

TEST_CASE("newcomers that were not settled go when nothing else is left, deepest first as well") {
  kvx::newcomer_queue<kvx::fifo> queue(8);
  queue.add({7, 1, 0});
  queue.settle();
  queue.add({1, 2, 16});
  queue.add({0, 3, 0});
  const auto free = [](kvx::slot_index) { return false; };
  CHECK(queue.evict(0, free) == 7);
  CHECK(queue.evict(0, free) == 1);
  CHECK(queue.evict(0, free) == 0);
  CHECK(queue.evict(0, free) == kvx::no_slot);
}

TEST_CASE("what is saved in parts goes from its end on, though the end came last") {
  kvx::newcomer_queue<kvx::lru> queue(8);
  const auto free = [](kvx::slot_index) { return false; };
  queue.add({0, 10, 0}, {1, kvx::no_slot});
  queue.add({1, 11, 16}, {1, 0});
  queue.settle();
  queue.add({7, 20, 0}, {2, kvx::no_slot});  // another prompt
  queue.settle();
  queue.add({3, 13, 48}, {1, 2});
  queue.add({2, 12, 32}, {1, 1});
  queue.settle();
  for (const kvx::slot_index next : {3U, 2U, 1U, 0U, 7U}) CHECK(queue.evict(0, free) == next);
}

TEST_CASE("what goes on with another request's block is no older than other newcomers") {
  kvx::newcomer_queue<kvx::lru> queue(8);
  const auto free = [](kvx::slot_index) { return false; };
  queue.add({0, 10, 0}, {1, kvx::no_slot});
  queue.settle();
  queue.add({7, 20, 0}, {2, kvx::no_slot});
  queue.settle();
  queue.add({1, 11, 16}, {3, 0});
  SUBCASE("") {}
  SUBCASE("nor where that block is gone") { queue.remove(0); }
  queue.settle();
  if (queue.contains(0)) CHECK(queue.evict(0, free) == 0);
  CHECK(queue.evict(0, free) == 7);
  CHECK(queue.evict(0, free) == 1);
}

namespace {

/// LRU that counts at how many slots its evictions look.
class counting_lru : public kvx::lru {
 public:
  using kvx::lru::lru;

  template <class Pinned>
  kvx::slot_index evict(Pinned&& pinned) {
    return kvx::lru::evict([&](kvx::slot_index slot) {
      ++looked_at;
      return pinned(slot);
    });
  }

  static inline std::size_t looked_at = 0;
};

}  // namespace

TEST_CASE("where all have high priority, not every eviction walks over all of them") {
  constexpr kvx::slot_index slots = 4096;
  kvx::newcomer_queue<counting_lru> queue(slots);
  const kvx::block_orders high{kvx::retention::high, false, 0};
  const auto arrive = [&](kvx::slot_index slot, const kvx::block_orders& wanted) {
    queue.order(slot, wanted);
    queue.add({slot, slot, 0});
    queue.settle();
  };
  for (kvx::slot_index slot = 0; slot < slots; ++slot) arrive(slot, high);
  counting_lru::looked_at = 0;
  const auto free = [](kvx::slot_index) { return false; };
  for (kvx::slot_index i = 0; i < slots / 2; ++i) CHECK(queue.evict(0, free) == i);
  CHECK(counting_lru::looked_at < 200 * slots);
  // One that may go is found at once all the same.
  arrive(0, {});
  CHECK(queue.evict(0, free) == 0);
}

TEST_CASE("where all have high priority, those that come do not bring the walks back") {
  constexpr kvx::slot_index slots = 4096;
  kvx::newcomer_queue<counting_lru> queue(slots);
  const auto arrive = [&](kvx::slot_index slot) {
    queue.order(slot, {kvx::retention::high, false, 0});
    queue.add({slot, slot, 0});
    queue.settle();
  };
  for (kvx::slot_index slot = 0; slot < slots; ++slot) arrive(slot);
  counting_lru::looked_at = 0;
  for (kvx::slot_index i = 0; i < slots / 2; ++i) {
    const kvx::slot_index victim = queue.evict(0, [](kvx::slot_index) { return false; });
    REQUIRE(victim == i);
    arrive(victim);
    queue.order(victim, {kvx::retention::high, false, 0});  // again, as another request that shares it does
  }
  CHECK(counting_lru::looked_at < 200 * slots);
}

TEST_CASE("high priority holds against all that may go, whatever was tried before") {
  constexpr kvx::slot_index slots = 128;
  kvx::newcomer_queue<kvx::lru> queue(slots);
  for (kvx::slot_index slot = 0; slot < slots; ++slot) {
    if (slot < 2) queue.order(slot, {kvx::retention::high, false, 0});
    queue.add({slot, slot, 0});
    queue.settle();
  }
  const auto free = [](kvx::slot_index) { return false; };
  SUBCASE("nothing might go then") {
    CHECK(queue.evict(0, [](kvx::slot_index) { return true; }) == kvx::no_slot);
    CHECK(queue.evict(0, free) >= 2);
  }
  SUBCASE("only high priority might go then, and time has passed since") {
    CHECK(queue.evict(0, [](kvx::slot_index slot) { return slot >= 2; }) == 0);
    CHECK(queue.evict(1, free) == 2);
  }
}

TEST_CASE("a time to live that is ordered many times over takes no other's place") {
  constexpr kvx::slot_index slots = 64;
  kvx::newcomer_queue<kvx::lru> queue(slots);
  for (kvx::slot_index slot = 0; slot < slots; ++slot) {
    queue.add({slot, slot, 0});
    queue.settle();
  }
  std::uint32_t other = 100;
  SUBCASE("the same") {}
  SUBCASE("one of two in turns") { other = 101; }
  for (int i = 0; i < 1000; ++i) queue.order(0, {kvx::retention::normal, false, i % 2 == 0 ? 100 : other});
  for (kvx::slot_index slot = 1; slot < slots; ++slot) queue.order(slot, {kvx::retention::normal, false, 50});
  for (kvx::slot_index i = 1; i < slots; ++i) CHECK(queue.evict(60, [](kvx::slot_index) { return false; }) != 0);
  CHECK(queue.evict(60, [](kvx::slot_index) { return false; }) == 0);
}

TEST_CASE("a request that is told of its blocks again does not count as a second use of them") {
  kvx::newcomer_queue<kvx::lru> queue(4);
  queue.add({1, 1, 0});
  queue.add({2, 2, 0});
  queue.settle();
  const auto access = [&](std::uint64_t id, kvx::slot_index slot) {
    const kvx::eviction_entry block{slot, slot, 0};
    kvx::eviction_request request;
    request.blocks = {&block, 1};
    request.id = id;
    queue.access(request);
  };
  access(77, 1);
  access(78, 2);
  access(77, 1);
  CHECK(queue.evict(0, [](kvx::slot_index) { return false; }) == 1);
}

TEST_CASE("who gets a slot next does not inherit what was ordered for it") {
  kvx::newcomer_queue<kvx::lru> queue(4);
  const auto free = [](kvx::slot_index) { return false; };
  queue.order(0, {kvx::retention::high, false, 0});
  queue.add({0, 10, 0});
  CHECK(queue.evict(0, free) == 0);
  CHECK(queue.orders(0) == kvx::block_orders{});
  queue.order(1, {kvx::retention::normal, true, 0});
  queue.add({1, 11, 0});
  queue.remove(1);
  CHECK(queue.orders(1) == kvx::block_orders{});
}

TEST_CASE("told are the blocks of a request from its front on, without a gap") {
  kvx::newcomer_queue<kvx::lru> queue(4);
  const std::vector<kvx::eviction_entry> blocks(2);
  const auto access = [&](std::size_t before, std::size_t count) {
    kvx::eviction_request request;
    request.blocks = std::span(blocks).first(count);
    request.before = before;
    request.id = 77;
    queue.access(request);
  };
  access(2, 2);
  CHECK(queue.told(77) == 0);
  access(3, 0);
  CHECK(queue.told(77) == 0);
  access(0, 2);
  access(1, 1);
  CHECK(queue.told(77) == 2);
  access(2, 2);
  CHECK(queue.told(77) == 4);
  CHECK(queue.told(78) == 0);
}
