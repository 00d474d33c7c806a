// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace kvx::detail {

/// Which descriptors stand in the file tables of a backend's rings, and under which number.
///
/// `post(slot, fd)` must have every ring put `fd` (-1: nothing) there, later, and call applied().
/// A slot is used when all rings have it, and given to another file only when all rings have emptied it and no piece
/// names it. Nothing here waits, so all of it may be called from completions.
/// Thread  any
class io_registered_files {
 public:
  io_registered_files(std::size_t slots, std::size_t rings, std::function<void(std::size_t slot, int fd)> post)
      : rings_(rings), post_(std::move(post)), slots_(slots) {}

  /// A full table is no error: the file's requests go on unregistered.
  void attach(int fd) {
    const std::lock_guard lock(mutex_);
    if (fd < 0 || by_fd_.count(fd) != 0) return;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].state != slot_state::empty) continue;
      by_fd_.emplace(fd, i);
      slots_[i] = {.state = slot_state::attaching, .unapplied = rings_};
      post_(i, fd);
      return;
    }
  }

  /// No piece started after this names the slot.
  void detach(int fd) {
    const std::lock_guard lock(mutex_);
    const auto found = by_fd_.find(fd);
    if (found == by_fd_.end()) return;
    const std::size_t index = found->second;
    by_fd_.erase(found);
    slots_[index].unwanted = true;
    clear_if_unused(index);
  }

  /// The file's slot, which release() gives back; -1: not registered.
  [[nodiscard]] int acquire(int fd) {
    const std::lock_guard lock(mutex_);
    const auto found = by_fd_.find(fd);
    if (found == by_fd_.end() || slots_[found->second].state != slot_state::ready) return -1;
    ++slots_[found->second].pieces;
    return static_cast<int>(found->second);
  }
  void release(int index) {
    const std::lock_guard lock(mutex_);
    --slots_[static_cast<std::size_t>(index)].pieces;
    clear_if_unused(static_cast<std::size_t>(index));
  }

  /// One ring did what post() asked for, or its kernel refused.
  void applied(std::size_t index, bool accepted) {
    const std::lock_guard lock(mutex_);
    slot& changed = slots_[index];
    changed.refused |= !accepted;
    if (--changed.unapplied != 0) return;
    if (changed.state == slot_state::clearing) {
      // A slot that a ring could not empty still holds a file: never use it again.
      changed = {.state = changed.refused ? slot_state::lost : slot_state::empty};
    } else {
      changed.state = changed.refused ? slot_state::refused : slot_state::ready;
      changed.refused = false;
      clear_if_unused(index);
    }
  }

 private:
  enum class slot_state : unsigned char { empty, attaching, ready, refused, clearing, lost };

  struct slot {
    slot_state state = slot_state::empty;
    bool unwanted = false;
    bool refused = false;
    std::size_t unapplied = 0;
    std::size_t pieces = 0;
  };

  void clear_if_unused(std::size_t index) {
    slot& used = slots_[index];
    const bool settled = used.state == slot_state::ready || used.state == slot_state::refused;
    if (!used.unwanted || !settled || used.pieces != 0) return;
    used.state = slot_state::clearing;
    used.unapplied = rings_;
    post_(index, -1);
  }

  const std::size_t rings_;
  const std::function<void(std::size_t slot, int fd)> post_;
  std::mutex mutex_;
  std::vector<slot> slots_;
  std::unordered_map<int, std::size_t> by_fd_;
};

}  // namespace kvx::detail
