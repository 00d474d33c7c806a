// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/ranked_blocks.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using kvx::detail::hazard_model;
using kvx::detail::ranked_blocks;
using id = ranked_blocks::id;
using ids = std::vector<id>;

constexpr id none = ranked_blocks::none;
constexpr unsigned aside = hazard_model::cell(hazard_model::most_classes, 0);  // after all others
constexpr auto any_entry = [](std::uint32_t) { return true; };

/// Ranked blocks beside lists of them, in which everything is searched.
class checked_blocks {
 public:
  struct block {
    bool here = false;
    std::uint32_t entry = 0;
    id parent = none;
    std::uint32_t born = 0;  // which of those that had its place
    std::uint32_t parent_born = 0;
    unsigned cell = 0;
    std::size_t ring = 0;
    bool queued = false;
  };

  checked_blocks(std::size_t capacity, std::size_t most_rings)
      : ranked(capacity), blocks(capacity), rings(most_rings), peers(most_rings, none) {}

  id add(std::uint32_t entry, id parent) {
    const id b = ranked.add(entry, parent);
    REQUIRE(b < blocks.size());
    REQUIRE_FALSE(blocks[b].here);
    blocks[b] = {true, entry, parent, blocks[b].born + 1, parent != none ? blocks[parent].born : 0};
    return b;
  }
  void remove(id b) {
    ranked.remove(b);
    blocks[b].here = false;
  }
  void enqueue(id b, unsigned cell, bool as_oldest, std::size_t ring) {
    ranked.enqueue(b, cell, as_oldest, peers[ring]);
    rings[ring].push_back(b);
    blocks[b].ring = ring;
    push(b, cell, as_oldest);
  }
  void dequeue(id b) {
    const std::size_t ring = blocks[b].ring;
    ranked.dequeue(b, peers[ring]);
    std::erase(rings[ring], b);
    pull(b);
  }
  void replace(id b, id by) {
    const std::size_t ring = blocks[b].ring;
    ranked.replace(b, by, peers[ring]);
    std::replace(rings[ring].begin(), rings[ring].end(), b, by);
    ids& queue = queues[blocks[b].cell];
    std::replace(queue.begin(), queue.end(), b, by);
    blocks[by].cell = blocks[b].cell;
    blocks[by].ring = ring;
    blocks[by].queued = true;
    blocks[b].queued = false;
  }
  void move_peers(std::size_t ring, unsigned cell) {
    ranked.move_peers(peers[ring], cell);
    // In the ring's order, which begins with whoever stands for it.
    const auto head = std::find(rings[ring].begin(), rings[ring].end(), peers[ring]);
    REQUIRE(head == rings[ring].begin());
    for (const id b : rings[ring]) {
      pull(b);
      push(b, cell, false);
    }
  }
  void change_ring(id b, std::size_t to) {
    const std::size_t from = blocks[b].ring;
    ranked.part(b, peers[from]);
    std::erase(rings[from], b);
    ranked.join(b, peers[to]);
    rings[to].push_back(b);
    blocks[b].ring = to;
  }
  void set_aside(id b) {
    ranked.set_aside(b);
    pull(b);
    push(b, aside, false);
  }
  template <class Cell>
  void requeue_aside(Cell&& cell) {
    ranked.requeue_aside(cell);
    for (const id b : ids(queues[aside])) {
      pull(b);
      push(b, cell(blocks[b].entry), false);
    }
  }
  void set_values(unsigned cls, const std::array<float, hazard_model::ages>& of_class) {
    ranked.set_values(cls, of_class);
    for (unsigned age = 0; age < hazard_model::ages; ++age) values[hazard_model::cell(cls, age)] = of_class[age];
  }
  template <class MayGo>
  id weakest_that(std::size_t tries, MayGo&& may_go) {
    const auto may = [&](id b) { return may_go(blocks[b].entry); };
    const id answer = ranked.weakest_that(tries, may_go);
    // A few of those aside in turn, then the others, then all of those aside.
    const auto in_turn = [&](std::size_t times) {
      for (times = std::min(times, queues[aside].size()); times != 0; --times) {
        if (may(queues[aside].front())) return queues[aside].front();
        std::rotate(queues[aside].begin(), queues[aside].begin() + 1, queues[aside].end());
      }
      return none;
    };
    id expected = in_turn(tries);
    for (id b = weakest(); expected == none && b != none && blocks[b].cell != aside; b = weakest()) {
      if (may(b)) {
        expected = b;
      } else {
        pull(b);
        push(b, aside, false);
      }
    }
    if (expected == none) expected = in_turn(queues[aside].size());
    CHECK(answer == expected);
    return answer;
  }

