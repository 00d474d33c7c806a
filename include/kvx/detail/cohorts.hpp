// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/hazard_model.hpp>
#include <kvx/detail/untouched_array.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvx::detail {

/// The blocks of a history counted by the time of their last use and their class, in the order of time.
///
/// A request's blocks are of few classes and grow older together: a cohort at a time, not each of them.
/// Cost    O(1) where a request's blocks are of few classes; 24 bytes per cohort, memory is touched only as they come
class cohorts {
 public:
  using id = std::uint32_t;
  static constexpr id none = 0xFFFF'FFFFU;

  struct cohort {
    id older, newer;       // newer: or the next free one
    std::uint32_t last;    // time of the blocks' last use
    std::uint32_t count;   // of blocks
    std::uint32_t leaves;  // one of those among them that wait in a queue, for whoever keeps them
    std::uint8_t cls;
    std::uint8_t news;  // a class as well: what the engine said since; 0: nothing
  };

  explicit cohorts(std::size_t most) : all_(most) { oldest_of_age_.fill(none); }

  [[nodiscard]] const cohort& operator[](id c) const noexcept { return all_[c]; }
  [[nodiscard]] std::uint32_t& leaves(id c) noexcept { return all_[c].leaves; }
  /// The age of a cohort, as far as grow_older() went.
  [[nodiscard]] unsigned age(id c) const noexcept { return hazard_model::age_of(now_ - all_[c].last); }
  [[nodiscard]] std::uint32_t now() const noexcept { return now_; }

  /// Counts one more block; returns its cohort.
  /// Shape   near: a cohort of about that time, or `none`
  [[nodiscard]] id join(std::uint32_t last, unsigned cls, unsigned news, id near) noexcept {
    id c = near != none ? near : newest_;
    if (c == none || !is(c, last, cls, news)) c = find_or_make(last, cls, news, c);
    ++all_[c].count;
    return c;
  }
  void join(id c) noexcept { ++all_[c].count; }
  /// Counts one block less.
  void part(id c) noexcept {
    cohort& x = all_[c];
    if (--x.count != 0) return;
    const unsigned at = age(c);
    if (oldest_of_age_[at] == c) oldest_of_age_[at] = x.newer != none && age(x.newer) == at ? x.newer : none;
    (x.older != none ? all_[x.older].newer : oldest_) = x.newer;
    (x.newer != none ? all_[x.newer].older : newest_) = x.older;
    x.newer = free_;
    free_ = c;
  }

  /// Lets time pass: tells the model who outgrew their age, and `moved(cohort)` of those with leaves among them.
  template <class Moved>
  void grow_older(std::uint32_t now, hazard_model& model, Moved&& moved) noexcept {
    now_ = now;
    for (unsigned age = 0; age + 1 < hazard_model::ages; ++age) {
      const id first = oldest_of_age_[age];
      const std::uint32_t outgrown = hazard_model::edge(age + 1);
      id c = first;
      while (c != none && now - all_[c].last >= outgrown) {
        const cohort& x = all_[c];
        model.grow_older(x.cls, age, x.count, x.last, now);
        if (x.news != 0) model.grow_older_beside(x.news, age, x.count, x.last, now);
        if (x.leaves != none) moved(x);
        c = x.newer;
      }
      if (c == first) continue;
      oldest_of_age_[age] = c != none && now - all_[c].last >= hazard_model::edge(age) ? c : none;
      if (oldest_of_age_[age + 1] == none) oldest_of_age_[age + 1] = first;
    }
    for (const id c : oldest_of_age_)  // which the next time begins with
      if (c != none) __builtin_prefetch(&all_[c]);
  }
  /// Tells `leaves(leaf)` of the cohorts that grow_older() will begin with, so that they can be fetched.
  template <class Leaves>
  void prefetch_growth(std::uint32_t now, Leaves&& leaves) const noexcept {
    for (unsigned age = 0; age + 1 < hazard_model::ages; ++age) {
      const id c = oldest_of_age_[age];
      if (c == none || now - all_[c].last < hazard_model::edge(age + 1)) continue;
      if (all_[c].leaves != none) leaves(all_[c].leaves);
    }
  }

 private:
  [[nodiscard]] bool is(id c, std::uint32_t last, unsigned cls, unsigned news) const noexcept {
    return all_[c].last == last && all_[c].cls == cls && all_[c].news == news;
  }
  [[nodiscard]] id find_or_make(std::uint32_t last, unsigned cls, unsigned news, id c) noexcept {
    // To the newest that is not newer, then back through those of the same time.
    const std::uint32_t ago = now_ - last;
    while (c != none && now_ - all_[c].last < ago) c = all_[c].older;
    id next = c != none ? all_[c].newer : oldest_;
    for (; next != none && now_ - all_[next].last >= ago; next = all_[next].newer) c = next;
    for (id x = c; x != none && all_[x].last == last; x = all_[x].older)
      if (is(x, last, cls, news)) return x;
    id made = free_;
    if (made != none)
      free_ = all_[made].newer;
    else
      made = static_cast<id>(used_++);
    all_[made] = {c, next, last, 0, none, static_cast<std::uint8_t>(cls), static_cast<std::uint8_t>(news)};
    (c != none ? all_[c].newer : oldest_) = made;
    (next != none ? all_[next].older : newest_) = made;
    id& oldest = oldest_of_age_[age(made)];
    if (oldest == none || oldest == next) oldest = made;
    return made;
  }

  untouched_array<cohort> all_;
  std::array<id, hazard_model::ages> oldest_of_age_{};
  std::uint32_t now_ = 0;
  std::size_t used_ = 0;
  id free_ = none;
  id oldest_ = none;
  id newest_ = none;
};

}  // namespace kvx::detail
