// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/direct_reader.hpp>

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

namespace kvx::detail {

/// A direct_reader behind one indirect call per batch, so that readers of several types feed one cache.
class staging_source {
 public:
  virtual ~staging_source() = default;
  virtual void submit(std::span<const direct_request> requests) = 0;
  virtual void give_back(std::byte* payload) = 0;
  virtual void detach(int file) = 0;
  [[nodiscard]] virtual std::span<std::byte> staging() const = 0;
  [[nodiscard]] virtual std::size_t capacity() const = 0;
  [[nodiscard]] virtual std::size_t block_bytes() const = 0;
  /// Whether only a device reads its memory.
  [[nodiscard]] virtual bool on_device() const noexcept = 0;
  [[nodiscard]] virtual const void* reader() const noexcept = 0;
};

template <class Reader>
inline constexpr bool staged_on_device = requires {
  requires Reader::on_device;
};

template <direct_reader Reader>
class staging_source_of final : public staging_source {
 public:
  explicit staging_source_of(std::shared_ptr<Reader> reader) noexcept : reader_(std::move(reader)) {}

  void submit(std::span<const direct_request> requests) override { reader_->submit(requests); }
  void give_back(std::byte* payload) override { reader_->give_back(payload); }
  void detach(int file) override { reader_->detach(file); }
  [[nodiscard]] std::span<std::byte> staging() const override { return reader_->staging(); }
  [[nodiscard]] std::size_t capacity() const override { return reader_->capacity(); }
  [[nodiscard]] std::size_t block_bytes() const override { return reader_->block_bytes(); }
  [[nodiscard]] bool on_device() const noexcept override { return staged_on_device<Reader>; }
  [[nodiscard]] const void* reader() const noexcept override { return reader_.get(); }

 private:
  std::shared_ptr<Reader> reader_;
};

/// Whether a transfer engine copies from memory that only a device reads.
template <class Transfer>
concept takes_staging = requires(Transfer& engine, std::span<std::byte> staging) {
  engine.register_staging(staging);
};

/// The readers that a cache was given. It keeps them as long as itself: one may not die on a thread of its own.
/// Thread  any, concurrently
class staging_sources {
 public:
  /// The one that stands for the same reader from now on.
  [[nodiscard]] std::shared_ptr<staging_source> keep(const std::shared_ptr<staging_source>& given) {
    const std::lock_guard lock(mutex_);
    for (const auto& each : all_)
      if (each->reader() == given->reader()) return each;
    all_.push_back(given);
    return given;
  }
  /// A file is about to be closed, and nothing reads it.
  void detach(int file) {
    const std::lock_guard lock(mutex_);
    for (const auto& each : all_) each->detach(file);
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<staging_source>> all_;
};

}  // namespace kvx::detail
