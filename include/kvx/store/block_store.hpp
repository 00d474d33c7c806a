// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/store/extents.hpp>
#include <kvx/store/heartbeat.hpp>
#include <kvx/store/peers.hpp>
#include <kvx/store/root.hpp>
#include <kvx/store/slab.hpp>
#include <kvx/store/slab_access.hpp>
#include <kvx/store/slot_format.hpp>
#include <kvx/store/slot_geometry.hpp>
#include <kvx/store/slot_table.hpp>
#include <kvx/store/store_options.hpp>
#include <kvx/store/store_sizes.hpp>
#include <kvx/store/writer.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace kvx::store {

/// What somebody's journal or slot header says is stored.
struct recovered_block {
  block_key key, parent;
  slot_index where = no_slot;
  bool own = false;  ///< never after a reopen: a slab keeps its writer
};

/// One group's and shard's share of a root directory: which slots there are, whose they are, and what is in them.
///
/// It does no I/O on slots: callers read and write them at the places it names, with encode_slot and verify_slot.
/// A slot goes round: allocate, prepare_write, (write), log_insert; log_evict, free; flush_journal, and only then
/// allocate again, so that an eviction is on storage before its slot is written anew.
///
/// Many stores share one root: threads, processes, machines; each is a writer of its own with its own extents and
/// journal. What a former or other writer left is read (`own` is false), never written, and reclaimed extent by extent
/// once that writer is dead. No lock is taken; mkdir claims an extent, and only exact names of dead writers are
/// removed.
/// Thread  the quick calls: any, concurrently. Those marked background do metadata I/O: one thread at a time for all
///         of them, while others make quick calls
/// Errors  I/O errors are returned and leave the store usable; nothing is retried behind the caller's back
class block_store {
 public:
  /// A stretch of slot numbers.
  struct slot_range {
    std::size_t first = 0;
    std::size_t count = 0;
  };
  using file_callback = std::function<void(int file, bool open)>;

  /// Opens the root, or makes it. Nothing is claimed and nothing is recovered yet.
  /// Errors  throws: the root is refused, or does not fit the options or the geometry
  block_store(const store_options& options, const slot_identity& identity, const slot_geometry& geometry)
      : options_(options),
        identity_(identity),
        geometry_(geometry),
        root_(options_, geometry_),
        description_(describe(identity_, geometry_, root_.facts())),
        sizes_(store_sizes::make(options_, geometry_, root_.facts())),
        access_{root_, identity_, geometry_, description_, sizes_, options_.digest_bytes, options_.direct},
        table_(sizes_.extent_count, sizes_.slots_per_extent, geometry_.stride),
        peers_(options_.dead_after) {}

  /// Says that this writer writes no more, so that others need not wait for its death. No slot I/O may be under way.
  ~block_store() {
    // The numbers of these descriptors will be given out again.
    for (const int file : table_.open_files()) announce(file, false);
    if (!writer_) return;
    (void)flush_journal();
    writer_->close(root_.writers(), table_.own_extents() == 0);
  }
  block_store(const block_store&) = delete;
  block_store& operator=(const block_store&) = delete;

  /// Finds every slab of this identity, shard and geometry, and calls `on_block(const recovered_block&)` for what its
  /// writer's journal, or else its slots' headers, say is in it; oldest first. Nothing of it is proved yet: only
  /// reading and verifying a slot proves it. Background; once, before any other call.
  /// Errors  io_failed: the root could not be listed. What is damaged or vanishes meanwhile is left out
  /// Cost    one listing per extent; then the journals, sequentially
  template <class F>
  status recover(F&& on_block) {
    if (const status failure = peers_.scan(root_.extents(), root_.writers(), last_now_); !failure) return failure;
    peers_.look(root_.writers(), {}, last_now_);
    const auto announce_open = [this](int file) { announce(file, true); };
    for (const foreign_writer& from : open_foreign_slabs(access_, peers_, table_, epoch_, announce_open)) {
      recover_writer(access_, from, table_, [&](const block_key& key, const block_key& parent, slot_index where) {
        on_block(recovered_block{key, parent, where, false});
      });
    }
    return {};
  }

