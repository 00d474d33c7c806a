// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/eviction.hpp>
#include <kvx/detail/block_history.hpp>
#include <kvx/detail/hazard_model.hpp>
#include <kvx/detail/held_slots.hpp>
#include <kvx/detail/policy_duel.hpp>
#include <kvx/detail/ranked_blocks.hpp>
#include <kvx/detail/recent_requests.hpp>
#include <kvx/detail/request_so_far.hpp>
#include <kvx/detail/slot_lists.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
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
/// Cost    access: amortised O(1) per block; evict: amortised O(1), O(slots) where every leaf is in use; 43 bytes per
///         block of history, which has nine blocks per slot and is paid for as blocks come, and 24 for those of a
///         request that are of one kind, eight as a rule; 60 bytes per slot, and about 500 KiB
/// Source  docs/decisions/0012-learned-hazard.md
class learned_hazard {
 public:
  explicit learned_hazard(std::size_t slots)
      : slots_(slots), history_(std::max(slots * 9, slots * 2 + 1024), slots), chosen_(slots), held_(slots) {}

  /// Tells of a request, or of more of one, and chooses what should be held from now on.
  void access(const eviction_request& request) {
    const std::size_t count = request.blocks.size();
    history_.begin_call();
    detail::request_so_far& so_far = under_way_.of(request.id);
    const bool goes_on = so_far.blocks != 0;
    const std::uint32_t front = request.before != 0 ? history_.find(request.parent) : none;
    const bool joins = goes_on && (request.before == 0 || (front != none && history_.last(front) >= so_far.began));
    if (!joins) pass_time();
    if (!goes_on) {
      model_.request(request.before + count);
      so_far.began = now_;
      so_far.gap = front != none ? history_[front].gap : 0;
    } else if (request.before + count > so_far.blocks) {
      model_.request_grew(request.before + count - so_far.blocks);
      if (front != none && so_far.deepest_key == request.parent) was_not_last(front, so_far);
    }
    const std::array<double, 3> hits = look_up(request, so_far, goes_on);

    detail::block_traits traits;
    traits.hint = detail::hazard_model::hint_code(request.session, request.returns_in);
    traits.new_blocks = so_far.new_blocks;
    std::uint32_t ahead = joins ? front : none;
    bool alike = false;  // the block ahead was placed in this call, and `traits` are its own
    std::uint32_t victim = chosen_.full() ? chosen_.weakest() : none;
    for (std::size_t i = 0; i < count; ++i) {  // front first, each behind the one ahead of it
      const std::uint64_t key = request.blocks[count - 1 - i].key;
      std::uint32_t& e = current_[i];
      if (e != none && history_.key(e) != key) e = none;  // forgotten for one of those before it
      // Two blocks in a row of one key are one.
      if (e == none || (e != ahead && (!goes_on || history_.last(e) < so_far.began))) {
        const unsigned gap = e != none ? history_.age(e) + 1U : so_far.gap;
        const unsigned uses = e != none ? std::min(history_[e].uses + 1U, 4U) : 1U;
        alike = alike && gap == traits.gap && uses == traits.uses && i + 1 != count;
        traits.gap = gap;
        traits.uses = uses;
        traits.last_of_request = i + 1 == count;
        if (e == none) {
          const std::uint64_t ahead_key = ahead != none ? history_.key(ahead) : 0;
          e = history_.create(key, model_);
          if (victim != none) {  // whose place it will likely take
            history_.prefetch_at(chosen_.entry(victim));
            victim = chosen_.after(victim);
          }
          if (ahead != none && (ahead == e || history_.key(ahead) != ahead_key))
            ahead = none;  // longer than the history
        } else {
          dequeue(e);
          history_.leave_age(e, true, model_);
          history_.unlink(e);
        }
        place(e, traits, ahead, alike && ahead != none);
        alike = true;
      } else {
        dequeue(e);
        alike = false;
      }
      history_[e].deciding = 1;
      ahead = e;
    }
    choose(request, front != none && history_.key(front) == request.parent ? front : none, so_far);
    so_far.blocks = std::max(so_far.blocks, request.before + count);
    if (count != 0) so_far.deepest_key = request.blocks.front().key;
    duel_.request(hits, model_.mean_request(), so_far.lead, goes_on);
    learn(count);
    history_.prefetch_growth(now_ + 1, [this](std::uint32_t leaf) { chosen_.prefetch(leaf); });
  }

  /// Whether a newcomer of the last requests is worth the slot that it would cost.
  [[nodiscard]] bool admits(std::uint64_t key) const noexcept {
    const std::uint32_t e = recall(key, 1);
    if (e == none) return true;
    return duel_.follows_lru() ? history_[e].in_lru != 0 : history_.choice(e) != none;
  }

