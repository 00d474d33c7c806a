// SPDX-License-Identifier: Apache-2.0
// The engine over kvx when storage is slow, stalls or opens late. The real-model case reads
// $KVX_TEST_MODELS/stories260K.bin and tok512.bin, a llama2.c pair.
#include <kvx/cache.hpp>
#include <kvx/concepts/direct_reader.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/fault.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/runtime.hpp>
#include <kvx/transfer/host.hpp>

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "kv_cache.hpp"
#include "report.hpp"
#include "serve.hpp"
#include "serve_definitions.hpp"
#include "single_run.hpp"
#include "tokenizer.hpp"

using namespace mini_engine;
using namespace std::chrono_literals;

namespace {

bool something_skipped = false;

struct temporary_directory {
  temporary_directory() {
    path = (std::filesystem::temp_directory_path() / "mini_engine-test-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) throw std::runtime_error("cannot make " + path);
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

using faulty_io = kvx::fault<kvx::posix>;
using faulty_cache = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, faulty_io, kvx::host_transfer>;

constexpr std::size_t prompt_tokens = 2400, generated = 4, chunk = 512;
// No test waits this long on any machine, and no deadline that is not what a test is about passes before.
constexpr auto patience = 60s;

/// An engine whose storage does as the test says.
struct fixture {
  fixture() : e(model::random("tiny", 11), 2, 16, prompt_tokens + generated, chunk, chunk) {
    settings.directory = root.path;
    settings.storage_bytes = std::uint64_t{64} << 20;
    settings.memory_bytes = memory_for(prompt_tokens + generated, e.weights.config, e.kv);
    settings.load_deadline = settings.save_deadline = patience;
  }

  external_cache open(const std::function<void()>& memory_is_there = [] {}) {
    auto runtime = std::make_shared<kvx::runtime<faulty_io>>(settings.memory_bytes,
                                                             std::make_unique<faulty_io>(kvx::io_options{}, control));
    memory_is_there();
    kvx::options o = options_for(settings, e.weights, e.cost);
    o.drain_deadline = patience;
    return external_cache(faulty_cache(o, describe(e.weights.config, e.kv), std::move(runtime)));
  }
  void open_in(std::optional<opening_cache>& cache) {
    cache.emplace([this](const auto& memory_is_there) { return open(memory_is_there); }, settings.memory_bytes);
  }

  static request ask() {
    request r;
    for (std::size_t i = 0; i < prompt_tokens; ++i) r.prompt.push_back(static_cast<token_id>((i * 7919 + i / 3) % 512));
    r.tokens = generated;
    return r;
  }

  single_run serve(std::optional<opening_cache>& cache, bool patient = false) {
    request r = ask();
    return run_alone("test", e, r, cache, nullptr, {chunk, patient, std::nullopt});
  }
  single_run serve_cold() {
    std::optional<opening_cache> none;
    return serve(none);
  }
  /// By a server of the test's own, with what waits there already.
  single_run serve_by(server& own, request& from) {
    single_run run;
    collect(
        own, from, e.kv.block_tokens(), {},
        [&](const std::vector<page_id>& pages, std::size_t blocks) {
          return digests_of_pages(e.kv, e.weights.config.layers, pages, blocks);
        },
        [](page_id, page_id) {}, run);
    return run;
  }
  /// Leaves the prompt's blocks in storage.
  void save() {
    std::optional<opening_cache> cache;
    open_in(cache);
    serve(cache, true);
    REQUIRE(cache->get()->drain(patience));
    REQUIRE(cache->get()->stats().storage.stored == prompt_tokens / 16);
  }

  temporary_directory root;
  engine e;
  cache_settings settings;
  std::shared_ptr<kvx::fault_control> control = std::make_shared<kvx::fault_control>();
};

/// A reader into memory that the host reads, which may hold back all that it is asked for.
class held_reader {
 public:
  held_reader(std::size_t block_bytes, std::size_t blocks) : staged_(block_bytes, blocks) {}
  ~held_reader() { open(); }

  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  void open() {
    const std::lock_guard lock(mutex_);
    closed_ = false;
    staged_.submit(std::exchange(held_, {}));
  }
  std::size_t submitted() const { return submitted_; }

  void submit(std::span<const kvx::direct_request> requests) {
    const std::lock_guard lock(mutex_);
    submitted_ += requests.size();
    if (closed_) {
      held_.insert(held_.end(), requests.begin(), requests.end());
    } else {
      staged_.submit(requests);
    }
  }
  void give_back(std::byte* payload) { staged_.give_back(payload); }
  void detach(int file) { staged_.detach(file); }
  std::span<std::byte> staging() const { return staged_.staging(); }
  std::size_t capacity() const { return staged_.capacity(); }
  std::size_t block_bytes() const { return staged_.block_bytes(); }
  std::string_view name() const { return "held"; }
  bool stop(std::chrono::milliseconds deadline) { return staged_.stop(deadline); }

 private:
  std::mutex mutex_;
  bool closed_ = false;
  std::vector<kvx::direct_request> held_;
  std::atomic<std::size_t> submitted_{0};
  kvx::archetype::direct_reader staged_;
};

server::straight_load straight_through(const std::shared_ptr<held_reader>& reader) {
  return [reader](external_cache& from, const kvx::plan& what, std::span<const page_id> pages, std::size_t first) {
    return from.load_direct(what, pages, reader, {}, first);
  };
}

}  // namespace

TEST_CASE("from storage the engine computes the same, to the last bit") {
  fixture f;
  const single_run cold = f.serve_cold();
  f.save();
  std::optional<opening_cache> cache;
  f.open_in(cache);
  const single_run warm = f.serve(cache, true);
  CHECK(warm.cached_tokens == (prompt_tokens - 1) / 16 * 16);
  CHECK(warm.result == cold.result);
  const single_run again = f.serve(cache, true);
  CHECK(again.cached_tokens == warm.cached_tokens);
  CHECK(again.result == cold.result);
}

TEST_CASE("a hit of part of the prompt is held against a run with the same cuts, and a wrong block in it is noticed") {
  fixture f;
  cache_settings settings = f.settings;
  settings.directory.clear();
  settings.memory_bytes = memory_for(prompt_tokens / 2, f.e.weights.config, f.e.kv);
  std::optional<opening_cache> none, cache;
  report held;
  held.runs.push_back(f.serve_cold());
  const auto serve = [&](std::optional<std::pair<std::size_t, std::size_t>> swapped) {
    request r = fixture::ask();
    return run_alone("test", f.e, r, cache, &settings, {chunk, true, swapped});
  };
  serve(std::nullopt);
  REQUIRE(cache->get()->drain(patience));
  held.runs.push_back(serve(std::nullopt));
  const std::size_t cached = held.last().cached_tokens;
  REQUIRE(cached > 3 * 16);
  REQUIRE(cached < (prompt_tokens - 1) / 16 * 16);

  request again = fixture::ask();
  again.restart_at = cached;
  server alone(f.e.compute, f.e.cost, nullptr, chunk);
  single_run reference;
  collect(
      alone, again, 16, {chunk, true, std::nullopt},
      [&](const std::vector<page_id>&, std::size_t) { return std::vector<std::uint64_t>{}; }, [](page_id, page_id) {},
      reference);
  // Up to the end of the chunk that the hit ends in, and from the hit's end on once more.
  CHECK(alone.figures().prefilled_tokens == (cached + chunk - 1) / chunk * chunk + prompt_tokens - cached);

  again = fixture::ask();
  again.restart_at = cached;
  reference = run_alone("reference", f.e, again, none, nullptr, {chunk, true, std::nullopt});
  held.runs.push_back(serve(std::pair<std::size_t, std::size_t>{1, 3}));
  for (std::size_t i : {std::size_t{1}, std::size_t{2}}) {
    CHECK(held.runs[i].cached_tokens == cached);
    held.runs[i].expected = reference.result;
  }
  CHECK(held.identical(held.runs[1]));
  CHECK_FALSE(held.identical(held.runs[2]));
  // It is the reference that counts.
  held.runs[1].expected->logits.back() ^= 1;
  CHECK_FALSE(held.identical(held.runs[1]));
}

TEST_CASE("storage that crawls costs no more than computing") {
  fixture f;
  const single_run cold = f.serve_cold();
  f.save();
  // However slow this machine computes, loading would take so much longer that nothing of interest is close.
  const double loading = std::max(12.0, 20 * cold.ttft_seconds);
  f.settings.load_deadline = std::chrono::hours{1};
  std::optional<opening_cache> cache;
  f.open_in(cache);
  REQUIRE(cache->wait_for(patience) != nullptr);
  const std::size_t bytes = prompt_tokens / 16 * cache->get()->block_bytes();
  f.control->throttle(static_cast<std::uint64_t>(static_cast<double>(bytes) / loading));
  const single_run warm = f.serve(cache);
  CHECK(warm.cached_tokens < prompt_tokens / 2);
  CHECK(warm.result == cold.result);
  CHECK(warm.ttft_seconds < loading);
  f.control->throttle(0);
}

TEST_CASE("a stall in the middle of a load costs the deadline at most, even for who insists on loading") {
  for (const bool patient : {false, true}) {
    fixture f;
    const single_run cold = f.serve_cold();
    f.save();
    f.control->arm({.kind = kvx::fault_kind::never,
                    .scope = kvx::fault_scope::reads,
                    .first = 40,
                    .count = kvx::fault_rule::for_ever});
    f.settings.load_deadline = 300ms;
    std::optional<opening_cache> cache;
    f.open_in(cache);
    REQUIRE(cache->wait_for(patience) != nullptr);
    // Nothing lets go of these reads before it is served: who waits for them waits for ever.
    const single_run warm = f.serve(cache, patient);
    CHECK(warm.cached_tokens < prompt_tokens / 2);
    CHECK(warm.result == cold.result);
    f.control->disarm();
    f.control->release_all();
  }
}

namespace {

/// The engine, in whose first step that can be stopped something happens, of which it is told when it has computed a
/// layer.
struct overtaken_engine {
  transformer& engine;
  std::function<void()> happens;
  std::size_t steps_left = 0;  // undone

  const float* forward(std::span<const step> steps, const layer_hook& before_attention, const stop_test& stop = {}) {
    if (!stop || !happens) return engine.forward(steps, before_attention);
    const float* const logits = engine.forward(steps, before_attention, [&](std::size_t layers) {
      if (happens) std::exchange(happens, {})();
      const auto until = std::chrono::steady_clock::now() + patience;
      while (!stop(layers) && std::chrono::steady_clock::now() < until) std::this_thread::yield();
      return stop(layers);
    });
    CHECK(logits == nullptr);
    ++steps_left;
    return logits;
  }
  paged_kv& kv() { return engine.kv(); }
  const model_config& config() const { return engine.config(); }
  std::size_t max_rows() const { return engine.max_rows(); }
  std::size_t logits_stride() const { return engine.logits_stride(); }
};

/// The engine, whose steps cannot be stopped.
struct unstoppable_engine {
  transformer& engine;

  const float* forward(std::span<const step> steps, const layer_hook& before_attention) {
    return engine.forward(steps, before_attention);
  }
  paged_kv& kv() { return engine.kv(); }
  const model_config& config() const { return engine.config(); }
  std::size_t max_rows() const { return engine.max_rows(); }
  std::size_t logits_stride() const { return engine.logits_stride(); }
};
static_assert(!stoppable_engine<unstoppable_engine>);

/// Serves a request and keeps digests of its pages.
template <class Engine>
single_run collected(basic_server<Engine, kvx::host_stream>& server, engine& e, request& r) {
  single_run run;
  collect(
      server, r, 16, {chunk, false, std::nullopt},
      [&](const std::vector<page_id>& pages, std::size_t full) {
        return digests_of_pages(e.kv, e.weights.config.layers, pages, full);
      },
      [](page_id, page_id) {}, run);
  return run;
}

}  // namespace

TEST_CASE("a prompt is computed while its blocks arrive, until they are there") {
  fixture f;
  f.settings.memory_bytes *= 2;  // all in one stretch
  const single_run cold = f.serve_cold();
  f.save();
  f.control->arm(
      {.kind = kvx::fault_kind::never, .scope = kvx::fault_scope::reads, .count = kvx::fault_rule::for_ever});
  std::optional<opening_cache> cache;
  f.open_in(cache);
  REQUIRE(cache->wait_for(patience) != nullptr);
  overtaken_engine engine{f.e.compute, [&f] {
                            f.control->disarm();
                            f.control->release_all();
                          }};
  request r = fixture::ask();
  basic_server<overtaken_engine, kvx::host_stream> one(engine, f.e.cost, &*cache, chunk);
  const single_run warm = collected(one, f.e, r);
  CHECK(engine.steps_left == 1);
  CHECK(warm.result == cold.result);
  CHECK(r.cached_tokens == (prompt_tokens - 1) / 16 * 16);
  CHECK(one.figures().prefilled_tokens == prompt_tokens - r.cached_tokens);
  CHECK(one.figures().steps == generated);
  CHECK(r.load_seconds < r.ttft_seconds);
}

TEST_CASE("of a prompt that storage loses, only what was loaded counts as loading") {
  fixture f;
  f.save();
  for (const std::uint64_t first : {std::uint64_t{1}, std::uint64_t{40}}) {
    f.control->arm({.kind = kvx::fault_kind::never,
                    .scope = kvx::fault_scope::reads,
                    .first = first,
                    .count = kvx::fault_rule::for_ever});
    std::optional<opening_cache> cache;
    f.open_in(cache);
    REQUIRE(cache->wait_for(patience) != nullptr);
    request r = fixture::ask();
    r.tokens = 1;
    server one(f.e.compute, f.e.cost, &*cache, chunk);
    one.submit(r);
    one.run();
    CHECK(r.done);
    CHECK(r.cached_tokens < prompt_tokens / 2);
    CHECK((r.load_seconds > 0) == (r.cached_tokens > 0));
    CHECK(r.load_seconds < r.ttft_seconds);
    f.control->disarm();
    f.control->release_all();
  }
}

TEST_CASE("a cache that opens within a chunk takes over") {
  fixture f;
  f.settings.memory_bytes *= 2;  // all in one stretch
  const single_run cold = f.serve_cold();
  f.save();
  std::promise<void> go;
  opening_cache cache(
      [&f, may = go.get_future().share()](const auto& memory_is_there) {
        memory_is_there();
        may.wait();
        return f.open();
      },
      f.settings.memory_bytes);
  overtaken_engine engine{f.e.compute, [&] { go.set_value(); }};
  request r = fixture::ask();
  basic_server<overtaken_engine, kvx::host_stream> one(engine, f.e.cost, &cache, chunk);
  const single_run warm = collected(one, f.e, r);
  CHECK(engine.steps_left == 1);
  CHECK(warm.result == cold.result);
  CHECK(r.cached_tokens == (prompt_tokens - 1) / 16 * 16);
}

TEST_CASE("a cache that opens between two chunks takes over from an engine that cannot be stopped") {
  fixture f;
  f.settings.memory_bytes *= 2;  // all in one stretch
  const single_run cold = f.serve_cold();
  f.save();
  std::promise<void> go;
  opening_cache cache(
      [&f, may = go.get_future().share()](const auto& memory_is_there) {
        memory_is_there();
        may.wait();
        return f.open();
      },
      f.settings.memory_bytes);
  // Computing is said to take so long that on any machine loading is faster, and 1 % of it is enough for a first block.
  const prefill_cost slow(chunk, 0, 0.04, 0);
  unstoppable_engine engine{f.e.compute};
  request r = fixture::ask();
  basic_server<unstoppable_engine, kvx::host_stream> one(engine, slow, &cache, chunk);
  one.submit(r);
  while (one.figures().prefilled_tokens == 0) REQUIRE(one.step());
  go.set_value();
  REQUIRE(cache.wait_for(patience) != nullptr);
  one.run();
  CHECK(r.output == cold.result.tokens);
  CHECK(r.cached_tokens > prompt_tokens / 2);
  CHECK(one.figures().prefilled_tokens == prompt_tokens - r.cached_tokens);
}

TEST_CASE("a cache that opens late takes over between two chunks, and one that never opens is not waited for") {
  fixture f;
  const single_run cold = f.serve_cold();
  f.save();
  std::promise<void> go;
  opening_cache cache(
      [&f, may = go.get_future().share()](const auto& memory_is_there) {
        memory_is_there();
        may.wait();
        return f.open();
      },
      f.settings.memory_bytes);
  request r = fixture::ask();
  server one(f.e.compute, f.e.cost, &cache, chunk);
  one.submit(r);
  // Patience is over when a step has computed something.
  while (one.figures().prefilled_tokens == 0) REQUIRE(one.step());
  REQUIRE(one.figures().prefilled_tokens < prompt_tokens);
  go.set_value();
  REQUIRE(cache.wait_for(patience) != nullptr);
  one.run();
  CHECK(cache.get()->stats().save.calls > 0);
  CHECK(r.done);
  CHECK(r.output == cold.result.tokens);

  std::promise<void> never;
  request other = fixture::ask();
  opening_cache stuck(
      [&f, may = never.get_future().share()](const auto& memory_is_there) {
        memory_is_there();
        may.wait();
        return f.open();
      },
      f.settings.memory_bytes);
  server alone(f.e.compute, f.e.cost, &stuck, chunk);
  alone.submit(other);
  alone.run();
  CHECK(other.output == cold.result.tokens);
  CHECK(other.cached_tokens == 0);
  never.set_value();
}

TEST_CASE("a cache that cannot be opened says why") {
  fixture f;
  f.settings.directory = "/dev/null/cache";
  opening_cache cache(f.settings, f.e.weights, f.e.kv, f.e.cost);
  CHECK_THROWS_AS(cache.wait_for(patience), kvx::error);
}

TEST_CASE("requests that share a beginning compute it once, and many in flight get what they would get alone") {
  fixture f;
  const auto prompt_of = [](std::size_t user) {
    std::vector<token_id> prompt;
    for (std::size_t i = 0; i < 400; ++i)
      prompt.push_back(static_cast<token_id>(i < 320 ? i * 31 % 512 : (i * 7 + user) % 512));
    return prompt;
  };
  const auto answers = [&](opening_cache* cache, std::vector<request>& requests) {
    server all(f.e.compute, f.e.cost, cache, 128);
    for (std::size_t user = 0; user < requests.size(); ++user) {
      requests[user].prompt = prompt_of(user);
      requests[user].tokens = 40;
      all.submit(requests[user]);
    }
    all.run();
  };
  std::vector<request> cold(8), warm(8);
  answers(nullptr, cold);
  std::optional<opening_cache> cache;
  f.open_in(cache);
  REQUIRE(cache->wait_for(patience) != nullptr);
  answers(&*cache, warm);
  for (std::size_t user = 0; user < warm.size(); ++user) {
    CHECK(warm[user].output == cold[user].output);
    if (user > 0) CHECK(warm[user].cached_tokens >= 320);
  }
  CHECK(f.e.kv.free_pages() == f.e.kv.pages());
}

TEST_CASE("straight from storage into the pages the engine computes the same, for one that waited for pages too") {
  fixture f;
  const single_run cold = f.serve_cold();
  f.save();
  std::optional<opening_cache> cache;
  f.open_in(cache);
  REQUIRE(cache->wait_for(patience) != nullptr);
  const auto reader = std::make_shared<held_reader>(cache->get()->block_bytes(), 8);
  server all(f.e.compute, f.e.cost, &*cache, chunk, true, {}, ~std::size_t{0}, straight_through(reader));
  // The pool holds one of them, so that the second gets its pages when the first is done.
  request first = fixture::ask(), second = fixture::ask();
  all.submit(second);
  const single_run run = f.serve_by(all, first);
  CHECK(run.result == cold.result);
  CHECK(second.output == cold.result.tokens);
  CHECK(first.cached_tokens == (prompt_tokens - 1) / 16 * 16);
  CHECK(second.cached_tokens == first.cached_tokens);
  CHECK(reader->submitted() == 2 * ((prompt_tokens - 1) / 16));
  CHECK(cache->get()->stats().memory.blocks == 0);
}

TEST_CASE("a reader that brings nothing costs no more than computing") {
  fixture f;
  const single_run cold = f.serve_cold();
  f.save();
  std::optional<opening_cache> cache;
  f.open_in(cache);
  REQUIRE(cache->wait_for(patience) != nullptr);
  const auto reader = std::make_shared<held_reader>(cache->get()->block_bytes(), 8);
  reader->close();
  server all(f.e.compute, f.e.cost, &*cache, chunk, false, {}, ~std::size_t{0}, straight_through(reader));
  request one = fixture::ask();
  one.on_token = [&](token_id) { reader->open(); };  // while tokens are generated
  const single_run run = f.serve_by(all, one);
  CHECK(run.cached_tokens == 0);
  CHECK(run.result == cold.result);
  CHECK(all.figures().prefilled_tokens == prompt_tokens);
}

TEST_CASE("a real model tells the same story with the cache") {
  const char* models = std::getenv("KVX_TEST_MODELS");
  if (models == nullptr) {
    std::fputs(
        "KVX-SKIPPED: the real model is not tested: set KVX_TEST_MODELS to the directory that holds stories260K.bin\n",
        stderr);
    something_skipped = true;
    return;
  }
  const std::string directory(models);
  engine e(model::load(directory + "/stories260K.bin"), 2, 16, 512, 128, 128);
  const tokenizer words(directory + "/tok512.bin", e.weights.config.vocabulary);
  temporary_directory root;
  cache_settings settings;
  settings.directory = root.path;
  settings.storage_bytes = std::uint64_t{64} << 20;
  settings.memory_bytes = memory_for(512, e.weights.config, e.kv);
  settings.load_deadline = settings.save_deadline = patience;
  const auto tell = [&](std::optional<opening_cache>& cache) {
    request r;
    r.prompt = words.encode(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw "
        "a big, red ball near the old tree. She wanted to play with it, but her friend Tom was sad.");
    r.tokens = 200;
    const single_run run = run_alone("test", e, r, cache, cache ? nullptr : &settings, {128, true, std::nullopt});
    REQUIRE(cache->get()->drain(patience));
    return run;
  };
  request plain;
  std::optional<opening_cache> none, first, second;
  const single_run saved = tell(first);
  CHECK(saved.cached_tokens == 0);
  const single_run from_memory = tell(first);
  first.reset();
  const single_run from_storage = tell(second);
  plain.prompt = words.encode(
      "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw "
      "a big, red ball near the old tree. She wanted to play with it, but her friend Tom was sad.");
  plain.tokens = 200;
  const single_run cold = run_alone("test", e, plain, none, nullptr, {128, false, std::nullopt});
  CHECK(from_memory.cached_tokens > 0);
  CHECK(from_storage.cached_tokens > 0);
  CHECK(saved.result == cold.result);
  CHECK(from_memory.result == cold.result);
  CHECK(from_storage.result == cold.result);
  std::string text;
  for (const token_id token : cold.result.tokens) text += words.decode(0, token);
  CHECK(text.find("Tom said") != std::string::npos);
}

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int failed = context.run();
  return failed == 0 && something_skipped ? 77 : failed;
}