  /// Locations are below this.
  [[nodiscard]] std::size_t slot_count() const noexcept { return table_.slot_count(); }
  [[nodiscard]] std::size_t slots_per_extent() const noexcept { return sizes_.slots_per_extent; }
  /// Own slots that allocate() can hand out right now.
  [[nodiscard]] std::size_t free_slots() const { return table_.free_slots(); }
  [[nodiscard]] std::size_t own_slots() const { return table_.own_extents() * sizes_.slots_per_extent; }

  /// Takes the own slot that has been free longest. Quick.
  /// Errors  no_space: none is free; flush_journal(), grow() or an eviction may change that
  result<slot_index> allocate() { return table_.allocate(); }

  /// Gives a slot back, written or not; logs the eviction if log_evict() was not called. Reusable after the next
  /// flush_journal(). Slots that are not own (any more) are ignored. Quick.
  void free(slot_index slot) { table_.free(slot); }

  /// A place and a generation never used before, for one write of an allocated slot. Quick.
  /// Errors  miss: the slot is not an own, allocated one (any more)
  result<write_ticket> prepare_write(slot_index slot) { return table_.prepare_write(slot); }

  /// Where to read a slot, own or foreign. Quick.
  /// Errors  miss: no slab is there
  result<io_place> place_for_read(slot_index slot) const { return table_.place_for_read(slot); }

  /// Who wrote, or would write, that slot: for slot_expectation. Quick.
  [[nodiscard]] std::optional<writer_id> writer_of(slot_index slot) const { return table_.writer_of(slot); }
  /// For slot_expectation.
  [[nodiscard]] static constexpr std::uint64_t slot_number(slot_index slot) noexcept { return slot; }

  /// Notes that the payload of an own slot is written. Quick, buffered.
  void log_insert(const block_key& key, const block_key& parent, slot_index slot, std::uint64_t generation) {
    table_.log_insert(key, parent, slot, generation);
  }
  /// Notes that a slot's content is given up. Quick, buffered.
  void log_evict(slot_index slot) { table_.log_evict(slot); }

  /// Writes what was logged; after success a kill of the process loses none of it, and the freed slots whose eviction
  /// it contains can be allocated. Background.
  /// Errors  no_space, io_failed: nothing is lost, the next call tries again
  status flush_journal() {
    slot_table::batch batch = table_.take_batch();
    status outcome;
    if (!batch.records.empty() && writer_) outcome = writer_->journal().append(batch.records);
    outcome ? table_.batch_written(std::move(batch)) : table_.batch_failed(std::move(batch));
    return outcome;
  }

  /// Claims one more extent and returns how many slots that gained. Background.
  /// Errors  no_space: the cap is reached, or the file system is full; io_failed: errno of the system
  result<std::size_t> grow() {
    // A second try, as a new writer, for one that was taken for dead and has lost its directory.
    for (int attempt = 0; attempt < 2; ++attempt) {
      if (const status failure = ensure_writer(); !failure) return failure;
      auto gained = claim_next();
      if (gained.ok() || gained.status().code() != errc::cancelled) return gained;
      depose();
    }
    return status{errc::io_failed, ENOENT};
  }

  /// Removes one extent of a dead writer, own predecessors' first, and returns the locations that it covered; the
  /// caller forgets what it had there. They stay unused, and files named for them stay open, until release(). Writers
  /// that live are never touched. Background; deaths are found by maintain().
  /// Errors  miss: there is none to be had; io_failed: errno of the system
  result<slot_range> reclaim_dead() {
    status outcome = errc::miss;
    for (const reclaim_candidate& each : reclaim_candidates(peers_, table_)) {
      const auto removed = remove_extent(access_, peers_, each);
      if (!removed) outcome = removed.status();
      if (!removed || !*removed) continue;
      remove_leftovers_of(each.writers);
      if (each.number < table_.extent_count()) return retire(static_cast<std::size_t>(each.number));
    }
    return outcome;
  }

