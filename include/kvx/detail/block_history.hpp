// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/cohorts.hpp>
#include <kvx/detail/hazard_model.hpp>
#include <kvx/detail/key_table.hpp>
#include <kvx/detail/untouched_array.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvx::detail {

/// Blocks that requests used lately, cached or not, in the order of their last use, each counted at its age.
///
/// The newest `capacity` of them are what LRU would hold. The oldest is dropped for a new one; those that are held or
/// chosen (see there) are passed over, and dropped once they are neither.
/// Cost    O(1) amortised; 32 bytes per entry, 12 for the table and 24 for each class of blocks of a request; memory
///         but the table's is touched only as blocks come
class block_history {
 public:
  using id = std::uint32_t;
  static constexpr id none = 0xFFFF'FFFFU;

  /// Half a cache line, so that to look at one of them is one miss.
  struct alignas(32) entry {
    std::uint64_t key;
    id older, newer;       // newer: or the next free one
    slot_index slot;       // where the tier holds it
    std::uint32_t choice;  // its place among those that the policy wants held
    std::uint32_t cohort;  // time of its last use, and class
    std::uint32_t gap : 5, deciding : 1, in_lru : 1, passed : 1, uses : 3, hint : 3, unused : 18;
  };
  static_assert(sizeof(entry) == 32);

  block_history(std::size_t entries, std::size_t lru_capacity)
      : entries_(entries), size_(entries), table_(entries), cohorts_(entries + 1), lru_capacity_(lru_capacity) {}

  [[nodiscard]] entry& operator[](id e) noexcept { return entries_[e]; }
  [[nodiscard]] const entry& operator[](id e) const noexcept { return entries_[e]; }
  [[nodiscard]] std::uint64_t key(id e) const noexcept { return entries_[e].key; }
  [[nodiscard]] slot_index slot(id e) const noexcept { return entries_[e].slot; }
  [[nodiscard]] std::uint32_t choice(id e) const noexcept { return entries_[e].choice; }
  /// Time of its last use.
  [[nodiscard]] std::uint32_t last(id e) const noexcept { return cohorts_[entries_[e].cohort].last; }
  /// The head of the ring of leaves that are of an entry's time and class.
  [[nodiscard]] std::uint32_t& leaves(id e) noexcept { return cohorts_.leaves(entries_[e].cohort); }

  [[nodiscard]] id find(std::uint64_t key) const noexcept {
    return table_.find(key_table::hash(key), [&](id e) { return entries_[e].key == key; });
  }
  /// Three steps that do what find() does, each for many keys before the next, so that their cache misses overlap.
  [[nodiscard]] std::uint32_t find_soon(std::uint64_t key) const noexcept {
    const std::uint32_t hash = key_table::hash(key);
    table_.prefetch(hash);
    return hash;
  }
  [[nodiscard]] id candidate(std::uint32_t hash) const noexcept {
    const id e = table_.find(hash, [](id) { return true; });
    if (e != none) prefetch_at(e);
    return e;
  }
  [[nodiscard]] id find(std::uint64_t key, id candidate) const noexcept {
    return candidate == none || entries_[candidate].key == key ? candidate : find(key);
  }
  void prefetch_at(id e) const noexcept { __builtin_prefetch(&entries_[e]); }

  /// A call begins, in which some may be dropped ahead of need.
  void begin_call() noexcept { free_at_first_ = free_count_; }
  /// An entry for a key that has none, in no order and no age yet. Others may be forgotten for it; their keys
  /// change.
  [[nodiscard]] id create(std::uint64_t key, hazard_model& model) noexcept {
    id e = none;
    if (used_ < size_) {
      e = static_cast<id>(used_++);
    } else {
      // Some are dropped ahead of need, so that nobody has to pass over a long row of held ones at once.
      const std::size_t enough =
          std::min(size_ / reserve_share, std::max(free_at_first_ + most_ahead, free_count_ + 1));
      for (std::size_t steps = most_steps; steps != 0 && free_count_ < enough; --steps) drop_next(model);
      while (free_ == none) drop_next(model);
      e = free_;
      free_ = entries_[e].newer;
      --free_count_;
      if (drop_ != none) {
        const id after = entries_[drop_].newer;
        if (after != none) prefetch_at(after);
        table_.prefetch(key_table::hash(entries_[drop_].key));  // fetched when the one before it was dropped
      }
    }
    entry& x = entries_[e];  // field by field: a copy of a whole one would wait for its fields to be stored
    x.key = key;
    x.slot = no_slot;
    x.choice = none;
    x.gap = x.deciding = x.in_lru = x.passed = 0;
    x.uses = x.hint = 0;
    table_.insert(key_table::hash(key), e);
    return e;
  }

