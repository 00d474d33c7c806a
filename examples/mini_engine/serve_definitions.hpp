// SPDX-License-Identifier: Apache-2.0
// The member functions of basic_server, for the units that instantiate it.
#pragma once

#include <algorithm>
#include <chrono>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "serve.hpp"
#include "stopwatch.hpp"

namespace mini_engine {

/// Engines whose steps can be left undone between two layers.
template <class Engine>
concept stoppable_engine = requires(Engine& engine, std::span<const step> steps, const layer_hook& before_attention,
                                    const stop_test& stop) {
  engine.forward(steps, before_attention, stop);
};

template <class Engine, class Stream>
basic_server<Engine, Stream>::basic_server(Engine& engine, const prefill_cost& cost, opening_type* cache,
                                           std::size_t chunk_tokens, bool patient, Stream stream,
                                           std::size_t stretch_blocks, straight_load straight)
    : engine_(engine),
      cost_(cost),
      opening_(cache),
      chunk_tokens_(std::min(chunk_tokens, engine.max_rows())),
      patient_(patient),
      stream_(stream),
      stretch_blocks_(stretch_blocks),
      straight_(std::move(straight)) {}

template <class Engine, class Stream>
basic_server<Engine, Stream>::~basic_server() {
  for (flight& f : flights_) {
    f.stretch.cancel();
    f.direct.cancel();
    f.direct.wait_for(std::chrono::hours{1});
    for (const auto& load : f.loads) load.wait();
    for (const auto& save : f.saves) save.wait_source_released(std::chrono::hours{1});
  }
}

template <class Engine, class Stream>
void basic_server<Engine, Stream>::submit(request& from) {
  auto& kv = engine_.kv();
  const std::size_t tokens = from.prompt.size() + from.tokens;
  if (from.prompt.empty() || from.tokens == 0 ||
      tokens > std::min(kv.pages() * kv.block_tokens(), engine_.config().context_tokens)) {
    throw std::length_error("a prompt of " + std::to_string(from.prompt.size()) + " tokens and " +
                            std::to_string(from.tokens) +
                            " to generate need at least one of each, and must fit the model's context and the KV pool");
  }
  if (from.submitted == std::chrono::steady_clock::time_point{}) from.submitted = std::chrono::steady_clock::now();
  flight& f = waiting_.emplace_back();
  f.of = &from;
  if (opening_ == nullptr) return;
  opening_->wait_for_memory();
  // From here on waiting is for storage, and may cost no more than waiting for a first block: a share of the prefill.
  const double patience = patient_ ? 1e6 : kvx::load_race::default_patience * cost_.seconds(0, from.prompt.size());
  f.wait_until = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                        std::chrono::duration<double>(patience));
  cache_ = opening_->get();
  if (cache_ != nullptr && !straight_) look_up(f);
}

template <class Engine, class Stream>
bool basic_server<Engine, Stream>::waits_for_cache(const flight& f) const {
  return opening_ != nullptr && cache_ == nullptr && f.computed == 0 && std::chrono::steady_clock::now() < f.wait_until;
}

// At submission, or as soon as the cache is open: then part of the prompt may be computed already, and only the rest is
// of interest.
template <class Engine, class Stream>
void basic_server<Engine, Stream>::look_up(flight& f) {
  const request& of = *f.of;
  f.chain = cache_->make_sequence(of.prompt);
  f.saved_blocks = 0;
  if (!f.in_prefill()) {
    static_cast<void>(cache_->extend(f.chain, std::span(of.output).first(f.computed - of.prompt.size())));
    return;
  }
  f.matched = std::chrono::steady_clock::now();
  f.saves_seen = saves_;
  f.loaded_blocks = f.computed / cache_->block_tokens();
  f.plan = cache_->match(f.chain);
  if (f.plan.blocks() > f.loaded_blocks) request_blocks(f);
}

// What the first one asked for may cost is what is left of the patience for the cache to open; a later one follows a
// success.
template <class Engine, class Stream>
void basic_server<Engine, Stream>::request_blocks(flight& f) {
  const std::size_t tokens = f.of->prompt.size();
  const double whole = cost_.seconds(0, tokens);
  const std::chrono::duration<double> left = f.wait_until - std::chrono::steady_clock::now();
  const bool first = f.of->cached_tokens == 0 && f.loaded_blocks == f.computed / cache_->block_tokens();
  // Neither an engine that cannot be stopped nor pages that are a load's have a later chance than this.
  const double least = stoppable_engine<Engine> && !straight_ ? 0 : kvx::load_race::default_patience;
  const double patience = first && whole > 0 ? std::max(least, left.count() / whole) : kvx::load_race::default_patience;
  const auto race = [&](const auto& ticket) {
    f.race.emplace(ticket, in_kvx_terms(cost_, tokens), tokens, cache_->block_tokens(), patience);
  };
  f.race.reset();
  f.racing = false;
  if (straight_) {
    const std::span<const page_id> pages(f.of->kv.pages);
    f.direct =
        straight_(*cache_, f.plan, pages.subspan(f.loaded_blocks, f.plan.blocks() - f.loaded_blocks), f.loaded_blocks);
    return race(f.direct);
  }
  request_stretch(f);
  race(f.stretch);
}

