// SPDX-License-Identifier: Apache-2.0
#include <kvx/metrics/counters.hpp>
#include <kvx/metrics/prometheus.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using kvx::label;
using kvx::metrics;
using std::chrono::nanoseconds;

struct sample {
  std::string name;
  std::vector<std::pair<std::string, std::string>> labels;
  double value = 0;

  [[nodiscard]] std::string get(std::string_view key) const {
    for (const auto& [name_, value_] : labels) {
      if (name_ == key) return value_;
    }
    return {};
  }
};

struct family {
  std::string type;
  std::string help;
  std::vector<sample> samples;
};

// Text format 0.0.4, nothing tolerated that the format does not ask for. Throws text with the line.
class strict_parser {
 public:
  explicit strict_parser(std::string_view text) {
    if (!text.empty() && text.back() != '\n') fail("the last line has no end");
    std::string current;
    while (!text.empty()) {
      line_ = text.substr(0, text.find('\n'));
      text.remove_prefix(line_.size() + 1);
      rest_ = line_;
      if (take("# HELP ")) {
        current = name(true);
        expect(" ");
        if (families.count(current) != 0) fail("a second HELP");
        families[current].help = std::string{rest_};
        order.push_back(current);
      } else if (take("# TYPE ")) {
        if (name(true) != current || !families[current].type.empty()) fail("TYPE does not follow its HELP");
        expect(" ");
        if (rest_ != "counter" && rest_ != "gauge" && rest_ != "histogram") fail("unknown type");
        families[current].type = std::string{rest_};
      } else {
        if (current.empty() || families[current].type.empty()) fail("a sample before its TYPE");
        families[current].samples.push_back(read_sample(current, families[current].type));
      }
    }
  }

  std::map<std::string, family> families;
  std::vector<std::string> order;

 private:
  [[noreturn]] void fail(const std::string& why) const { throw std::runtime_error(why + ": " + std::string{line_}); }
  bool take(std::string_view what) {
    if (!rest_.starts_with(what)) return false;
    rest_.remove_prefix(what.size());
    return true;
  }
  void expect(std::string_view what) {
    if (!take(what)) fail("expected '" + std::string{what} + "'");
  }
  std::string name(bool colons) {
    std::size_t n = 0;
    while (n < rest_.size()) {
      const char c = rest_[n];
      const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (colons && c == ':');
      if (!letter && !(n > 0 && c >= '0' && c <= '9')) break;
      ++n;
    }
    if (n == 0) fail("no name");
    const std::string out{rest_.substr(0, n)};
    rest_.remove_prefix(n);
    return out;
  }
  std::string quoted() {
    expect("\"");
    std::string out;
    while (!rest_.empty() && rest_.front() != '"') {
      char c = rest_.front();
      rest_.remove_prefix(1);
      if (c == '\\') {
        if (rest_.empty()) fail("an escape of nothing");
        c = rest_.front();
        rest_.remove_prefix(1);
        if (c == 'n')
          c = '\n';
        else if (c != '\\' && c != '"')
          fail("an unknown escape");
      }
      out.push_back(c);
    }
    expect("\"");
    return out;
  }
  sample read_sample(const std::string& family_name, const std::string& type) {
    sample out;
    out.name = name(true);
    const std::string suffix = out.name.substr(std::min(out.name.size(), family_name.size()));
    const bool known =
        type == "histogram" ? suffix == "_bucket" || suffix == "_sum" || suffix == "_count" : suffix.empty();
    if (!out.name.starts_with(family_name) || !known) fail("a sample of another family than " + family_name);
    if (take("{")) {
      std::set<std::string> seen;
      do {
        std::string key = name(false);
        expect("=");
        if (!seen.insert(key).second) fail("a label twice");
        out.labels.emplace_back(std::move(key), quoted());
      } while (take(","));
      expect("}");
    }
    expect(" ");
    const auto [end, problem] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), out.value);
    if (problem != std::errc{} || end != rest_.data() + rest_.size()) fail("no number");
    return out;
  }

  std::string_view line_;
  std::string_view rest_;
};

std::string exposed(const metrics& m, const std::vector<label>& labels = {}) {
  return kvx::to_prometheus(m.snapshot(), labels);
}

}  // namespace