  /// Forgets an entry that is behind the point up to which old ones were dropped, once nobody needs it.
  void drop_if_old(id e, hazard_model& model) noexcept {
    if (entries_[e].passed != 0 && droppable(e)) forget(e, model);
  }

  /// Takes an entry out of its age: it is used, or dropped.
  void leave_age(id e, bool used, hazard_model& model) noexcept {
    const id at = entries_[e].cohort;
    const cohorts::cohort& x = cohorts_[at];
    const unsigned old = cohorts_.age(at);
    const std::uint32_t entered = x.last + hazard_model::edge(old);
    model.leave(x.cls, old, entered, cohorts_.now(), used);
    if (x.news != 0) model.leave_beside(x.news, old, entered, cohorts_.now(), used);
    cohorts_.part(at);
  }
  /// Puts an entry that was used at `last` into its age.
  /// Shape   near: an entry of about that time, or `none`
  void enter_age(id e, std::uint32_t last, unsigned cls, id near, hazard_model& model) noexcept {
    count_in(e, cohorts_.join(last, cls, 0, near != none ? entries_[near].cohort : none), model);
  }
  /// Puts an entry into the age of one that was used with it, is of its class, and of which there is no news.
  void enter_age_of(id e, id other, hazard_model& model) noexcept {
    const id at = entries_[other].cohort;
    cohorts_.join(at);
    count_in(e, at, model);
  }
  /// The age of an entry, as far as grow_older() went.
  [[nodiscard]] unsigned age(id e) const noexcept { return cohorts_.age(entries_[e].cohort); }

  /// Tells `leaves(leaf)` of the cohorts that grow_older() will move, so that they can be fetched.
  template <class Leaves>
  void prefetch_growth(std::uint32_t now, Leaves&& leaves) const noexcept {
    cohorts_.prefetch_growth(now, leaves);
  }
  /// Lets a request pass: tells the model which entries outgrew their age, and `moved(leaf, class, age)` of one of the
  /// leaves of each cohort among them.
  template <class Moved>
  void grow_older(std::uint32_t now, hazard_model& model, Moved&& moved) noexcept {
    cohorts_.grow_older(now, model, [&](const cohorts::cohort& c) {
      moved(c.leaves, c.news != 0 ? c.news : c.cls, hazard_model::age_of(now - c.last));
    });
  }
  /// Gives an entry a class for the news of it, or takes the last one back (0); it counts there as if it always had.
  void set_news(id e, std::uint8_t news, hazard_model& model) noexcept {
    const cohorts::cohort from = cohorts_[entries_[e].cohort];
    const unsigned at = age(e);
    const std::uint32_t entered = from.last + hazard_model::edge(at);
    if (from.news != 0) model.leave_beside(from.news, at, entered, entered, false);
    move(e, from.cls, news);
    if (news != 0) model.enter_beside(news, at, entered);
  }
  /// Gives an entry the class that it should have had from its last use on.
  void correct_class(id e, std::uint8_t cls, hazard_model& model) noexcept {
    replace_class(e, cls, last(e) + hazard_model::edge(age(e)), model);
  }
  /// Ends an entry's stay in its class, unused, and puts it into another for good: its session is over.
  void change_class(id e, std::uint8_t cls, hazard_model& model) noexcept {
    set_news(e, 0, model);
    replace_class(e, cls, cohorts_.now(), model);
  }
  [[nodiscard]] unsigned cls(id e) const noexcept { return cohorts_[entries_[e].cohort].cls; }
  /// The class by which an entry is judged.
  [[nodiscard]] unsigned standing(id e) const noexcept {
    const cohorts::cohort& c = cohorts_[entries_[e].cohort];
    return c.news != 0 ? c.news : c.cls;
  }

