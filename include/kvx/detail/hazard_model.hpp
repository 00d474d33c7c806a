// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/hints.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvx::detail {

/// What is known of a block when a request uses it.
struct block_traits {
  unsigned uses = 1;
  /// The age at which it was used; that of its known prefix where it is new. 0: neither.
  unsigned gap = 0;
  /// Blocks of the request that were new.
  std::size_t new_blocks = 0;
  bool last_of_request = false;
  /// What the engine said of the session, in one of eight ways.
  unsigned hint = 0;
};

/// How likely blocks of each class are used again at each age, learned from those that were and those that were not.
///
/// Time is counted in requests, age in buckets that double. Per class and age: uses, and the time that blocks spent
/// there, with that of those still there; a class's hazard is drawn to that of all classes, and that to one that falls
/// with age, by as much as a few requests weigh. The value of a class at an age is the best rate of uses per block
/// and time over every age at which one might stop waiting (a Gittins index).
/// Cost    32 bytes per class and age, at most 256 classes; fit(): under 0.5 us
class hazard_model {
 public:
  static constexpr unsigned ages = 22;
  static constexpr unsigned most_classes = 256;
  /// The class that is none, which keeps what all of them together must leave out.
  static constexpr unsigned counted_twice = 0;

  hazard_model() : cells_(static_cast<std::size_t>(most_classes) * ages), values_(cells_.size()), class_of_(codes) {
    fit_all_together(0);
  }

  /// The first age of a bucket.
  [[nodiscard]] static constexpr std::uint32_t edge(unsigned age) noexcept {
    return age == 0 ? 0 : std::uint32_t{1} << (age - 1);
  }
  /// What an engine says of a session, as one of eight kinds.
  [[nodiscard]] static unsigned hint_code(session_state session, std::chrono::milliseconds returns_in) noexcept {
    using namespace std::chrono_literals;
    if (session == session_state::closed || returns_in <= 0ms) return static_cast<unsigned>(session);
    return returns_in <= 4s ? 4U : returns_in <= 32s ? 5U : returns_in <= 256s ? 6U : 7U;
  }
  [[nodiscard]] static constexpr unsigned age_of(std::uint32_t requests) noexcept {
    return std::min(static_cast<unsigned>(std::bit_width(requests)), ages - 1);
  }
  [[nodiscard]] static constexpr unsigned cell(unsigned cls, unsigned age) noexcept { return cls * ages + age; }
  [[nodiscard]] float value(unsigned at) const noexcept { return values_[at]; }
  /// Of a class at each age.
  [[nodiscard]] std::span<const float, ages> values(unsigned cls) const noexcept {
    return std::span<const float, ages>(&values_[cell(cls, 0)], ages);
  }
  /// Those met so far are 1 to this, not included.
  [[nodiscard]] unsigned classes() const noexcept { return classes_; }
  [[nodiscard]] double mean_request() const noexcept { return mean_request_; }

  /// Shape   blocks: of one request, new or not
  void request(std::size_t blocks) noexcept {
    if (requests_ < 256) ++requests_;
    mean_request_ += (static_cast<double>(blocks) - mean_request_) / requests_;
  }
  /// More blocks of the last request, or of one shortly before it.
  void request_grew(std::size_t blocks) noexcept { mean_request_ += static_cast<double>(blocks) / requests_; }

  /// The class of a block; one that was never seen is fitted at once.
  [[nodiscard]] std::uint8_t classify(const block_traits& block, std::uint32_t now) noexcept {
    const unsigned uses = std::min(block.uses, 4U) - 1;
    const unsigned gap = std::min(block.gap / 3, 7U);
    const unsigned length = std::min(static_cast<unsigned>(std::bit_width(block.new_blocks)) / 2, 7U);
    return class_of((((block.hint * 4 + uses) * 8 + gap) * 8 + length) * 2 + (block.last_of_request ? 1U : 0U), now);
  }
  /// The class of blocks of which there is news since their last use, beside their own.
  [[nodiscard]] std::uint8_t classify_news(unsigned uses, unsigned gap, unsigned hint, std::uint32_t now) noexcept {
    block_traits traits;
    traits.uses = uses;
    traits.gap = gap;
    traits.hint = hint;
    return classify(traits, now);
  }

