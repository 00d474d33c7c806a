// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/store/extents.hpp>
#include <kvx/store/journal_reader.hpp>
#include <kvx/store/names.hpp>
#include <kvx/store/peers.hpp>
#include <kvx/store/rebuild.hpp>
#include <kvx/store/root.hpp>
#include <kvx/store/slab.hpp>
#include <kvx/store/slot_format.hpp>
#include <kvx/store/slot_geometry.hpp>
#include <kvx/store/slot_table.hpp>
#include <kvx/store/store_sizes.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvx::store {

/// How one store looks at everybody's slabs.
struct slab_access {
  const root& where;
  const slot_identity& identity;
  const slot_geometry& geometry;
  const store_description& description;
  const store_sizes& sizes;
  std::size_t digest_bytes = 32;
  bool direct = true;

  [[nodiscard]] journal_scope scope_of(const writer_id& writer) const {
    return {writer, description, digest_bytes, sizes.slot_count()};
  }

  /// Opens and judges one slab.
  /// Errors  io_failed: errno of the system
  [[nodiscard]] result<slab_verdict> open(std::uint64_t extent, const writer_id& writer, slab_facts& facts,
                                          detail::opened_file& out) const {
    const auto directory = detail::open_directory(where.extents(), std::to_string(extent).c_str());
    if (!directory) return directory.status();
    auto opened = detail::open_file(directory->fd(), slab_name(writer).c_str(), detail::file_access::read,
                                    direct ? detail::file_mode::direct : detail::file_mode::buffered);
    if (!opened) return opened.status();
    out = std::move(*opened);
    return read_superblock(out, description, sizes.slab_bytes, writer, extent, facts);
  }
};

/// A writer some of whose slabs a store reads.
struct foreign_writer {
  writer_id writer;
  std::uint64_t epoch = 0;
  std::vector<std::uint64_t> extents;
};

/// Opens every slab that fits and puts it into the table; the writers of earlier openings come first.
/// Shape   newest_epoch: raised to the newest there is, also of other models
template <class Announce>
[[nodiscard]] std::vector<foreign_writer> open_foreign_slabs(const slab_access& access, const peers& others,
                                                             slot_table& table, std::uint64_t& newest_epoch,
                                                             Announce&& announce_open) {
  std::vector<foreign_writer> found;
  for (const extent_sight& sight : others.extents()) {
    for (const writer_id& writer : sight.slabs) {
      slab_facts facts;
      detail::opened_file slab;
      const auto verdict = access.open(sight.number, writer, facts, slab);
      if (!verdict || (*verdict != slab_verdict::ok && *verdict != slab_verdict::other_store)) continue;
      newest_epoch = std::max(newest_epoch, facts.epoch);
      if (*verdict != slab_verdict::ok || sight.number >= table.extent_count()) continue;
      const auto number = static_cast<std::size_t>(sight.number);
      const int fd = slab.handle.fd();
      if (!table.add_foreign(number, writer, facts.epoch, std::move(slab.handle))) continue;
      announce_open(fd);
      auto known = std::find_if(found.begin(), found.end(), [&](const auto& each) { return each.writer == writer; });
      if (known == found.end()) known = found.insert(found.end(), foreign_writer{writer, facts.epoch, {}});
      known->extents.push_back(sight.number);
    }
  }
  // Epochs order openings one after the other; writers of one time come in the order of their ids.
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return std::pair(a.epoch, a.writer) < std::pair(b.epoch, b.writer); });
  return found;
}

/// Calls `sink(key, parent, slot)` for what one writer's journal, or else its slots' headers, say, oldest first.
template <class Sink>
void recover_writer(const slab_access& access, const foreign_writer& from, const slot_table& table, Sink&& sink) {
  const auto sink_own = [&](const block_key& key, const block_key& parent, std::uint64_t slot) {
    const auto at = static_cast<slot_index>(slot);
    // A journal speaks of all extents its writer ever had.
    if (table.writer_of(at) == from.writer) sink(key, parent, at);
  };
  if (const auto directory = detail::open_directory(access.where.writers(), to_name(from.writer).c_str())) {
    const auto image = journal_image::load(directory->fd(), access.scope_of(from.writer));
    if (image.complete()) {
      image.for_each_live([&](const journal_record& record) { sink_own(record.key, record.parent, record.slot); });
      return;
    }
  }
  std::vector<slab_to_rebuild> slabs;
  for (const std::uint64_t extent : from.extents) {
    const std::uint64_t first = extent * access.sizes.slots_per_extent;
    if (const auto place = table.place_for_read(static_cast<slot_index>(first))) {
      slabs.push_back({place->file, from.writer, first, access.sizes.slots_per_extent});
    }
  }
  for (const rebuilt_slot& slot : rebuild_from_headers(slabs, access.geometry, access.identity)) {
    sink_own(slot.key, slot.parent, slot.slot_number);
  }
}

/// An extent that nobody alive holds.
struct reclaim_candidate {
  std::uint64_t number = 0;
  std::vector<writer_id> writers;  ///< none: claimed and never filled
  int rank = 0;                    ///< abandoned ones, predecessors', others'
  std::uint64_t epoch = 0;
};

/// Extents that may be taken, best first: what holds nothing, then this store's own predecessors, oldest first.
[[nodiscard]] inline std::vector<reclaim_candidate> reclaim_candidates(const peers& others, const slot_table& table) {
  std::vector<reclaim_candidate> out;
  for (const extent_sight& sight : others.extents()) {
    if (sight.foreign_names) continue;
    if (sight.slabs.empty()) {
      if (others.is_abandoned(sight.number)) out.push_back({sight.number, {}, 0, 0});
      continue;
    }
    if (!std::all_of(sight.slabs.begin(), sight.slabs.end(), [&](const auto& w) { return others.is_dead(w); }))
      continue;
    const auto epoch = table.foreign_epoch(static_cast<std::size_t>(sight.number));
    out.push_back({sight.number, sight.slabs, epoch ? 1 : 2, epoch.value_or(0)});
  }
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
    return std::pair(a.rank, a.epoch) < std::pair(b.rank, b.epoch);
  });
  return out;
}

/// Removes an extent whose writers are dead at a last look; false when it is not to be had after all.
///
/// A slab of another format is left alone: its writer may show that it lives in a way that this version does not know.
/// Errors  io_failed: errno of the system
[[nodiscard]] inline result<bool> remove_extent(const slab_access& access, peers& others,
                                                const reclaim_candidate& from) {
  const auto fatal = [](const status& removed) {
    return !removed && removed.os_error() != ENOTEMPTY && removed.os_error() != EEXIST;
  };
  const int extents = access.where.extents();
  for (const writer_id& writer : from.writers) {
    slab_facts facts;
    detail::opened_file slab;
    const auto verdict = access.open(from.number, writer, facts, slab);
    if (!verdict && !is_gone(verdict.status())) return verdict.status();
    if (verdict && *verdict == slab_verdict::other_format) return false;
    if (!others.still_dead(access.where.writers(), writer)) return false;
    if (const status removed = give_back_extent(extents, from.number, writer); fatal(removed)) return removed;
  }
  if (from.writers.empty()) {
    const status removed = remove_directory(extents, std::to_string(from.number).c_str());
    if (fatal(removed)) return removed;
  }
  // Whoever has claimed it meanwhile keeps it.
  const auto left = see_extent(extents, from.number);
  others.forget_extent(from.number);
  return !left && is_gone(left.status());
}

}  // namespace kvx::store
