// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/plan.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model.hpp"
#include "protocol.hpp"

namespace connector {

/// Mistakes that an engine's author could make, for showing that the example would notice.
enum class planted {
  nothing,
  early_reuse,    ///< pages are free when their request is over, not when the copies are
  unscoped_save,  ///< saves do not say which adapter the tokens were computed with
  rank_mismatch,  ///< what rank 0 has is taken for what all ranks have
};

/// What happened, for the last line and for the exit code.
struct totals {
  std::uint64_t finished = 0;
  std::uint64_t prompt_tokens = 0;
  std::uint64_t loaded_tokens = 0;
  std::uint64_t wrong_bytes = 0;
  std::uint64_t preempted = 0;
  std::uint64_t cancelled = 0;
  std::uint64_t rejected_drafts = 0;
  std::uint64_t ranks_disagreed = 0;
  std::uint64_t lost_after_match = 0;
  std::uint64_t overslept = 0;
  std::uint64_t steps = 0;
};

/// The engine's scheduler: it owns the page numbers, which are the same on every rank, and decides everything that the
/// ranks have to do alike. It holds no cache: rank 0 matches, the others say how much of it they have.
class scheduler {
 public:
  scheduler(std::vector<channel> ranks, std::uint64_t seed, planted mistake)
      : ranks_(std::move(ranks)), random_(seed), mistake_(mistake) {
    for (std::size_t p = page_count; p-- > 0;) free_pages_.push_back(static_cast<kvx::block_id>(p));
    for (auto& document : documents_) document = some_tokens(48 + below(160));
  }

  /// Runs requests until so many finished. `progress(totals)` is called after every step.
  template <class Progress>
  totals run(std::uint64_t requests, Progress&& progress) {
    while (totals_.finished < requests || !live_.empty()) {
      while (live_.size() < most_live && totals_.finished < requests) arrive(new_prompt());
      step();
      progress(std::as_const(totals_));
    }
    for (const channel& rank : ranks_) rank.send(message(verb::stop));
    collect();
    return totals_;
  }

 private:
  using clock = std::chrono::steady_clock;

  static constexpr std::size_t most_live = 24;
  static constexpr std::size_t chunk_tokens = 72;  // no multiple of a block: chunks end inside blocks
  static constexpr std::size_t draft_tokens = 3;
  static constexpr std::size_t rank_count = 2;

  enum class phase { queued, loading, running, retiring };

  struct request {
    phase now = phase::queued;
    std::size_t adapter = 0;
    /// Prompt, then what was sampled.
    std::vector<kvx::token_id> tokens;
    std::size_t prompt_size = 0;
    std::size_t to_sample = 0;
    std::vector<kvx::block_key> matched;
    std::vector<kvx::block_id> pages;
    clock::time_point not_before{};
    /// Per rank: blocks in its memory, blocks being loaded; nothing before it answered.
    std::vector<std::size_t> prefetched;
    std::vector<std::size_t> loaded;
    std::size_t released_by = 0;
    /// Tokens with keys and values on every rank; blocks that are cached, or on their way.
    std::size_t committed = 0;
    std::size_t saved_blocks = 0;
    bool computed = false;
    bool preempted = false;
  };

  // The workload: documents that many ask about, conversations that go on, two adapters.

