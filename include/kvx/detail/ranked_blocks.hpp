// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/hazard_model.hpp>
#include <kvx/detail/huge_page_allocator.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace kvx::detail {

/// The blocks that a policy wants held, with their parents, and which of the leaves among them is worth least.
///
/// A leaf waits in the queue of its class and age, in order of its last use. Each class knows the least of its queues'
/// values, and a tree over the classes the least of all. A block with children among the chosen is in no queue, and
/// comes back when the last of them leaves. Leaves that were used at the same time and are of the same class are peers:
/// a ring of those in a queue, so that they can be moved together when they grow older.
/// Cost    O(1) but for the tree's 8 steps when the least of a class changes; 40 bytes per block
class ranked_blocks {
 public:
  using id = std::uint32_t;
  static constexpr id none = 0xFFFF'FFFFU;

  explicit ranked_blocks(std::size_t capacity)
      : blocks_(capacity), queues_(aside_cell + 1), values_(aside_cell, 0.0F), filled_(classes), tree_(2 * classes) {
    for (std::size_t i = capacity; i-- > 0;) {
      blocks_[i].entry = free_;
      free_ = static_cast<id>(i);
    }
  }

  void prefetch(id b) const noexcept { __builtin_prefetch(&blocks_[b]); }
  /// Fetches those beside a queued block and where it will be queued when it is a step older.
  void prefetch_move(id b) const noexcept {
    const block& x = blocks_[b];
    if (x.newer != none) prefetch(x.newer);
    if (const id last = queues_[x.cell + 1U <= aside_cell ? x.cell + 1U : aside_cell].newest; last != none)
      prefetch(last);
  }
  /// What will likely be weakest once a block has gone; it is fetched.
  [[nodiscard]] id after(id b) const noexcept {
    const block& x = blocks_[b];
    const id next = x.parent != none ? x.parent : x.newer;
    if (next != none) prefetch(next);
    return next;
  }
  [[nodiscard]] bool full() const noexcept { return free_ == none; }
  [[nodiscard]] std::uint32_t entry(id b) const noexcept { return blocks_[b].entry; }
  [[nodiscard]] bool leaf(id b) const noexcept { return blocks_[b].children == 0; }
  [[nodiscard]] bool aside(id b) const noexcept { return blocks_[b].cell == aside_cell; }
  [[nodiscard]] bool queued(id b) const noexcept { return blocks_[b].queued != 0; }

  /// Precondition: not full, and the parent is in no queue.
  [[nodiscard]] id add(std::uint32_t entry, id parent) noexcept {
    const id b = free_;
    block& x = blocks_[b];
    free_ = x.entry;
    x.entry = entry;
    x.parent = parent;
    x.children = 0;
    if (parent == none) return b;
    x.parent_life = blocks_[parent].life;
    ++blocks_[parent].children;
    return b;
  }
  /// The parent of a block that has no other child, `none` where there is none such.
  [[nodiscard]] id left_alone_without(id b) const noexcept {
    const block& x = blocks_[b];
    if (x.parent == none || blocks_[x.parent].life != x.parent_life) return none;
    return blocks_[x.parent].children == 1 ? x.parent : none;
  }
  /// Precondition: it is in no queue.
  void remove(id b) noexcept {
    block& x = blocks_[b];
    ++x.life;  // children that outlive it do not count for whoever takes its place
    x.entry = free_;
    free_ = b;
    if (x.parent != none && blocks_[x.parent].life == x.parent_life) --blocks_[x.parent].children;
  }

