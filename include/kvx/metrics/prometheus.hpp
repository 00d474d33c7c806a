// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/metrics/histogram.hpp>
#include <kvx/metrics/snapshot.hpp>
#include <kvx/result.hpp>

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace kvx {

/// A label that every sample of an exposition carries, such as the model or the node.
/// Shape   name: [a-zA-Z_][a-zA-Z0-9_]*, not starting with __; value: any UTF-8
class label {
 public:
  /// Errors  throws bad_argument: the name is malformed or one that kvx uses (le, tier, operation)
  label(std::string name, std::string value) : name_(std::move(name)), value_(std::move(value)) {
    bool good = !name_.empty() && !name_.starts_with("__");
    for (std::size_t i = 0; i < name_.size(); ++i) {
      const char c = name_[i];
      const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
      good = good && (letter || (i > 0 && c >= '0' && c <= '9'));
    }
    if (!good) {
      throw error{errc::bad_argument, "metric label '" + name_ +
                                          "' is not a Prometheus label name; use letters, digits and underscores, "
                                          "a letter first"};
    }
    if (name_ == "le" || name_ == "tier" || name_ == "operation") {
      throw error{errc::bad_argument, "metric label '" + name_ + "' is one that kvx sets itself; choose another name"};
    }
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const std::string& value() const noexcept { return value_; }

 private:
  std::string name_;
  std::string value_;
};

namespace detail {

class prometheus_writer {
 public:
  prometheus_writer(std::string& out, std::span<const label> constants) : out_(out) {
    for (std::size_t i = 0; i < constants.size(); ++i) {
      bool repeated = false;
      for (std::size_t j = 0; j < i; ++j) repeated = repeated || constants[j].name() == constants[i].name();
      if (!repeated) add_pair(constants_, constants[i].name(), constants[i].value());
    }
  }

  void operator()(const metric_description& metric, std::uint64_t value) {
    begin(metric);
    sample(metric, "", "", value_text(value));
  }

  void operator()(const metric_description& metric, const histogram_snapshot& histogram) {
    // One edge per power of two, from a quarter of a microsecond to about a minute.
    constexpr unsigned first_bits = 8;
    constexpr unsigned last_bits = 36;
    begin(metric);
    std::uint64_t below = 0;
    std::size_t bucket = 0;
    for (unsigned bits = first_bits; bits <= last_bits; ++bits) {
      const std::uint64_t edge = std::uint64_t{1} << bits;
      while (histogram_snapshot::upper_ns(bucket) <= edge) below += histogram.counts[bucket++];
      sample(metric, "_bucket", seconds_text(edge), value_text(below));
    }
    const std::string count = value_text(histogram.count());
    sample(metric, "_bucket", "+Inf", count);
    sample(metric, "_sum", "", seconds_text(histogram.sum_ns));
    sample(metric, "_count", "", count);
  }

 private:
  void begin(const metric_description& metric) {
    if (metric.name == family_) return;
    family_ = metric.name;
    constexpr std::array<std::string_view, 3> kinds{"counter", "gauge", "histogram"};
    out_.append("# HELP ").append(metric.name).append(" ").append(metric.help);
    out_.append("\n# TYPE ").append(metric.name).append(" ");
    out_.append(kinds[static_cast<std::size_t>(metric.kind)]).append("\n");
  }

  void sample(const metric_description& metric, std::string_view suffix, std::string_view edge,
              std::string_view value) {
    std::string labels = constants_;
    for (const auto& pair : metric.labels) {
      if (!pair.name.empty()) add_pair(labels, pair.name, pair.value);
    }
    if (!edge.empty()) add_pair(labels, "le", edge);
    out_.append(metric.name).append(suffix);
    if (!labels.empty()) out_.append("{").append(labels).append("}");
    out_.append(" ").append(value).append("\n");
  }

  static void add_pair(std::string& labels, std::string_view name, std::string_view value) {
    if (!labels.empty()) labels.append(",");
    labels.append(name).append("=\"");
    for (const char c : value) {
      if (c == '\\' || c == '"') labels.push_back('\\');
      if (c == '\n') {
        labels.append("\\n");
      } else {
        labels.push_back(c);
      }
    }
    labels.append("\"");
  }

  static std::string value_text(std::uint64_t value) {
    std::array<char, 20> digits{};
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
    return {digits.data(), end};
  }

  // Exact and free of the locale, which printf is not.
  static std::string seconds_text(std::uint64_t ns) {
    constexpr std::uint64_t ns_per_second = 1'000'000'000;
    std::string text = value_text(ns / ns_per_second);
    std::string part = value_text(ns % ns_per_second);
    if (part == "0") return text;
    part.insert(0, 9 - part.size(), '0');
    part.erase(part.find_last_not_of('0') + 1);
    return text.append(".").append(part);
  }

  std::string& out_;
  std::string constants_;
  std::string_view family_;
};

}  // namespace detail

/// Appends a snapshot in Prometheus' text format 0.0.4.
///
/// Serve it as `text/plain; version=0.0.4; charset=utf-8`. A constant label given twice counts once, the
/// first one.
/// Units   times in seconds
/// Cost    about 25 KB of text
/// Source  prometheus.io/docs/instrumenting/exposition_formats
inline void append_prometheus(std::string& out, const metrics_snapshot& snapshot,
                              std::span<const label> constants = {}) {
  for_each_metric(detail::prometheus_writer{out, constants}, snapshot);
}

/// The same as a new string.
[[nodiscard]] inline std::string to_prometheus(const metrics_snapshot& snapshot,
                                               std::span<const label> constants = {}) {
  std::string out;
  append_prometheus(out, snapshot, constants);
  return out;
}

}  // namespace kvx
