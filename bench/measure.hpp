// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace kvx_bench {

inline constexpr std::size_t mib = 1U << 20U;

/// Touched anonymous memory, in huge pages where there are any, for the whole run.
inline std::span<std::byte> memory(std::size_t bytes) {
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    std::fprintf(stderr, "no memory for %zu MiB: ask for a smaller run\n", bytes / mib);
    std::exit(1);
  }
  ::madvise(at, bytes, MADV_HUGEPAGE);
  std::memset(at, 1, bytes);
  return {static_cast<std::byte*>(at), bytes};
}

/// Processor time of all threads of this process.
inline double cpu_seconds() {
  ::rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const ::timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

struct cost {
  double seconds = 0;
  double cpu_seconds = 0;
};

template <class Work>
cost timed(Work&& work) {
  const double cpu = cpu_seconds();
  const auto began = std::chrono::steady_clock::now();
  work();
  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return {wall, cpu_seconds() - cpu};
}

struct interval {
  double low = 0;
  double middle = 0;
  double high = 0;
};

/// Median with a distribution-free 95 % interval; with fewer than six values the interval is all of them.
inline interval median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  const double half = 0.98 * std::sqrt(n);
  const auto at = [&](double rank) { return values[static_cast<std::size_t>(std::clamp(rank, 0.0, n - 1))]; };
  return {at(std::floor(n / 2 - half)), at(std::floor(n / 2)), at(std::ceil(n / 2 + half))};
}

/// The rounds' ratios of two series that were measured in turn.
inline interval ratio(const std::vector<double>& of, const std::vector<double>& to) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < of.size(); ++i) ratios.push_back(of[i] / to[i]);
  return median(std::move(ratios));
}

/// What an interval says about a goal: reached or missed only where all of it is on one side.
inline const char* verdict(const interval& measured, double at_least) {
  if (measured.low >= at_least) return "reached";
  return measured.high < at_least ? "missed" : "inconclusive";
}

}  // namespace kvx_bench