  /// Shape   peers: one of the ring that it joins, or `none`
  void enqueue(id b, unsigned cell, bool as_oldest, id& peers) noexcept {
    join(b, peers);
    push(b, cell, as_oldest);
  }
  /// Takes a block out of its queue.
  /// Precondition: it is in one.
  void dequeue(id b, id& peers) noexcept {
    part(b, peers);
    pull(b);
  }
  /// Puts a block that is in no queue where a queued one is, which leaves.
  /// Precondition: they are of one ring.
  void replace(id b, id by, id& peers) noexcept {
    block& x = blocks_[b];
    block& y = blocks_[by];
    queue& q = queues_[x.cell];
    y.older = x.older;
    y.newer = x.newer;
    y.cell = x.cell;
    y.queued = 1;
    x.queued = 0;
    (y.older != none ? blocks_[y.older].newer : q.oldest) = by;
    (y.newer != none ? blocks_[y.newer].older : q.newest) = by;
    const bool alone = x.next_peer == b;
    y.next_peer = alone ? by : x.next_peer;
    y.last_peer = alone ? by : x.last_peer;
    blocks_[y.next_peer].last_peer = by;
    blocks_[y.last_peer].next_peer = by;
    if (peers == b) peers = by;
  }
  /// Puts a whole ring into another queue, in its order.
  void move_peers(id peers, unsigned cell) noexcept {
    id b = peers;
    do {
      pull(b);
      push(b, cell, false);
      b = blocks_[b].next_peer;
    } while (b != peers);
  }
  /// Changes the ring of a queued block, as its class is about to change and when it has, but not its queue.
  void join(id b, id& peers) noexcept {
    block& x = blocks_[b];
    if (peers == none) {
      x.next_peer = x.last_peer = peers = b;
      return;
    }
    x.next_peer = peers;
    x.last_peer = blocks_[peers].last_peer;
    blocks_[x.last_peer].next_peer = b;
    blocks_[peers].last_peer = b;
  }
  void part(id b, id& peers) noexcept {
    const block& x = blocks_[b];
    if (x.next_peer == b) {
      peers = none;
      return;
    }
    if (peers == b) peers = x.next_peer;
    blocks_[x.last_peer].next_peer = x.next_peer;
    blocks_[x.next_peer].last_peer = x.last_peer;
  }