// Prefetches keep at most half of the cache's memory from eviction, but a prompt may take all of it.
template <class Engine, class Stream>
void basic_server<Engine, Stream>::request_stretch(flight& f) {
  const std::size_t half = opening_->memory_bytes() / cache_->block_bytes() / 2;
  kvx::plan part = f.plan;
  part.truncate(f.loaded_blocks + std::min(std::max<std::size_t>(2, half) - 1, stretch_blocks_));
  f.stretch_end = part.blocks();
  f.stretch = {};  // the one before is loaded; its blocks may go
  f.stretch = cache_->prefetch(std::move(part), f.loaded_blocks);
}

// Whoever computed the same beginning while this request waited for its turn has saved it by now.
template <class Engine, class Stream>
void basic_server<Engine, Stream>::look_up_again() {
  const auto next =
      std::find_if(flights_.begin(), flights_.end(), [](const flight& f) { return !f.arriving() && f.in_prefill(); });
  if (next == flights_.end() || next->started || next->saves_seen == saves_ || !next->has_keys()) return;
  look_up(*next);
}

template <class Engine, class Stream>
bool basic_server<Engine, Stream>::step() {
  while (!waiting_.empty()) {
    request& next = *waiting_.front().of;
    if (!engine_.kv().reserve(next.kv.pages, next.prompt.size() + next.tokens)) break;
    flights_.splice(flights_.end(), waiting_, waiting_.begin());
  }
  if (cache_ == nullptr && opening_ != nullptr) cache_ = opening_->get();
  if (cache_ != nullptr) {
    for (std::list<flight>* all : {&waiting_, &flights_}) {
      if (straight_ && all == &waiting_) continue;  // these have no pages yet
      for (flight& f : *all) {
        if (!f.has_keys()) look_up(f);
      }
    }
  }
  look_up_again();
  flight* arriving = nullptr;
  for (flight& f : flights_) {
    if (f.racing) follow_race(f);
    if (!f.arriving()) continue;
    if (straight_ ? waits_for_direct(f) : waits_for_blocks(f))
      arriving = arriving == nullptr ? &f : arriving;
    else if (stoppable_engine<Engine> && !straight_ && !f.stretch.done())
      begin_race(f);
    else
      end_arriving(f);
  }

  std::vector<flight*> moving;
  std::vector<mini_engine::step> steps;
  gather(moving, steps);
  if (steps.empty()) {
    // Nothing to compute: what is left waits for blocks that arrive, or for saves that end.
    if (arriving != nullptr && straight_) {
      arriving->direct.wait_for(arriving->race->look_again());
    } else if (arriving != nullptr) {
      arriving->stretch.wait_ready(arriving->loaded_blocks + 1, arriving->race->look_again());
    } else if (!flights_.empty() && waits_for_cache(flights_.front())) {
      opening_->wait_for(flights_.front().wait_until - std::chrono::steady_clock::now());
    } else if (!flights_.empty() && !flights_.front().saves.empty()) {
      flights_.front().saves.front().wait_source_released(std::chrono::milliseconds{1});
    }
    return retire_finished() || !waiting_.empty();
  }
  ++figures_.steps;
  const auto wait_layer = [&](std::size_t layer) {
    for (const flight* f : moving) {
      for (const auto& load : f->loads) {
        if (!load.wait_layer(layer, stream_).ok())
          throw std::runtime_error("cached blocks could not be copied into the pages");
      }
    }
  };
  const float* logits = nullptr;
  if constexpr (stoppable_engine<Engine>) {
    // With others in the step, their tokens would be lost too.
    const bool alone = moving.size() == 1 && moving[0]->in_prefill() && opening_ != nullptr;
    const auto lost = [&](std::size_t layers) { return lost_race(*moving[0], steps[0].tokens.size(), layers); };
    logits = engine_.forward(steps, wait_layer, alone ? stop_test(lost) : stop_test());
    if (logits == nullptr) {
      figures_.prefilled_tokens -= steps[0].tokens.size();
      --figures_.steps;
      return true;
    }
  } else {
    logits = engine_.forward(steps, wait_layer);
  }
  for (std::size_t i = 0; i < moving.size(); ++i)
    account(*moving[i], steps[i].tokens.size(), logits + i * engine_.logits_stride());
  return retire_finished() || !waiting_.empty();
}