  /// The oldest of the queue of the least value: of equals, of the first class, then the youngest.
  id weakest() const {
    std::tuple<float, unsigned> least(std::numeric_limits<float>::infinity(), aside);
    for (const auto& [cell, queue] : queues)
      if (cell != aside && !queue.empty()) least = std::min(least, std::tuple(values.at(cell), cell));
    const auto queue = queues.find(std::get<1>(least));
    return queue == queues.end() || queue->second.empty() ? none : queue->second.front();
  }
  id living_parent(id b) const {
    const id parent = blocks[b].parent;
    return parent != none && blocks[parent].here && blocks[parent].born == blocks[b].parent_born ? parent : none;
  }
  ids those(bool want_queued) const {
    ids out;
    for (id b = 0; b < blocks.size(); ++b)
      if (blocks[b].here && blocks[b].queued == want_queued) out.push_back(b);
    return out;
  }
  void check() const {
    std::vector<std::uint32_t> children(blocks.size(), 0);
    std::size_t here = 0;
    for (id b = 0; b < blocks.size(); ++b) {
      here += blocks[b].here ? 1U : 0U;
      if (const id parent = living_parent(b); blocks[b].here && parent != none) ++children[parent];
    }
    REQUIRE(ranked.full() == (here == blocks.size()));
    for (id b = 0; b < blocks.size(); ++b) {
      if (!blocks[b].here) continue;
      REQUIRE(ranked.entry(b) == blocks[b].entry);
      REQUIRE(ranked.leaf(b) == (children[b] == 0));
      REQUIRE(ranked.queued(b) == blocks[b].queued);
      if (blocks[b].queued) REQUIRE(ranked.aside(b) == (blocks[b].cell == aside));
      const id parent = living_parent(b);
      REQUIRE(ranked.left_alone_without(b) == (parent != none && children[parent] == 1 ? parent : none));
    }
    for (std::size_t ring = 0; ring < rings.size(); ++ring)
      REQUIRE(peers[ring] == (rings[ring].empty() ? none : rings[ring].front()));
    const id b = weakest();
    REQUIRE(ranked.weakest() == b);
    REQUIRE(ranked.only_aside() == (b != none && blocks[b].cell == aside));
    const bool ranks = b != none && blocks[b].cell != aside;
    REQUIRE(ranked.least_value() == (ranks ? values.at(blocks[b].cell) : std::numeric_limits<float>::infinity()));
    REQUIRE(ranked.lines_end());
  }
  /// Takes all out of their queues, each in its turn.
  void drain() {
    for (id b = weakest(); b != none; b = weakest()) {
      ranked.prefetch_move(b);
      const ids& queue = queues[blocks[b].cell];
      const id next = blocks[b].parent != none ? blocks[b].parent : queue.size() > 1 ? queue[1] : none;
      REQUIRE(ranked.after(b) == next);
      dequeue(b);
      check();
    }
  }

  ranked_blocks ranked;
  std::vector<block> blocks;
  std::vector<ids> rings;
  ids peers;

 private:
  void push(id b, unsigned cell, bool as_oldest) {
    ids& queue = queues[cell];
    queue.insert(as_oldest ? queue.begin() : queue.end(), b);
    values.try_emplace(cell, 0.0F);
    blocks[b].cell = cell;
    blocks[b].queued = true;
  }
  void pull(id b) {
    std::erase(queues[blocks[b].cell], b);
    blocks[b].queued = false;
  }

  std::map<unsigned, ids> queues;
  std::map<unsigned, float> values;
};

}  // namespace

TEST_CASE("ranked blocks: random trees, queues, rings and values, against lists of them") {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const std::size_t capacity = seed < 4 ? seed : 1 + random() % 40;
    constexpr std::size_t rings = 6;
    checked_blocks all(capacity, rings);
    std::uint32_t entries = 0;
    constexpr std::array<unsigned, 5> classes{0, 1, 2, 128, hazard_model::most_classes - 1};
    constexpr std::array<unsigned, 4> ages{0, 1, 5, hazard_model::ages - 1};
    const auto one_of = [&](const auto& some) { return some[random() % some.size()]; };
    const auto any_cell = [&] { return hazard_model::cell(one_of(classes), one_of(ages)); };
    std::array<unsigned, rings> cell_of{};
    for (int step = 0; step < 1200; ++step) {
      const ids queued = all.those(true), idle = all.those(false);
      const std::size_t ring = random() % rings;
      const auto open = random() % 4;  // how many of the entries may go
      const auto may_go = [&](std::uint32_t entry) { return entry * 7 % 4 < open; };
      switch (random() % 11) {
        case 0:
        case 1: {
          if (all.ranked.full()) break;
          id parent = none;
          if (!idle.empty() && random() % 2 == 0) parent = one_of(idle);
          if (!queued.empty() && random() % 3 == 0) all.dequeue(parent = one_of(queued));
          all.add(++entries, parent);
          break;
        }
        case 2:
        case 3:
          if (idle.empty()) break;
          if (const id b = one_of(idle); all.ranked.leaf(b)) all.enqueue(b, cell_of[ring], random() % 4 == 0, ring);
          break;
        case 4:  // some have children, who stay
          if (queued.empty() || (!idle.empty() && random() % 3 == 0)) {
            if (!idle.empty()) all.remove(one_of(idle));
          } else {
            const id b = one_of(queued);
            all.dequeue(b);
            if (random() % 2 == 0) all.remove(b);
          }
          break;
        case 5:
          cell_of[ring] = any_cell();
          if (all.peers[ring] != none) all.move_peers(ring, cell_of[ring]);
          break;
        case 6:
          if (!queued.empty()) all.change_ring(one_of(queued), ring);
          break;
        case 7:
          if (queued.empty() || idle.empty()) break;
          if (const id b = one_of(queued); !all.ranked.aside(b)) all.replace(b, one_of(idle));
          break;
        case 8:
          if (const id b = all.weakest_that(random() % 4, may_go); b != none && random() % 2 == 0) all.dequeue(b);
          break;
        case 9:
          if (!queued.empty() && random() % 3 == 0) all.set_aside(one_of(queued));
          if (random() % 6 == 0)
            all.requeue_aside([&](std::uint32_t entry) { return hazard_model::cell(classes[entry % 5], ages[1]); });
          break;
        default: {
          std::array<float, hazard_model::ages> values;
          for (float& value : values) value = static_cast<float>(random() % 6) / 4;  // some are equal
          all.set_values(one_of(classes), values);
        }
      }
      all.check();
    }
    all.drain();
  }
}

