// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/block_history.hpp>
#include <kvx/detail/hazard_model.hpp>
#include <kvx/detail/policy_duel.hpp>
#include <kvx/detail/ranked_blocks.hpp>
#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvx {

/// Learns from requests when blocks of which kind come back, keeps those worth most, and refuses newcomers worth less.
///
/// A history of blocks, also of those given up, says how often each kind (uses so far, age at the last use, how much
/// was new in its request, whether it was the request's last, what the engine hinted) was used again at which age.
/// From that follows which blocks should be held; the slots follow that choice. What LRU would hold is followed as
/// well, exactly: where the choice trails LRU, the slots follow LRU until it leads again. Nothing is to be set.
///
/// Used without access(), by insert and touch alone, it learns from uses and ages only, and refuses nothing.
/// Thread  one caller at a time
/// Cost    access: amortised O(1) per block; evict: amortised O(1), O(slots) where every leaf is in use; 45 bytes per
///         block of history, which has nine blocks per slot and is paid for as blocks come; about 500 KiB beside it
/// Source  docs/decisions/learned-hazard.md
class learned_hazard {
 public:
  explicit learned_hazard(std::size_t slots)
      : slots_(slots),
        history_(std::max(slots * 9, slots * 2 + 1024), slots),
        chosen_(slots),
        duel_(slots),
        entry_in_(slots, none),
        not_chosen_(slots, 1),
        not_in_lru_(slots, 1) {}

  /// Tells of a request, and chooses what should be held from now on.
  void access(const eviction_request& request) {
    const std::size_t count = request.blocks.size();
    const auto [began, goes_on] = begin(request.id);
    const std::size_t length = count + request.before;
    if (!goes_on) model_.request(length);
    const std::uint32_t before = request.before != 0 ? history_.find(request.parent) : none;

    // Entries of the blocks, front first, and how much of the prompt was known.
    for (const eviction_entry& block : request.blocks) history_.prefetch_bucket(block.key);
    for (const eviction_entry& block : request.blocks) history_.prefetch_entry(block.key);
    current_.resize(count);
    detail::block_traits traits;
    traits.gap = before != none ? history_[before].gap : 0;
    traits.hint = detail::hazard_model::hint_code(request.session, request.returns_in);
    std::size_t known = 0;
    std::array<std::size_t, 3> hits{};
    std::array<bool, 3> hitting{true, true, true};
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t e = history_.find(request.blocks[count - 1 - i].key);
      current_[i] = e;
      if (e == none) {
        hitting.fill(false);
        continue;
      }
      const entry& x = history_[e];
      const std::array<bool, 3> here{history_.choice(e) != none, x.in_lru != 0, history_.slot(e) != no_slot};
      for (std::size_t w = 0; w < 3; ++w) {
        hitting[w] = hitting[w] && here[w];
        hits[w] += hitting[w] ? 1U : 0U;
      }
      if (known != i) continue;
      ++known;
      traits.gap = history_.age(e) + 1U;
    }
    traits.new_blocks = count - known;

