// SPDX-License-Identifier: Apache-2.0
// Prefix hit ratio over capacity as SVG.
#include "report.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace kvx_replay {

namespace {

constexpr double panel_width = 780;
constexpr double panel_height = 420;
constexpr double left = 76;
constexpr double right = 240;  // the legend
constexpr double top = 40;
constexpr double bottom = 48;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out.append("&amp;");
        break;
      case '<':
        out.append("&lt;");
        break;
      case '>':
        out.append("&gt;");
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

template <class... Values>
void append(std::string& out, const char* format, Values... values) {
  std::array<char, 512> text{};
  std::snprintf(text.data(), text.size(), format, values...);
  out.append(text.data());
}

/// The step between lines of the grid: about five of them.
double grid_step(double highest) {
  const double rough = highest / 5;
  const double magnitude = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * magnitude >= rough) return factor * magnitude;
  }
  return 10 * magnitude;
}

class panel {
 public:
  panel(const sheet& of, double offset) : of_(of), offset_(offset) {
    for (const cell& c : of.cells) highest_ = std::max(highest_, of.hit_ratio(c));
    step_ = grid_step(std::max(highest_, 1e-6));
    highest_ = std::max(step_, std::ceil(highest_ / step_) * step_);
    const auto [least, most] = std::minmax_element(of.capacities.begin(), of.capacities.end());
    smallest_ = *least;
    largest_ = *most > *least ? *most : *least * 2;
  }

  void draw(std::string& out) const {
    append(out, "<text x=\"%g\" y=\"%g\" font-size=\"15\">", left, offset_ + 24);
    out.append(escaped(std::filesystem::path(of_.name).filename().string())).append("</text>\n");
    grid(out);
    const std::vector<style> lines = styles();
    for (const style& each : lines) line(out, each);
    legend(out, lines);
  }

 private:
  struct style {
    std::string policy;
    const char* color = "";
    const char* dashes = "";
    double mean = 0;
  };

  // The worst first: so the best lines hide the others, and the optimum none.
  [[nodiscard]] std::vector<style> styles() const {
    constexpr std::array<const char*, 10> colors{"#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd",
                                                 "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f"};
    constexpr std::array<const char*, 3> dashes{"none", "7,4", "2,4,7,4"};
    std::vector<style> out;
    std::size_t place = 0;
    for (const std::string& policy : of_.policies) {
      style one{policy, "#000000", "2,3", 0};
      if (policy != "optimum") {
        one.color = colors[place % colors.size()];
        one.dashes = dashes[place / colors.size() % dashes.size()];
        ++place;
      }
      for (const cell& c : of_.cells) {
        if (c.policy == policy) one.mean += of_.hit_ratio(c) / static_cast<double>(of_.capacities.size());
      }
      out.push_back(std::move(one));
    }
    std::stable_sort(out.begin(), out.end(), [](const style& a, const style& b) { return a.mean < b.mean; });
    return out;
  }

  [[nodiscard]] double x(double percent) const {
    return left + (panel_width - left - right) * std::log(percent / smallest_) / std::log(largest_ / smallest_);
  }
  [[nodiscard]] double y(double ratio) const {
    return offset_ + panel_height - bottom - (panel_height - top - bottom) * ratio / highest_;
  }
  void grid(std::string& out) const {
    for (int i = 0; i * step_ <= highest_ + step_ / 2; ++i) {
      const double value = i * step_;
      append(out, "<line x1=\"%g\" y1=\"%g\" x2=\"%g\" y2=\"%g\" stroke=\"#ddd\"/>\n", left, y(value),
             panel_width - right, y(value));
      append(out, "<text x=\"%g\" y=\"%g\" text-anchor=\"end\">%.3g</text>\n", left - 8, y(value) + 4, value);
    }
    for (const double percent : of_.capacities) {
      append(out, "<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">%g %%</text>\n", x(percent),
             offset_ + panel_height - 28, percent);
    }
    append(out, "<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">capacity, of the distinct blocks</text>\n",
           (left + panel_width - right) / 2, offset_ + panel_height - 10);
    const double middle = offset_ + (top + panel_height - bottom) / 2;
    append(out, "<text transform=\"translate(18 %g) rotate(-90)\" text-anchor=\"middle\">prefix hit ratio</text>\n",
           middle);
  }

  void line(std::string& out, const style& of) const {
    std::vector<std::pair<double, double>> points;
    for (const cell& c : of_.cells) {
      if (c.policy == of.policy) points.emplace_back(x(c.percent), y(of_.hit_ratio(c)));
    }
    std::sort(points.begin(), points.end());
    append(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" stroke-dasharray=\"%s\" points=\"", of.color,
           of.dashes);
    for (const auto& [px, py] : points) append(out, "%.1f,%.1f ", px, py);
    out.append("\"/>\n");
    for (const auto& [px, py] : points) {
      append(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", px, py, of.color);
    }
  }

  // In the order of the lines, the best on top.
  void legend(std::string& out, const std::vector<style>& lines) const {
    double at = offset_ + top + 6;
    for (std::size_t i = lines.size(); i-- > 0; at += 18) {
      append(
          out,
          "<line x1=\"%g\" y1=\"%g\" x2=\"%g\" y2=\"%g\" stroke=\"%s\" stroke-width=\"2\" stroke-dasharray=\"%s\"/>\n",
          panel_width - right + 16, at, panel_width - right + 56, at, lines[i].color, lines[i].dashes);
      append(out, "<text x=\"%g\" y=\"%g\">", panel_width - right + 62, at + 4);
      out.append(escaped(lines[i].policy)).append("</text>\n");
    }
  }

  const sheet& of_;
  double offset_;
  double highest_ = 0;
  double step_ = 0;
  double smallest_ = 0;
  double largest_ = 0;
};

}  // namespace

std::string to_svg(const std::vector<sheet>& sheets) {
  const double height = panel_height * static_cast<double>(sheets.size());
  std::string out;
  append(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" ",
         panel_width, height, panel_width, height);
  out.append("font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n");
  for (std::size_t i = 0; i < sheets.size(); ++i) panel(sheets[i], panel_height * static_cast<double>(i)).draw(out);
  out.append("</svg>\n");
  return out;
}

}  // namespace kvx_replay
