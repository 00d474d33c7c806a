// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/result.hpp>

#include <chrono>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace kvx_test {

/// A backend whose requests are done once they were handed over, as those that a kernel has: giving one up does not
/// stop it from writing its buffer. Below `kvx::fault`, what is late or withheld really arrives.
template <kvx::io_backend Inner>
class committed_io {
 public:
  explicit committed_io(const kvx::io_options& options) : inner_(options) {}

  void submit(std::span<const kvx::io_request> requests) {
    std::vector<kvx::io_request> deaf(requests.begin(), requests.end());
    for (kvx::io_request& request : deaf) request.cancelled = nullptr;
    inner_.submit(deaf);
  }
  kvx::status register_arena(std::span<std::byte> arena) { return inner_.register_arena(arena); }
  void attach(int file) { inner_.attach(file); }
  void detach(int file) { inner_.detach(file); }
  [[nodiscard]] std::size_t in_flight_bytes() const { return inner_.in_flight_bytes(); }
  [[nodiscard]] std::string_view name() const { return "committed"; }
  bool stop(std::chrono::milliseconds deadline) { return inner_.stop(deadline); }

 private:
  Inner inner_;
};

static_assert(kvx::io_backend<committed_io<kvx::archetype::io>>);

}  // namespace kvx_test