  void enter(unsigned cls, unsigned age, std::uint32_t entered) noexcept {
    cell_data& c = cells_[cell(cls, age)];
    ++c.here;
    c.entered += entered;
  }
  void leave(unsigned cls, unsigned age, std::uint32_t entered, std::uint32_t now, bool used) noexcept {
    cell_data& c = cells_[cell(cls, age)];
    --c.here;
    c.entered -= entered;
    c.exposure += static_cast<double>(now - entered);
    if (used) ++c.uses;
  }
  /// Blocks of one class that were last used at `last` have outgrown an age unused.
  void grow_older(unsigned cls, unsigned age, std::uint32_t count, std::uint32_t last, std::uint32_t now) noexcept {
    const std::uint32_t entered = last + edge(age);
    cell_data& from = cells_[cell(cls, age)];
    cell_data& to = cells_[cell(cls, age + 1)];
    from.here -= count;
    from.entered -= std::uint64_t{count} * entered;
    from.exposure += static_cast<double>(std::uint64_t{count} * (now - entered));
    to.here += count;
    to.entered += std::uint64_t{count} * (last + edge(age + 1));
  }
  /// The same for blocks that count in a class of their own as well: all classes together count them once.
  void enter_beside(unsigned cls, unsigned age, std::uint32_t entered) noexcept {
    enter(cls, age, entered);
    enter(counted_twice, age, entered);
  }
  void leave_beside(unsigned cls, unsigned age, std::uint32_t entered, std::uint32_t now, bool used) noexcept {
    leave(cls, age, entered, now, used);
    leave(counted_twice, age, entered, now, used);
  }
  void grow_older_beside(unsigned cls, unsigned age, std::uint32_t count, std::uint32_t last,
                         std::uint32_t now) noexcept {
    grow_older(cls, age, count, last, now);
    grow_older(counted_twice, age, count, last, now);
  }
  /// A block ends its stay in a class and counts in another from where it began in this one.
  void change_class(unsigned from, unsigned to, unsigned age, std::uint32_t entered, std::uint32_t until) noexcept {
    leave(from, age, entered, until, false);
    enter(to, age, entered);
    cells_[cell(counted_twice, age)].exposure += static_cast<double>(until - entered);
  }
  /// Renews a share of what is learned for each few blocks, so that no request pays for more than a few classes and,
  /// now and then, their sum; tells `renewed(cls)` whose values changed.
  template <class Renewed>
  void learn(std::size_t blocks, std::size_t slots, std::uint32_t now, Renewed&& renewed) noexcept {
    seen_ += blocks;
    if (seen_ >= fade_at_) {
      fade_at_ = seen_ + remembered(slots);
      fade();
    }
    unfitted_ += blocks;
    constexpr std::uint32_t beginning = 64;
    constexpr std::size_t most_at_once = 64;
    // All classes while one part in 32 of what is remembered comes: values change by as much meanwhile.
    const std::size_t blocks_per_fit =
        std::clamp<std::size_t>(std::min(seen_, remembered(slots)) / (32 * std::size_t{classes_}), 16, 128);
    std::size_t fits = std::min(unfitted_ / blocks_per_fit, most_at_once);
    unfitted_ = fits == most_at_once ? 0 : unfitted_ % blocks_per_fit;
    if (now <= beginning) fits = std::min<std::size_t>(classes_, most_at_once);
    for (; fits != 0; --fits) {
      if (next_fit_ >= classes_) {
        next_fit_ = 1;
        fit_all_together(now);
      }
      if (classes_ == 1) return;
      fit(next_fit_, now);
      renewed(next_fit_++);
    }
  }

 private:
  /// Blocks after which what was learned counts half.
  [[nodiscard]] static std::size_t remembered(std::size_t slots) noexcept {
    return 16 * std::max<std::size_t>(slots, 64);
  }
  /// Makes what was learned count half, so that newer traffic outweighs it.
  void fade() noexcept {
    for (cell_data& c : cells_) {
      c.uses *= 0.5;
      c.exposure *= 0.5;
    }
  }

  /// What comes of waiting from the beginning of an age on, for as long as it pays.
  struct stretch {
    float uses, time, left;
    unsigned behind;  // the age at which it ends

    [[nodiscard]] float value() const noexcept { return time > 0 ? uses / time : 0; }
  };

  /// Renews what all classes together show, to which each is drawn.
  void fit_all_together(std::uint32_t now) noexcept {
    std::array<cell_data, ages> all{};
    for (unsigned at = cell(1, 0); at < cell(classes_, 0); at += ages)
      for (unsigned k = 0; k < ages; ++k) all[k] += cells_[at + k];
    for (unsigned k = 0; k < ages; ++k) all[k] -= cells_[cell(counted_twice, k)];
    constexpr float falls_with_age = 0.2F;
    const auto weight = static_cast<float>(4 * mean_request_);
    for (unsigned k = 0; k < ages; ++k) {
      const float w = widths[k];
      const float before = falls_with_age / (static_cast<float>(edge(k)) + w / 2);
      common_[k] = rate(static_cast<float>(all[k].uses) + weight * before * w, exposure(all[k], now) + weight * w);
    }
    for (unsigned k = ages; k-- > 0;) common_waits_[k] = wait(k, common_[k], common_waits_);
  }