  void insert(std::span<const eviction_entry> entries) noexcept {
    bool began = false;
    history_.begin_call();
    for (const eviction_entry& block : entries) {
      std::uint32_t e = recall(block.key, static_cast<std::size_t>(-1));
      if (e == none || history_.slot(e) != no_slot) {
        if (!std::exchange(began, true)) pass_time();
        current_.clear();  // may be forgotten
        e = history_.create(block.key, model_);
        place(e, {}, none);
        if (!chosen_.full()) queue(choose(e, none), false);
      }
      history_[e].slot = block.slot;
      held_.hold(block.slot, e, history_.choice(e) != none, history_[e].in_lru != 0);
    }
  }

  void touch(std::span<const slot_index> slots) noexcept {
    if (slots.empty()) return;
    pass_time();
    for (const slot_index slot : slots) {
      const std::uint32_t e = held_.entry(slot);
      const std::uint32_t choice = history_.choice(e);
      dequeue(e);
      const unsigned uses = std::min(history_[e].uses + 1U, 4U);
      const unsigned gap = history_.age(e) + 1U;
      history_.leave_age(e, true, model_);
      history_.unlink(e);
      place(e, {.uses = uses, .gap = gap, .hint = history_[e].hint}, none);
      if (choice != none && chosen_.leaf(choice)) queue(choice, false);
    }
    learn(slots.size());
  }

  void erase(slot_index slot) noexcept { take(slot); }

  template <class Pinned>
  [[nodiscard]] slot_index evict(Pinned&& pinned) {
    const auto followed = duel_.follows_lru() ? detail::held_slots::lru : detail::held_slots::choice;
    if (const slot_index slot = held_.surplus(followed, pinned); slot != no_slot) return vacate(slot);
    // Somebody must have a slot although nothing is held beside what should be.
    std::uint32_t e = duel_.follows_lru() ? history_.lru_oldest() : none;
    for (std::size_t tries = 2 * detail::parked_tries; tries != 0 && e != none; --tries, e = history_[e].newer)
      if (const slot_index slot = history_.slot(e); slot != no_slot && !pinned(slot)) return take(slot);
    const std::uint32_t choice = chosen_.weakest_that(detail::parked_tries, [&](std::uint32_t at) {
      const slot_index slot = history_.slot(at);
      return slot != no_slot && !pinned(slot);
    });
    if (choice != none) return take(history_.slot(chosen_.entry(choice)));
    const slot_index slot = held_.any(pinned);
    return slot != no_slot ? take(slot) : no_slot;
  }

  /// News of a session between its requests, for the blocks that no other session used since.
  /// Shape   keys: of its last request, deepest first
  void advise(std::span<const std::uint64_t> keys, const hints& news) noexcept {
    std::uint32_t last = 0;
    bool first = true;
    for (const std::uint64_t key : keys) {
      const std::uint32_t e = history_.find(key);
      if (e == none) continue;
      entry& x = history_[e];
      if (std::exchange(first, false)) last = history_.last(e);
      if (history_.last(e) > last) return;
      const unsigned hint = detail::hazard_model::hint_code(news.session, news.returns_in);
      const std::uint32_t choice = history_.choice(e);
      const bool queued = choice != none && chosen_.queued(choice);
      dequeue(e);
      x.hint = hint & 7U;
      const auto told = [&] { return model_.classify_news(x.uses, x.gap, hint, now_); };
      if (news.session == session_state::closed)
        history_.change_class(e, published(told), model_);
      else
        history_.set_news(e, hint == 0 ? std::uint8_t{0} : published(told), model_);
      if (queued) queue(choice, false);
    }
  }

  [[nodiscard]] std::size_t size() const noexcept { return held_.size(); }
  /// Whether LRU does better than the choice just now.
  [[nodiscard]] bool follows_lru() const noexcept { return duel_.follows_lru(); }
  /// What the engine said last of a block's session, in the model's code; 0 where it said nothing.
  [[nodiscard]] unsigned heard(std::uint64_t key) const noexcept {
    const std::uint32_t e = history_.find(key);
    return e == none ? 0 : history_[e].hint;
  }
  /// Whether every chosen block's line of parents comes to an end; for tests, O(slots).
  [[nodiscard]] bool choices_end() const { return chosen_.lines_end(); }

 private:
  using entry = detail::block_history::entry;
  static constexpr std::uint32_t none = detail::block_history::none;

