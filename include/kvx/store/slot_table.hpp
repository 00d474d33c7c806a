// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/store/journal_format.hpp>
#include <kvx/store/slab.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace kvx::store {

/// Where a slot starts.
struct io_place {
  int file = -1;
  std::uint64_t offset = 0;
};

/// Leave to write a slot once: what goes into its header, and where it goes.
struct write_ticket {
  io_place place;
  std::uint64_t generation = 0;
  std::uint64_t slot_number = 0;
  writer_id writer;
};

/// Which extents this store has or reads, which own slots are free, and what the journal is still to be told. No I/O.
///
/// An own slot is free, taken, logged (its insert is noted) or evicted (its eviction is noted and not yet written).
/// Thread  any, concurrently
/// Cost    one short lock per call
class slot_table {
 public:
  /// Units   stride: bytes
  slot_table(std::size_t extents, std::size_t slots_per_extent, std::size_t stride)
      : slots_per_extent_(slots_per_extent), stride_(stride), extents_(extents) {}

  [[nodiscard]] std::size_t extent_count() const noexcept { return extents_.size(); }
  [[nodiscard]] std::size_t slot_count() const noexcept { return extents_.size() * slots_per_extent_; }
  [[nodiscard]] std::size_t free_slots() const {
    const std::lock_guard lock(mutex_);
    return free_.size();
  }
  [[nodiscard]] std::size_t own_extents() const {
    const std::lock_guard lock(mutex_);
    return own_extents_;
  }

  // Slots.

