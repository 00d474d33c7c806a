// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/cohorts.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace {

using kvx::detail::cohorts;
using kvx::detail::hazard_model;
using numbers = std::vector<std::uint32_t>;

constexpr std::uint32_t before_wrap(std::uint32_t requests) { return 0U - requests; }

/// Cohorts beside a list of the blocks that they count. What a model learns from either must be the same.
class checked_cohorts {
 public:
  struct block {
    std::uint32_t last;
    unsigned cls, news;
    cohorts::id at;
  };

  checked_cohorts(std::size_t most, std::uint32_t start) : counted(most), most_(most), now_(start) {
    counted.grow_older(start, by_cohort, [](const cohorts::cohort&) {});
    for (hazard_model* model : {&by_cohort, &by_block}) {
      model->request(3);
      for (unsigned uses = 1; uses <= 4; ++uses) (void)model->classify({.uses = uses}, start);  // classes 1 to 4
    }
  }

  void join(std::uint32_t last, unsigned cls, unsigned news, cohorts::id near) {
    const block b{last, cls, news, counted.join(last, cls, news, near)};
    REQUIRE(b.at < most_);
    blocks.push_back(b);
    told(b, [&](unsigned one, unsigned age, std::uint32_t entered) {
      by_cohort.enter(one, age, entered);
      by_block.enter(one, age, entered);
    });
  }
  void part(std::size_t i) {
    const block b = blocks[i];
    told(b, [&](unsigned one, unsigned age, std::uint32_t entered) {
      by_cohort.leave(one, age, entered, now_, true);
      by_block.leave(one, age, entered, now_, true);
    });
    counted.part(b.at);
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
  }

  /// Lets time pass. Returns the leaves of those that outgrew an age, once for each age.
  numbers grow_older(std::uint32_t now) {
    const std::vector<cohorts::id> order = in_order();
    numbers begins, expected;
    for (unsigned age = 0; age + 1 < hazard_model::ages; ++age) {
      bool first = true;
      for (const cohorts::id c : order) {
        const cohorts::cohort& x = counted[c];
        if (counted.age(c) > age) continue;
        const bool outgrown = hazard_model::age_of(now - x.last) > age;
        if (outgrown && x.leaves != cohorts::none) {
          expected.push_back(x.leaves);
          if (first && counted.age(c) == age) begins.push_back(x.leaves);
        }
        first = first && counted.age(c) != age;
      }
    }
    for (const block& b : blocks)
      for (unsigned age = counted.age(b.at); age < hazard_model::age_of(now - b.last); ++age)
        for_classes(b, [&](unsigned one) { by_block.grow_older(one, age, 1, b.last, now); });

    numbers begun, moved;
    counted.prefetch_growth(now, [&](std::uint32_t leaves) { begun.push_back(leaves); });
    CHECK(begun == begins);
    counted.grow_older(now, by_cohort, [&](const cohorts::cohort& c) { moved.push_back(c.leaves); });
    CHECK(moved == expected);
    CHECK(counted.now() == now);
    now_ = now;
    return moved;
  }

  /// From the oldest on: one cohort for each time and class that some block is of, with their count.
  std::vector<cohorts::id> in_order() const {
    std::vector<std::uint32_t> count(most_, 0);
    bool sound = true;
    for (const block& b : blocks) {
      const cohorts::cohort& x = counted[b.at];
      sound = sound && x.last == b.last && x.cls == b.cls && x.news == b.news;
      ++count[b.at];
    }
    std::vector<cohorts::id> order;
    cohorts::id c = blocks.empty() ? cohorts::none : blocks.front().at;
    while (c != cohorts::none && counted[c].older != cohorts::none) c = counted[c].older;
    for (cohorts::id older = cohorts::none; c != cohorts::none; c = counted[c].newer) {
      const cohorts::cohort& x = counted[c];
      sound = sound && x.older == older && x.count != 0 && x.count == std::exchange(count[c], 0);
      sound = sound && (older == cohorts::none || now_ - counted[older].last >= now_ - x.last);
      // No other one is of the same kind.
      for (cohorts::id y = older; sound && y != cohorts::none && counted[y].last == x.last; y = counted[y].older)
        sound = counted[y].cls != x.cls || counted[y].news != x.news;
      REQUIRE(sound);
      order.push_back(older = c);
    }
    REQUIRE(std::all_of(count.begin(), count.end(), [](std::uint32_t left) { return left == 0; }));
    return order;
  }
  void compare_models() {
    for (hazard_model* model : {&by_cohort, &by_block}) model->learn(16 * 8, 1'000'000, now_, [](unsigned) {});
    for (unsigned cls = 1; cls <= 4; ++cls) {
      CAPTURE(cls);
      const auto a = by_cohort.values(cls), b = by_block.values(cls);
      REQUIRE(std::equal(a.begin(), a.end(), b.begin()));
    }
  }

  cohorts counted;
  std::vector<block> blocks;
  hazard_model by_cohort, by_block;

 private:
  template <class Each>
  static void for_classes(const block& b, Each&& each) {
    each(b.cls);
    if (b.news == 0) return;
    each(b.news);
    each(hazard_model::counted_twice);
  }
  template <class Tell>
  void told(const block& b, Tell&& tell) {
    const unsigned age = hazard_model::age_of(now_ - b.last);
    for_classes(b, [&](unsigned one) { tell(one, age, b.last + hazard_model::edge(age)); });
  }