// Takes what has arrived, asks for more, and says whether to wait for it.
template <class Engine, class Stream>
bool basic_server<Engine, Stream>::waits_for_blocks(flight& f) {
  for (;;) {
    const bool decided = f.stretch.done();  // asked before the rest may arrive
    take_arrived(f);
    if (!decided) {
      if (patient_ || f.race->worth_waiting()) return true;
      if (f.stretch.done()) continue;  // the rest came this moment
      return false;
    }
    // A block is missing, and what comes after it is of no use; or that was all.
    if (f.loaded_blocks < f.stretch_end || f.stretch_end == f.plan.blocks()) return false;
    request_blocks(f);
  }
}

template <class Engine, class Stream>
bool basic_server<Engine, Stream>::waits_for_direct(flight& f) {
  if (f.direct.done()) return false;
  if (patient_ || f.race->worth_waiting()) return true;
  f.direct.cancel();
  // Copies that are on their way go on, and the pages are theirs; those of a block take no time.
  return !f.direct.done();
}

// Copying what is there while the rest arrives hides the copies behind the I/O.
template <class Engine, class Stream>
void basic_server<Engine, Stream>::take_arrived(flight& f) {
  if (straight_) {
    f.loaded_blocks = std::max(f.loaded_blocks, f.direct.loaded_blocks());
    f.of->load_seconds = seconds_since(f.matched);
    return;
  }
  const std::size_t ready = f.stretch.ready_blocks();
  if (ready <= f.loaded_blocks) return;
  const std::span<const page_id> pages(f.of->kv.pages);
  f.loads.push_back(
      cache_->load(f.plan, pages.subspan(f.loaded_blocks, ready - f.loaded_blocks), stream_, f.loaded_blocks));
  f.loaded_blocks = f.loads.back().loaded_blocks();
  f.of->load_seconds = seconds_since(f.matched);
}

template <class Engine, class Stream>
void basic_server<Engine, Stream>::end_arriving(flight& f) {
  take_arrived(f);
  if (!f.stretch.done()) f.stretch.cancel();
  f.race.reset();
  f.stretch = {};  // loads keep what they copy
  f.direct = {};
  const std::size_t loaded_tokens = f.loaded_blocks * f.plan.block_tokens;
  if (loaded_tokens > f.computed) f.of->cached_tokens += loaded_tokens - f.computed;
  f.computed = std::max(f.computed, loaded_tokens);
  if (f.of->on_loaded && !f.started && f.of->cached_tokens != 0) {
    for (const auto& load : f.loads) load.wait();
    std::exchange(f.of->on_loaded, {})(f.loaded_blocks);
  }
}

// From here on the prompt is computed, and what arrives in time is taken all the same.
template <class Engine, class Stream>
void basic_server<Engine, Stream>::begin_race(flight& f) {
  take_arrived(f);
  const std::size_t loaded_tokens = f.loaded_blocks * f.plan.block_tokens;
  if (loaded_tokens > f.computed) f.of->cached_tokens += loaded_tokens - f.computed;
  f.computed = std::max(f.computed, loaded_tokens);
  f.race.reset();
  f.racing = true;
}

// Between two chunks: takes what arrived in front of the next one.
template <class Engine, class Stream>
void basic_server<Engine, Stream>::follow_race(flight& f) {
  const std::size_t done_blocks = f.computed / f.plan.block_tokens;
  f.loaded_blocks = std::max(f.loaded_blocks, done_blocks);
  const bool overtaken = done_blocks >= f.stretch_end;
  if (!overtaken && !f.stretch.done()) return begin_race(f);
  f.racing = false;
  end_arriving(f);
  // All of the stretch came: the next one may as well.
  if (!overtaken && f.loaded_blocks == f.stretch_end && f.stretch_end < f.plan.blocks()) request_blocks(f);
}

// Within a chunk: whether to leave it, because blocks arrived that spare more than what is done of it.
template <class Engine, class Stream>
bool basic_server<Engine, Stream>::lost_race(flight& f, std::size_t chunk, std::size_t layers_done) {
  if (straight_) return false;  // the pages are being written
  if (cache_ == nullptr) {
    cache_ = opening_->get();
    if (cache_ == nullptr) return false;
    look_up(f);
    f.racing = f.arriving();  // what is there already is taken between two chunks: these pages are being written
    f.race.reset();
  }
  if (!f.racing || !f.stretch.done()) return false;
  const std::size_t tokens = f.of->prompt.size(), arrived = f.stretch.ready_blocks() * f.plan.block_tokens;
  if (arrived <= f.computed) return false;
  const double undone = 1 - static_cast<double>(layers_done) / static_cast<double>(engine_.config().layers);
  const std::size_t end = f.computed + chunk;
  const double going_on = undone * cost_.seconds(f.computed, chunk) + cost_.seconds(end, tokens - end);
  return cost_.seconds(arrived, tokens - arrived) < kvx::load_race::largest_part * going_on;
}

