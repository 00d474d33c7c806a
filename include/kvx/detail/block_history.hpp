// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/hazard_model.hpp>
#include <kvx/detail/huge_page_allocator.hpp>
#include <kvx/detail/untouched_array.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx::detail {

/// Blocks that requests used lately, cached or not, in the order of their last use, each in the bucket of its age.
///
/// The newest `capacity` of them are what LRU would hold. The oldest is dropped for a new one; those that are held or
/// chosen (see there) are passed over, and dropped once they are neither.
/// Cost    O(1) amortised; 36 bytes per entry, 4 for the buckets; memory is touched only as blocks come
class block_history {
 public:
  using id = std::uint32_t;
  static constexpr id none = 0xFFFF'FFFFU;

  /// What ageing looks at, block after block; densely, since that is most of the work.
  struct entry {
    id older, newer;
    std::uint32_t last;  // time of its last use
    std::uint8_t cls;
    std::uint8_t news;  // a class as well: what the engine said since; 0: nothing
    std::uint8_t gap : 5, leaf : 1, deciding : 1, unused : 1;
    std::uint8_t uses : 3, hint : 3, in_lru : 1, passed : 1;
  };
  static_assert(sizeof(entry) == 16);
  struct whereabouts {
    std::uint32_t key_low, key_high;
    id next;               // in the same bucket of the table, or free
    slot_index slot;       // where the tier holds it
    std::uint32_t choice;  // its place among those that the policy wants held

    [[nodiscard]] std::uint64_t key() const noexcept { return key_low | std::uint64_t{key_high} << 32U; }
  };
  static_assert(sizeof(whereabouts) == 20);

  block_history(std::size_t entries, std::size_t lru_capacity)
      : entries_(entries), places_(entries), size_(entries), heads_(entries, none), lru_capacity_(lru_capacity) {
    oldest_of_age_.fill(none);
  }

  [[nodiscard]] entry& operator[](id e) noexcept { return entries_[e]; }
  [[nodiscard]] const entry& operator[](id e) const noexcept { return entries_[e]; }
  [[nodiscard]] const whereabouts& place(id e) const noexcept { return places_[e]; }
  [[nodiscard]] std::uint64_t key(id e) const noexcept { return places_[e].key(); }
  [[nodiscard]] slot_index slot(id e) const noexcept { return places_[e].slot; }
  void set_slot(id e, slot_index slot) noexcept { places_[e].slot = slot; }
  [[nodiscard]] std::uint32_t choice(id e) const noexcept { return places_[e].choice; }
  void set_choice(id e, std::uint32_t choice) noexcept {
    places_[e].choice = choice;
    entries_[e].leaf = choice != none ? 1 : 0;
  }

  [[nodiscard]] id find(std::uint64_t key) const noexcept {
    id e = heads_[home(key)];
    while (e != none && places_[e].key() != key) e = places_[e].next;
    return e;
  }
  /// Two steps towards find(), each for many keys before the next, so that their cache misses overlap.
  void prefetch_bucket(std::uint64_t key) const noexcept { __builtin_prefetch(&heads_[home(key)]); }
  void prefetch_entry(std::uint64_t key) const noexcept {
    const id e = heads_[home(key)];
    if (e == none) return;
    __builtin_prefetch(&places_[e]);
    __builtin_prefetch(&entries_[e]);
  }

  void prefetch_at(id e) const noexcept {
    __builtin_prefetch(&entries_[e]);
    __builtin_prefetch(&places_[e]);
  }

