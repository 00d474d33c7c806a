// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/kvx.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "committed_io.hpp"
#include "owned_pages.hpp"

namespace kvx_test {

using late_io = kvx::fault<committed_io<kvx::memory_io>>;
using late_cache = kvx::cache<toy_layout, kvx::xxh3_128, kvx::s3fifo, late_io, kvx::deferred_transfer>;

/// Completions of loads and saves, for tickets that were dropped: whoever polls finds everybody's.
/// Thread  any
class finished_tickets {
 public:
  void collect(late_cache& cache) {
    std::array<kvx::completion, 128> done;
    while (const std::size_t count = cache.poll(done)) {
      const std::lock_guard lock(mutex_);
      for (const kvx::completion& each : std::span(done).first(count))
        if (each.kind != kvx::completion::operation::prefetch) ids_.insert(each.ticket);
    }
  }
  [[nodiscard]] bool contains(std::uint64_t id) {
    const std::lock_guard lock(mutex_);
    return ids_.erase(id) != 0;
  }

 private:
  std::mutex mutex_;
  std::unordered_set<std::uint64_t> ids_;
};

/// A prompt, as all threads know it.
struct prompt {
  kvx::sequence chain;
  /// Made without a match: what an engine has whose lease expired long ago.
  kvx::plan stale;
};

/// What one thread did and saw.
struct engine_report {
  std::uint64_t operations = 0;
  std::uint64_t loaded_blocks = 0;
  std::uint64_t wrong_blocks = 0;   ///< loaded, and not what was saved
  std::uint64_t changed_pages = 0;  ///< written under another owner
  std::uint64_t timed_out_blocks = 0;
  std::uint64_t cancelled = 0;
  std::uint64_t dropped = 0;
  std::uint64_t device_failures = 0;
  std::uint64_t saved_blocks = 0;

  engine_report& operator+=(const engine_report& other) noexcept {
    operations += other.operations;
    loaded_blocks += other.loaded_blocks;
    wrong_blocks += other.wrong_blocks;
    changed_pages += other.changed_pages;
    timed_out_blocks += other.timed_out_blocks;
    cancelled += other.cancelled;
    dropped += other.dropped;
    device_failures += other.device_failures;
    saved_blocks += other.saved_blocks;
    return *this;
  }
};

/// One thread of an engine that keeps many operations in flight, gives up on some, and hands each page to another owner
/// at the first moment that kvx allows.
class engine_thread {
 public:
  engine_thread(late_cache& cache, owned_pages& memory, kvx::deferred_device& device, std::span<const prompt> prompts,
                finished_tickets& finished, kvx::block_id first_page, std::size_t pages, std::uint64_t seed)
      : cache_(cache),
        memory_(memory),
        stream_(device.create_stream()),
        prompts_(prompts),
        finished_(finished),
        pool_(memory, first_page, pages),
        pages_(pages),
        random_(seed) {}

  void run(std::uint64_t operations) {
    const std::uint64_t until = report_.operations + operations;
    while (report_.operations < until) step();
  }

  /// Waits until every page came back, and looks at each.
  [[nodiscard]] engine_report finish() {
    for (coming& each : coming_) pool_.hand_over(each.pages);
    coming_.clear();
    while (!loads_.empty() || !saves_.empty()) {
      sweep();
      std::this_thread::yield();
    }
    pool_.take_all_back();
    report_.changed_pages = pool_.changed();
    if (pool_.free_pages() != pages_) ++report_.changed_pages;
    return report_;
  }

 private:
  /// A prefetch, and the pages that wait for its blocks.
  struct coming {
    kvx::prefetch_ticket ticket;
    const prompt* what = nullptr;
    kvx::plan plan;
    std::vector<kvx::block_id> pages;
  };
  /// What the engine's own stream still does with pages.
  struct use {
    std::vector<kvx::block_id> pages;
    std::vector<std::uint64_t> contents;
    std::atomic<std::size_t> layers_left{owned_pages::layers};
    std::atomic<std::uint64_t> wrong{0};
  };
  struct loading {
    kvx::load_ticket<kvx::deferred_stream> ticket;
    std::uint64_t id = 0;
    bool detached = false;
    std::shared_ptr<use> by_engine;
  };
  struct saving {
    kvx::save_ticket ticket;
    std::uint64_t id = 0;
    bool detached = false;
    std::shared_ptr<use> by_engine;
  };

  // More would only wait for each other's pins until their deadline.
  static constexpr std::size_t most_coming = 4;

  [[nodiscard]] std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }
  [[nodiscard]] bool chance(unsigned percent) { return random_() % 100 < percent; }
  [[nodiscard]] const prompt& any_prompt() {
    // Squared, so that some are asked for often and are in memory.
    const std::size_t n = prompts_.size();
    return prompts_[below(n) * below(n) / n];
  }

  void step() {
    const std::size_t what = below(100);
    if (what < 22)
      prefetch();
    else if (what < 60)
      land();
    else if (what < 66)
      load_unprepared();
    else if (what < 80)
      save();
    else if (what < 83)
      look();
    else if (what < 84 && chance(20))
      erase();
    sweep();
  }

  void prefetch() {
    if (coming_.size() == most_coming) return std::this_thread::yield();
    const prompt& from = any_prompt();
    kvx::plan plan = chance(2) ? cache_.match(from.chain) : from.stale;
    if (plan.empty()) return;
    plan.truncate(1 + below(plan.blocks()));
    std::vector<kvx::block_id> pages = pool_.take(plan.blocks());
    if (pages.empty()) return;
    coming_.push_back({cache_.prefetch(plan), &from, std::move(plan), std::move(pages)});
    ++report_.operations;
  }

