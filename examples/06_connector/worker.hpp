// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/kvx.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model.hpp"
#include "protocol.hpp"

namespace connector {

struct worker_options {
  std::uint16_t rank = 0;
  std::uint16_t ranks = 1;
  std::string root;
  bool plant_unscoped_save = false;
  std::chrono::milliseconds load_deadline{500};
};

/// One tensor-parallel rank: its shard of the model's memory, a cache over it, and a stream on which both work.
///
/// Everything that the scheduler has to know is in the answer to a step: how many blocks came from storage, how many
/// are being loaded, and which requests' pages nothing touches any more.
class worker {
 public:
  worker(const worker_options& with, channel to_scheduler)
      : options_(with),
        scheduler_(std::move(to_scheduler)),
        memory_(with.rank),
        device_({.seed = with.rank + 1U, .max_delay = std::chrono::microseconds{40}, .workers = 1, .real_time = true}),
        stream_(device_.create_stream()),
        cache_(cache_type(cache_options(with), memory_.layout(), kvx::deferred_transfer(device_, 8))) {}

  /// Serves until the scheduler says stop.
  void run() {
    for (;;) {
      message asked = scheduler_.receive();
      switch (static_cast<verb>(asked.number())) {
        case verb::match: {
          const kvx::scope where{asked.text(), {}};
          const auto tokens = asked.list<kvx::token_id>();
          const kvx::plan found = cache_.match(tokens, where);
          scheduler_.send(message(found.serialize()));
          break;
        }
        case verb::available: {
          message answer(verb::available);
          answer.number(cache_.available(asked.list<kvx::block_key>()));
          scheduler_.send(answer);
          break;
        }
        case verb::erase:
          cache_.erase(asked.list<kvx::block_key>());
          break;
        case verb::step:
          step(asked);
          scheduler_.send(report());
          break;
        case verb::stop:
          cache_.drain(std::chrono::seconds(10));
          device_.synchronize();
          scheduler_.send(report());
          return;
        case verb::step_done:
          throw std::runtime_error("connector: a rank was sent an answer");
      }
    }
  }

 private:
  using cache_type = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::s3fifo, kvx::posix, kvx::deferred_transfer>;

  struct request {
    kvx::scope where;
    std::vector<kvx::token_id> prompt;
    std::vector<kvx::block_id> pages;
    /// Tokens with keys and values in the pages, drafts among them; and what the model made of each.
    kvx::sequence chain;
    std::vector<std::uint64_t> states;

    kvx::plan plan;
    kvx::prefetch_ticket prefetch;
    bool prefetching = false;
    kvx::load_ticket<kvx::deferred_stream> load;
    std::vector<kvx::save_ticket> saves;
    bool retired = false;
  };

  /// What one layer of a step does on the stream, for all of its requests.
  struct forward_pass {
    std::vector<const kvx::load_ticket<kvx::deferred_stream>*> waits;
    std::vector<token_place> reads;
    std::vector<token_place> writes;
  };

  static kvx::options cache_options(const worker_options& with) {
    kvx::options o;
    o.identity = {"connector-model", "1", "f32"};
    o.memory_bytes = 8U << 20U;
    o.root = with.root;
    o.storage_bytes = 32U << 20U;
    o.extent_bytes = 2U << 20U;
    // Ranks share a root and keys; the shard tells their slots apart.
    o.tensor_rank = with.rank;
    o.tensor_size = with.ranks;
    o.prompts_trusted = true;
    o.lease = std::chrono::milliseconds{50};
    o.load_deadline = with.load_deadline;
    return o;
  }

  void step(message& asked) {
    auto pass = std::make_shared<forward_pass>();
    std::vector<std::pair<std::uint64_t, std::pair<std::size_t, std::size_t>>> saves;
    for (auto what = static_cast<command>(asked.number()); what != command::end;
         what = static_cast<command>(asked.number())) {
      const std::uint64_t id = asked.number();
      request& r = requests_[id];
      switch (what) {
        case command::start: {
          r.where = {asked.text(), {}};
          r.prompt = asked.list<kvx::token_id>();
          r.chain = cache_.make_sequence({}, options_.plant_unscoped_save ? kvx::scope{} : r.where);
          break;
        }
        case command::prefetch: {
          auto plan = kvx::plan::deserialize(asked.list<std::byte>());
          if (!plan) throw std::runtime_error("connector: the scheduler sent no plan");
          r.plan = std::move(*plan);
          r.chain.set_id(r.plan.lease.id);
          r.prefetch = cache_.prefetch(r.plan);
          r.prefetching = true;
          break;
        }
        case command::place:
          r.pages = asked.list<kvx::block_id>();
          break;
        case command::load: {
          const auto blocks = static_cast<std::size_t>(asked.number());
          r.load =
              cache_.load(r.plan, std::span<const kvx::block_id>(r.pages).first(blocks * pages_per_block), stream_);
          // The load has pins of its own; those of the prefetch would only be in others' way.
          r.prefetch = {};
          loaded_.insert(loaded_.end(), {id, r.load.loaded_blocks()});
          break;
        }
        case command::compute: {
          const auto committed = static_cast<std::size_t>(asked.number());
          compute(r, committed, asked.list<kvx::token_id>(), *pass);
          break;
        }
        case command::save: {
          const auto first = static_cast<std::size_t>(asked.number());
          saves.push_back({id, {first, static_cast<std::size_t>(asked.number())}});
          break;
        }
        case command::retire:
          retire(r, static_cast<std::size_t>(asked.number()), *pass);
          break;
        case command::end:
          break;
      }
    }
    forward(pass);
    // After the pass on the stream: the tokens are computed before they are copied.
    for (const auto& [id, range] : saves) {
      request& r = requests_[id];
      const auto [first, blocks] = range;
      r.saves.push_back(cache_.save(
          r.chain, first,
          std::span<const kvx::block_id>(r.pages).subspan(first * pages_per_block, blocks * pages_per_block), stream_));
    }
    // An engine waits for its samples, not for copies.
    stream_.synchronize();
  }