TEST_CASE("the parser of this test refuses what the format forbids") {
  const auto parse = [](const char* text) { strict_parser{text}; };
  const std::string head = "# HELP a_total b\n# TYPE a_total counter\n";
  parse((head + "a_total{x=\"y\"} 1\n").c_str());
  for (const char* bad : {"a_total 1", "a_total{x=\"y\",} 1\n", "a_total{x=\"y\"}1\n", "b_total 1\n",
                          "a_total{x=y} 1\n", "a_total{x=\"\\t\"} 1\n", "a_total{x=\"1\",x=\"2\"} 1\n", "a_total one\n",
                          "a_total 1 \n", "a_total{9=\"y\"} 1\n", "\n", "# HELP a_total b\n"}) {
    CAPTURE(bad);
    CHECK_THROWS(parse((head + bad).c_str()));
  }
  CHECK_THROWS(parse("a_total 1\n"));
}

TEST_CASE("the exposition of a fresh and of a busy cache parses, every cell is there once") {
  metrics m;
  for (const bool busy : {false, true}) {
    if (busy) {
      m.memory.hits.add(12);
      m.of(kvx::tier::storage).read_bytes.add(std::uint64_t{1} << 40U);
      m.latency.load.record(std::chrono::milliseconds{3});
    }
    const strict_parser parsed{exposed(m)};
    std::size_t cells = 0;
    kvx::metrics_snapshot all = m.snapshot();
    kvx::for_each_metric([&cells](const kvx::metric_description&, const auto&) { ++cells; }, all);
    std::size_t samples = 0;
    std::set<std::string> distinct;
    for (const auto& [name, f] : parsed.families) {
      CHECK(!f.help.empty());
      CHECK(f.help.back() == '.');
      CHECK(name.starts_with("kvx_"));
      CHECK((f.type == "counter") == name.ends_with("_total"));
      for (const sample& s : f.samples) {
        if (f.type == "histogram" && !s.name.ends_with("_count")) continue;
        ++samples;
        CHECK(distinct.insert(s.name + s.get("tier") + "/" + s.get("operation")).second);
      }
    }
    CHECK(samples == cells);
  }
}

TEST_CASE("every cell of the live struct reaches its own cell of the snapshot and the exposition") {
  metrics m;
  std::uint64_t next = 1;
  kvx::for_each_metric(
      [&next](const kvx::metric_description&, auto& cell) {
        if constexpr (requires { cell.record(nanoseconds{1}); }) {
          for (std::uint64_t i = 0; i < next; ++i) cell.record(nanoseconds{1000});
        } else {
          cell.add(next);
        }
        ++next;
      },
      m);
  const kvx::metrics_snapshot plain = m.snapshot();
  std::set<std::uint64_t> seen;
  kvx::for_each_metric(
      [&seen](const kvx::metric_description&, const auto& cell) {
        if constexpr (requires { cell.count(); }) {
          seen.insert(cell.count());
        } else {
          seen.insert(cell);
        }
      },
      plain);
  CHECK(seen.size() == next - 1);
  CHECK(*seen.rbegin() == next - 1);
  // A member that the list forgot: these stop compiling when one is added, and then the count below must follow.
  [[maybe_unused]] const auto& [t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16] = plain.memory;
  [[maybe_unused]] const auto& [o1, o2, o3, o4, o5, o6, o7] = plain.match;
  [[maybe_unused]] const auto& [b1, b2, b3, b4] = plain.breaker_load;
  [[maybe_unused]] const auto& [l1, l2, l3, l4, l5, l6, l7] = plain.latency;
  [[maybe_unused]] const auto& [m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14] = plain;
  CHECK(next - 1 == 2 * 16 + 4 * 7 + 2 * 4 + 7 + 5);
  std::set<double> values;
  const strict_parser parsed{kvx::to_prometheus(plain)};
  for (const auto& [name, f] : parsed.families) {
    for (const sample& s : f.samples) {
      if (f.type != "histogram" || s.name.ends_with("_count")) values.insert(s.value);
    }
  }
  CHECK(values.size() == next - 1);
}

