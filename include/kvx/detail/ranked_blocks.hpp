// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/hazard_model.hpp>
#include <kvx/detail/huge_page_allocator.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace kvx::detail {

/// The blocks that a policy wants held, with their parents, and which of the leaves among them is worth least.
///
/// A leaf waits in the queue of its class and age, in order of its last use; a tree of the queues' values finds the
/// least. A block with children among the chosen is in no queue, and comes back when the last of them leaves.
/// Cost    O(1) but for the tree's 13 steps when a queue fills, empties or changes its value; 28 bytes per block
class ranked_blocks {
 public:
  using id = std::uint32_t;
  static constexpr id none = 0xFFFF'FFFFU;

  explicit ranked_blocks(std::size_t capacity)
      : blocks_(capacity), queues_(leaves), tree_(std::size_t{2} * leaves), values_(leaves, 0.0F) {
    for (std::size_t i = capacity; i-- > 0;) {
      blocks_[i].entry = free_;
      free_ = static_cast<id>(i);
    }
    values_[aside_cell] = std::numeric_limits<float>::max();
    for (std::size_t i = 0; i < leaves; ++i) tree_[leaves + i] = static_cast<std::uint16_t>(i);
    for (std::size_t i = leaves; i-- > 1;) tree_[i] = tree_[2 * i];
  }

  [[nodiscard]] bool full() const noexcept { return free_ == none; }
  [[nodiscard]] std::uint32_t entry(id b) const noexcept { return blocks_[b].entry; }
  [[nodiscard]] bool leaf(id b) const noexcept { return blocks_[b].children == 0; }
  [[nodiscard]] bool queued(id b) const noexcept { return blocks_[b].queued != 0; }

  /// Precondition: not full. The parent leaves its queue.
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
    dequeue(parent);
    return b;
  }
  /// The parent of a block that has no other child, `none` where there is none such.
  [[nodiscard]] id left_alone_without(id b) const noexcept {
    const block& x = blocks_[b];
    if (x.parent == none || blocks_[x.parent].life != x.parent_life) return none;
    return blocks_[x.parent].children == 1 ? x.parent : none;
  }
  void remove(id b) noexcept {
    dequeue(b);
    block& x = blocks_[b];
    ++x.life;  // children that outlive it do not count for whoever takes its place
    x.entry = free_;
    free_ = b;
    if (x.parent != none && blocks_[x.parent].life == x.parent_life) --blocks_[x.parent].children;
  }

  void enqueue(id b, unsigned cell, bool as_oldest) noexcept {
    block& x = blocks_[b];
    queue& q = queues_[cell];
    x.queued = 1;
    x.cell = cell & 0x7FFFU;
    if (q.oldest == none) {
      x.older = x.newer = none;
      q.oldest = q.newest = b;
      update(cell);
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
  /// Takes a block out of its queue, if it is in one.
  void dequeue(id b) noexcept {
    block& x = blocks_[b];
    if (x.queued == 0) return;
    x.queued = 0;
    if (x.cell == aside_cell) --aside_;
    queue& q = queues_[x.cell];
    (x.older != none ? blocks_[x.older].newer : q.oldest) = x.newer;
    (x.newer != none ? blocks_[x.newer].older : q.newest) = x.older;
    if (q.oldest == none) update(x.cell);
  }

  /// A leaf of the least value, the oldest of its queue; `none` when no queue holds any.
  [[nodiscard]] id weakest() const noexcept { return queues_[tree_[1]].oldest; }
  [[nodiscard]] float least_value() const noexcept { return values_[tree_[1]]; }
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
    dequeue(b);
    enqueue(b, aside_cell, false);
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
  [[nodiscard]] bool only_aside() const noexcept { return aside_ != 0 && tree_[1] == aside_cell; }
  template <class Requeue>
  void requeue_aside(Requeue&& requeue) noexcept {
    for (id b = first_aside(); b != none; b = first_aside()) {
      dequeue(b);
      requeue(b);
    }
  }
  void set_value(unsigned cell, float value) noexcept {
    if (values_[cell] == value) return;
    values_[cell] = value;
    if (queues_[cell].oldest != none) update(cell);
  }

 private:
  static constexpr std::size_t leaves = 8192;
  static constexpr unsigned aside_cell = leaves - 1;
  static_assert(std::size_t{hazard_model::most_classes} * hazard_model::ages < leaves);

  struct block {
    id older = none;
    id newer = none;
    id parent = none;
    std::uint32_t entry = 0;  // or the next free block
    std::uint32_t children = 0;
    std::uint16_t life = 0;
    std::uint16_t parent_life = 0;
    std::uint16_t queued : 1 = 0;
    std::uint16_t cell : 15 = 0;
  };
  struct queue {
    id oldest = none;
    id newest = none;
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

  void update(std::size_t cell) noexcept {
    for (std::size_t node = (leaves + cell) / 2; node != 0; node /= 2) {
      const std::uint16_t a = tree_[2 * node];
      const std::uint16_t b = tree_[2 * node + 1];
      const bool first = queues_[b].oldest == none || (queues_[a].oldest != none && values_[a] <= values_[b]);
      const std::uint16_t winner = first ? a : b;
      if (tree_[node] == winner && winner != cell) return;
      tree_[node] = winner;
    }
  }

  std::vector<block, huge_page_allocator<block>> blocks_;
  std::vector<queue> queues_;
  std::vector<std::uint16_t> tree_;
  std::vector<float> values_;
  id free_ = none;
  std::size_t aside_ = 0;
};

}  // namespace kvx::detail