  // Something happens to one of the prefetches: it is loaded, cancelled, dropped, or its deadline has passed.
  void land() {
    if (coming_.empty()) return;
    const std::size_t at = below(coming_.size());
    coming& one = coming_[at];
    if (chance(4)) {
      one.ticket.cancel();
      ++report_.cancelled;
    } else if (chance(4)) {
      one.ticket = {};
      ++report_.dropped;
    } else if (!one.ticket.done()) {
      return;
    }
    const std::size_t ready = one.ticket.done() ? one.ticket.ready_blocks() : 0;
    for (std::size_t b = 0; b < one.plan.blocks(); ++b)
      if (one.ticket.outcome(b) == kvx::errc::timed_out) ++report_.timed_out_blocks;
    // The kernel may still read into kvx's memory; these pages are out of its reach.
    pool_.hand_over(std::span(one.pages).subspan(ready));
    one.pages.resize(ready);
    load(one.plan, std::move(one.pages));
    std::swap(one, coming_.back());
    coming_.pop_back();
    ++report_.operations;
  }

  void load_unprepared() {
    const kvx::plan& plan = any_prompt().stale;
    load(plan, pool_.take(plan.blocks()));
  }

  void load(const kvx::plan& plan, std::vector<kvx::block_id> pages) {
    if (pages.empty()) return;
    auto ticket = cache_.load(plan, pages, stream_);
    ++report_.operations;
    const std::size_t loaded = ticket.loaded_blocks();
    pool_.hand_over(std::span(pages).subspan(loaded));
    pages.resize(loaded);
    auto by_engine = std::make_shared<use>();
    by_engine->pages = std::move(pages);
    for (std::size_t b = 0; b < loaded; ++b) by_engine->contents.push_back(content_of(plan.keys[b]));
    const bool abandoned = chance(10);
    if (abandoned) {
      // Nobody waits for the layers any more, which does not stop the copies.
      by_engine->layers_left = 0;
      ++report_.cancelled;
    } else {
      for (std::size_t l = 0; l < owned_pages::layers; ++l) {
        if (!ticket.wait_layer(l, stream_).ok()) ++report_.wrong_blocks;
        stream_.enqueue([by_engine, l, &memory = memory_] {
          for (std::size_t i = 0; i < by_engine->pages.size(); ++i)
            if (!memory.holds(by_engine->pages[i], l, by_engine->contents[i])) ++by_engine->wrong;
          --by_engine->layers_left;
        });
      }
    }
    const std::uint64_t id = ticket.id();
    const bool detached = chance(10);
    if (detached) ticket = {};
    loads_.push_back({std::move(ticket), id, detached, std::move(by_engine)});
  }

  void save() {
    const prompt& from = any_prompt();
    const std::size_t first = below(from.chain.blocks());
    const std::size_t count = 1 + below(from.chain.blocks() - first);
    auto by_engine = std::make_shared<use>();
    by_engine->pages = pool_.take(count);
    if (by_engine->pages.empty()) return;
    for (std::size_t b = 0; b < count; ++b) by_engine->contents.push_back(content_of(from.chain.key(first + b)));
    for (std::size_t l = 0; l < owned_pages::layers; ++l)
      stream_.enqueue([by_engine, l, &memory = memory_] {
        for (std::size_t i = 0; i < by_engine->pages.size(); ++i)
          memory.write(by_engine->pages[i], l, by_engine->contents[i]);
        --by_engine->layers_left;
      });
    auto ticket = cache_.save(from.chain, first, by_engine->pages, stream_);
    ++report_.operations;
    report_.saved_blocks += count;
    const std::uint64_t id = ticket.id();
    const bool detached = chance(10);
    if (detached) ticket = {};
    saves_.push_back({std::move(ticket), id, detached, std::move(by_engine)});
  }

  void look() {
    const prompt& from = any_prompt();
    if (cache_.available(from.chain.keys()) > from.chain.blocks()) ++report_.wrong_blocks;
    ++report_.operations;
  }

  void erase() {
    const prompt& from = any_prompt();
    cache_.erase(from.chain.keys().subspan(below(from.chain.blocks())));
    ++report_.operations;
  }

  // Takes the pages of what ended and hands them over at once.
  void sweep() {
    finished_.collect(cache_);
    std::erase_if(loads_, [&](loading& each) {
      use& mine = *each.by_engine;
      if (mine.layers_left != 0) return false;
      if (each.detached ? !finished_.contains(each.id) : !each.ticket.destination_released()) return false;
      if (!each.detached && !each.ticket.outcome().ok()) {
        ++report_.device_failures;
      } else if (!each.detached) {
        report_.loaded_blocks += mine.pages.size();
        report_.wrong_blocks += mine.wrong;
      }
      pool_.hand_over(mine.pages);
      return true;
    });
    std::erase_if(saves_, [&](saving& each) {
      if (each.by_engine->layers_left != 0) return false;
      if (each.detached ? !finished_.contains(each.id) : !each.ticket.source_released()) return false;
      pool_.hand_over(each.by_engine->pages);
      return true;
    });
  }

  late_cache& cache_;
  owned_pages& memory_;
  kvx::deferred_stream stream_;
  std::span<const prompt> prompts_;
  finished_tickets& finished_;
  page_pool pool_;
  std::size_t pages_;
  std::mt19937_64 random_;
  std::vector<coming> coming_;
  std::vector<loading> loads_;
  std::vector<saving> saves_;
  engine_report report_;
};

}  // namespace kvx_test
