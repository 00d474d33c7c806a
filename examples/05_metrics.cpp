// SPDX-License-Identifier: Apache-2.0
// c++ -std=c++20 -O2 -Iinclude examples/05_metrics.cpp -pthread -o 05_metrics && ./05_metrics
//
// What a cache tells: a snapshot of counters and latencies, the same as Prometheus' text, and an event for every
// block that comes and goes, for routers that send a request to where its prefix is.

#include <kvx/kvx.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "05_metrics: failed: %s\n", what);
  std::exit(1);
}

/// One layer, one head: a page is 16 tokens of 16 floats, once for keys and once for values.
struct toy_engine {
  static constexpr std::uint32_t page_tokens = 16;
  static constexpr std::size_t pages = 64;

  [[nodiscard]] kvx::layout layout() {
    auto* const key_tensor = reinterpret_cast<std::byte*>(keys.data());
    auto* const value_tensor = reinterpret_cast<std::byte*>(values.data());
    kvx::separate_kv tensors;
    tensors.shape = {.block_tokens = page_tokens,
                     .page_tokens = page_tokens,
                     .layers = 1,
                     .heads = 1,
                     .head_dim = 16,
                     .element = kvx::element_type::f32};
    tensors.page_count = pages;
    tensors.keys = {&key_tensor, 1};
    tensors.values = {&value_tensor, 1};
    tensors.tensor_bytes = keys.size() * sizeof(float);
    return kvx::layout(page_tokens, {tensors});
  }

  std::vector<float> keys = std::vector<float>(pages * page_tokens * 16);
  std::vector<float> values = std::vector<float>(pages * page_tokens * 16);
};

/// Which blocks one node has in memory, as a router in front of several would keep it.
struct router {
  std::set<kvx::block_key> cached;
  std::size_t stored = 0;
  std::size_t evicted = 0;

  void operator()(const kvx::block_event& event) {
    if (event.where != kvx::tier::memory) return;
    if (event.happened == kvx::block_event::what::stored) {
      ++stored;
      cached.insert(event.key);
    } else {
      ++evicted;
      cached.erase(event.key);
    }
  }
};

double microseconds(const kvx::histogram_snapshot& of, double share) {
  return std::chrono::duration<double, std::micro>(of.percentile(share)).count();
}

}  // namespace

int main() {
  constexpr std::size_t blocks = 16;
  constexpr kvx::token_id prompts = 20;
  toy_engine engine;
  std::vector<kvx::block_id> ids(blocks);
  for (std::size_t b = 0; b < blocks; ++b) ids[b] = static_cast<kvx::block_id>(b);

  router routes;
  kvx::metrics_snapshot stats{};
  {
    kvx::options options;
    options.identity = {"toy-model", "weights-1", "f32"};
    options.memory_bytes = 1U << 20U;
    // One thread of the cache calls it, one event at a time; it must not call the cache.
    options.on_event = [&routes](const kvx::block_event& event) { routes(event); };
    kvx::host_cache<> cache(options, engine.layout());

    for (kvx::token_id p = 0; p < prompts; ++p) {
      const std::vector<kvx::token_id> prompt(blocks * toy_engine::page_tokens + 1, p);
      const auto save = cache.save(cache.make_sequence(prompt), 0, ids);
      check(save.wait_stored(std::chrono::seconds(10)) && save.outcome().ok(), "the blocks are saved");
    }
    const std::vector<kvx::token_id> last(blocks * toy_engine::page_tokens + 1, prompts - 1);
    const auto load = cache.load(cache.match(last), ids);
    load.wait();
    check(load.loaded_blocks() == blocks, "the last prompt is in memory");
    stats = cache.stats();
  }  // the cache delivers the last events before it ends

  check(stats.memory.stored == prompts * blocks, "every block was counted");
  check(stats.memory.hits == blocks && stats.matched_tokens == blocks * toy_engine::page_tokens, "so was every hit");
  check(routes.stored == stats.memory.stored && routes.evicted == stats.memory.evicted, "every block had its event");
  check(routes.cached.size() == stats.memory.blocks, "the router knows what is cached");
  std::printf("%zu blocks came, %zu went, %zu are there\n", routes.stored, routes.evicted, routes.cached.size());

  const kvx::histogram_snapshot& saving = stats.latency.save_copy;
  check(saving.count() == prompts && stats.latency.match.count() == 1, "every call was timed");
  check(saving.percentile(0.5) <= saving.percentile(0.99), "percentiles are in order");
  std::printf("copying out of the engine: median %.1f us, 99th percentile %.1f us\n", microseconds(saving, 0.5),
              microseconds(saving, 0.99));

  const std::vector<kvx::label> labels{{"model", "toy-model"}, {"node", "a1"}};
  const std::string text = kvx::to_prometheus(stats, labels);
  check(text.find("# TYPE kvx_hit_blocks_total counter\n") != std::string::npos, "the text says what a number is");
  const std::string_view line = "kvx_hit_blocks_total{model=\"toy-model\",node=\"a1\",tier=\"memory\"} 16\n";
  check(text.find(line) != std::string::npos, "and carries the labels");
  std::printf("%.*s%td lines like it\n", static_cast<int>(line.size()), line.data(),
              std::count(text.begin(), text.end(), '\n'));
}
