// SPDX-License-Identifier: Apache-2.0
#include <kvx/metrics/throughput.hpp>

#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

using kvx::throughput;
using namespace std::chrono_literals;

namespace {

constexpr throughput::options quick{.half_life = 1s, .least_bytes = 1000};
const throughput::clock::time_point zero{};

}  // namespace

TEST_CASE("there is no answer before enough was moved") {
  throughput t{quick};
  CHECK(!t.bytes_per_second());
  t.start(zero);
  t.finish(999, zero + 1s);
  CHECK(!t.bytes_per_second());
  t.start(zero + 1s);
  t.finish(1, zero + 2s);
  CHECK(t.bytes_per_second().has_value());
}

TEST_CASE("one operation after the other: bytes over the time they took, idle time left out") {
  throughput t{quick};
  for (int i = 0; i < 10; ++i) {
    const auto at = zero + i * 100s;
    t.start(at);
    t.finish(5'000'000, at + 1s);
  }
  REQUIRE(t.bytes_per_second());
  CHECK(*t.bytes_per_second() == doctest::Approx(5e6).epsilon(0.01));
}

TEST_CASE("operations that overlap share their time") {
  throughput t{{.half_life = 1000s, .least_bytes = 1}};
  for (int i = 0; i < 4; ++i) t.start(zero);
  for (int i = 0; i < 4; ++i) t.finish(1000, zero + 2s);
  REQUIRE(t.bytes_per_second());
  CHECK(*t.bytes_per_second() == doctest::Approx(2000).epsilon(0.01));
}

TEST_CASE("what changes is followed within a few half-lives of busy time") {
  throughput t{quick};
  auto at = zero;
  const auto run = [&](int seconds, std::uint64_t bytes_per_ms) {
    for (int i = 0; i < seconds * 1000; ++i) {
      t.start(at);
      at += 1ms;
      t.finish(bytes_per_ms, at);
    }
  };
  run(10, 1'000'000);
  CHECK(*t.bytes_per_second() == doctest::Approx(1e9).epsilon(0.01));
  run(1, 100'000);
  CHECK(*t.bytes_per_second() == doctest::Approx(5.5e8).epsilon(0.02));
  run(9, 100'000);
  CHECK(*t.bytes_per_second() == doctest::Approx(1e8).epsilon(0.02));
}

TEST_CASE("failures cost time and move nothing; clocks taken out of order do no harm") {
  throughput t{{.half_life = 1000s, .least_bytes = 1}};
  t.start(zero);
  t.finish(1000, zero + 1s);
  t.start(zero + 1s);
  t.finish(0, zero + 2s);
  CHECK(*t.bytes_per_second() == doctest::Approx(500).epsilon(0.01));
  t.start(zero + 3s);
  t.start(zero + 2500ms);
  t.finish(1000, zero + 4s);
  t.finish(0, zero + 3900ms);
  CHECK(*t.bytes_per_second() == doctest::Approx(2000.0 / 3).epsilon(0.01));
}

TEST_CASE("an operation that takes no measurable time gives no infinite rate") {
  throughput t{{.half_life = 1s, .least_bytes = 1}};
  t.start(zero);
  t.finish(1000, zero);
  CHECK(!t.bytes_per_second());
}

TEST_CASE("threads may start and finish at once") {
  throughput t{{.half_life = 1s, .least_bytes = 1}};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&t] {
      for (int n = 0; n < 1000; ++n) {
        t.start();
        t.finish(4096);
        static_cast<void>(t.bytes_per_second());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  REQUIRE(t.bytes_per_second());
  CHECK(*t.bytes_per_second() > 0);
}
