// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/result.hpp>

#include <chrono>
#include <cstddef>
#include <span>
#include <string_view>

namespace kvx::detail {

/// The least that models io_backend, to check templates over backends with; never called, so never defined.
class io_archetype {
 public:
  explicit io_archetype(const io_options& options);
  void submit(std::span<const io_request> requests);
  status register_arena(std::span<std::byte> arena);
  void attach(int file);
  void detach(int file);
  [[nodiscard]] std::size_t in_flight_bytes() const noexcept;
  [[nodiscard]] std::string_view name() const noexcept;
  bool stop(std::chrono::milliseconds deadline);
};

static_assert(io_backend<io_archetype>);

}  // namespace kvx::detail
