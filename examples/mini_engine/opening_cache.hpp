// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <utility>

namespace mini_engine {

/// A cache that opens on a thread of its own, so that nobody has to wait for a directory that answers slowly.
/// Thread  one
template <class Cache>
class basic_opening_cache {
 public:
  using clock = std::chrono::steady_clock;
  using opener = std::function<Cache(const std::function<void()>& memory_is_there)>;

  basic_opening_cache(opener open, std::uint64_t memory_bytes) : memory_bytes_(memory_bytes) {
    auto memory = std::make_shared<std::promise<void>>();
    memory_is_there_ = memory->get_future().share();
    opening_ = std::async(std::launch::async, [open = std::move(open), memory] {
      bool told = false;
      const auto tell = [&] {
        if (!std::exchange(told, true)) memory->set_value();
      };
      try {
        Cache opened = open(tell);
        tell();
        return std::pair(std::move(opened), clock::now());
      } catch (...) {
        tell();
        throw;
      }
    });
  }

  /// Null while it is not open. Throws what opening threw.
  Cache* get() { return wait_for({}); }
  /// Waits until it is open, at most for `limit`. Throws as get().
  Cache* wait_for(std::chrono::duration<double> limit) {
    if (opening_.valid() && opening_.wait_for(limit) == std::future_status::ready) {
      auto [opened, at] = opening_.get();
      cache_.emplace(std::move(opened));
      open_seconds_ = std::chrono::duration<double>(at - started_).count();
    }
    return cache_ ? &*cache_ : nullptr;
  }
  /// Waits for the part of opening that computes: beside it a prefill would only slow both down.
  void wait_for_memory() const { memory_is_there_.wait(); }
  /// What opening took; 0 before it is open.
  double open_seconds() const { return open_seconds_; }
  std::uint64_t memory_bytes() const { return memory_bytes_; }

 private:
  clock::time_point started_ = clock::now();
  std::uint64_t memory_bytes_;
  double open_seconds_ = 0;
  std::optional<Cache> cache_;
  std::shared_future<void> memory_is_there_;
  std::future<std::pair<Cache, clock::time_point>> opening_;
};

}  // namespace mini_engine