  void compute(request& r, std::size_t committed, std::span<const kvx::token_id> tokens, forward_pass& pass) {
    if (r.chain.tokens().empty() && committed != 0) {
      // The first tokens that are computed follow those that are loaded: every layer waits for its own, and the
      // example reads them all back.
      extend(r, std::span<const kvx::token_id>(r.prompt).first(committed));
      pass.waits.push_back(&r.load);
      for (std::size_t p = 0; p < committed; ++p) pass.reads.push_back(place(r, p));
    } else if (r.load.loaded_blocks() != 0 && r.chain.tokens().empty()) {
      // Other ranks had none of the blocks that this one loads: what is computed comes after the copies.
      pass.waits.push_back(&r.load);
    }
    r.chain.truncate(committed);
    r.states.resize(committed);
    extend(r, tokens);
    for (std::size_t p = committed; p < r.states.size(); ++p) pass.writes.push_back(place(r, p));
  }

  void retire(request& r, std::size_t tokens, forward_pass& pass) {
    for (std::size_t p = 0; p < tokens; ++p) pass.reads.push_back(place(r, p));
    r.prefetch.cancel();
    r.prefetch = {};
    r.prefetching = false;
    r.retired = true;
  }

  void extend(request& r, std::span<const kvx::token_id> tokens) {
    if (const kvx::status s = cache_.extend(r.chain, tokens); !s.ok())
      throw kvx::error(s.code(), "a request has no chain");
    for (const kvx::token_id token : tokens)
      r.states.push_back(state_after(r.states.empty() ? state_before_first(r.where.adapter) : r.states.back(), token));
  }

  [[nodiscard]] static token_place place(const request& r, std::size_t position) {
    return {r.pages[position / page_tokens], static_cast<std::uint32_t>(position % page_tokens), r.states[position]};
  }

  void forward(const std::shared_ptr<const forward_pass>& pass) {
    for (std::size_t l = 0; l < layers; ++l) {
      for (const auto* load : pass->waits)
        if (!load->wait_layer(l, stream_).ok()) throw std::runtime_error("connector: a load cannot be waited for");
      if (pass->reads.empty() && pass->writes.empty()) continue;
      stream_.enqueue([this, pass, l] {
        std::uint64_t wrong = 0;
        for (const token_place& at : pass->reads) wrong += memory_.wrong_bytes(l, at);
        for (const token_place& at : pass->writes) memory_.compute(l, at);
        wrong_bytes_.fetch_add(wrong, std::memory_order_relaxed);
      });
    }
  }

  [[nodiscard]] message report() {
    std::vector<std::uint64_t> prefetched;
    std::vector<std::uint64_t> released;
    for (auto& [id, r] : requests_) {
      if (r.prefetching && r.prefetch.done()) {
        r.prefetching = false;
        prefetched.insert(prefetched.end(), {id, r.prefetch.ready_blocks()});
      }
      if (!r.retired || !r.load.destination_released()) continue;
      if (std::all_of(r.saves.begin(), r.saves.end(), [](const kvx::save_ticket& s) { return s.source_released(); }))
        released.push_back(id);
    }
    for (const std::uint64_t id : released) requests_.erase(id);
    message done(verb::step_done);
    done.list(std::span<const std::uint64_t>(prefetched));
    done.list(std::span<const std::uint64_t>(loaded_));
    done.list(std::span<const std::uint64_t>(released));
    done.number(wrong_bytes_.load(std::memory_order_relaxed));
    loaded_.clear();
    return done;
  }

  worker_options options_;
  channel scheduler_;
  kv_memory memory_;
  kvx::deferred_device device_;
  kvx::deferred_stream stream_;
  kvx::any_cache<kvx::deferred_stream> cache_;
  std::unordered_map<std::uint64_t, request> requests_;
  std::vector<std::uint64_t> loaded_;
  std::atomic<std::uint64_t> wrong_bytes_{0};
};

}  // namespace connector
