// SPDX-License-Identifier: Apache-2.0
#include <kvx/metrics/histogram.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

namespace {

using kvx::histogram;
using kvx::histogram_snapshot;
using std::chrono::nanoseconds;

// The value that rank says, from all values.
std::uint64_t exact(std::vector<std::uint64_t> values, double q) {
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(q * static_cast<double>(values.size()));
  return values[static_cast<std::size_t>(std::clamp(rank, 1.0, static_cast<double>(values.size()))) - 1];
}

histogram_snapshot of(const std::vector<std::uint64_t>& values) {
  histogram h;
  for (const std::uint64_t v : values) h.record(nanoseconds{static_cast<std::int64_t>(v)});
  return h.snapshot();
}

}  // namespace

TEST_CASE("buckets follow each other without gap or overlap, a quarter of their values wide at most") {
  using s = histogram_snapshot;
  CHECK(s::bucket_of(0) == 0);
  CHECK(s::bucket_of(1) == 0);
  CHECK(s::bucket_of(2) == 1);
  for (std::size_t b = 0; b + 1 < s::bucket_count; ++b) {
    CAPTURE(b);
    CHECK(s::bucket_of(s::upper_ns(b)) == b);
    CHECK(s::bucket_of(s::upper_ns(b) + 1) == b + 1);
    const std::uint64_t low = b == 0 ? 0 : s::upper_ns(b - 1);
    CHECK((s::upper_ns(b) - low) * 4 <= std::max<std::uint64_t>(low, 4));
  }
  CHECK(s::upper_ns(s::bucket_count - 2) == s::limit_ns);
  CHECK(s::bucket_of(s::limit_ns) == s::bucket_count - 2);
  CHECK(s::bucket_of(s::limit_ns + 1) == s::bucket_count - 1);
  CHECK(s::bucket_of(~std::uint64_t{0}) == s::bucket_count - 1);
  // Powers of two are edges: that is what makes the Prometheus buckets exact.
  for (unsigned bits = 2; bits <= s::limit_bits; ++bits) {
    CHECK(s::upper_ns(s::bucket_of(std::uint64_t{1} << bits)) == std::uint64_t{1} << bits);
  }
}

TEST_CASE("percentiles are within a bucket of the sorted values, whatever the distribution") {
  std::mt19937_64 random{3};
  const auto uniform = [&] { return 1000 + random() % 9000; };
  const auto wide = [&] { return std::uint64_t{1} << (random() % 41); };
  const auto two_humps = [&] {
    return random() % 10 == 0 ? 5'000'000 + random() % 1'000'000 : 20'000 + random() % 100;
  };
  const auto small = [&] { return random() % 6; };
  const auto check = [](const std::vector<std::uint64_t>& values) {
    const histogram_snapshot s = of(values);
    for (const double q : {0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0}) {
      CAPTURE(q);
      const std::uint64_t right = exact(values, q);
      const auto got = static_cast<std::uint64_t>(s.percentile(q).count());
      const std::size_t bucket = histogram_snapshot::bucket_of(right);
      CHECK(got <= histogram_snapshot::upper_ns(bucket));
      CHECK(got >= (bucket == 0 ? 0 : histogram_snapshot::upper_ns(bucket - 1)));
    }
    CHECK(s.percentile(1.0).count() == static_cast<std::int64_t>(*std::max_element(values.begin(), values.end())));
  };
  for (const std::size_t n : {1U, 2U, 7U, 100U, 5000U}) {
    CAPTURE(n);
    std::vector<std::uint64_t> values(n);
    std::generate(values.begin(), values.end(), uniform);
    check(values);
    std::generate(values.begin(), values.end(), wide);
    check(values);
    std::generate(values.begin(), values.end(), two_humps);
    check(values);
    std::generate(values.begin(), values.end(), small);
    check(values);
  }
}

TEST_CASE("an empty histogram answers 0, shares outside 0 to 1 count as the nearest") {
  CHECK(histogram_snapshot{}.percentile(0.5).count() == 0);
  CHECK(histogram_snapshot{}.count() == 0);
  const histogram_snapshot s = of({100, 200, 300});
  CHECK(s.percentile(-1) == s.percentile(0));
  CHECK(s.percentile(7) == s.percentile(1));
}

TEST_CASE("what is beyond the range and before zero is counted at the ends") {
  histogram h;
  h.record(nanoseconds{-5});
  h.record(std::chrono::hours{24});
  h.record(std::chrono::hours{48});
  const histogram_snapshot s = h.snapshot();
  CHECK(s.count() == 3);
  CHECK(s.counts.front() == 1);
  CHECK(s.counts.back() == 2);
  CHECK(s.sum_ns == 72ULL * 3600 * 1'000'000'000);
  CHECK(s.percentile(1.0) == std::chrono::hours{48});
  CHECK(s.percentile(0.6) > nanoseconds{static_cast<std::int64_t>(histogram_snapshot::limit_ns)});
}

TEST_CASE("merging is the same as recording everything in one") {
  std::mt19937_64 random{8};
  std::vector<std::uint64_t> a(1000);
  std::vector<std::uint64_t> b(700);
  for (auto& v : a) v = random() % 1'000'000;
  for (auto& v : b) v = random() % 50'000'000;
  histogram_snapshot merged = of(a);
  merged.merge(of(b));
  a.insert(a.end(), b.begin(), b.end());
  CHECK(merged == of(a));
}

TEST_CASE("nothing is lost when threads record at once") {
  constexpr std::uint64_t per_thread = 50'000;
  constexpr std::uint64_t thread_count = 4;
  histogram h;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < thread_count; ++t) {
    threads.emplace_back([&h, t] {
      for (std::uint64_t i = 0; i < per_thread; ++i)
        h.record(nanoseconds{static_cast<std::int64_t>(t * per_thread + i)});
    });
  }
  std::uint64_t before = 0;
  for (int i = 0; i < 50; ++i) {
    const std::uint64_t now = h.snapshot().count();
    CHECK(now >= before);
    before = now;
  }
  for (std::thread& thread : threads) thread.join();
  const histogram_snapshot s = h.snapshot();
  constexpr std::uint64_t n = per_thread * thread_count;
  CHECK(s.count() == n);
  CHECK(s.sum_ns == n * (n - 1) / 2);
  CHECK(s.max_ns == n - 1);
}
