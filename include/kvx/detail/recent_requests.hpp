// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx::detail {

/// A value for each of the requests heard of lately, by their ids. Of some thousand requests, the one that was not
/// heard of for longest is forgotten.
/// Thread  one caller at a time
/// Cost    O(1); 2,048 values and 16 bytes for each
template <class Value>
class recent_requests {
 public:
  recent_requests() : all_(sets * ways) {}

  /// Null for a request that was never heard of, or not for long.
  [[nodiscard]] const Value* find(std::uint64_t id) const noexcept {
    for (const entry* e = first_of(id); id != 0 && e != first_of(id) + ways; ++e)
      if (e->id == id) return &e->value;
    return nullptr;
  }
  /// The request's value, or a new one; for the id 0 a new one each time. Valid until the next call.
  [[nodiscard]] Value& of(std::uint64_t id) noexcept {
    if (id == 0) return nameless_ = {};
    entry* const first = const_cast<entry*>(first_of(id));
    entry* best = first;
    for (entry* e = first; e != first + ways; ++e) {
      if (e->id == id) {
        e->heard = ++now_;
        return e->value;
      }
      if (e->heard < best->heard) best = e;
    }
    *best = {id, ++now_, {}};
    return best->value;
  }

 private:
  struct entry {
    std::uint64_t id = 0;
    std::uint64_t heard = 0;
    Value value{};
  };
  static constexpr std::size_t sets = 512;
  static constexpr std::size_t ways = 4;

  [[nodiscard]] const entry* first_of(std::uint64_t id) const noexcept { return &all_[id % sets * ways]; }

  std::vector<entry> all_;
  Value nameless_{};
  std::uint64_t now_ = 0;
};

}  // namespace kvx::detail
