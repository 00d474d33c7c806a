// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx::detail {

/// Keys in two queues, oldest first, each found by itself.
/// Shape   keys: 32 well mixed bits each, held at most once
/// Cost    O(1), 24 to 28 bytes per key, allocation only in the constructor
class ghost_lists {
 public:
  static constexpr std::uint8_t none = 2;

  explicit ghost_lists(std::size_t capacity)
      : lists_(capacity, 2), nodes_(capacity), heads_(bucket_count(capacity), no_slot) {
    for (std::size_t i = capacity; i-- > 0;) {
      nodes_[i].next = free_;
      free_ = static_cast<slot_index>(i);
    }
  }

  [[nodiscard]] std::size_t size(std::uint8_t list) const noexcept { return sizes_[list]; }
  [[nodiscard]] bool full() const noexcept { return free_ == no_slot; }

  /// Precondition: not full(). A key that is held already moves.
  void remember(std::uint8_t list, std::uint32_t key) noexcept {
    (void)forget(key);
    const slot_index at = free_;
    free_ = nodes_[at].next;
    slot_index& head = head_of(key);
    nodes_[at] = {key, head, list};
    head = at;
    lists_.push_newest(list, at);
    ++sizes_[list];
  }

  /// Takes a key out and says which list it was in; `none`: it was not held.
  [[nodiscard]] std::uint8_t forget(std::uint32_t key) noexcept {
    for (slot_index* link = &head_of(key); *link != no_slot; link = &nodes_[*link].next) {
      const slot_index at = *link;
      if (nodes_[at].key != key) continue;
      const std::uint8_t list = nodes_[at].list;
      *link = nodes_[at].next;
      lists_.remove(at);
      --sizes_[list];
      nodes_[at].next = free_;
      free_ = at;
      return list;
    }
    return none;
  }

  /// Precondition: the list is not empty.
  void forget_oldest(std::uint8_t list) noexcept { (void)forget(nodes_[lists_.oldest(list)].key); }

 private:
  struct node {
    std::uint32_t key = 0;
    slot_index next = no_slot;  // of its bucket, or of the free ones
    std::uint8_t list = none;
  };

  [[nodiscard]] static std::size_t bucket_count(std::size_t capacity) noexcept {
    std::size_t count = 1;
    while (count < capacity) count *= 2;
    return count;
  }
  [[nodiscard]] slot_index& head_of(std::uint32_t key) noexcept { return heads_[key & (heads_.size() - 1)]; }

  slot_lists lists_;
  std::vector<node> nodes_;
  std::vector<slot_index> heads_;
  slot_index free_ = no_slot;
  std::array<std::size_t, 2> sizes_{};
};

}  // namespace kvx::detail