  /// A request later.
  void pass_time() noexcept {
    ++now_;
    history_.prefetch_growth(now_, [this](std::uint32_t leaf) { chosen_.prefetch_move(leaf); });
    history_.grow_older(now_, model_, [this](std::uint32_t leaves, unsigned cls, unsigned age) {
      chosen_.move_peers(leaves, detail::hazard_model::cell(cls, age));
    });
  }

  /// Finds the entries of a request's blocks, front first, and how many the choice, LRU and the tier have of its
  /// prefix.
  std::array<double, 3> look_up(const eviction_request& request, detail::request_so_far& so_far, bool goes_on) {
    const std::size_t count = request.blocks.size();
    current_.resize(count);
    for (std::size_t i = 0; i < count; ++i) current_[i] = history_.find_soon(request.blocks[count - 1 - i].key);
    for (std::uint32_t& soon : current_) soon = history_.candidate(soon);
    std::array<double, 3> hits{};
    bool held = true;  // those before the next one
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t e = history_.find(request.blocks[count - 1 - i].key, current_[i]);
      current_[i] = e;
      if (std::exchange(held, held && e != none && history_.slot(e) != no_slot) && !held) recalled_ = i - 1;
      if (e != none && goes_on && history_.last(e) >= so_far.began) continue;  // told before
      if (e == none)
        so_far.meet_unknown();
      else
        so_far.meet(history_.age(e) + 1U,
                    {history_.choice(e) != none, history_[e].in_lru != 0, history_.slot(e) != no_slot}, hits);
    }
    return hits;
  }

  /// As history_.find(), mostly for the blocks of the last request, in one order or the other.
  /// Shape   step: to the next of them in the caller's order
  [[nodiscard]] std::uint32_t recall(std::uint64_t key, std::size_t step) const noexcept {
    for (const std::size_t at : {recalled_ + step, recalled_, recalled_ - step}) {
      if (at >= current_.size() || history_.key(current_[at]) != key) continue;
      recalled_ = at;
      return current_[at];
    }
    return history_.find(key);
  }
  // A class that was never seen before has values at once.
  template <class Classify>
  [[nodiscard]] std::uint8_t published(Classify&& classify) noexcept {
    const unsigned known = model_.classes();
    const std::uint8_t cls = classify();
    if (model_.classes() != known) publish_values(cls);
    return cls;
  }
  void learn(std::size_t blocks) noexcept {
    model_.learn(blocks, slots_, now_, [this](unsigned cls) { publish_values(cls); });
  }
  void publish_values(unsigned cls) noexcept { chosen_.set_values(cls, model_.values(cls)); }

  /// Puts a used entry behind another, with its time; behind none: as the newest.
  /// Shape   alike: the other one was put there with the same traits
  void place(std::uint32_t e, const detail::block_traits& traits, std::uint32_t ahead, bool alike = false) noexcept {
    entry& x = history_[e];
    x.uses = traits.uses & 7U;
    x.gap = traits.gap & 31U;
    x.hint = traits.hint & 7U;
    x.passed = 0;
    ahead != none ? history_.push_behind(e, ahead) : history_.push_newest(e);
    if (alike) {
      history_.enter_age_of(e, ahead, model_);
    } else {
      const std::uint32_t last = ahead != none ? history_.last(ahead) : now_;
      history_.enter_age(e, last, published([&] { return model_.classify(traits, now_); }), ahead, model_);
    }
    const bool was_in_lru = x.in_lru != 0;
    const std::uint32_t out = history_.use_in_lru(e);
    if (!was_in_lru && x.in_lru != 0 && history_.slot(e) != no_slot)
      held_.wanted(detail::held_slots::lru, history_.slot(e));
    if (out != none && (out != e || was_in_lru) && history_.slot(out) != no_slot)
      held_.unwanted(detail::held_slots::lru, history_.slot(out));
  }
  /// What was the last block of a request so far has others behind it.
  void was_not_last(std::uint32_t e, const detail::request_so_far& so_far) noexcept {
    const entry& x = history_[e];
    const detail::block_traits traits{.uses = x.uses, .gap = x.gap, .new_blocks = so_far.new_blocks, .hint = x.hint};
    const std::uint32_t choice = history_.choice(e);
    const bool queued = choice != none && chosen_.queued(choice);
    if (queued) chosen_.part(choice, history_.leaves(e));
    history_.correct_class(e, published([&] { return model_.classify(traits, now_); }), model_);
    if (queued) chosen_.join(choice, history_.leaves(e));
  }

  /// Chooses among the request's newcomers, front first, and what is chosen already and not of this request.
  void choose(const eviction_request& request, std::uint32_t front, detail::request_so_far& so_far) noexcept {
    const std::size_t count = current_.size();
    // The block in front is of the request as well: none behind it may take its place.
    const std::uint32_t before = front != none ? history_.choice(front) : none;
    if (before != none) dequeue(front);
    if (front != none) history_[front].deciding = 1;
    std::uint32_t parent = before;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t e = current_[i];
      if (history_.key(e) != request.blocks[count - 1 - i].key) break;
      if (history_.choice(e) == none) {
        // A block is of use only with those in front of it.
        so_far.worth = std::min(so_far.worth, model_.value(detail::hazard_model::cell(history_.cls(e), 0)));
        if (so_far.blocks != 0 && front != none && before == none) break;
        if (chosen_.full()) {
          if (chosen_.only_aside()) chosen_.requeue_aside([this](std::uint32_t aside) { return cell(aside); });
          const std::uint32_t victim = chosen_.weakest();
          if (victim == none || so_far.worth < chosen_.least_value()) break;
          give_up(victim);
        }
        choose(e, parent);
      }
      parent = history_.choice(e);
    }
    for (std::size_t i = count; i-- > 0;) decided(current_[i]);
    if (front != none) decided(front);
  }
  void decided(std::uint32_t e) noexcept {
    history_[e].deciding = 0;
    const std::uint32_t choice = history_.choice(e);
    if (choice != none && chosen_.leaf(choice) && !chosen_.queued(choice)) queue(choice, false);
  }
  std::uint32_t choose(std::uint32_t e, std::uint32_t parent) noexcept {
    if (parent != none) dequeue(chosen_.entry(parent));
    const std::uint32_t choice = chosen_.add(e, parent);
    history_[e].choice = choice;
    if (const slot_index slot = history_.slot(e); slot != no_slot) held_.wanted(detail::held_slots::choice, slot);
    return choice;
  }
  void give_up(std::uint32_t choice) noexcept {
    const std::uint32_t e = chosen_.entry(choice);
    // It mostly takes the place of its child, but not aside: that one was in use. Otherwise it comes before the child
    // leaves, to whose queue it mostly belongs. Blocks of the request that is being decided about wait for its end.
    if (const std::uint32_t parent = chosen_.left_alone_without(choice); parent != none)
      if (const std::uint32_t p = chosen_.entry(parent); history_[p].deciding == 0) {
        if (history_[p].cohort == history_[e].cohort && chosen_.queued(choice) && !chosen_.aside(choice))
          chosen_.replace(choice, parent, history_.leaves(e));
        else
          queue(parent, true);
      }
    dequeue(e);
    chosen_.remove(choice);
    history_[e].choice = none;
    if (const slot_index slot = history_.slot(e); slot != no_slot) held_.unwanted(detail::held_slots::choice, slot);
    history_.drop_if_old(e, model_);
  }
  void queue(std::uint32_t choice, bool as_oldest) noexcept {
    const std::uint32_t e = chosen_.entry(choice);
    chosen_.enqueue(choice, cell(e), as_oldest, history_.leaves(e));
  }
  void dequeue(std::uint32_t e) noexcept {
    const std::uint32_t choice = history_.choice(e);
    if (choice != none && chosen_.queued(choice)) chosen_.dequeue(choice, history_.leaves(e));
  }
  [[nodiscard]] unsigned cell(std::uint32_t e) const noexcept {
    return detail::hazard_model::cell(history_.standing(e), history_.age(e));
  }

  slot_index take(slot_index slot) noexcept {
    const std::uint32_t choice = history_.choice(held_.entry(slot));
    if (choice != none) give_up(choice);
    return vacate(slot);
  }
  slot_index vacate(slot_index slot) noexcept {
    const std::uint32_t e = held_.entry(slot);
    held_.release(slot, history_.choice(e) != none, history_[e].in_lru != 0);
    history_[e].slot = no_slot;
    history_.drop_if_old(e, model_);
    return slot;
  }

  std::size_t slots_;
  detail::hazard_model model_;
  detail::block_history history_;
  detail::ranked_blocks chosen_;
  detail::policy_duel duel_;
  detail::held_slots held_;             // and what is held beside the choice, and beside what LRU would hold
  std::vector<std::uint32_t> current_;  // entries of the last request's blocks, front first
  mutable std::size_t recalled_ = 0;    // where in it a block was found last
  detail::recent_requests<detail::request_so_far> under_way_;
  std::uint32_t now_ = 0;
};

static_assert(eviction_policy<learned_hazard>);
static_assert(request_eviction<learned_hazard>);
static_assert(hint_eviction<learned_hazard>);

}  // namespace kvx