  result<slot_index> allocate() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return errc::no_space;
    const slot_index slot = free_.front();
    free_.pop_front();
    *own_state(slot) = slot_state::taken;
    return slot;
  }

  void free(slot_index slot) {
    const std::lock_guard lock(mutex_);
    slot_state* state = own_state(slot);
    if (state == nullptr) return;
    if (*state == slot_state::logged) evict(slot, *state);
    if (*state == slot_state::evicted) {
      waiting_.push_back(slot);
      *state = slot_state::waiting;
    } else if (*state == slot_state::taken) {
      free_.push_back(slot);
      *state = slot_state::free;
    }
  }

  result<write_ticket> prepare_write(slot_index slot) {
    const std::lock_guard lock(mutex_);
    const slot_state* state = own_state(slot);
    if (state == nullptr || *state != slot_state::taken) return errc::miss;
    return write_ticket{place(slot), ++generation_, slot, extent_of(slot)->writer};
  }

  [[nodiscard]] result<io_place> place_for_read(slot_index slot) const {
    const std::lock_guard lock(mutex_);
    const extent* from = extent_of(slot);
    if (from == nullptr || (from->whose != holder::own && from->whose != holder::foreign)) return errc::miss;
    return place(slot);
  }

  [[nodiscard]] std::optional<writer_id> writer_of(slot_index slot) const {
    const std::lock_guard lock(mutex_);
    const extent* from = extent_of(slot);
    if (from == nullptr || (from->whose != holder::own && from->whose != holder::foreign)) return std::nullopt;
    return from->writer;
  }

  void log_insert(const block_key& key, const block_key& parent, slot_index slot, std::uint64_t generation) {
    const std::lock_guard lock(mutex_);
    slot_state* state = own_state(slot);
    if (state == nullptr || *state != slot_state::taken) return;
    *state = slot_state::logged;
    pending_.push_back({journal_op::insert, slot, generation, key, parent});
  }

  void log_evict(slot_index slot) {
    const std::lock_guard lock(mutex_);
    slot_state* state = own_state(slot);
    if (state != nullptr && *state == slot_state::logged) evict(slot, *state);
  }

  // The journal's side.

  /// What is to be written, and the slots that are free once it is.
  struct batch {
    std::vector<journal_record> records;
    std::vector<slot_index> freed;
  };

  [[nodiscard]] batch take_batch() {
    const std::lock_guard lock(mutex_);
    return {std::exchange(pending_, {}), std::exchange(waiting_, {})};
  }
  void batch_written(batch&& written) {
    const std::lock_guard lock(mutex_);
    for (const slot_index slot : written.freed) {
      slot_state* state = own_state(slot);
      if (state == nullptr) continue;
      *state = slot_state::free;
      free_.push_back(slot);
    }
  }
  /// Puts it back in front of what came since.
  void batch_failed(batch&& kept) {
    const std::lock_guard lock(mutex_);
    kept.records.insert(kept.records.end(), pending_.begin(), pending_.end());
    kept.freed.insert(kept.freed.end(), waiting_.begin(), waiting_.end());
    pending_ = std::move(kept.records);
    waiting_ = std::move(kept.freed);
  }

  // Extents.

  void add_own(std::size_t number, const writer_id& writer, detail::file file) {
    const std::lock_guard lock(mutex_);
    extents_[number] = {holder::own, writer, 0, std::move(file), std::vector(slots_per_extent_, slot_state::free)};
    ++own_extents_;
    const auto first = static_cast<slot_index>(number * slots_per_extent_);
    for (std::size_t i = 0; i < slots_per_extent_; ++i) free_.push_back(first + static_cast<slot_index>(i));
  }
  /// False when the extent has a slab already.
  bool add_foreign(std::size_t number, const writer_id& writer, std::uint64_t epoch, detail::file file) {
    const std::lock_guard lock(mutex_);
    if (extents_[number].whose != holder::nobody) return false;
    extents_[number] = {holder::foreign, writer, epoch, std::move(file), {}};
    return true;
  }
  /// Everything own becomes foreign, and what was not yet journalled is nobody's business any more.
  void disown() {
    const std::lock_guard lock(mutex_);
    for (extent& each : extents_) {
      if (each.whose != holder::own) continue;
      each.whose = holder::foreign;
      each.slots.clear();
    }
    own_extents_ = 0;
    free_.clear();
    pending_.clear();
    waiting_.clear();
  }
  /// Stops all use of an extent but what is under way; its number and file stay taken until release().
  void retire(std::size_t number) {
    const std::lock_guard lock(mutex_);
    retire(number, lock);
  }
  /// retire(), to be asked for with take_lost().
  void lose(std::size_t number) {
    const std::lock_guard lock(mutex_);
    if (retire(number, lock)) lost_.push_back(number);
  }
  [[nodiscard]] std::optional<std::size_t> take_lost() {
    const std::lock_guard lock(mutex_);
    if (lost_.empty()) return std::nullopt;
    const std::size_t number = lost_.front();
    lost_.pop_front();
    return number;
  }
  /// The file of a retired extent, for the caller to close; none for any other.
  [[nodiscard]] detail::file release(std::size_t number) {
    const std::lock_guard lock(mutex_);
    if (number >= extents_.size() || extents_[number].whose != holder::retired) return {};
    return std::exchange(extents_[number], {}).file;
  }

  [[nodiscard]] bool is_used(std::size_t number) const {
    const std::lock_guard lock(mutex_);
    return extents_[number].whose != holder::nobody;
  }
  /// The place of its writer in the order of openings, for a foreign extent that this store reads.
  [[nodiscard]] std::optional<std::uint64_t> foreign_epoch(std::size_t number) const {
    const std::lock_guard lock(mutex_);
    if (number >= extents_.size() || extents_[number].whose != holder::foreign) return std::nullopt;
    return extents_[number].epoch;
  }
  [[nodiscard]] std::vector<std::size_t> own_extent_numbers() const { return numbers(holder::own); }
  [[nodiscard]] std::vector<std::pair<std::size_t, writer_id>> foreign_extents() const {
    std::vector<std::pair<std::size_t, writer_id>> out;
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < extents_.size(); ++i) {
      if (extents_[i].whose == holder::foreign) out.emplace_back(i, extents_[i].writer);
    }
    return out;
  }
  [[nodiscard]] std::vector<int> open_files() const {
    std::vector<int> out;
    const std::lock_guard lock(mutex_);
    for (const extent& each : extents_) {
      if (each.file) out.push_back(each.file.fd());
    }
    return out;
  }

 private:
  enum class holder : std::uint8_t { nobody, own, foreign, retired };
  enum class slot_state : std::uint8_t { free, taken, logged, evicted, waiting };

  struct extent {
    holder whose = holder::nobody;
    writer_id writer;
    std::uint64_t epoch = 0;
    detail::file file;
    std::vector<slot_state> slots;  // own only
  };

  [[nodiscard]] const extent* extent_of(slot_index slot) const noexcept {
    const std::size_t number = slot / slots_per_extent_;
    return number < extents_.size() ? &extents_[number] : nullptr;
  }
  [[nodiscard]] slot_state* own_state(slot_index slot) noexcept {
    const std::size_t number = slot / slots_per_extent_;
    if (number >= extents_.size() || extents_[number].whose != holder::own) return nullptr;
    return &extents_[number].slots[slot % slots_per_extent_];
  }
  [[nodiscard]] io_place place(slot_index slot) const noexcept {
    return {extent_of(slot)->file.fd(), superblock_bytes + (slot % slots_per_extent_) * stride_};
  }

  void evict(slot_index slot, slot_state& state) {
    pending_.push_back({journal_op::evict, slot, 0, {}, {}});
    state = slot_state::evicted;
  }

  bool retire(std::size_t number, const std::lock_guard<std::mutex>&) {
    extent& from = extents_[number];
    if (from.whose != holder::own && from.whose != holder::foreign) return false;
    if (from.whose == holder::own) {
      --own_extents_;
      std::erase_if(free_, [&](slot_index slot) { return slot / slots_per_extent_ == number; });
    }
    from.whose = holder::retired;
    return true;
  }

  [[nodiscard]] std::vector<std::size_t> numbers(holder whose) const {
    std::vector<std::size_t> out;
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < extents_.size(); ++i) {
      if (extents_[i].whose == whose) out.push_back(i);
    }
    return out;
  }

  const std::size_t slots_per_extent_;
  const std::size_t stride_;
  mutable std::mutex mutex_;
  std::vector<extent> extents_;
  std::deque<slot_index> free_;
  std::deque<std::size_t> lost_;
  std::vector<journal_record> pending_;
  std::vector<slot_index> waiting_;  // freed, their eviction not yet written
  std::size_t own_extents_ = 0;
  std::uint64_t generation_ = 0;
};

}  // namespace kvx::store