  /// The next stretch of locations that others have taken from this store, as reclaim_dead() returns them: own ones
  /// after this process stood still and was taken for dead, foreign ones that somebody else reclaimed. Quick; ask after
  /// maintain().
  /// Errors  miss: nothing was lost (any more)
  result<slot_range> take_lost() {
    const std::optional<std::size_t> extent = table_.take_lost();
    if (!extent) return errc::miss;
    return range_of(*extent);
  }

  /// Says that nothing refers to these locations any more and no I/O on them is under way: their file is closed, and
  /// grow() may use their numbers. Background.
  void release(const slot_range& range) { announce_closed(table_.release(range.first / sizes_.slots_per_extent)); }

  /// Shows that this writer lives, watches whether others do, notices what was lost, compacts the journal when due.
  /// Background, about every second and at least four times per dead_after.
  /// Errors  the first failure; the rest is done all the same
  status maintain(steady_time now = std::chrono::steady_clock::now()) {
    const bool stood_still = last_beat_ && now - *last_beat_ >= options_.dead_after / 2;
    last_now_ = std::max(last_now_, now);
    status outcome = keep_alive(stood_still, now);
    const auto note = [&outcome](const status& next) {
      if (outcome) outcome = next;
    };
    peers_.look(root_.writers(), own_id(), now);
    if (!last_scan_ || now - *last_scan_ >= options_.dead_after / 2) {
      const status scanned = peers_.scan(root_.extents(), root_.writers(), now);
      if (scanned) {
        last_scan_ = now;
        lose_foreign();
        remove_beyond_cap();
        for (const writer_id& left : peers_.leftovers()) remove_leftover(left);
      }
      note(scanned);
    }
    if (writer_ && writer_->journal().compaction_due()) note(compact());
    return outcome;
  }

  /// Calls `callback(file, true)` for each slab that is open, and from then on for each that is opened or closed, from
  /// the background calls. Background.
  void on_files(file_callback callback) {
    callback_ = std::move(callback);
    for (const int file : table_.open_files()) announce(file, true);
  }

  /// What the extents claimed in the root take, whoever claimed them, and this writer's journal. Background.
  [[nodiscard]] std::uint64_t footprint_bytes() const {
    std::uint64_t extents = peers_.extents().size();
    for (const std::size_t own : table_.own_extent_numbers()) extents += peers_.find(own) == nullptr ? 1U : 0U;
    return extents * root_.facts().extent_bytes + (writer_ ? writer_->journal().footprint_bytes() : 0);
  }

  /// What everything below the root but the slabs takes at most, beyond the capacity, while `writers` stores of this
  /// geometry hold extents or live.
  /// Units   bytes; a directory, and a file's map of extents, count as a page each
  [[nodiscard]] std::uint64_t metadata_allowance_bytes(std::size_t writers) const noexcept {
    return sizes_.metadata_allowance_bytes(writers);
  }

