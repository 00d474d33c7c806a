// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/store/directory.hpp>
#include <kvx/store/journal_format.hpp>
#include <kvx/store/journal_reader.hpp>
#include <kvx/store/names.hpp>
#include <kvx/types.hpp>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvx::store {

/// Sizes that bound a journal.
/// Units   bytes
struct journal_limits {
  std::uint64_t segment = 0;
  std::uint64_t checkpoint = 0;  ///< the longest there can be

  /// Segments since the last checkpoint that make the next one due.
  [[nodiscard]] constexpr std::uint64_t due() const noexcept { return std::max(4 * segment, checkpoint); }
  /// Segments since the last checkpoint beyond which nothing is appended.
  [[nodiscard]] constexpr std::uint64_t hard() const noexcept { return 2 * due(); }
  /// Most that a writer's journal ever takes: full segments, the old checkpoint, the new one and its first segment.
  [[nodiscard]] constexpr std::uint64_t most() const noexcept { return hard() + 2 * checkpoint + segment; }
};

/// One writer's journal: appended to in frames, replaced by a checkpoint when it has grown.
///
/// Frames are never written twice and names never used twice, so that others can follow while it grows. Nothing is
/// synced but checkpoints: after a power cut a lost journal costs a reading of the slots' headers.
/// Thread  one caller
class journal_writer {
 public:
  /// Starts the first segment in the writer's own, empty directory.
  static result<journal_writer> make(detail::file directory, const journal_scope& scope, std::uint64_t epoch,
                                     std::uint64_t segment_bytes) {
    journal_writer made(std::move(directory), scope, epoch, segment_bytes);
    if (const status failure = made.start_segment(0); !failure) return failure;
    return made;
  }

  /// Appends all records or fails; after a failure the same records, and more, may be given again.
  /// Errors  no_space: the file system, or a checkpoint is overdue; io_failed: errno of the system
  /// Cost    one write per segment touched, no sync
  status append(std::span<const journal_record> records) {
    const std::uint64_t first_sequence = sequence_;
    while (!records.empty()) {
      if (next_frame_ == limits_.segment / frame_bytes) {
        if (since_base_ + limits_.segment > limits_.hard()) return retry_from(first_sequence, errc::no_space);
        if (const status failure = start_segment(base_); !failure) return retry_from(first_sequence, failure);
      }
      const std::size_t frames = pack(records);
      const status written = detail::pwrite_all(segment_.fd(), buffer_, next_frame_ * frame_bytes);
      // The range counts as used even after a failure: some of it may have been written, and may have been read.
      next_frame_ += frames;
      if (!written) return retry_from(first_sequence, written);
    }
    return {};
  }

  [[nodiscard]] bool compaction_due() const noexcept { return since_base_ >= limits_.due(); }

  /// Replaces everything written so far by a checkpoint.
  /// Errors  as append(), and io_failed with EBADMSG: what was written does not read back whole. The journal is then as
  ///         good as before
  /// Cost    reads the journal, writes one record per live slot, syncs
  status compact() {
    const auto image = journal_image::load(directory_.fd(), scope_);
    if (!image.complete()) return {errc::io_failed, EBADMSG};
    // A checkpoint is numbered like the segment that follows it, and stands for all segments below.
    const std::uint64_t number = next_number_;
    const std::uint64_t old_base = base_;
    const std::uint64_t old_segment = number_;
    status outcome = write_checkpoint(image, number);
    if (outcome) {
      outcome = start_segment(number);
    } else {
      ++next_number_;  // a name is not used twice, not even after a failure
    }
    if (!outcome) {
      (void)remove_file(directory_.fd(), checkpoint_name(number).c_str());
      return outcome;
    }
    if (old_base != 0) (void)remove_file(directory_.fd(), checkpoint_name(old_base).c_str());
    for (std::uint64_t each = first_segment_; each <= old_segment; ++each) {
      (void)remove_file(directory_.fd(), segment_name(each).c_str());
    }
    first_segment_ = number;
    since_base_ = limits_.segment;
    checkpoint_bytes_ = checkpoint_bytes(image.live_count(), scope_.digest_bytes);
    return {};
  }

  /// What the journal's files take.
  [[nodiscard]] std::uint64_t footprint_bytes() const noexcept { return since_base_ + checkpoint_bytes_; }

 private:
  journal_writer(detail::file directory, const journal_scope& scope, std::uint64_t epoch, std::uint64_t segment_bytes)
      : directory_(std::move(directory)),
        scope_(scope),
        epoch_(epoch),
        limits_{segment_bytes, checkpoint_bytes(scope.slots, scope.digest_bytes)} {}

  status retry_from(std::uint64_t sequence, const status& failure) noexcept {
    sequence_ = sequence;
    if (failure.os_error() == ENOSPC || failure.os_error() == EDQUOT) return {errc::no_space, failure.os_error()};
    return failure;
  }