TEST_CASE("histograms are cumulative, end with +Inf and agree with what was recorded") {
  metrics m;
  for (const std::int64_t ns : std::initializer_list<std::int64_t>{1, 256, 257, 1'000'000, 1'000'001, 70'000'000'000})
    m.latency.match.record(nanoseconds{ns});
  const strict_parser parsed{exposed(m)};
  const family& f = parsed.families.at("kvx_latency_seconds");
  double before_count = 0;
  double before_edge = 0;
  bool ended = false;
  for (const sample& s : f.samples) {
    if (s.get("operation") != "match") continue;
    if (s.name == "kvx_latency_seconds_sum") CHECK(s.value == doctest::Approx(70.002000515).epsilon(1e-12));
    if (s.name == "kvx_latency_seconds_count") CHECK(s.value == 6);
    if (s.name != "kvx_latency_seconds_bucket") continue;
    CHECK(!ended);
    CHECK(s.value >= before_count);
    before_count = s.value;
    if (s.get("le") == "+Inf") {
      CHECK(s.value == 6);
      ended = true;
      continue;
    }
    const std::string edge_text = s.get("le");
    double edge = 0;
    std::from_chars(edge_text.data(), edge_text.data() + edge_text.size(), edge);
    CHECK(edge > before_edge);
    before_edge = edge;
    // 256 ns is inside the bucket that ends there, 257 ns is not.
    if (edge_text == "0.000000256") CHECK(s.value == 2);
    if (edge_text == "0.000000512") CHECK(s.value == 3);
    if (edge_text == "0.001048576") CHECK(s.value == 5);
    if (edge_text == "68.719476736") CHECK(s.value == 5);
  }
  CHECK(ended);
}

TEST_CASE("constant labels are on every sample, escaped, first, and once each") {
  const std::string awkward = "a\\b \"c\"\nd{},=\xC3\xA9";
  metrics m;
  m.latency.match.record(nanoseconds{5});
  const strict_parser parsed{exposed(m, {{"node", awkward}, {"rank", "0"}, {"node", "again"}})};
  for (const auto& [name, f] : parsed.families) {
    for (const sample& s : f.samples) {
      REQUIRE(s.labels.size() >= 2);
      CHECK(s.labels[0] == std::pair<std::string, std::string>{"node", awkward});
      CHECK(s.labels[1] == std::pair<std::string, std::string>{"rank", "0"});
    }
  }
}

TEST_CASE("label names that Prometheus refuses, or that kvx uses, are refused by name") {
  for (const char* bad : {"", "9lives", "a-b", "a b", "__name__", "caf\xC3\xA9", "a:b"}) {
    CAPTURE(bad);
    CHECK_THROWS_AS((label{bad, "v"}), kvx::error);
  }
  for (const char* taken : {"le", "tier", "operation"}) CHECK_THROWS_AS((label{taken, "v"}), kvx::error);
  CHECK_THROWS_WITH((label{"tier", "v"}), "kvx: metric label 'tier' is one that kvx sets itself; choose another name");
  CHECK(label{"_a9", ""}.name() == "_a9");
}

TEST_CASE("appending leaves what was there") {
  std::string out = "# mine\n";
  kvx::append_prometheus(out, metrics{}.snapshot());
  CHECK(out == "# mine\n" + exposed(metrics{}));
}

TEST_CASE("golden text") {
  metrics m;
  m.memory.hits.add(7);
  m.storage.hits.add(18'446'744'073'709'551'615ULL);
  m.breaker_save.state.set(2);
  m.matched_tokens.add(4096);
  m.latency.match.record(nanoseconds{300});
  m.latency.match.record(nanoseconds{1'500'000'000});
  const std::string text = exposed(m, {{"model", "m\"1"}});
  const auto part = [&text](std::string_view from, std::string_view to) {
    const std::size_t a = text.find(from);
    const std::size_t b = text.find(to, a);
    REQUIRE(a != std::string::npos);
    REQUIRE(b != std::string::npos);
    return text.substr(a, b - a);
  };
  CHECK(part("# HELP kvx_hit_blocks_total", "# HELP kvx_missed") ==
        "# HELP kvx_hit_blocks_total Blocks that match planned to take from the tier.\n"
        "# TYPE kvx_hit_blocks_total counter\n"
        "kvx_hit_blocks_total{model=\"m\\\"1\",tier=\"memory\"} 7\n"
        "kvx_hit_blocks_total{model=\"m\\\"1\",tier=\"storage\"} 18446744073709551615\n");
  CHECK(part("# HELP kvx_breaker_state", "# HELP kvx_breaker_opened") ==
        "# HELP kvx_breaker_state Storage breaker: 0 closed, 1 half open, 2 open.\n"
        "# TYPE kvx_breaker_state gauge\n"
        "kvx_breaker_state{model=\"m\\\"1\",operation=\"load\"} 0\n"
        "kvx_breaker_state{model=\"m\\\"1\",operation=\"save\"} 2\n");
  CHECK(part("# HELP kvx_matched_tokens_total", "# HELP kvx_leaked_buffers") ==
        "# HELP kvx_matched_tokens_total Tokens whose prefill could be skipped.\n"
        "# TYPE kvx_matched_tokens_total counter\n"
        "kvx_matched_tokens_total{model=\"m\\\"1\"} 4096\n");
  const auto bucket = [](const char* edge, int count) {
    return std::string("kvx_latency_seconds_bucket{model=\"m\\\"1\",operation=\"match\",le=\"") + edge + "\"} " +
           std::to_string(count) + "\n";
  };
  std::string match = "# HELP kvx_latency_seconds Time that an operation took.\n# TYPE kvx_latency_seconds histogram\n";
  match += bucket("0.000000256", 0);
  for (const char* edge : {"0.000000512", "0.000001024", "0.000002048", "0.000004096", "0.000008192", "0.000016384",
                           "0.000032768", "0.000065536", "0.000131072", "0.000262144", "0.000524288", "0.001048576",
                           "0.002097152", "0.004194304", "0.008388608", "0.016777216", "0.033554432", "0.067108864",
                           "0.134217728", "0.268435456", "0.536870912", "1.073741824"}) {
    match += bucket(edge, 1);
  }
  for (const char* edge :
       {"2.147483648", "4.294967296", "8.589934592", "17.179869184", "34.359738368", "68.719476736", "+Inf"}) {
    match += bucket(edge, 2);
  }
  match += "kvx_latency_seconds_sum{model=\"m\\\"1\",operation=\"match\"} 1.5000003\n";
  match += "kvx_latency_seconds_count{model=\"m\\\"1\",operation=\"match\"} 2\n";
  CHECK(part("# HELP kvx_latency_seconds", "kvx_latency_seconds_bucket{model=\"m\\\"1\",operation=\"prefetch") ==
        match);
}

TEST_CASE("the names are what dashboards were built on") {
  const strict_parser parsed{exposed(metrics{})};
  const std::vector<std::string> names{"kvx_hit_blocks_total",
                                       "kvx_missed_blocks_total",
                                       "kvx_pending_blocks_total",
                                       "kvx_read_bytes_total",
                                       "kvx_written_bytes_total",
                                       "kvx_stored_blocks_total",
                                       "kvx_evicted_blocks_total",
                                       "kvx_dropped_blocks_total",
                                       "kvx_refused_blocks_total",
                                       "kvx_damaged_blocks_total",
                                       "kvx_timed_out_blocks_total",
                                       "kvx_errors_total",
                                       "kvx_in_flight_read_bytes",
                                       "kvx_in_flight_write_bytes",
                                       "kvx_cached_blocks",
                                       "kvx_capacity_blocks",
                                       "kvx_calls_total",
                                       "kvx_asked_blocks_total",
                                       "kvx_operation_failed_blocks_total",
                                       "kvx_operation_timed_out_blocks_total",
                                       "kvx_operation_cancelled_blocks_total",
                                       "kvx_operation_dropped_blocks_total",
                                       "kvx_operation_refused_blocks_total",
                                       "kvx_breaker_state",
                                       "kvx_breaker_opened_total",
                                       "kvx_breaker_half_opened_total",
                                       "kvx_breaker_closed_total",
                                       "kvx_asked_tokens_total",
                                       "kvx_matched_tokens_total",
                                       "kvx_leaked_buffers_total",
                                       "kvx_leaked_bytes_total",
                                       "kvx_storage_read_bytes_per_second",
                                       "kvx_latency_seconds"};
  CHECK(parsed.order == names);
}

TEST_CASE("counters and gauges of several threads add up") {
  metrics m;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&m] {
      for (int i = 0; i < 20'000; ++i) {
        m.of(kvx::tier::memory).stored.add();
        m.of(kvx::tier::storage).in_flight_read_bytes.add(4096);
        m.of(kvx::tier::storage).in_flight_read_bytes.sub(4096);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const kvx::metrics_snapshot s = m.snapshot();
  CHECK(s.memory.stored == 80'000);
  CHECK(s.storage.in_flight_read_bytes == 0);
}
