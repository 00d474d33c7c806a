// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

namespace kvx {

/// How `cuda_transfer` moves the fragments of a call.
enum class cuda_technique : std::uint8_t {
  strided,  ///< copy engine, one copy of a matrix per block: layers lie at a constant distance in one address range
  batched,  ///< copy engine, one entry per fragment
  staged,   ///< gathered or scattered in device memory by a kernel, one contiguous copy per block over the link
  direct,   ///< a kernel that reads or writes the slot where it is, of two thread blocks over the link
};

[[nodiscard]] constexpr std::string_view to_string(cuda_technique how) noexcept {
  switch (how) {
    case cuda_technique::strided:
      return "strided";
    case cuda_technique::batched:
      return "batched";
    case cuda_technique::staged:
      return "staged";
    case cuda_technique::direct:
      return "direct";
  }
  return "unknown";
}

/// What each technique costs in one direction; measured when a `cuda_transfer` is made, or given to it.
/// Units   microseconds; GB/s of 1e9 bytes
struct cuda_costs {
  /// From here on the runtime takes a cheaper way for the entries of a batch.
  static constexpr std::size_t large_entry_bytes = 28U << 10U;

  double link_gb_per_s = 50;
  double strided_copy_us = 2.7;  ///< per matrix, while the link idles
  double small_entry_us = 1.0;   ///< per entry of a batch, of the host and while the link works
  double large_entry_us = 0.5;   ///< the same for entries of large_entry_bytes and more
  double staged_start_us = 30;
  double staged_gb_per_s = 50;
  double direct_start_us = 10;
  double direct_gb_per_s = 45;
};

/// What a call would hand to the techniques.
/// Shape   matrices: 0 where the layers lie at no constant distance; ranges: contiguous pieces on the slot's side
struct cuda_workload {
  std::size_t bytes = 0;
  std::size_t fragments = 0;
  std::size_t matrices = 0;
  std::size_t ranges = 0;
};

/// Microseconds that a call should take.
[[nodiscard]] constexpr double predicted_us(cuda_technique how, const cuda_costs& costs,
                                            const cuda_workload& work) noexcept {
  const auto count = [](std::size_t n) { return static_cast<double>(n); };
  // 1 GB/s is 1,000 bytes per microsecond.
  const auto moving = [&](double gb_per_s) { return count(work.bytes) / (gb_per_s * 1e3); };
  const auto entry_us = [&](std::size_t entries) {
    return work.bytes >= entries * cuda_costs::large_entry_bytes ? costs.large_entry_us : costs.small_entry_us;
  };
  constexpr double start_us = 5;
  switch (how) {
    case cuda_technique::strided:
      if (work.matrices == 0) break;
      return start_us + count(work.matrices) * costs.strided_copy_us + moving(costs.link_gb_per_s);
    case cuda_technique::batched:
      // The link waits for the host to have the first ones ready.
      return start_us + count(std::min<std::size_t>(work.fragments, 32)) * entry_us(work.fragments) +
             std::max(count(work.fragments) * entry_us(work.fragments), moving(costs.link_gb_per_s));
    case cuda_technique::staged:
      return costs.staged_start_us +
             std::max(count(work.ranges) * entry_us(work.ranges), moving(costs.staged_gb_per_s));
    case cuda_technique::direct:
      return costs.direct_start_us + moving(costs.direct_gb_per_s);
  }
  return std::numeric_limits<double>::infinity();
}

/// The cheapest technique, with a lean of one and a half per cent to matrices, which cost the host next to nothing and
/// take no multiprocessor. `direct` is for small calls, as it slows whatever runs beside it. Shape   kernels: whether
/// there are any; direct_bytes: the largest call that may be `direct`
[[nodiscard]] constexpr cuda_technique cheapest(const cuda_costs& costs, const cuda_workload& work, bool kernels,
                                                std::size_t direct_bytes) noexcept {
  constexpr double lean = 0.985;
  cuda_technique best = cuda_technique::batched;
  double least = predicted_us(best, costs, work);
  const auto consider = [&](cuda_technique how, double factor) {
    const double us = factor * predicted_us(how, costs, work);
    if (us < least) {
      best = how;
      least = us;
    }
  };
  consider(cuda_technique::strided, lean);
  if (kernels) consider(cuda_technique::staged, 1.0);
  if (kernels && work.bytes <= direct_bytes) consider(cuda_technique::direct, 1.0);
  return best;
}

}  // namespace kvx