TEST_CASE("ranked blocks: children that outlive their parent do not count for who takes its place") {
  checked_blocks all(3, 1);
  const id parent = all.add(1, none);
  const id orphan = all.add(2, parent);
  all.remove(parent);
  REQUIRE(all.add(3, none) == parent);
  CHECK(all.ranked.leaf(parent));
  CHECK(all.ranked.left_alone_without(orphan) == none);
  // Its own child keeps it out of the queues when the other's goes.
  const id child = all.add(4, parent);
  all.remove(orphan);
  CHECK_FALSE(all.ranked.leaf(parent));
  CHECK(all.ranked.left_alone_without(child) == parent);
  all.check();
  all.remove(child);
  CHECK(all.ranked.leaf(parent));

  // However often the place changes hands.
  const id late = all.add(5, parent);
  all.remove(parent);
  for (std::uint32_t life = 1; life < 1U << 16U; ++life) all.remove(all.add(6, none));
  REQUIRE(all.add(7, none) == parent);
  CHECK(all.ranked.left_alone_without(late) == none);
  all.remove(late);
  all.check();
}

TEST_CASE("ranked blocks: peers are moved together, in their order, those aside as well") {
  checked_blocks all(8, 2);
  for (std::uint32_t entry = 0; entry < 8; ++entry)
    all.enqueue(all.add(entry, none), hazard_model::cell(1, 0), false, entry % 2);
  const auto entry_of = [&](id b) { return all.ranked.entry(b); };
  CHECK(entry_of(all.weakest_that(0, [](std::uint32_t entry) { return entry > 2; })) == 3);  // 0, 1 and 2 are aside
  all.dequeue(0);                                                                            // the first of its ring
  all.move_peers(0, hazard_model::cell(1, 1));
  std::array<float, hazard_model::ages> values{};
  values[0] = 1;  // the older ones go first
  all.set_values(1, values);
  std::vector<std::uint32_t> order;
  while (all.ranked.weakest() != none) {
    all.check();
    order.push_back(entry_of(all.ranked.weakest()));
    all.dequeue(all.ranked.weakest());
  }
  CHECK(order == std::vector<std::uint32_t>{2, 4, 6, 3, 5, 7, 1});
}

TEST_CASE(
    "ranked blocks: when all leaves were in use, those that are no longer go in the order in which they were due") {
  checked_blocks all(5, 1);
  const auto cell = [](std::uint32_t entry) { return hazard_model::cell(1 + entry % 2, 3); };
  for (std::uint32_t entry = 0; entry < 5; ++entry) all.enqueue(all.add(entry, none), cell(entry), false, 0);
  std::array<float, hazard_model::ages> values{};
  values[3] = 0.5F;
  all.set_values(1, values);  // of 0, 2 and 4
  values[3] = 0.25F;
  all.set_values(2, values);  // of 1 and 3
  CHECK(all.weakest_that(3, [](std::uint32_t) { return false; }) == none);
  CHECK(all.ranked.only_aside());
  all.check();
  SUBCASE("asked about in turn") {
    CHECK(all.ranked.entry(all.weakest_that(2, [](std::uint32_t entry) { return entry % 2 == 0; })) == 0);
  }
  SUBCASE("queued again") {
    all.requeue_aside(cell);
    CHECK_FALSE(all.ranked.only_aside());
    all.check();
    CHECK(all.ranked.entry(all.weakest_that(2, any_entry)) == 1);
  }
  all.drain();
}
