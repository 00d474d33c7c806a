// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/block_history.hpp>
#include <kvx/detail/hazard_model.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace {

using kvx::detail::hazard_model;
constexpr unsigned ages = hazard_model::ages;

double width(unsigned age) { return age == 0 ? 1.0 : std::ldexp(1.0, static_cast<int>(age) - 1); }

/// What a model has been told of a class, added up by hand.
struct account {
  std::array<double, ages> uses{}, exposure{};
};

enum class fate { used, given_up, stays };
constexpr std::uint32_t fitted_at = 1U << 21U;

/// Blocks of a class that grew through ages 0 to `age`, each from its first request to its last, and were used or given
/// up at the end of that one, or are in it still when the values are fitted.
void live(hazard_model& model, std::uint8_t cls, unsigned age, std::uint32_t count, fate end, account& mine,
          account& all) {
  const std::uint32_t last = 0;
  for (std::uint32_t i = 0; i < count; ++i) model.enter(cls, 0, last);
  for (unsigned k = 0; k < age; ++k) model.grow_older(cls, k, count, last, last + hazard_model::edge(k + 1));
  const std::uint32_t entered = last + hazard_model::edge(age);
  const std::uint32_t until = end == fate::stays ? fitted_at : entered + static_cast<std::uint32_t>(width(age));
  if (end != fate::stays)
    for (std::uint32_t i = 0; i < count; ++i) model.leave(cls, age, entered, until, end == fate::used);
  for (account* to : {&mine, &all}) {
    for (unsigned k = 0; k < age; ++k) to->exposure[k] += count * width(k);
    to->exposure[age] += static_cast<double>(count) * (until - entered);
    if (end == fate::used) to->uses[age] += count;
  }
}

/// The best rate of uses per block and time over all ages at which one might stop waiting, each tried.
std::array<double, ages> best_rates(const account& mine, const account& all, double mean_request) {
  std::array<double, ages> hazards{}, best{};
  for (unsigned k = 0; k < ages; ++k) {
    const double w = width(k);
    const double falling = 0.2 / (hazard_model::edge(k) + w / 2);
    const double common = (all.uses[k] + 4 * mean_request * falling * w) / (all.exposure[k] + 4 * mean_request * w);
    hazards[k] = (mine.uses[k] + 2 * mean_request * common * w) / (mine.exposure[k] + 2 * mean_request * w);
  }
  for (unsigned k = 0; k < ages; ++k) {
    double uses = 0, time = 0, left = 1;
    for (unsigned stop = k; stop < ages; ++stop) {
      const double p = -std::expm1(-hazards[stop] * width(stop));
      uses += left * p;
      time += left * p / hazards[stop];
      left *= 1 - p;
      best[k] = std::max(best[k], uses / time);
    }
  }
  return best;
}

}  // namespace

TEST_CASE(
    "hazard model: a value is the best rate over all ages at which one might stop waiting, also where nobody is") {
  for (std::uint32_t seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto below = [&](unsigned end) { return static_cast<unsigned>(random() % end); };
    hazard_model model;
    for (int i = 0; i < 300; ++i) model.request(10);
    constexpr std::size_t slots = 1U << 20U;
    model.learn(0, slots, 1, [](unsigned) {});  // it fades for the first time before there is anything
    std::vector<std::uint8_t> classes;
    for (unsigned uses = 1; uses <= 4; ++uses) {
      kvx::detail::block_traits traits;
      traits.uses = uses;
      classes.push_back(model.classify(traits, 0));
    }
    account all;
    std::vector<account> each(classes.size());
    for (std::size_t c = 0; c < classes.size(); ++c) {
      const unsigned oldest = 1 + below(ages - 2);
      for (int i = 0; i < 6; ++i)
        live(model, classes[c], below(oldest), 1 + below(400), static_cast<fate>(below(3)), each[c], all);
    }
    // Each class twice: what all of them have in common is renewed in between.
    std::size_t renewed = 0;
    while (renewed < 3 * classes.size()) model.learn(64, slots, fitted_at, [&](unsigned) { ++renewed; });
    for (std::size_t c = 0; c < classes.size(); ++c) {
      const std::array<double, ages> expected = best_rates(each[c], all, 10);
      for (unsigned k = 0; k < ages; ++k) {
        CAPTURE(c);
        CAPTURE(k);
        CHECK(model.values(classes[c])[k] == doctest::Approx(expected[k]).epsilon(0.003));
      }
    }
  }
}