  /// Renews the values of one class.
  void fit(unsigned cls, std::uint32_t now) noexcept {
    const cell_data* const cells = &cells_[cell(cls, 0)];
    float* const values = &values_[cell(cls, 0)];
    // From the age on at which nobody has been it is like all classes together.
    unsigned known = ages;
    while (known != 0 && cells[known - 1].empty()) --known;
    const auto weight = static_cast<float>(2 * mean_request_);
    std::array<float, ages> hazards;
    for (unsigned k = 0; k < known; ++k) {
      const float w = widths[k];
      hazards[k] =
          rate(static_cast<float>(cells[k].uses) + weight * common_[k] * w, exposure(cells[k], now) + weight * w);
    }
    std::array<stretch, ages> waits;
    for (unsigned k = ages; k-- > 0;) {
      waits[k] = k < known ? wait(k, hazards[k], waits) : common_waits_[k];
      values[k] = waits[k].value();
    }
  }

  /// Ages that are worth more than the one before them are waited for together with it.
  /// Shape   waits: of the ages behind
  [[nodiscard]] static stretch wait(unsigned age, float hazard, const std::array<stretch, ages>& waits) noexcept {
    const float x = hazard * widths[age];
    // What is small needs no exponential function; of what is large the difference to 1 is less than a float shows.
    const float p = x < 0.02F ? x * (1 - x / 2) : x < 18.0F ? 1 - std::exp(-x) : 1.0F;
    stretch all{p, hazard > 0 ? p / hazard : widths[age], 1 - p, age + 1};
    while (all.behind != ages) {
      const stretch& next = waits[all.behind];
      if (next.uses * all.time <= all.uses * next.time) break;
      all.uses += all.left * next.uses;
      all.time += all.left * next.time;
      all.left *= next.left;
      all.behind = next.behind;
    }
    return all;
  }

  static constexpr std::size_t codes = std::size_t{8} * 4 * 8 * 8 * 2;

  struct cell_data {
    std::uint64_t entered = 0;  // sum of the times at which those who are here came
    double uses = 0;            // in a float, adding one would do nothing from 2^24 on
    double exposure = 0;        // of those who left
    std::uint64_t here = 0;

    [[nodiscard]] bool empty() const noexcept { return here == 0 && exposure == 0 && uses == 0; }
    cell_data& operator-=(const cell_data& other) noexcept {
      entered -= other.entered;
      uses -= other.uses;
      exposure -= other.exposure;
      here -= other.here;
      return *this;
    }
    cell_data& operator+=(const cell_data& other) noexcept {
      entered += other.entered;
      uses += other.uses;
      exposure += other.exposure;
      here += other.here;
      return *this;
    }
  };

  [[nodiscard]] std::uint8_t class_of(unsigned code, std::uint32_t now) noexcept {
    std::uint8_t& known = class_of_[code];
    if (known != 0) return known;
    // Far more than traffic has shown so far (some hundred); what comes after is counted with the first.
    if (classes_ == most_classes) return 1;
    known = static_cast<std::uint8_t>(classes_++);
    fit(known, now);
    return known;
  }
  static constexpr std::array<float, ages> widths = [] {
    std::array<float, ages> all{1.0F};
    for (unsigned k = 1; k < ages; ++k) all[k] = static_cast<float>(std::uint32_t{1} << (k - 1));
    return all;
  }();
  // None where nobody was, while there are no requests yet that would weigh anything.
  [[nodiscard]] static float rate(float uses, float time) noexcept { return time > 0 ? uses / time : 0.0F; }
  // Without those who are still there, ages that few leave would look like ages that many are used at.
  [[nodiscard]] static float exposure(const cell_data& c, std::uint32_t now) noexcept {
    // Negative once the clock has wrapped, until those from before it are gone.
    const auto of_those_here = static_cast<std::int64_t>(c.here * now - c.entered);
    return static_cast<float>(c.exposure) + static_cast<float>(std::max(of_those_here, std::int64_t{0}));
  }

  std::vector<cell_data> cells_;
  std::vector<float> values_;
  std::vector<std::uint8_t> class_of_;
  std::array<float, ages> common_{};
  std::array<stretch, ages> common_waits_{};
  unsigned classes_ = 1;
  unsigned requests_ = 0;  // at most what the mean is over
  double mean_request_ = 0;
  std::size_t seen_ = 0;
  std::size_t fade_at_ = 0;
  std::size_t unfitted_ = 0;
  unsigned next_fit_ = 1;
};

}  // namespace kvx::detail