  /// What LRU would give up next; `newer` leads on to the rest of what it would hold.
  [[nodiscard]] id lru_oldest() const noexcept { return lru_oldest_; }
  void unlink(id e) noexcept {
    const entry& x = entries_[e];
    if (lru_oldest_ == e) lru_oldest_ = x.newer;
    if (drop_ == e) drop_ = x.newer;
    (x.older != none ? entries_[x.older].newer : oldest_) = x.newer;
    (x.newer != none ? entries_[x.newer].older : newest_) = x.older;
  }
  void push_newest(id e) noexcept {
    entries_[e].older = newest_;
    entries_[e].newer = none;
    (newest_ != none ? entries_[newest_].newer : oldest_) = e;
    newest_ = e;
  }
  /// Puts an entry right behind one that was used at the same time: LRU gives it up just before.
  void push_behind(id e, id front) noexcept {
    entry& x = entries_[e];
    x.newer = front;
    x.older = entries_[front].older;
    (x.older != none ? entries_[x.older].newer : oldest_) = e;
    entries_[front].older = e;
    if (drop_ == front) drop_ = e;
  }
  /// Puts an entry into what LRU would hold, unless that begins with newer ones; returns the one that LRU would give
  /// up for it, perhaps itself, or `none`.
  [[nodiscard]] id use_in_lru(id e) noexcept {
    entry& x = entries_[e];
    if (x.newer != none && entries_[x.newer].in_lru == 0) {
      if (x.in_lru == 0) return none;
      leave_lru(e);
      return e;
    }
    if (lru_oldest_ == x.newer) lru_oldest_ = e;
    if (x.in_lru != 0) return none;
    x.in_lru = 1;
    if (++lru_size_ <= lru_capacity_) return none;
    const id out = lru_oldest_;
    leave_lru(out);
    return out;
  }

 private:
  void count_in(id e, id cohort, hazard_model& model) noexcept {
    entries_[e].cohort = cohort;
    const cohorts::cohort& x = cohorts_[cohort];
    const unsigned young = cohorts_.age(cohort);
    model.enter(x.cls, young, x.last + hazard_model::edge(young));
  }
  void move(id e, unsigned cls, unsigned news) noexcept {
    const id from = entries_[e].cohort;
    entries_[e].cohort = cohorts_.join(cohorts_[from].last, cls, news, from);
    cohorts_.part(from);
  }
  void replace_class(id e, std::uint8_t cls, std::uint32_t until, hazard_model& model) noexcept {
    const cohorts::cohort from = cohorts_[entries_[e].cohort];
    const unsigned at = age(e);
    const std::uint32_t entered = from.last + hazard_model::edge(at);
    move(e, cls, from.news);
    model.change_class(from.cls, cls, at, entered, until);
  }
  [[nodiscard]] bool droppable(id e) const noexcept {
    return entries_[e].choice == none && entries_[e].slot == no_slot;
  }
  // Forgets the next one, or passes over it. There is always something to drop: twice the capacity, held and chosen,
  // are less than the history.
  void drop_next(hazard_model& model) noexcept {
    if (drop_ == none) drop_ = oldest_;
    if (drop_ == none) return;
    if (droppable(drop_)) {
      forget(drop_, model);
    } else {
      entries_[drop_].passed = 1;
      drop_ = entries_[drop_].newer;
    }
  }
  void leave_lru(id e) noexcept {
    entries_[e].in_lru = 0;
    --lru_size_;
    if (lru_oldest_ != e) return;
    lru_oldest_ = entries_[e].newer;
    if (lru_oldest_ != none) prefetch_at(lru_oldest_);  // mostly the next to leave
  }
  void forget(id e, hazard_model& model) noexcept {
    leave_age(e, false, model);
    if (entries_[e].in_lru != 0) leave_lru(e);
    unlink(e);
    entry& x = entries_[e];
    table_.erase(key_table::hash(x.key), e);
    x.key ^= 0xFFFF'FFFFU;  // for those who remember where it was
    x.newer = free_;
    free_ = e;
    ++free_count_;
  }

  // What is held and chosen, twice the slots, lies in one row at worst. Passing over it while the reserve lasts takes
  // fewer steps at a time than this.
  static constexpr std::size_t most_steps = 16;
  static constexpr std::size_t reserve_share = 64;
  // When a history is full for the first time all of the reserve is due: so many more in a call, then one for one.
  static constexpr std::size_t most_ahead = 256;

  untouched_array<entry> entries_;
  std::size_t size_;
  key_table table_;
  cohorts cohorts_;
  std::size_t used_ = 0;
  id free_ = none;
  std::size_t free_count_ = 0;
  std::size_t free_at_first_ = 0;  // in this call
  id oldest_ = none;
  id newest_ = none;
  id drop_ = none;
  id lru_oldest_ = none;
  std::size_t lru_size_ = 0;
  std::size_t lru_capacity_;
};

}  // namespace kvx::detail