TEST_CASE("hazard model: what all classes have in common is the same whether there was news of blocks or not") {
  // Blocks of two kinds: the first are used at age 2, the others given up. A class that nobody is of shows the rest.
  const auto value_at_2 = [](unsigned news, bool over) {
    constexpr std::size_t blocks = 1000;
    hazard_model model;
    for (int i = 0; i < 300; ++i) model.request(1);
    model.learn(0, blocks, 1, [](unsigned) {});
    kvx::detail::block_history history(3 * blocks, 10);
    std::uint32_t now = 1;
    const auto pass_time = [&] { history.grow_older(++now, model, [](auto...) {}); };
    kvx::detail::block_traits first, second, nobody;
    second.uses = 2;
    nobody.uses = 4;
    history.begin_call();
    pass_time();
    std::vector<std::uint32_t> used, unused;
    for (std::uint64_t key = 1; key <= 2 * blocks; ++key) {
      const std::uint32_t e = history.create(key, model);
      history.push_newest(e);
      history.enter_age(e, now, model.classify(key % 2 == 0 ? first : second, now), history.none, model);
      (key % 2 == 0 ? used : unused).push_back(e);
    }
    const auto tell = [&](unsigned hint) {
      for (const std::uint32_t e : used)
        history.set_news(e, hint != 0 ? model.classify_news(1, 0, hint, now) : std::uint8_t{0}, model);
    };
    if (news != 0) tell(news);
    pass_time();
    if (news != 0) tell(news + 1);
    pass_time();
    if (over)
      for (const std::uint32_t e : unused) history.change_class(e, model.classify_news(2, 0, 3, now), model);
    for (const std::uint32_t e : used) history.leave_age(e, true, model);
    for (const std::uint32_t e : unused) history.leave_age(e, false, model);
    const std::uint8_t cls = model.classify(nobody, now);
    for (int round = 0; round < 2; ++round) model.learn(0, blocks, 1, [](unsigned) {});
    return model.values(cls)[2];
  };
  const auto without = doctest::Approx(value_at_2(0, false)).epsilon(1e-5);
  CHECK(value_at_2(1, false) == without);
  CHECK(value_at_2(0, true) == without);
  CHECK(value_at_2(1, true) == without);
}

TEST_CASE("hazard model: classes are renewed more rarely the more is remembered") {
  const auto renewals = [](std::size_t slots) {
    hazard_model model;
    for (unsigned kind = 0; kind < 64; ++kind) {
      kvx::detail::block_traits traits;
      traits.uses = 1 + kind % 4;
      traits.gap = 3 * (kind / 4 % 8);
      traits.last_of_request = kind >= 32;
      static_cast<void>(model.classify(traits, 0));
    }
    constexpr std::uint32_t past_the_beginning = 1000;
    std::size_t late = 0;
    for (int i = 0; i < 8000; ++i)
      model.learn(64, slots, past_the_beginning, [&](unsigned) { late += i >= 6000 ? 1U : 0U; });
    return late;
  };
  constexpr std::size_t blocks = 2000 * 64;
  CHECK(renewals(64) == blocks / 16);
  // 16 * slots blocks are remembered, and 65 classes are due while one part in 32 of them comes.
  CHECK(renewals(8192) == doctest::Approx(static_cast<double>(blocks) / (16 * 8192 / (32 * 65))).epsilon(0.01));
  CHECK(renewals(std::size_t{1} << 24U) == blocks / 128);
}
