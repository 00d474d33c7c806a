// SPDX-License-Identifier: Apache-2.0
// Serves a cache's metrics over HTTP for Prometheus. With a port it goes on for ever, under toy traffic; without one it
// takes any free port, scrapes itself twice, and checks what came. docs/monitoring.md says what to watch.
//
//   07_monitoring            # a test
//   07_monitoring 9409       # http://127.0.0.1:9409/metrics, until it is interrupted

#include <kvx/kvx.hpp>

#include <httplib.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "07_monitoring: failed: %s\n", what);
  std::exit(1);
}

/// One layer, one head: a page is 16 tokens of 16 floats, once for keys and once for values.
struct toy_engine {
  static constexpr std::uint32_t page_tokens = 16;
  static constexpr std::size_t pages = 16;

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

/// What is tested here is what the figures say, on a machine that may be busy. An engine would not wait for as long.
constexpr std::chrono::seconds patience{60};

std::vector<kvx::token_id> tokens_of(kvx::token_id prompt) {
  return std::vector<kvx::token_id>(toy_engine::pages * toy_engine::page_tokens + 1, prompt);
}

/// Whether all of a prompt would have to come from storage.
bool on_storage_alone(const kvx::host_cache<>& cache, kvx::token_id prompt) {
  const kvx::plan plan = cache.match(tokens_of(prompt));
  for (std::size_t b = 0; b < plan.blocks(); ++b)
    if (plan.where(b) != kvx::tier::storage) return false;
  return plan.blocks() == toy_engine::pages;
}

/// One request: what is cached is loaded, the rest is "computed" and saved.
void serve(kvx::host_cache<>& cache, kvx::token_id prompt) {
  std::vector<kvx::block_id> table(toy_engine::pages);
  for (std::size_t b = 0; b < table.size(); ++b) table[b] = static_cast<kvx::block_id>(b);
  const kvx::sequence chain = cache.make_sequence(tokens_of(prompt));
  const kvx::plan plan = cache.match(chain);
  const kvx::prefetch_ticket arriving = cache.prefetch(plan);
  arriving.wait_for(patience);
  const auto load = cache.load(plan, std::span(table).first(arriving.ready_blocks()));
  load.wait();
  const std::size_t cached = load.loaded_blocks();
  const auto save = cache.save(chain, cached, std::span(table).subspan(cached));
  save.wait_stored(patience);
}

/// A directory for the storage tier, gone at the end.
struct temporary_root {
  temporary_root() {
    if (::mkdtemp(name.data()) == nullptr) throw kvx::error{kvx::errc::io_failed, name + " cannot be made"};
  }
  ~temporary_root() {
    std::error_code ignored;
    std::filesystem::remove_all(name, ignored);
  }
  temporary_root(const temporary_root&) = delete;
  temporary_root& operator=(const temporary_root&) = delete;

  std::string name = (std::filesystem::temp_directory_path() / "kvx-monitoring-XXXXXX").string();
};

// [serve]
/// Answers GET /metrics. The library opens no port: the engine's own HTTP server would do the same.
void expose(httplib::Server& server, const kvx::host_cache<>& cache) {
  const std::vector<kvx::label> labels{{"model", "toy-model"}, {"node", "a1"}};
  server.Get("/metrics", [&cache, labels](const httplib::Request&, httplib::Response& answer) {
    answer.set_content(kvx::to_prometheus(cache.stats(), labels), "text/plain; version=0.0.4; charset=utf-8");
  });
}
// [/serve]

/// The value of a sample, by its name and labels as Prometheus' text has them.
double value_of(const std::string& text, const std::string& sample) {
  const std::size_t at = text.find("\n" + sample + " ");
  check(at != std::string::npos, sample.c_str());
  return std::strtod(text.c_str() + at + sample.size() + 2, nullptr);
}

std::string scrape(int port) {
  httplib::Client client("127.0.0.1", port);
  client.set_read_timeout(patience);
  const httplib::Result answer = client.Get("/metrics");
  check(answer && answer->status == 200, "the endpoint answers");
  check(answer->get_header_value("Content-Type") == "text/plain; version=0.0.4; charset=utf-8",
        "as Prometheus wants it");
  return answer->body;
}

void test(kvx::host_cache<>& cache, int port) {
  // Twenty prompts do not fit into memory; which of them are on storage alone is the eviction policy's choice.
  constexpr kvx::token_id prompts = 20;
  for (kvx::token_id prompt = 0; prompt < prompts; ++prompt) serve(cache, prompt);
  kvx::token_id stored = 0;
  while (stored < prompts && !on_storage_alone(cache, stored)) ++stored;
  check(stored < prompts, "a prompt is on storage alone");
  const std::string before = scrape(port);
  serve(cache, stored);
  const std::string after = scrape(port);

  const std::string constants = "model=\"toy-model\",node=\"a1\"";
  const auto grown = [&](const std::string& name, const std::string& label) {
    const std::string sample = name + "{" + constants + (label.empty() ? "" : ",") + label + "}";
    return value_of(after, sample) - value_of(before, sample);
  };
  // The figures of docs/monitoring.md, over the one request between the scrapes.
  check(grown("kvx_asked_blocks_total", "operation=\"match\"") == toy_engine::pages, "hit rate: what was asked for");
  check(grown("kvx_hit_blocks_total", "tier=\"storage\"") == toy_engine::pages, "hit rate: found on storage");
  check(grown("kvx_hit_blocks_total", "tier=\"memory\"") == 0, "hit rate: not in memory");
  check(grown("kvx_read_bytes_total", "tier=\"storage\"") > 0, "bandwidth: bytes read");
  check(grown("kvx_latency_seconds_count", "operation=\"prefetch\"") == 1, "waiting: one request");
  check(grown("kvx_latency_seconds_sum", "operation=\"prefetch\"") > 0, "waiting: its time");
  std::printf("%zu bytes of metrics; the last request waited %.2f ms for storage\n", after.size(),
              1e3 * grown("kvx_latency_seconds_sum", "operation=\"prefetch\""));
}

}  // namespace

int main(int argc, char** argv) {
  const int wanted = argc > 1 ? std::atoi(argv[1]) : 0;
  toy_engine engine;
  temporary_root root;
  kvx::options options;
  options.identity = {"toy-model", "weights-1", "f32"};
  options.memory_bytes = 1U << 20U;
  options.root = root.name;
  options.storage_bytes = 64U << 20U;
  options.prompts_trusted = true;
  options.lease = std::chrono::milliseconds(0);
  options.load_deadline = patience;
  options.save_deadline = patience;
  kvx::host_cache<> cache(options, engine.layout());

  httplib::Server server;
  expose(server, cache);
  int port = wanted;
  if (wanted == 0) {
    port = server.bind_to_any_port("127.0.0.1");
  } else if (!server.bind_to_port("127.0.0.1", wanted)) {
    port = -1;
  }
  check(port > 0, "the port is free");
  std::thread answering([&server] { server.listen_after_bind(); });
  if (wanted == 0) {
    test(cache, port);
  } else {
    std::printf("http://127.0.0.1:%d/metrics\n", port);
    std::fflush(stdout);
    for (kvx::token_id turn = 0;; ++turn) {
      serve(cache, turn % 7 == 0 ? turn : turn % 30);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  server.stop();
  answering.join();
}