template <class Engine, class Stream>
void basic_server<Engine, Stream>::gather(std::vector<flight*>& moving, std::vector<mini_engine::step>& steps) {
  std::size_t rows = engine_.max_rows();
  for (flight& f : flights_) {
    if (f.arriving() || f.finished || f.in_prefill() || rows == 0) continue;
    moving.push_back(&f);
    steps.push_back({&f.of->kv, {&f.of->output.back(), 1}, f.computed});
    --rows;
  }
  const std::size_t decoding = steps.size();
  figures_.decoding_steps += decoding > 0 ? 1 : 0;
  figures_.rows_decoded += decoding;
  figures_.largest_batch = std::max(figures_.largest_batch, decoding);
  for (flight& f : flights_) {
    if (f.arriving() || !f.in_prefill() || waits_for_cache(f)) continue;
    // A cache that is not open yet may be soon: look again before long, then less and less often.
    const bool opening = opening_ != nullptr && cache_ == nullptr && !stoppable_engine<Engine>;
    const std::size_t chunk =
        opening ? std::clamp(f.computed, std::max<std::size_t>(1, chunk_tokens_ / 4), chunk_tokens_) : chunk_tokens_;
    const std::size_t end = f.computed < f.of->chunk_end ? f.of->chunk_end : f.of->prompt.size();
    const std::size_t count = std::min({chunk, rows, end - f.computed});
    if (count == 0) return;
    f.started = true;
    figures_.prefilled_tokens += count;
    moving.push_back(&f);
    steps.push_back({&f.of->kv, {f.of->prompt.data() + f.computed, count}, f.computed});
    return;
  }
}

template <class Engine, class Stream>
void basic_server<Engine, Stream>::account(flight& f, std::size_t tokens, const float* logits) {
  request& of = *f.of;
  f.loads.clear();
  // The token goes out first: saving costs time that nobody should wait for.
  const bool decoded = !f.in_prefill();
  f.computed += tokens;
  if (of.restart_at != 0 && f.computed >= of.restart_at) f.computed = std::exchange(of.restart_at, 0);
  if (!f.in_prefill()) {
    if (f.racing) {  // lost by storage
      f.racing = false;
      f.stretch.cancel();
      f.stretch = {};
    }
    const std::span<const float> row(logits, engine_.config().vocabulary);
    const token_id next = of.choose.sample(row);
    if (of.output.empty()) of.ttft_seconds = seconds_since(of.submitted);
    if (of.on_logits) of.on_logits(row);
    if (decoded && f.has_keys()) static_cast<void>(cache_->extend(f.chain, {&of.output.back(), 1}));
    if (of.ends(next)) {
      f.finished = true;
    } else {
      of.output.push_back(next);
      if (of.on_token) of.on_token(next);
      f.finished = of.output.size() == of.tokens;
    }
  }
  save_full_blocks(f);
  if (f.finished && of.on_finished) of.on_finished(f.computed);
}

// Only what is computed: the chain holds the whole prompt from the start, but never a token that was not chosen for
// good.
template <class Engine, class Stream>
void basic_server<Engine, Stream>::save_full_blocks(flight& f) {
  if (!f.has_keys()) return;
  std::erase_if(f.saves, [](const kvx::save_ticket& save) { return save.source_released(); });
  const std::size_t full = f.computed / engine_.kv().block_tokens();
  if (full <= f.saved_blocks) return;
  const std::span<const page_id> pages(f.of->kv.pages);
  f.saves.push_back(
      cache_->save(f.chain, f.saved_blocks, pages.subspan(f.saved_blocks, full - f.saved_blocks), stream_));
  f.saved_blocks = full;
  ++saves_;
}

// Pages that a save still reads stay where they are.
template <class Engine, class Stream>
bool basic_server<Engine, Stream>::retire_finished() {
  flights_.remove_if([this](flight& f) {
    if (!f.finished ||
        !std::all_of(f.saves.begin(), f.saves.end(), [](const auto& save) { return save.source_released(); }))
      return false;
    engine_.kv().release(f.of->kv.pages);
    f.of->done = true;
    return true;
  });
  return !flights_.empty();
}

}  // namespace mini_engine