  [[nodiscard]] const slot_geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] const slot_identity& identity() const noexcept { return identity_; }
  [[nodiscard]] std::uint64_t extent_bytes() const noexcept { return root_.facts().extent_bytes; }
  /// The descriptor of the root directory, for probing it.
  [[nodiscard]] int directory() const noexcept { return root_.directory(); }

 private:
  [[nodiscard]] writer_id own_id() const noexcept { return writer_ ? writer_->id() : writer_id{}; }
  [[nodiscard]] slot_range range_of(std::size_t extent) const noexcept {
    return {extent * sizes_.slots_per_extent, sizes_.slots_per_extent};
  }

  void announce(int file, bool open) const {
    if (callback_) callback_(file, open);
  }
  void announce_closed(detail::file file) const {
    if (file) announce(file.fd(), false);
  }

  // Being a writer.

  status ensure_writer() {
    if (writer_) return {};
    auto made = store::writer::make(root_.writers(), access_.scope_of({}), epoch_ + 1, sizes_.journal.segment);
    if (!made) return made.status();
    ++epoch_;
    writer_.emplace(std::move(*made));
    return {};
  }

  // Whatever others have made of the extents of the writer this was, it starts anew under another id: its old slabs are
  // foreign from now on, and the cache keeps reading those that are still there.
  void depose() {
    writer_.reset();
    last_beat_.reset();
    table_.disown();
  }

  // cancelled: this writer's own directory is gone.
  result<std::size_t> claim_next() {
    for (std::size_t number = 0; number < table_.extent_count(); ++number) {
      if (table_.is_used(number) || peers_.find(number) != nullptr) continue;
      auto slab = claim_extent(root_.extents(),
                               {sizes_.slab_bytes, options_.direct, options_.preallocate, {own_id(), number, epoch_}},
                               description_);
      if (!slab && slab.status().code() == errc::miss) continue;
      if (!slab) return slab.status();
      const auto visible = see_heartbeat(root_.writers(), own_id());
      if (visible && visible->fingerprint == 0) {
        (void)give_back_extent(root_.extents(), number, own_id());
        return errc::cancelled;
      }
      const int fd = slab->handle.fd();
      table_.add_own(number, own_id(), std::move(slab->handle));
      announce(fd, true);
      return sizes_.slots_per_extent;
    }
    return errc::no_space;
  }

  status keep_alive(bool stood_still, steady_time now) {
    if (!writer_) return {};
    const auto visible = see_heartbeat(root_.writers(), own_id());
    bool lost = visible && visible->fingerprint == 0;
    const std::vector<std::size_t> own = table_.own_extent_numbers();
    for (std::size_t i = 0; i < own.size(); ++i) {
      // One in turn is enough for a store that was never taken for dead.
      if (!stood_still && i != next_check_ % own.size()) continue;
      const auto there = slab_is_there(root_.extents(), own[i], own_id());
      if (!there || *there) continue;
      table_.lose(own[i]);
      lost = true;
    }
    ++next_check_;
    if (lost) {
      depose();
      return {};
    }
    last_beat_ = now;
    return writer_->beat();
  }

  status compact() {
    const status outcome = writer_->journal().compact();
    damaged_journal_ = outcome.os_error() == EBADMSG ? damaged_journal_ + 1 : 0;
    if (damaged_journal_ >= 3) {
      // It will not get better, and appending to it ends at its limit: start a new one, as a new writer.
      damaged_journal_ = 0;
      depose();
    }
    return outcome;
  }

  // Watching others.

  void lose_foreign() {
    for (const auto& [number, writer] : table_.foreign_extents()) {
      const extent_sight* sight = peers_.find(number);
      const bool there =
          sight != nullptr &&
          (sight->foreign_names || std::find(sight->slabs.begin(), sight->slabs.end(), writer) != sight->slabs.end());
      if (!there) table_.lose(number);
    }
  }

  [[nodiscard]] slot_range retire(std::size_t extent) {
    table_.retire(extent);
    return range_of(extent);
  }

  void remove_leftovers_of(std::span<const writer_id> writers) {
    if (writers.empty()) return;
    // Extents that they claimed after the last scan count too.
    if (!peers_.scan(root_.extents(), root_.writers(), last_now_)) return;
    for (const writer_id& left : peers_.leftovers()) {
      if (std::find(writers.begin(), writers.end(), left) != writers.end()) remove_leftover(left);
    }
  }
  void remove_leftover(const writer_id& writer) {
    if (writer == own_id() || !peers_.still_dead(root_.writers(), writer)) return;
    if (remove_writer(root_.writers(), writer)) peers_.forget_writer(writer);
  }

  // What a larger cap of an earlier time left beyond this one.
  void remove_beyond_cap() {
    for (const reclaim_candidate& each : reclaim_candidates(peers_, table_)) {
      if (each.number >= table_.extent_count()) (void)remove_extent(access_, peers_, each);
    }
  }

  const store_options options_;
  const slot_identity identity_;
  const slot_geometry geometry_;
  const store::root root_;
  const store_description description_;
  const store_sizes sizes_;
  const slab_access access_;
  slot_table table_;
  file_callback callback_;

  // Background only.
  peers peers_;
  std::optional<store::writer> writer_;
  std::uint64_t epoch_ = 0;
  std::size_t next_check_ = 0;
  int damaged_journal_ = 0;
  steady_time last_now_ = std::chrono::steady_clock::now();
  std::optional<steady_time> last_beat_;
  std::optional<steady_time> last_scan_;
};

}  // namespace kvx::store