  /// An entry for a key that has none, in no order and no bucket yet. Others may be forgotten for it; their keys
  /// change.
  [[nodiscard]] id create(std::uint64_t key, hazard_model& model) noexcept {
    id e = none;
    if (used_ < size_) {
      e = static_cast<id>(used_++);
    } else {
      // Some are dropped ahead of need, so that nobody has to pass over a long row of held ones at once.
      for (std::size_t steps = most_steps; steps != 0 && free_count_ < size_ / reserve_share; --steps) drop_next(model);
      while (free_ == none) drop_next(model);
      e = free_;
      free_ = places_[e].next;
      --free_count_;
      if (drop_ != none) {
        const id after = entries_[drop_].newer;
        if (after != none) __builtin_prefetch(&places_[after]);
        prefetch_bucket(places_[drop_].key());  // fetched when the one before it was dropped
      }
    }
    entries_[e] = entry{};
    id& head = heads_[home(key)];
    places_[e] = {static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32U), head, no_slot, none};
    head = e;
    return e;
  }

  /// Forgets an entry that is behind the point up to which old ones were dropped, once nobody needs it.
  void drop_if_old(id e, hazard_model& model) noexcept {
    if (entries_[e].passed != 0 && droppable(e)) forget(e, model);
  }

  /// Takes an entry out of its age: it is used, or dropped.
  void leave_age(id e, bool used, hazard_model& model) noexcept {
    const entry& x = entries_[e];
    const unsigned at = age(e);
    for_classes(x, [&](unsigned cls) { model.leave(cls, at, x.last + hazard_model::edge(at), now_, used); });
    if (oldest_of_age_[at] != e) return;
    oldest_of_age_[at] = x.newer != none && age(x.newer) == at ? x.newer : none;
  }
  /// Precondition: it is in the order of last uses.
  void enter_age(id e, hazard_model& model) noexcept {
    const entry& x = entries_[e];
    const unsigned at = age(e);
    for_classes(x, [&](unsigned cls) { model.enter(cls, at, x.last + hazard_model::edge(at)); });
    if (oldest_of_age_[at] == none || oldest_of_age_[at] == x.newer) oldest_of_age_[at] = e;
  }
  /// The age of an entry, as far as grow_older() went.
  [[nodiscard]] unsigned age(id e) const noexcept { return hazard_model::age_of(now_ - entries_[e].last); }

  /// Lets a request pass: tells the model which entries outgrew their age, and `moved(entry)` of the leaves among them.
  template <class Moved>
  void grow_older(std::uint32_t now, hazard_model& model, Moved&& moved) noexcept {
    now_ = now;
    for (unsigned age = 0; age + 1 < hazard_model::ages; ++age) {
      const id first = oldest_of_age_[age];
      const std::uint32_t outgrown = hazard_model::edge(age + 1);
      id e = first;
      while (e != none && now - entries_[e].last >= outgrown) {
        // Blocks of one request and class are mostly in a row, and are counted at once.
        const std::uint32_t last = entries_[e].last;
        const entry kind = entries_[e];
        std::uint32_t count = 0;
        const entry* x = &entries_[e];
        do {
          ++count;
          const id newer = x->newer;
          if (x->leaf != 0) moved(e);
          e = newer;
          x = &entries_[e != none ? e : 0];
        } while (e != none && x->last == last && x->cls == kind.cls && x->news == kind.news);
        for_classes(kind, [&](unsigned cls) { model.grow_older(cls, age, count, last, now); });
      }
      if (e == first) continue;
      oldest_of_age_[age] = e != none && now - entries_[e].last >= hazard_model::edge(age) ? e : none;
      if (oldest_of_age_[age + 1] == none) oldest_of_age_[age + 1] = first;
    }
  }
  /// Gives an entry a class for the news of it, or takes the last one back (0); it counts there as if it always had.
  void set_news(id e, std::uint8_t news, hazard_model& model) noexcept {
    entry& x = entries_[e];
    const unsigned at = age(e);
    const std::uint32_t entered = x.last + hazard_model::edge(at);
    if (x.news != 0) model.leave(x.news, at, entered, entered, false);
    x.news = news;
    if (news != 0) model.enter(news, at, entered);
  }
  /// Gives an entry the class that it should have had from its last use on.
  void correct_class(id e, std::uint8_t cls, hazard_model& model) noexcept {
    entry& x = entries_[e];
    const unsigned at = age(e);
    const std::uint32_t entered = x.last + hazard_model::edge(at);
    model.leave(x.cls, at, entered, entered, false);
    x.cls = cls;
    model.enter(cls, at, entered);
  }
  /// Ends an entry's stay in its class, unused, and puts it into another for good: its session is over.
  void change_class(id e, std::uint8_t cls, hazard_model& model) noexcept {
    set_news(e, 0, model);
    entry& x = entries_[e];
    const unsigned at = age(e);
    const std::uint32_t entered = x.last + hazard_model::edge(at);
    model.leave(x.cls, at, entered, now_, false);
    x.cls = cls;
    model.enter(cls, at, entered);
  }
  /// The class by which an entry is judged.
  [[nodiscard]] unsigned standing(id e) const noexcept {
    return entries_[e].news != 0 ? entries_[e].news : entries_[e].cls;
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
  // An entry counts in its own class and in that of all of them, and while there is news of it in that one too.
  template <class Count>
  static void for_classes(const entry& x, Count&& count) noexcept {
    count(x.cls);
    count(0);
    if (x.news != 0) count(x.news);
  }
  [[nodiscard]] std::size_t home(std::uint64_t key) const noexcept {
    key = (key ^ (key >> 32U)) * 0x9E37'79B9'7F4A'7C15U;
    key ^= key >> 32U;
    return static_cast<std::size_t>(((key & 0xFFFF'FFFFU) * heads_.size()) >> 32U);
  }
  [[nodiscard]] bool droppable(id e) const noexcept { return places_[e].choice == none && places_[e].slot == no_slot; }
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
    if (lru_oldest_ == e) lru_oldest_ = entries_[e].newer;
  }
  void forget(id e, hazard_model& model) noexcept {
    leave_age(e, false, model);
    if (entries_[e].in_lru != 0) leave_lru(e);
    unlink(e);
    id* at = &heads_[home(places_[e].key())];
    while (*at != e) at = &places_[*at].next;
    *at = places_[e].next;
    places_[e].key_low = ~places_[e].key_low;  // for those who remember where it was
    places_[e].next = free_;
    free_ = e;
    ++free_count_;
  }

  // What is held and chosen, twice the slots, lies in one row at worst. Passing over it while the reserve lasts takes
  // fewer steps at a time than this.
  static constexpr std::size_t most_steps = 16;
  static constexpr std::size_t reserve_share = 64;

  untouched_array<entry> entries_;
  untouched_array<whereabouts> places_;
  std::size_t size_;
  std::vector<id, huge_page_allocator<id>> heads_;
  std::array<id, hazard_model::ages> oldest_of_age_{};
  std::uint32_t now_ = 0;
  std::size_t used_ = 0;
  id free_ = none;
  std::size_t free_count_ = 0;
  id oldest_ = none;
  id newest_ = none;
  id drop_ = none;
  id lru_oldest_ = none;
  std::size_t lru_size_ = 0;
  std::size_t lru_capacity_;
};

}  // namespace kvx::detail