    const unsigned prefix_gap = traits.gap;
    for (std::size_t i = count; i-- > 0;) {
      const std::uint64_t key = request.blocks[count - 1 - i].key;
      std::uint32_t& e = current_[i];
      if (e != none && history_.key(e) != key) e = none;  // dropped for one of the blocks behind it
      traits.last_of_request = i + 1 == count;
      if (e == none) {
        traits.gap = prefix_gap;
        e = history_.create(key, model_);
        start(e, traits);
        continue;
      }
      if (history_.choice(e) != none) chosen_.dequeue(history_.choice(e));
      if (goes_on && history_[e].last >= began) continue;
      traits.gap = history_.age(e) + 1U;
      renew(e, traits);
    }
    choose(request, before);
    duel_.request(static_cast<double>(hits[0]), static_cast<double>(hits[1]), static_cast<double>(hits[2]),
                  model_.mean_request());
    learn(count);
  }

  /// Whether a newcomer of the last requests is worth the slot that it would cost.
  [[nodiscard]] bool admits(std::uint64_t key) const noexcept {
    const std::uint32_t e = history_.find(key);
    if (e == none) return true;
    return duel_.follows_lru() ? history_[e].in_lru != 0 : history_.choice(e) != none;
  }

  void insert(std::span<const eviction_entry> entries) noexcept {
    bool began = false;
    for (const eviction_entry& block : entries) {
      std::uint32_t e = history_.find(block.key);
      if (e == none || history_.slot(e) != no_slot) {
        if (!std::exchange(began, true)) static_cast<void>(begin(0));
        e = history_.create(block.key, model_);
        start(e, {});
        if (!chosen_.full()) queue(choose(e, none), false);
      }
      history_.set_slot(e, block.slot);
      entry_in_[block.slot] = e;
      ++size_;
      if (history_.choice(e) == none) not_chosen_.push_newest(0, block.slot);
      if (history_[e].in_lru == 0) not_in_lru_.push_newest(0, block.slot);
    }
  }

  void touch(std::span<const slot_index> slots) noexcept {
    if (slots.empty()) return;
    static_cast<void>(begin(0));
    for (const slot_index slot : slots) {
      const std::uint32_t e = entry_in_[slot];
      const std::uint32_t choice = history_.choice(e);
      if (choice != none) chosen_.dequeue(choice);
      detail::block_traits traits;
      traits.gap = history_.age(e) + 1U;
      traits.hint = history_[e].hint;
      renew(e, traits);
      if (choice != none && chosen_.leaf(choice)) queue(choice, false);
    }
    learn(slots.size());
  }

  void erase(slot_index slot) noexcept {
    const std::uint32_t e = entry_in_[slot];
    if (history_.choice(e) != none) give_up(history_.choice(e));
    vacate(slot);
  }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    detail::slot_lists& surplus = duel_.follows_lru() ? not_in_lru_ : not_chosen_;
    for (std::size_t tries = 2 * detail::parked_tries; tries != 0; --tries) {
      const slot_index slot = surplus.oldest(0);
      if (slot == no_slot) break;
      if (!pinned(slot)) return vacate(slot);
      surplus.move_to_newest(0, slot);
    }
    // Somebody must have a slot although nothing is held beside what should be.
    if (duel_.follows_lru()) {
      std::uint32_t e = history_.lru_oldest();
      for (std::size_t tries = 4 * detail::parked_tries; tries != 0 && e != none; --tries, e = history_[e].newer)
        if (const slot_index slot = history_.slot(e); slot != no_slot && !pinned(slot)) {
          erase(slot);
          return slot;
        }
    }
    for (std::uint32_t choice = chosen_.weakest(); choice != none; choice = chosen_.weakest()) {
      const slot_index slot = history_.slot(chosen_.entry(choice));
      if (slot != no_slot && !pinned(slot)) {
        give_up(choice);
        return vacate(slot);
      }
      chosen_.dequeue(choice);  // until it is used, or ages
    }
    for (std::size_t tries = slots_; tries != 0; --tries) {
      hand_ = hand_ + 1 < slots_ ? hand_ + 1 : 0;
      const auto slot = static_cast<slot_index>(hand_);
      if (entry_in_[slot] == none || pinned(slot)) continue;
      erase(slot);
      return slot;
    }
    return no_slot;
  }

  /// News of a session between its requests, for the blocks that no other session used since.
  /// Shape   keys: of its last request, deepest first
  void advise(std::span<const std::uint64_t> keys, const hints& news) noexcept {
    std::uint32_t last = 0;
    for (const std::uint64_t key : keys) {
      const std::uint32_t e = history_.find(key);
      if (e == none) continue;
      entry& x = history_[e];
      if (last == 0) last = x.last;
      if (x.last != last) return;
      const unsigned hint = detail::hazard_model::hint_code(news.session, news.returns_in);
      const std::uint32_t choice = history_.choice(e);
      const bool queued = choice != none && chosen_.queued(choice);
      if (queued) chosen_.dequeue(choice);
      x.hint = hint & 7U;
      const auto told = [&] { return model_.classify_news(x.uses, x.gap, hint, now_); };
      if (news.session == session_state::closed)
        history_.change_class(e, published(told), model_);
      else
        history_.set_news(e, hint == 0 ? std::uint8_t{0} : published(told), model_);
      if (queued) queue(choice, false);
    }
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Whether LRU does better than the choice just now.
  [[nodiscard]] bool follows_lru() const noexcept { return duel_.follows_lru(); }

 private:
  using entry = detail::block_history::entry;
  static constexpr std::uint32_t none = detail::block_history::none;
  static constexpr std::size_t blocks_per_fit = 16;

  /// Starts a request, or goes on with one that was told of before; returns when it began.
  std::pair<std::uint32_t, bool> begin(std::uint64_t id) noexcept {
    if (id != 0)
      for (const auto& [known, when] : under_way_)
        if (known == id) return {when, true};
    ++now_;
    if (id != 0) under_way_[next_under_way_++ % under_way_.size()] = {id, now_};
    history_.grow_older(now_, model_, [this](std::uint32_t e) {
      const std::uint32_t choice = history_.choice(e);
      chosen_.dequeue(choice);
      if (chosen_.leaf(choice)) queue(choice, false);
    });
    return {now_, false};
  }

  // A class that was never seen before has values at once.
  template <class Classify>
  [[nodiscard]] std::uint8_t published(Classify&& classify) noexcept {
    const unsigned known = model_.classes();
    const std::uint8_t cls = classify();
    if (model_.classes() != known) publish_values(cls);
    return cls;
  }
  void publish_values(unsigned cls) noexcept {
    for (unsigned age = 0; age < detail::hazard_model::ages; ++age) {
      const unsigned cell = detail::hazard_model::cell(cls, age);
      chosen_.set_value(cell, model_.value(cell));
    }
  }

  void start(std::uint32_t e, detail::block_traits traits) noexcept {
    entry& x = history_[e];
    x.uses = 0;
    place(e, traits);
  }
  void renew(std::uint32_t e, detail::block_traits traits) noexcept {
    history_.leave_age(e, true, model_);
    history_.unlink(e);
    place(e, traits);
  }
  void place(std::uint32_t e, detail::block_traits traits) noexcept {
    entry& x = history_[e];
    if (x.uses < 4) x.uses = (x.uses + 1U) & 7U;
    traits.uses = x.uses;
    x.gap = traits.gap & 31U;
    x.news = 0;
    x.hint = traits.hint & 7U;
    x.last = now_;
    x.passed = 0;
    x.cls = published([&] { return model_.classify(traits, now_); });
    history_.push_newest(e);
    history_.enter_first_age(e, model_);
    const bool was_in_lru = x.in_lru != 0;
    const std::uint32_t out = history_.use_in_lru(e);
    if (!was_in_lru && history_.slot(e) != no_slot) not_in_lru_.remove(history_.slot(e));
    if (out != none && history_.slot(out) != no_slot) not_in_lru_.push_newest(0, history_.slot(out));
  }

  /// Chooses among the request's newcomers, front first, and what is chosen already and not of this request.
  void choose(const eviction_request& request, std::uint32_t before) noexcept {
    const std::size_t count = current_.size();
    std::uint32_t parent = before != none ? history_.choice(before) : none;
    deciding_ = true;
    float worth = 0;
    bool first = true;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t e = current_[i];
      if (history_.key(e) != request.blocks[count - 1 - i].key) break;
      if (history_.choice(e) == none) {
        // A block is of use only with those in front of it.
        const float own = model_.value(detail::hazard_model::cell(history_[e].cls, 0));
        worth = first ? own : std::min(worth, own);
        first = false;
        if (chosen_.full()) {
          const std::uint32_t victim = chosen_.weakest();
          if (victim == none || worth < chosen_.least_value()) break;
          give_up(victim);
          if (const std::uint32_t next = chosen_.weakest(); next != none) history_.prefetch_at(chosen_.entry(next));
        }
        choose(e, parent);
      }
      parent = history_.choice(e);
    }
    deciding_ = false;
    for (std::size_t i = count; i-- > 0;) {
      const std::uint32_t choice = history_.choice(current_[i]);
      if (choice != none && chosen_.leaf(choice) && !chosen_.queued(choice)) queue(choice, false);
    }
  }
  std::uint32_t choose(std::uint32_t e, std::uint32_t parent) noexcept {
    const std::uint32_t choice = chosen_.add(e, parent);
    history_.set_choice(e, choice);
    if (parent != none) history_[chosen_.entry(parent)].leaf = 0;
    if (const slot_index slot = history_.slot(e); slot != no_slot) not_chosen_.remove(slot);
    return choice;
  }
  void give_up(std::uint32_t choice) noexcept {
    const std::uint32_t e = chosen_.entry(choice);
    // Before its child leaves, since it mostly takes its place in the same queue. Blocks of the request that is being
    // decided about wait for its end.
    const std::uint32_t parent = chosen_.left_alone_without(choice);
    if (parent != none) {
      entry& above = history_[chosen_.entry(parent)];
      above.leaf = 1;
      if (!deciding_ || above.last != now_) queue(parent, true);
    }
    chosen_.remove(choice);
    history_.set_choice(e, none);
    if (const slot_index slot = history_.slot(e); slot != no_slot) not_chosen_.push_newest(0, slot);
    history_.drop_if_old(e, model_);
  }
  void queue(std::uint32_t choice, bool as_oldest) noexcept {
    const std::uint32_t e = chosen_.entry(choice);
    chosen_.enqueue(choice, detail::hazard_model::cell(history_.standing(e), history_.age(e)), as_oldest);
  }

  slot_index vacate(slot_index slot) noexcept {
    const std::uint32_t e = std::exchange(entry_in_[slot], none);
    if (history_.choice(e) == none) not_chosen_.remove(slot);
    if (history_[e].in_lru == 0) not_in_lru_.remove(slot);
    history_.set_slot(e, no_slot);
    --size_;
    history_.drop_if_old(e, model_);
    return slot;
  }

  /// Renews a share of what is learned for each few blocks, so that no request pays for all of it.
  void learn(std::size_t blocks) noexcept {
    seen_ += blocks;
    if (seen_ >= fade_at_) {
      fade_at_ = seen_ + 16 * std::max<std::size_t>(slots_, 64);
      model_.fade();
    }
    unfitted_ += blocks;
    constexpr std::uint32_t beginning = 64;
    constexpr std::size_t most_at_once = 64;
    std::size_t fits = std::min(unfitted_ / blocks_per_fit, most_at_once);
    unfitted_ = fits == most_at_once ? 0 : unfitted_ % blocks_per_fit;
    if (now_ <= beginning) fits = std::min<std::size_t>(model_.classes(), most_at_once);
    for (; fits != 0; --fits) {
      if (next_fit_ >= model_.classes()) {
        next_fit_ = 1;
        model_.fit_all_together(now_);
      }
      if (model_.classes() == 1) return;
      model_.fit(next_fit_, now_);
      publish_values(next_fit_++);
    }
  }

  std::size_t slots_;
  detail::hazard_model model_;
  detail::block_history history_;
  detail::ranked_blocks chosen_;
  detail::policy_duel duel_;
  std::vector<std::uint32_t> entry_in_;
  // Held, but not chosen, or not in what LRU would hold: those that left first go first.
  detail::slot_lists not_chosen_;
  detail::slot_lists not_in_lru_;
  std::vector<std::uint32_t> current_;
  std::array<std::pair<std::uint64_t, std::uint32_t>, 64> under_way_{};
  std::size_t next_under_way_ = 0;
  std::uint32_t now_ = 0;
  std::size_t size_ = 0;
  std::size_t hand_ = 0;
  std::size_t seen_ = 0;
  std::size_t fade_at_ = 0;
  std::size_t unfitted_ = 0;
  unsigned next_fit_ = 1;
  bool deciding_ = false;
};

static_assert(eviction_policy<learned_hazard>);
static_assert(request_eviction<learned_hazard>);
static_assert(hint_eviction<learned_hazard>);

}  // namespace kvx
