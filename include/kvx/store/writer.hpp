// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/detail/random.hpp>
#include <kvx/result.hpp>
#include <kvx/store/heartbeat.hpp>
#include <kvx/store/journal_writer.hpp>
#include <kvx/store/names.hpp>
#include <kvx/store/peers.hpp>
#include <kvx/types.hpp>

#include <cstdint>
#include <utility>

namespace kvx::store {

/// A store's life as a writer: an id never drawn before, its directory, its heartbeat and its journal.
/// Thread  one caller
class writer {
 public:
  /// Starts a new life, visible to others before it claims anything.
  /// Errors  io_failed, no_space: errno of the system; nothing is left behind
  static result<writer> make(int writers, journal_scope scope, std::uint64_t epoch, std::uint64_t segment_bytes) {
    const auto id = detail::random_id();
    if (!id) return id.status();
    scope.writer = *id;
    auto directory = detail::make_directory(writers, to_name(*id).c_str());
    if (!directory) return directory.status();
    auto beat = heartbeat::make(directory->fd(), *id);
    auto journal = beat ? journal_writer::make(std::move(*directory), scope, epoch, segment_bytes)
                        : result<journal_writer>(beat.status());
    if (!journal) {
      (void)remove_writer(writers, *id);
      return journal.status();
    }
    return writer(*id, std::move(*beat), std::move(*journal));
  }

  [[nodiscard]] const writer_id& id() const noexcept { return id_; }
  [[nodiscard]] journal_writer& journal() noexcept { return journal_; }
  [[nodiscard]] const journal_writer& journal() const noexcept { return journal_; }
  status beat() noexcept { return heartbeat_.beat(); }

  /// Ends this life; one that holds no extent leaves nothing behind.
  void close(int writers, bool holds_nothing) {
    (void)heartbeat_.close();
    if (holds_nothing) (void)remove_writer(writers, id_);
  }

 private:
  writer(const writer_id& id, heartbeat beat, journal_writer journal) noexcept
      : id_(id), heartbeat_(std::move(beat)), journal_(std::move(journal)) {}

  writer_id id_;
  heartbeat heartbeat_;
  journal_writer journal_;
};

}  // namespace kvx::store
