// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/store/directory.hpp>
#include <kvx/store/journal_format.hpp>
#include <kvx/store/names.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvx::store {

/// Longest segment that a reader accepts, hence that a writer may make.
inline constexpr std::size_t most_segment_bytes = std::size_t{16} << 20U;

/// Whose journal is read, and what is believed of it.
struct journal_scope {
  writer_id writer;
  store_description description{};
  std::size_t digest_bytes = 32;
  std::uint64_t slots = 0;  ///< records of slots at or beyond it are dropped
};

/// A journal in memory, replayed.
///
/// Nothing in a file decides how much is allocated: lengths are bounded by the scope.
/// Thread  const members: any
class journal_image {
 public:
  /// Reads a writer's directory while the writer may be appending to it.
  /// Cost    one sequential pass over its files; memory of their size plus 4 bytes per slot
  static journal_image load(int writer_directory, const journal_scope& scope) {
    // A writer that compacts meanwhile removes what it has replaced; its newest segment then names the replacement.
    constexpr int attempts = 4;
    for (int attempt = 1;; ++attempt) {
      journal_image image(scope);
      if (image.read(writer_directory) || attempt == attempts) return image;
    }
  }

  /// Whether every record from the writer's first on was there; a torn end counts as the end.
  [[nodiscard]] bool complete() const noexcept { return complete_; }

  /// Calls `sink(const journal_record&)` for each slot's insert that no later record undid, oldest first.
  template <class F>
  void for_each_live(F&& sink) const {
    std::uint32_t ordinal = 0;
    for (std::span<const std::byte> used : applied_) {
      while (const auto record = take_record(used, scope_.digest_bytes)) {
        ++ordinal;
        if (record->slot < latest_.size() && latest_[record->slot] == ordinal) sink(*record);
      }
    }
  }
  [[nodiscard]] std::size_t live_count() const noexcept {
    return static_cast<std::size_t>(
        std::count_if(latest_.begin(), latest_.end(), [](std::uint32_t ordinal) { return ordinal != 0; }));
  }

 private:
  struct content {
    std::unique_ptr<std::byte[]> bytes;
    std::size_t size = 0;
    [[nodiscard]] std::span<const std::byte> span() const noexcept { return {bytes.get(), size}; }
  };
  struct segment {
    std::uint64_t number = 0;
    detail::file handle;
    std::uint64_t size_bytes = 0;
    frame_head head;
    journal_head facts;
  };

  explicit journal_image(const journal_scope& scope) : scope_(scope) {}

  // False when a file vanished under the reader, so that another try can do better.
  bool read(int directory) {
    const auto names = list_names(directory);
    if (!names) return true;
    std::vector<segment> segments;
    for (const std::string& name : *names) {
      const auto number = parse_segment_name(name);
      if (!number) continue;
      auto opened = detail::open_file(directory, name.c_str(), detail::file_access::read);
      if (!opened) {
        if (is_gone(opened.status())) return false;
        continue;
      }
      segment found{*number, std::move(opened->handle), opened->size_bytes, {}, {}};
      if (read_head(found)) segments.push_back(std::move(found));
    }
    if (segments.empty()) return true;
    std::sort(segments.begin(), segments.end(), [](const auto& a, const auto& b) { return a.number < b.number; });
    const std::uint64_t base = segments.back().facts.base;
    latest_.assign(static_cast<std::size_t>(scope_.slots), 0);
    bool whole = true;
    if (base != 0) {
      const auto opened = detail::open_file(directory, checkpoint_name(base).c_str(), detail::file_access::read);
      if (!opened && is_gone(opened.status())) return false;
      whole = opened.ok() && apply_checkpoint(opened->handle.fd(), opened->size_bytes, base);
    }
    for (const segment& each : segments) {
      if (each.number >= base) whole = apply_segment(each) && whole;
    }
    complete_ = whole;
    return true;
  }

  bool read_head(segment& found) const {
    std::array<std::byte, frame_bytes> page;
    if (found.size_bytes < page.size() || !detail::pread_all(found.handle.fd(), page, 0)) return false;
    const auto frame = parse_frame(page);
    if (!frame || !belongs(frame->head, frame_kind::segment_head, found.number)) return false;
    const auto facts = parse_journal_head(*frame);
    if (!facts || !fits(*facts)) return false;
    found.head = frame->head;
    found.facts = *facts;
    return true;
  }