  [[nodiscard]] std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }
  [[nodiscard]] bool once_in(std::size_t n) { return below(n) == 0; }
  [[nodiscard]] std::vector<kvx::token_id> some_tokens(std::size_t count) {
    std::vector<kvx::token_id> out(count);
    for (kvx::token_id& token : out) token = static_cast<kvx::token_id>(below(32'000));
    return out;
  }
  // For a later prompt to go on from.
  void remember(std::size_t adapter, const std::vector<kvx::token_id>& tokens) {
    if (tokens.size() >= most_conversation_tokens) return;
    if (conversations_.size() < most_conversations) conversations_.emplace_back();
    conversations_[below(conversations_.size())] = {adapter, tokens};
  }
  [[nodiscard]] request new_prompt() {
    request r;
    if (!conversations_.empty() && once_in(3)) {
      const auto& [adapter, so_far] = conversations_[below(conversations_.size())];
      r.adapter = adapter;
      r.tokens = so_far;
    } else {
      r.adapter = below(adapters_.size());
      r.tokens = documents_[below(documents_.size())];
    }
    const std::vector<kvx::token_id> question = some_tokens(4 + below(24));
    r.tokens.insert(r.tokens.end(), question.begin(), question.end());
    r.prompt_size = r.tokens.size();
    r.to_sample = 2 + below(20);
    return r;
  }

  // Matching. Every rank has to have what is skipped, so the least of them all counts.

  void arrive(request r) {
    const std::string& adapter = adapters_[r.adapter];
    message ask(verb::match);
    ask.text(adapter).list(std::span<const kvx::token_id>(r.tokens));
    ranks_[0].send(ask);
    auto found = kvx::plan::deserialize(ranks_[0].receive().bytes());
    if (!found) throw std::runtime_error("connector: rank 0 sent no plan");
    if (!found->empty() && mistake_ != planted::rank_mismatch) found->truncate(least_available(found->keys));
    totals_.prompt_tokens += r.preempted ? 0 : r.prompt_size;

    const std::uint64_t id = next_id_++;
    to_do_.add(command::start, id).text(adapter).list(std::span<const kvx::token_id>(r.tokens));
    if (found->empty()) {
      r.prefetched.assign(rank_count, 0);
    } else {
      r.matched = found->keys;
      r.prefetched.assign(rank_count, not_yet);
      to_do_.add(command::prefetch, id).list(std::span<const std::byte>(found->serialize()));
    }
    r.loaded.assign(rank_count, not_yet);
    // Some wait in the queue for longer than their lease.
    if (once_in(100)) {
      r.not_before = clock::now() + std::chrono::milliseconds(70);
      ++totals_.overslept;
    }
    live_.emplace(id, std::move(r));
  }

  [[nodiscard]] std::size_t least_available(std::span<const kvx::block_key> keys) {
    message ask(verb::available);
    ask.list(keys);
    for (std::size_t i = 1; i < ranks_.size(); ++i) ranks_[i].send(ask);
    std::size_t least = keys.size();
    for (std::size_t i = 1; i < ranks_.size(); ++i) {
      message answer = ranks_[i].receive();
      static_cast<void>(answer.number());
      least = std::min(least, static_cast<std::size_t>(answer.number()));
    }
    if (least < keys.size()) ++totals_.ranks_disagreed;
    return least;
  }
  // Of what each rank said.
  [[nodiscard]] std::size_t agreed(const std::vector<std::size_t>& by_rank) const {
    return mistake_ == planted::rank_mismatch ? by_rank[0] : *std::min_element(by_rank.begin(), by_rank.end());
  }
  [[nodiscard]] static bool all_answered(const std::vector<std::size_t>& by_rank) {
    return std::none_of(by_rank.begin(), by_rank.end(), [](std::size_t each) { return each == not_yet; });
  }

  // One step: what each request does next, sent to all ranks in one message.

  void step() {
    ++totals_.steps;
    if (once_in(48)) lose_blocks_on_one_rank();
    bool computes = false;
    for (auto& [id, r] : live_) computes |= advance(id, r);
    to_do_.number(static_cast<std::uint64_t>(command::end));
    for (const channel& rank : ranks_) rank.send(to_do_);
    to_do_ = message(verb::step);
    collect();
    reap();
    // Nothing but storage is at work: let it have the processor.
    if (!computes) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }

  /// Returns whether the request computes in this step.
  bool advance(std::uint64_t id, request& r) {
    if (r.now != phase::retiring && once_in(200)) {
      ++totals_.cancelled;
      retire(id, r, false);
      return false;
    }
    switch (r.now) {
      case phase::queued:
        admit(id, r);
        return false;
      case phase::loading:
        // Here, the pages are being written by copies that nobody waited for yet.
        if (all_answered(r.loaded)) start_running(r);
        if (r.now != phase::running) return false;
        if (once_in(30)) {
          ++totals_.preempted;
          retire(id, r, true);
          return false;
        }
        [[fallthrough]];
      case phase::running:
        if (once_in(150)) {
          ++totals_.preempted;
          retire(id, r, true);
          return false;
        }
        return r.committed < r.prompt_size ? prefill(id, r) : decode(id, r);
      case phase::retiring:
        return false;
    }
    return false;
  }

  void admit(std::uint64_t id, request& r) {
    if (!all_answered(r.prefetched) || clock::now() < r.not_before) return;
    const std::size_t tokens = r.tokens.size() + r.to_sample + draft_tokens + 1;
    // Whole blocks, for a load takes whole blocks.
    const std::size_t pages = (tokens + block_tokens - 1) / block_tokens * pages_per_block;
    if (free_pages_.size() < pages) return;
    r.pages.assign(free_pages_.end() - static_cast<std::ptrdiff_t>(pages), free_pages_.end());
    free_pages_.resize(free_pages_.size() - pages);
    to_do_.add(command::place, id).list(std::span<const kvx::block_id>(r.pages));
    const std::size_t blocks = agreed(r.prefetched);
    if (blocks < r.matched.size()) ++totals_.lost_after_match;
    if (blocks == 0)
      r.loaded.assign(rank_count, 0);
    else
      to_do_.add(command::load, id).number(blocks);
    r.now = phase::loading;
  }

  // load() told each rank at once how much it loads; only what all load can be skipped.
  void start_running(request& r) {
    const std::size_t blocks = agreed(r.loaded);
    if (blocks < agreed(r.prefetched)) ++totals_.lost_after_match;
    r.committed = blocks * block_tokens;
    r.saved_blocks = blocks;
    if (!r.preempted) totals_.loaded_tokens += r.committed;
    r.now = phase::running;
  }

  bool prefill(std::uint64_t id, request& r) {
    const std::size_t count = std::min(chunk_tokens, r.prompt_size - r.committed);
    to_do_.add(command::compute, id)
        .number(r.committed)
        .list(std::span<const kvx::token_id>(r.tokens).subspan(r.committed, count));
    r.committed += count;
    r.computed = true;
    save_full_blocks(id, r);
    return true;
  }

  // A token and a draft behind it; how much of the draft stands is known when the step is over.
  bool decode(std::uint64_t id, request& r) {
    if (r.to_sample == 0) {
      finish(id, r);
      return false;
    }
    const std::vector<kvx::token_id> proposed = some_tokens(1 + draft_tokens);
    to_do_.add(command::compute, id).number(r.committed).list(std::span<const kvx::token_id>(proposed));
    // Saved here is what was committed before this step: a draft is not.
    save_full_blocks(id, r);
    const std::size_t accepted = std::min(1 + below(1 + draft_tokens), r.to_sample);
    totals_.rejected_drafts += proposed.size() - accepted;
    r.tokens.resize(r.committed);
    // What this request rejects, another one's user may well say.
    if (once_in(8)) {
      std::vector<kvx::token_id> drafted = r.tokens;
      drafted.insert(drafted.end(), proposed.begin(), proposed.end());
      remember(r.adapter, drafted);
    }
    r.tokens.insert(r.tokens.end(), proposed.begin(), proposed.begin() + static_cast<std::ptrdiff_t>(accepted));
    r.committed += accepted;
    r.to_sample -= accepted;
    return true;
  }

  void save_full_blocks(std::uint64_t id, request& r) {
    const std::size_t full = r.committed / block_tokens;
    if (full == r.saved_blocks) return;
    to_do_.add(command::save, id).number(r.saved_blocks).number(full - r.saved_blocks);
    r.saved_blocks = full;
  }

  void finish(std::uint64_t id, request& r) {
    ++totals_.finished;
    remember(r.adapter, r.tokens);
    if (!r.matched.empty()) some_keys_ = r.matched;
    retire(id, r, false);
  }

  // Pages. They are free when every rank says that no copy touches them, not when their request is over.

  void retire(std::uint64_t id, request& r, bool again) {
    if (again) {
      request next;
      next.adapter = r.adapter;
      next.tokens = r.tokens;
      next.prompt_size = next.tokens.size();
      next.to_sample = r.to_sample;
      next.preempted = true;
      preempted_.push_back(std::move(next));
    }
    // Without a step of its own it has not waited for its load: there is nothing that it may read.
    to_do_.add(command::retire, id).number(r.computed ? r.committed : 0);
    r.now = phase::retiring;
    if (mistake_ == planted::early_reuse) free_pages_of(r);
  }

  void free_pages_of(request& r) {
    free_pages_.insert(free_pages_.end(), r.pages.begin(), r.pages.end());
    r.pages.clear();
  }

  void reap() {
    for (auto at = live_.begin(); at != live_.end();) {
      if (at->second.released_by < rank_count) {
        ++at;
        continue;
      }
      free_pages_of(at->second);
      at = live_.erase(at);
    }
    for (request& r : std::exchange(preempted_, {})) arrive(std::move(r));
  }

  // What the ranks answer to a step.
  void collect() {
    totals_.wrong_bytes = 0;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      message done = ranks_[rank].receive();
      static_cast<void>(done.number());
      note(done.list<std::uint64_t>(), [rank](request& r, std::size_t blocks) { r.prefetched[rank] = blocks; });
      note(done.list<std::uint64_t>(), [rank](request& r, std::size_t blocks) { r.loaded[rank] = blocks; });
      for (const std::uint64_t id : done.list<std::uint64_t>())
        if (const auto at = live_.find(id); at != live_.end()) ++at->second.released_by;
      totals_.wrong_bytes += done.number();
    }
  }
  template <class Note>
  void note(const std::vector<std::uint64_t>& pairs, Note&& each) {
    for (std::size_t i = 0; i + 1 < pairs.size(); i += 2)
      if (const auto at = live_.find(pairs[i]); at != live_.end())
        each(at->second, static_cast<std::size_t>(pairs[i + 1]));
  }

  // As a rank does whose disk is replaced, or whose own evictions took another course.
  void lose_blocks_on_one_rank() {
    if (some_keys_.empty()) return;
    message lose(verb::erase);
    lose.list(std::span<const kvx::block_key>(some_keys_).subspan(below(some_keys_.size())));
    ranks_[below(ranks_.size())].send(lose);
  }

  static constexpr std::size_t not_yet = ~std::size_t{0};
  static constexpr std::size_t most_conversations = 64;
  static constexpr std::size_t most_conversation_tokens = 320;

  std::vector<channel> ranks_;
  std::mt19937_64 random_;
  planted mistake_;
  totals totals_;
  const std::array<std::string, 2> adapters_{"", "legal-lora"};
  std::array<std::vector<kvx::token_id>, 48> documents_;
  std::vector<std::pair<std::size_t, std::vector<kvx::token_id>>> conversations_;
  std::vector<kvx::block_key> some_keys_;
  std::vector<kvx::block_id> free_pages_;
  std::map<std::uint64_t, request> live_;
  std::vector<request> preempted_;
  std::uint64_t next_id_ = 1;
  message to_do_{verb::step};
};

}  // namespace connector