  status start_segment(std::uint64_t base) {
    const std::uint64_t number = next_number_++;
    auto made = detail::create_file(directory_.fd(), segment_name(number).c_str());
    if (!made) return retry_from(sequence_, made.status());
    status outcome = detail::preallocate(made->handle.fd(), limits_.segment).status();
    if (outcome) {
      std::array<std::byte, frame_bytes> frame{};
      encode_journal_head(frame, {frame_kind::segment_head, number, sequence_, 0, scope_.writer},
                          {scope_.description, epoch_, base, 0, 0, static_cast<std::uint32_t>(scope_.digest_bytes)});
      outcome = detail::pwrite_all(made->handle.fd(), frame, 0);
    }
    if (!outcome) {
      (void)remove_file(directory_.fd(), segment_name(number).c_str());
      return retry_from(sequence_, outcome);
    }
    segment_ = std::move(made->handle);
    number_ = number;
    base_ = base;
    next_frame_ = 1;
    since_base_ += limits_.segment;
    return {};
  }

  // Fills buffer_ with as many frames as the segment has room for, and takes their records off the front.
  std::size_t pack(std::span<const journal_record>& records) {
    constexpr std::size_t most_frames_per_write = 256;
    const std::size_t room = static_cast<std::size_t>(limits_.segment / frame_bytes - next_frame_);
    buffer_.clear();
    std::size_t frames = 0;
    for (; frames < std::min(room, most_frames_per_write) && !records.empty(); ++frames) {
      add_frame(frame_kind::records, number_, sequence_++, records);
    }
    return frames;
  }

  void add_frame(frame_kind kind, std::uint64_t file, std::uint64_t sequence,
                 std::span<const journal_record>& records) {
    buffer_.resize(buffer_.size() + frame_bytes);
    const auto frame = std::span(buffer_).last(frame_bytes);
    const auto room = frame.subspan(frame_head_bytes, frame_room_bytes);
    std::size_t used = 0;
    std::uint32_t count = 0;
    while (!records.empty() && used + record_bytes(records.front().op, scope_.digest_bytes) <= room.size()) {
      used += encode_record(room.subspan(used), records.front(), scope_.digest_bytes);
      records = records.subspan(1);
      ++count;
    }
    seal_frame(frame, {kind, file, sequence, count, scope_.writer}, used);
  }

  status write_checkpoint(const journal_image& image, std::uint64_t number) {
    auto made = detail::create_file(directory_.fd(), checkpoint_name(number).c_str());
    if (!made) return retry_from(sequence_, made.status());
    const int fd = made->handle.fd();
    constexpr std::size_t frames_per_write = 256;
    const std::size_t per_frame = inserts_per_frame(scope_.digest_bytes);
    std::vector<journal_record> batch;
    batch.reserve(frames_per_write * per_frame);
    std::uint64_t records = 0;
    std::uint64_t frames = 0;
    status outcome;
    const auto write_batch = [&] {
      if (!outcome || batch.empty()) return;
      buffer_.clear();
      const std::uint64_t first = frames;
      for (std::span<const journal_record> rest = batch; !rest.empty(); ++frames) {
        add_frame(frame_kind::checkpoint_records, number, frames, rest);
      }
      records += batch.size();
      outcome = detail::pwrite_all(fd, buffer_, (first + 1) * frame_bytes);
      batch.clear();
    };
    image.for_each_live([&](const journal_record& record) {
      batch.push_back(record);
      if (batch.size() == batch.capacity()) write_batch();
    });
    write_batch();
    if (outcome) {
      std::array<std::byte, frame_bytes> frame{};
      encode_journal_head(
          frame, {frame_kind::checkpoint_head, number, sequence_, 0, scope_.writer},
          {scope_.description, epoch_, 0, records, frames, static_cast<std::uint32_t>(scope_.digest_bytes)});
      outcome = detail::pwrite_all(fd, frame, 0);
    }
    // What it replaces is removed next, so this one must not be lost to a power cut alone.
    if (outcome && ::fdatasync(fd) != 0) outcome = detail::last_error();
    if (outcome) outcome = made->handle.close();
    return outcome ? outcome : retry_from(sequence_, outcome);
  }

  detail::file directory_;
  journal_scope scope_;
  std::uint64_t epoch_ = 0;
  journal_limits limits_;
  detail::file segment_;
  std::vector<std::byte> buffer_;
  std::uint64_t next_number_ = 1;
  std::uint64_t number_ = 0;  // of the newest segment
  std::uint64_t first_segment_ = 1;
  std::uint64_t base_ = 0;
  std::uint64_t sequence_ = 0;    // of the next frame
  std::uint64_t next_frame_ = 0;  // in the newest segment
  std::uint64_t since_base_ = 0;  // bytes of the segments that a checkpoint would replace
  std::uint64_t checkpoint_bytes_ = 0;
};

}  // namespace kvx::store
