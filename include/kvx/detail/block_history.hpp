// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/hazard_model.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
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

  struct entry {
    std::uint32_t key_low, key_high;
    id older, newer;
    id next;             // in the same bucket of the table, or free
    std::uint32_t last;  // time of its last use
    slot_index slot;     // where the tier holds it
    id choice;           // its place among those that the policy wants held
    std::uint8_t cls, age, gap;
    std::uint8_t uses : 3, in_lru : 1, passed : 1, hint : 3;

    [[nodiscard]] std::uint64_t key() const noexcept { return key_low | std::uint64_t{key_high} << 32U; }
  };
  static_assert(sizeof(entry) == 36);

  block_history(std::size_t entries, std::size_t lru_capacity)
      : entries_(new entry[entries]), size_(entries), heads_(entries, none), lru_capacity_(lru_capacity) {
    oldest_of_age_.fill(none);
  }

  [[nodiscard]] entry& operator[](id e) noexcept { return entries_[e]; }
  [[nodiscard]] const entry& operator[](id e) const noexcept { return entries_[e]; }
  [[nodiscard]] std::size_t capacity() const noexcept { return size_; }

  [[nodiscard]] id find(std::uint64_t key) const noexcept {
    id e = heads_[home(key)];
    while (e != none && entries_[e].key() != key) e = entries_[e].next;
    return e;
  }
  void prefetch(std::uint64_t key) const noexcept { __builtin_prefetch(&heads_[home(key)]); }

  /// An entry for a key that has none, in no order and no bucket yet.
  [[nodiscard]] id create(std::uint64_t key, std::uint32_t now, hazard_model& model) noexcept {
    id e = none;
    if (free_ != none) {
      e = free_;
      free_ = entries_[e].next;
    } else if (used_ < size_) {
      e = static_cast<id>(used_++);
    } else {
      pass_over(SIZE_MAX);
      e = drop_;
      forget(e, now, model);
      free_ = entries_[e].next;
      // So that nobody has to pass over a long row of held ones at once.
      pass_over(8);
    }
    entry& x = entries_[e];
    x = entry{};
    x.key_low = static_cast<std::uint32_t>(key);
    x.key_high = static_cast<std::uint32_t>(key >> 32U);
    x.slot = no_slot;
    x.choice = none;
    id& head = heads_[home(key)];
    x.next = head;
    head = e;
    return e;
  }

  /// Forgets an entry that is behind the point up to which old ones were dropped, once nobody needs it.
  void drop_if_old(id e, std::uint32_t now, hazard_model& model) noexcept {
    if (entries_[e].passed != 0 && droppable(e)) forget(e, now, model);
  }

  /// Takes an entry out of its age, for reuse at `now` or for another class.
  void leave_age(id e, std::uint32_t now, bool used, hazard_model& model) noexcept {
    const entry& x = entries_[e];
    model.leave(x.cls, x.age, x.last + hazard_model::edge(x.age), now, used);
    if (oldest_of_age_[x.age] != e) return;
    const bool more = x.newer != none && entries_[x.newer].age == x.age;
    oldest_of_age_[x.age] = more ? x.newer : none;
  }
  void enter_age(id e, unsigned age, hazard_model& model) noexcept {
    entry& x = entries_[e];
    x.age = static_cast<std::uint8_t>(age);
    model.enter(x.cls, age, x.last + hazard_model::edge(age));
    if (oldest_of_age_[age] == none) oldest_of_age_[age] = e;
  }
  /// The oldest entry of an age, `none` when it is empty.
  [[nodiscard]] id oldest_of(unsigned age) const noexcept { return oldest_of_age_[age]; }
  /// Gives an entry another class without a use; its age stays.
  void reclassify(id e, std::uint8_t cls, hazard_model& model) noexcept {
    entry& x = entries_[e];
    model.move(x.cls, cls, x.age, x.last + hazard_model::edge(x.age));
    x.cls = cls;
  }

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
  /// Puts the newest entry into what LRU would hold; returns the one that it would give up for it, or `none`.
  [[nodiscard]] id use_in_lru(id e) noexcept {
    entry& x = entries_[e];
    if (lru_oldest_ == none) lru_oldest_ = e;
    if (x.in_lru != 0) return none;
    x.in_lru = 1;
    if (++lru_size_ <= lru_capacity_) return none;
    const id out = lru_oldest_;
    leave_lru(out);
    return out;
  }

 private:
  [[nodiscard]] std::size_t home(std::uint64_t key) const noexcept {
    key = (key ^ (key >> 32U)) * 0x9E37'79B9'7F4A'7C15U;
    key ^= key >> 32U;
    return static_cast<std::size_t>(((key & 0xFFFF'FFFFU) * heads_.size()) >> 32U);
  }
  [[nodiscard]] bool droppable(id e) const noexcept { return entries_[e].choice == none && entries_[e].slot == no_slot; }
  // There is always something to drop: twice the capacity, held and chosen, are less than the history.
  void pass_over(std::size_t steps) noexcept {
    for (; steps != 0; --steps) {
      if (drop_ == none) drop_ = oldest_;
      if (drop_ == none || droppable(drop_)) return;
      entries_[drop_].passed = 1;
      drop_ = entries_[drop_].newer;
    }
  }
  void leave_lru(id e) noexcept {
    entries_[e].in_lru = 0;
    --lru_size_;
    if (lru_oldest_ == e) lru_oldest_ = entries_[e].newer;
  }
  void forget(id e, std::uint32_t now, hazard_model& model) noexcept {
    leave_age(e, now, false, model);
    if (entries_[e].in_lru != 0) leave_lru(e);
    unlink(e);
    id* at = &heads_[home(entries_[e].key())];
    while (*at != e) at = &entries_[*at].next;
    *at = entries_[e].next;
    entries_[e].next = free_;
    free_ = e;
  }

  std::unique_ptr<entry[]> entries_;
  std::size_t size_;
  std::vector<id> heads_;
  std::array<id, hazard_model::ages> oldest_of_age_{};
  std::size_t used_ = 0;
  id free_ = none;
  id oldest_ = none;
  id newest_ = none;
  id drop_ = none;
  id lru_oldest_ = none;
  std::size_t lru_size_ = 0;
  std::size_t lru_capacity_;
};

}  // namespace kvx::detail