  std::size_t most_;
  std::uint32_t now_;
};

}  // namespace

TEST_CASE("cohorts: random blocks of random times and classes, against a list of them") {
  for (std::uint32_t seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto below = [&](std::uint32_t end) { return static_cast<std::uint32_t>(random() % end); };
    const std::uint32_t start = seed % 2 == 0 ? before_wrap(below(400)) : 0;
    const std::size_t most = 2 + random() % 120;
    checked_cohorts all(most, start);
    std::uint32_t passed = 0;
    std::uint32_t leaves = 0;
    for (int step = 0; step < 1500; ++step) {
      const std::uint32_t now = start + passed;
      const std::size_t any = all.blocks.empty() ? 0 : random() % all.blocks.size();
      const cohorts::id near = all.blocks.empty() || random() % 3 == 0 ? cohorts::none : all.blocks[any].at;
      switch (random() % 8) {
        case 0:
        case 1:
        case 2: {  // used just now, or told of late: at about its neighbour's time, or some requests ago
          if (all.blocks.size() == most) break;
          std::uint32_t last = now;
          if (random() % 2 == 0) last -= std::min(passed, below(40));
          if (near != cohorts::none && random() % 3 == 0) last = all.counted[near].last;
          all.join(last, 1 + below(4), random() % 4 == 0 ? 1 + below(4) : 0, near);
          break;
        }
        case 3:
          if (!all.blocks.empty()) all.part(any);
          break;
        case 4:  // its class changes, or there is news
          if (all.blocks.empty() || all.blocks.size() == most) break;
          all.join(all.blocks[any].last, 1 + below(4), below(3), all.blocks[any].at);
          all.part(any);
          break;
        case 5:
          if (near != cohorts::none) all.counted.leaves(near) = random() % 4 == 0 ? cohorts::none : ++leaves;
          break;
        default: {
          const std::uint32_t edge = hazard_model::edge(below(random() % 16 == 0 ? hazard_model::ages : 7));
          const std::uint32_t wait = random() % 2 == 0 ? 1 : edge + below(3) - std::min(edge, 1U);
          passed += wait;
          all.grow_older(now + wait);
          if (random() % 4 == 0) all.compare_models();
        }
      }
      all.in_order();
    }
    while (!all.blocks.empty()) all.part(random() % all.blocks.size());
    all.grow_older(start + passed + hazard_model::edge(hazard_model::ages - 1));
    all.compare_models();
  }
}

TEST_CASE("cohorts: blocks are a step older at each edge, not a request sooner, also where the clock wraps") {
  for (const std::uint32_t start : {0U, before_wrap(3), before_wrap(1U << 19U), before_wrap(1)}) {
    CAPTURE(start);
    checked_cohorts all(4, start);
    all.join(start, 1, 0, cohorts::none);
    all.join(start, 1, 0, cohorts::none);
    all.join(start, 2, 3, cohorts::none);
    all.counted.leaves(all.blocks[0].at) = 7;
    for (unsigned age = 1; age < hazard_model::ages; ++age) {
      CAPTURE(age);
      CHECK(all.grow_older(start + hazard_model::edge(age) - 1).empty());
      CHECK(all.counted.age(all.blocks[0].at) == age - 1);
      CHECK(all.grow_older(start + hazard_model::edge(age)) == numbers{7});
      CHECK(all.counted.age(all.blocks[0].at) == age);
      all.compare_models();
    }
    CHECK(all.grow_older(start + (1U << 30U)).empty());  // there is nothing older
    CHECK(all.counted[all.blocks[0].at].count == 2);
  }
}

TEST_CASE("cohorts: whoever passes several ages at once passes each of them") {
  checked_cohorts all(4, 100);
  all.join(100, 1, 0, cohorts::none);
  all.join(99, 1, 0, cohorts::none);
  all.counted.leaves(all.blocks[0].at) = 1;
  all.counted.leaves(all.blocks[1].at) = 2;
  // The one from age 0 to 3, the other, older one from 1 to 3: the older one first at each.
  CHECK(all.grow_older(104) == numbers{1, 2, 1, 2, 1});
  all.compare_models();
}

TEST_CASE("cohorts: one that is made behind the oldest of its age grows older first") {
  for (const std::uint32_t start : {0U, before_wrap(19)}) {
    CAPTURE(start);
    checked_cohorts all(4, start);
    const std::uint32_t now = start + 20;
    all.grow_older(now);
    all.join(now - 4, 1, 0, cohorts::none);
    all.join(now - 7, 1, 0, all.blocks[0].at);  // as the later parts of a long request
    all.join(now - 6, 1, 0, all.blocks[1].at);
    for (std::uint32_t i = 0; i < 3; ++i) all.counted.leaves(all.blocks[i].at) = i;
    CHECK(all.grow_older(now + 1) == numbers{1});
    CHECK(all.grow_older(now + 2) == numbers{2});
    CHECK(all.grow_older(now + 3).empty());
    CHECK(all.grow_older(now + 4) == numbers{0});
  }
}

TEST_CASE("cohorts: those that nobody is of any more are used again") {
  checked_cohorts all(3, 0);
  for (std::uint32_t now = 1; now < 1000; ++now) {
    all.grow_older(now);
    all.join(now, 1 + now % 4, 0, all.blocks.empty() ? cohorts::none : all.blocks.back().at);
    if (all.blocks.size() == 3) all.part(now % 3);
    all.in_order();
  }
}