  [[nodiscard]] bool belongs(const frame_head& head, frame_kind kind, std::uint64_t file) const noexcept {
    return head.kind == kind && head.file == file && head.writer == scope_.writer;
  }
  [[nodiscard]] bool fits(const journal_head& facts) const noexcept {
    return facts.description == scope_.description && facts.digest_bytes == scope_.digest_bytes;
  }

  [[nodiscard]] static std::optional<content> read_whole(int fd, std::uint64_t bytes) {
    constexpr std::size_t piece_bytes = std::size_t{4} << 20U;
    content out{std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(bytes)),
                static_cast<std::size_t>(bytes)};
    (void)::posix_fadvise(fd, 0, static_cast<off_t>(bytes), POSIX_FADV_SEQUENTIAL);
    for (std::size_t at = 0; at < out.size; at += piece_bytes) {
      const std::span<std::byte> piece(out.bytes.get() + at, std::min(piece_bytes, out.size - at));
      if (!detail::pread_all(fd, piece, at)) return std::nullopt;
    }
    return out;
  }

  bool apply_checkpoint(int fd, std::uint64_t bytes, std::uint64_t number) {
    if (bytes < frame_bytes || bytes % frame_bytes != 0) return false;
    if (bytes > checkpoint_bytes(scope_.slots, scope_.digest_bytes)) return false;
    auto read = read_whole(fd, bytes);
    if (!read) return false;
    const auto all = keep(std::move(*read));
    const auto first = parse_frame(all.first(frame_bytes));
    if (!first || !belongs(first->head, frame_kind::checkpoint_head, number)) return false;
    const auto facts = parse_journal_head(*first);
    if (!facts || !fits(*facts) || facts->frames != bytes / frame_bytes - 1) return false;
    std::uint64_t records = 0;
    for (std::uint64_t i = 0; i < facts->frames; ++i) {
      const auto frame = parse_frame(all.subspan(static_cast<std::size_t>((i + 1) * frame_bytes), frame_bytes));
      if (!frame || !belongs(frame->head, frame_kind::checkpoint_records, number) || frame->head.sequence != i) {
        return false;
      }
      records += frame->head.count;
      if (!apply(*frame)) return false;
    }
    expected_ = first->head.sequence;
    return records == facts->records;
  }

  bool apply_segment(const segment& from) {
    if (from.size_bytes > most_segment_bytes) return false;
    if (from.head.sequence > expected_) return false;
    expected_ = from.head.sequence;
    auto read = read_whole(from.handle.fd(), from.size_bytes / frame_bytes * frame_bytes);
    if (!read) return false;
    const auto all = keep(std::move(*read));
    for (std::size_t at = frame_bytes; at < all.size(); at += frame_bytes) {
      // What is not whole is room not yet used, a torn end, or a write that failed and was repeated behind; only the
      // sequence of the frames around it tells whether anything is missing.
      const auto frame = parse_frame(all.subspan(at, frame_bytes));
      if (!frame) continue;
      if (!belongs(frame->head, frame_kind::records, from.number) || frame->head.sequence > expected_) return false;
      expected_ = frame->head.sequence + 1;
      if (!apply(*frame)) return false;
    }
    return true;
  }

  std::span<const std::byte> keep(content&& read) {
    contents_.push_back(std::move(read));
    return contents_.back().span();
  }

  bool apply(const parsed_frame& frame) {
    std::span<const std::byte> used = frame.used;
    std::uint32_t count = 0;
    while (const auto record = take_record(used, scope_.digest_bytes)) {
      if (ordinal_ == std::numeric_limits<std::uint32_t>::max()) return false;
      ++ordinal_;
      ++count;
      if (record->slot < latest_.size()) latest_[record->slot] = record->op == journal_op::insert ? ordinal_ : 0;
    }
    applied_.push_back(frame.used);
    return used.empty() && count == frame.head.count;
  }

  journal_scope scope_;
  std::vector<content> contents_;
  std::vector<std::span<const std::byte>> applied_;
  std::vector<std::uint32_t> latest_;  // per slot: the ordinal of its live insert, 0: none
  std::uint32_t ordinal_ = 0;
  std::uint64_t expected_ = 0;
  bool complete_ = false;
};

}  // namespace kvx::store
