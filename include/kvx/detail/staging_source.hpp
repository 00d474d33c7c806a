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
  [[nodiscard]] virtual std::size_t capacity() const = 0;
  [[nodiscard]] virtual const void* reader() const noexcept = 0;
};

template <direct_reader Reader>
class staging_source_of final : public staging_source {
 public:
  explicit staging_source_of(std::shared_ptr<Reader> reader) noexcept : reader_(std::move(reader)) {}

  void submit(std::span<const direct_request> requests) override { reader_->submit(requests); }
  void give_back(std::byte* payload) override { reader_->give_back(payload); }
  void detach(int file) override { reader_->detach(file); }
  [[nodiscard]] std::size_t capacity() const override { return reader_->capacity(); }
  [[nodiscard]] const void* reader() const noexcept override { return reader_.get(); }

 private:
  std::shared_ptr<Reader> reader_;
};

/// The readers that a cache was given. It keeps them as long as itself: one may not die on a thread of its own.
/// Thread  any, concurrently
class staging_sources {
 public:
  template <direct_reader Reader>
  [[nodiscard]] std::shared_ptr<staging_source> of(const std::shared_ptr<Reader>& reader) {
    const std::lock_guard lock(mutex_);
    for (const auto& each : all_)
      if (each->reader() == reader.get()) return each;
    all_.push_back(std::make_shared<staging_source_of<Reader>>(reader));
    return all_.back();
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