  /// A leaf of the least value, the oldest of its queue; `none` when no queue holds any.
  [[nodiscard]] id weakest() const noexcept { return queues_[tree_[1].cell].oldest; }
  [[nodiscard]] float least_value() const noexcept { return tree_[1].value; }
  /// Whether the parents of no block lead back to it.
  [[nodiscard]] bool lines_end() const noexcept {
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      std::size_t steps = 0;
      for (auto at = static_cast<id>(b); steps <= blocks_.size(); ++steps) {
        const block& x = blocks_[at];
        if (x.parent == none || blocks_[x.parent].life != x.parent_life) break;
        at = x.parent;
      }
      if (steps > blocks_.size()) return false;
    }
    return true;
  }
  /// Leaves that were found in use when they were weakest wait aside, in that order, until nothing else is left, or
  /// they are queued again.
  void set_aside(id b) noexcept {
    pull(b);
    push(b, aside_cell, false);
    ++aside_;
  }
  /// The weakest leaf whose entry may go: those aside are asked about first, a few in turn; then the others, which join
  /// them when they may not; then all aside. `none` when no leaf may go.
  /// Cost    amortised O(1) while a leaf that is not aside may go
  template <class MayGo>
  [[nodiscard]] id weakest_that(std::size_t tries, MayGo&& may_go) {
    if (const id b = aside_that(tries, may_go); b != none) return b;
    for (id b = weakest(); b != none && !only_aside(); b = weakest()) {
      if (may_go(blocks_[b].entry)) return b;
      set_aside(b);
    }
    return aside_that(aside_, may_go);
  }
  /// Whether all that is queued is aside.
  [[nodiscard]] bool only_aside() const noexcept { return aside_ != 0 && tree_[1].cell == aside_cell; }
  /// Puts all that are aside back into the queues `cell(entry)`.
  template <class Cell>
  void requeue_aside(Cell&& cell) noexcept {
    for (id b = first_aside(); b != none; b = first_aside()) {
      pull(b);
      push(b, cell(blocks_[b].entry), false);
    }
  }
  /// The values of a class's queues changed.
  void set_values(unsigned cls, std::span<const float, hazard_model::ages> values) noexcept {
    std::copy(values.begin(), values.end(), &values_[hazard_model::cell(cls, 0)]);
    if (filled_[cls] != 0) settle(cls);
  }

 private:
  static constexpr std::size_t classes = hazard_model::most_classes;
  static constexpr unsigned aside_cell = hazard_model::cell(classes, 0);
  static_assert(aside_cell < 1U << 15U && hazard_model::ages <= 32);

  struct block {
    id older = none;
    id newer = none;
    id parent = none;
    id last_peer = none;
    id next_peer = none;
    std::uint32_t entry = 0;  // or the next free block
    std::uint32_t children = 0;
    std::uint32_t life = 0;
    std::uint32_t parent_life = 0;
    std::uint16_t queued : 1 = 0;
    std::uint16_t cell : 15 = 0;
  };
  struct queue {
    id oldest = none;
    id newest = none;
  };
  struct rank {
    float value = std::numeric_limits<float>::infinity();
    std::uint32_t cell = aside_cell;  // where nothing is queued
  };

  [[nodiscard]] id first_aside() const noexcept { return queues_[aside_cell].oldest; }
  template <class MayGo>
  [[nodiscard]] id aside_that(std::size_t tries, MayGo& may_go) {
    for (tries = std::min(tries, aside_); tries != 0; --tries) {
      const id b = first_aside();
      if (may_go(blocks_[b].entry)) return b;
      set_aside(b);
    }
    return none;
  }

  void push(id b, unsigned cell, bool as_oldest) noexcept {
    block& x = blocks_[b];
    queue& q = queues_[cell];
    x.queued = 1;
    x.cell = cell & 0x7FFFU;
    if (q.oldest == none) {
      x.older = x.newer = none;
      q.oldest = q.newest = b;
      fills(cell);
    } else if (as_oldest) {
      x.older = none;
      x.newer = q.oldest;
      blocks_[q.oldest].older = b;
      q.oldest = b;
    } else {
      x.newer = none;
      x.older = q.newest;
      blocks_[q.newest].newer = b;
      q.newest = b;
    }
  }
  void pull(id b) noexcept {
    block& x = blocks_[b];
    x.queued = 0;
    if (x.cell == aside_cell) --aside_;
    queue& q = queues_[x.cell];
    (x.older != none ? blocks_[x.older].newer : q.oldest) = x.newer;
    (x.newer != none ? blocks_[x.newer].older : q.newest) = x.older;
    if (q.oldest == none) empties(x.cell);
  }

  void fills(unsigned cell) noexcept {
    if (cell == aside_cell) return;
    const unsigned cls = cell / hazard_model::ages;
    filled_[cls] |= 1U << cell % hazard_model::ages;
    const rank& least = tree_[classes + cls];
    const float value = values_[cell];
    if (value < least.value || (value == least.value && cell < least.cell)) rise(cls, {value, cell});
  }
  void empties(unsigned cell) noexcept {
    if (cell == aside_cell) return;
    const unsigned cls = cell / hazard_model::ages;
    filled_[cls] &= ~(1U << cell % hazard_model::ages);
    if (tree_[classes + cls].cell == cell) settle(cls);
  }
  /// Finds the least of a class: the youngest of equals.
  void settle(unsigned cls) noexcept {
    rank least;
    for (std::uint32_t left = filled_[cls]; left != 0; left &= left - 1) {
      const unsigned cell = hazard_model::cell(cls, static_cast<unsigned>(std::countr_zero(left)));
      if (values_[cell] < least.value) least = {values_[cell], cell};
    }
    rise(cls, least);
  }
  /// Tells the tree of the least of a class: of equals, the class that was met first.
  void rise(unsigned cls, rank least) noexcept {
    std::size_t node = classes + cls;
    if (tree_[node].value == least.value && tree_[node].cell == least.cell) return;
    tree_[node] = least;
    while (node != 1) {
      node /= 2;
      const rank winner = tree_[2 * node + (tree_[2 * node].value <= tree_[2 * node + 1].value ? 0U : 1U)];
      if (tree_[node].value == winner.value && tree_[node].cell == winner.cell) return;
      tree_[node] = winner;
    }
  }

  std::vector<block, huge_page_allocator<block>> blocks_;
  std::vector<queue> queues_;
  std::vector<float> values_;
  std::vector<std::uint32_t> filled_;  // of each class, a bit for each age at which some are queued
  std::vector<rank> tree_;             // over the classes' least; the first node is the least of all
  id free_ = none;
  std::size_t aside_ = 0;
};

}  // namespace kvx::detail
