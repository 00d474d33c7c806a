// SPDX-License-Identifier: Apache-2.0
#include "index_mode.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx_replay {

namespace {

using clock = std::chrono::steady_clock;

/// Delivers what an engine learned about sessions before a request came.
class messenger {
 public:
  messenger(const trace& work, const session_news& news) : work_(work), news_(news) {}

  template <class Advise>
  void deliver_before(std::size_t at, Advise&& advise) {
    const std::uint64_t now_ms = work_[at].timestamp_ms;
    for (; next_ < news_.events.size(); ++next_) {
      const session_news::event& event = news_.events[next_];
      if (event.at_ms > now_ms || event.request >= at) return;
      advise(work_[event.request], event.state);
    }
  }

 private:
  const trace& work_;
  const session_news& news_;
  std::size_t next_ = 0;
};

template <class Work>
void add_time(tier& of, Work&& work) {
  const auto began = clock::now();
  work();
  of.counts.nanoseconds += static_cast<std::uint64_t>((clock::now() - began).count());
}

}  // namespace

void replay(const trace& work, const session_news& news, tier& only) {
  messenger mail(work, news);
  for (std::size_t at = 0; at < work.size(); ++at) {
    const request now = work[at];
    std::size_t prefix = 0;
    while (prefix < now.blocks.size() && only.holds(now.blocks[prefix])) ++prefix;
    only.counts.hit_blocks += prefix;
    only.counts.hit_tokens += work.tokens_in(now, prefix);
    add_time(only, [&] {
      mail.deliver_before(at, [&](const request& last, kvx::session_state state) { only.advise(last, state); });
      only.access(now, news.at_request, {});
    });
  }
}

void replay(const trace& work, const session_news& news, tier& memory, tier& storage) {
  messenger mail(work, news);
  std::vector<arrival> into_memory;
  std::vector<arrival> into_storage;
  for (std::size_t at = 0; at < work.size(); ++at) {
    const request now = work[at];
    mail.deliver_before(at, [&](const request& last, kvx::session_state state) {
      add_time(memory, [&] { memory.advise(last, state); });
      add_time(storage, [&] { storage.advise(last, state); });
    });
    std::size_t prefix = 0;
    while (prefix < now.blocks.size() && (memory.holds(now.blocks[prefix]) || storage.holds(now.blocks[prefix]))) {
      tier& from = memory.holds(now.blocks[prefix]) ? memory : storage;
      ++from.counts.hit_blocks;
      from.counts.hit_tokens += work.tokens_in(now, prefix + 1) - work.tokens_in(now, prefix);
      ++prefix;
    }
    into_memory.clear();
    into_storage.clear();
    for (const block_number block : now.blocks) {
      const bool stored = storage.holds(block);
      into_memory.push_back(stored ? arrival::read_back : arrival::computed);
      into_storage.push_back(memory.holds(block) ? arrival::not_at_all : arrival::computed);
    }
    add_time(memory, [&] { memory.access(now, news.at_request, into_memory); });
    add_time(storage, [&] { storage.access(now, news.at_request, into_storage); });
  }
}

}  // namespace kvx_replay
