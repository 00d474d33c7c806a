// SPDX-License-Identifier: Apache-2.0
// From storage into the engine's pages through a reader's staging memory: only what proved itself arrives, and pages
// belong to the operation exactly until it says so.
#include <kvx/io/posix.hpp>
#include <kvx/kvx.hpp>
#include <kvx/transfer/deferred.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "patient_options.hpp"
#include "temporary_directory.hpp"
#include "test_engine.hpp"

using namespace std::chrono_literals;
using kvx_test::pages_from;
using kvx_test::patience;
using kvx_test::test_engine;
using kvx_test::tokens_of;

namespace {

constexpr std::size_t blocks = 10;
constexpr kvx::block_id loaded_from = 32;  // the pages that are loaded into

/// Stages like the archetype, and does what a test asks: ends reads late or with errors, damages what it staged.
class odd_reader {
 public:
  odd_reader(std::size_t block_bytes, std::size_t places) : staged_(block_bytes, places) {}
  ~odd_reader() { open(); }

  /// Reads end no earlier than open().
  void close() { closed_ = true; }
  void open() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = false;
    }
    opened_.notify_all();
  }
  /// Reads that ended and wait for open().
  [[nodiscard]] bool waits() const { return waiting_ != 0; }
  void fail_with(int error) { error_ = error; }
  /// A bit of the n-th staged payload from now on turns, before the reader looks at it.
  void damage(int n) { damage_in_ = n; }
  [[nodiscard]] std::size_t read() const { return read_; }
  [[nodiscard]] std::size_t most_lent() const { return most_lent_; }
  [[nodiscard]] std::size_t lent() const { return lent_; }
  [[nodiscard]] std::set<int> detached() {
    const std::lock_guard lock(mutex_);
    return detached_;
  }

  void submit(std::span<const kvx::direct_request> requests) {
    std::vector<kvx::direct_request> passed(requests.begin(), requests.end());
    for (kvx::direct_request& each : passed) {
      each.context = new wrapped{this, each};
      each.done = [](void* context, const kvx::io_result& outcome, std::byte* payload) noexcept {
        const std::unique_ptr<wrapped> request(static_cast<wrapped*>(context));
        request->owner->ended(request->inner, outcome, payload);
      };
    }
    staged_.submit(passed);
  }
  void give_back(std::byte* payload) {
    --lent_;
    std::memset(payload, 0x5A, 64);  // who still reads it sees that
    staged_.give_back(payload);
  }
  void detach(int file) {
    const std::lock_guard lock(mutex_);
    detached_.insert(file);
  }
  [[nodiscard]] std::span<std::byte> staging() const { return staged_.staging(); }
  [[nodiscard]] std::size_t capacity() const { return staged_.capacity(); }
  [[nodiscard]] std::size_t block_bytes() const { return staged_.block_bytes(); }
  [[nodiscard]] std::string_view name() const { return "odd"; }
  bool stop(std::chrono::milliseconds deadline) { return staged_.stop(deadline); }

 private:
  struct wrapped {
    odd_reader* owner;
    kvx::direct_request inner;
  };

  void ended(const kvx::direct_request& request, kvx::io_result outcome, std::byte* payload) {
    {
      std::unique_lock lock(mutex_);
      ++waiting_;
      opened_.wait(lock, [this] { return !closed_; });
      --waiting_;
    }
    if (payload != nullptr) {
      ++read_;
      most_lent_ = std::max(most_lent_.load(), ++lent_);
      if (damage_in_ > 0 && --damage_in_ == 0) {
        payload[100] ^= std::byte{1};
        for (std::size_t i = 0; i < request.page_values.size(); ++i)
          request.page_values[i] = XXH3_64bits(payload + i * kvx::page_bytes, kvx::page_bytes);
      }
      if (error_ != 0) {
        give_back(payload);
        payload = nullptr;
        outcome = {error_, 0};
      }
    }
    request.done(request.context, outcome, payload);
  }

  std::mutex mutex_;
  std::condition_variable opened_;
  std::atomic<bool> closed_{false};
  std::atomic<int> waiting_{0};
  std::atomic<int> error_{0};
  std::atomic<int> damage_in_{0};
  std::atomic<std::size_t> read_{0};
  std::atomic<std::size_t> lent_{0};
  std::atomic<std::size_t> most_lent_{0};
  std::set<int> detached_;
  kvx::archetype::direct_reader staged_;
};
static_assert(kvx::direct_reader<odd_reader>);

/// Copies at once; on stream 1 nothing is said to have ended while `held`.
class held_transfer {
 public:
  struct stream_type {
    int number = 0;
  };
  static inline std::atomic<bool> held{false};

  class operation {
   public:
    operation() = default;
    explicit operation(bool waits) : waits_(waits) {}
    [[nodiscard]] kvx::status wait_layer(std::size_t, stream_type) const { return {}; }
    [[nodiscard]] bool done() const noexcept { return !waits_ || !held; }
    [[nodiscard]] kvx::status outcome() const noexcept { return {}; }
    void wait() const {
      while (!done()) std::this_thread::sleep_for(1ms);
    }

   private:
    bool waits_ = false;
  };

  template <kvx::kv_layout Layout>
  [[nodiscard]] kvx::result<operation> load(const Layout& layout, const kvx::transfer_batch& batch, stream_type on) {
    if (const auto moved = copies_.load(layout, batch, {}); !moved) return moved.status();
    return operation(on.number == 1);
  }
  template <kvx::kv_layout Layout>
  [[nodiscard]] kvx::result<operation> save(const Layout& layout, const kvx::transfer_batch& batch, stream_type) {
    if (const auto moved = copies_.save(layout, batch, {}); !moved) return moved.status();
    return operation{};
  }
  [[nodiscard]] kvx::status register_arena(std::span<std::byte> arena) { return copies_.register_arena(arena); }

 private:
  kvx::archetype::transfer copies_;
};

/// Copies at once, where it is open.
class gated_transfer : public kvx::archetype::transfer {
 public:
  static inline std::atomic<bool> open{false};
  static inline std::atomic<int> loads{0};

  template <kvx::kv_layout Layout>
  [[nodiscard]] kvx::result<operation> load(const Layout& layout, const kvx::transfer_batch& batch, stream_type on) {
    ++loads;
    while (!open) std::this_thread::sleep_for(1ms);
    return kvx::archetype::transfer::load(layout, batch, on);
  }
};

/// Several threads that each read one block at a time.
class several_readers {
 public:
  several_readers(std::size_t block_bytes, std::size_t threads) {
    for (std::size_t i = 0; i < threads; ++i)
      each_.push_back(std::make_unique<kvx::archetype::direct_reader>(block_bytes, 1));
  }
  void submit(std::span<const kvx::direct_request> requests) {
    for (const kvx::direct_request& request : requests) each_[next_++ % each_.size()]->submit({&request, 1});
  }
  void give_back(std::byte* payload) {
    for (const auto& each : each_)
      if (payload >= each->staging().data() && payload < each->staging().data() + each->staging().size())
        return each->give_back(payload);
  }
  void detach(int) {}
  [[nodiscard]] std::span<std::byte> staging() const { return each_[0]->staging(); }
  [[nodiscard]] std::size_t capacity() const { return each_.size(); }
  [[nodiscard]] std::size_t block_bytes() const { return each_[0]->block_bytes(); }
  [[nodiscard]] std::string_view name() const { return "several"; }
  bool stop(std::chrono::milliseconds deadline) {
    return std::all_of(each_.begin(), each_.end(), [&](const auto& each) { return each->stop(deadline); });
  }

 private:
  std::vector<std::unique_ptr<kvx::archetype::direct_reader>> each_;
  std::atomic<std::size_t> next_{0};
};

kvx::options small_options(const std::string& root) {
  kvx::options o = kvx_test::patient_options(root);
  o.memory_bytes = 4U << 20U;
  o.storage_bytes = 16U << 20U;
  return o;
}

/// A prompt on storage and a new cache that has nothing in memory.
struct fixture {
  explicit fixture(std::size_t places = 4) : fixture(small_options({}), places) {}
  fixture(kvx::options with, std::size_t places) {
    with.root = root.path();
    {
      kvx::host_cache<> first(with, engine.layout());
      chain = first.make_sequence(tokens_of(1, 4 * blocks + 1));
      for (std::size_t b = 0; b < chain.blocks(); ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
      const auto saved = first.save(chain, 0, pages_from(0, blocks));
      REQUIRE(saved.wait_stored(patience));
      REQUIRE(saved.outcome().ok());
    }
    cache.emplace(with, engine.layout());
    reader = std::make_shared<odd_reader>(cache->block_bytes(), places);
    for (kvx::block_id p = 0; p < 64; ++p) engine.poison(p);
  }
  [[nodiscard]] kvx::direct_load_ticket load() { return load(cache->match(chain)); }
  [[nodiscard]] kvx::direct_load_ticket load(const kvx::plan& plan) {
    return cache->load_direct(plan, pages_from(loaded_from, plan.blocks()), reader);
  }
  /// Whether the first `count` pages hold the prompt, and the others nothing.
  [[nodiscard]] bool arrived(std::size_t count) const {
    for (std::size_t b = 0; b < blocks; ++b) {
      const auto page = static_cast<kvx::block_id>(loaded_from + b);
      if (!(b < count ? engine.holds(page, chain.key(b)) : engine.poisoned(page))) return false;
    }
    return true;
  }

  kvx_test::temporary_directory root;
  test_engine engine{test_engine::shape{.pages = 128}};
  kvx::sequence chain;
  std::shared_ptr<odd_reader> reader;
  std::optional<kvx::host_cache<>> cache;
};

/// Turns a bit of the payload of each slot of a root that holds this key.
void damage_on_storage(const std::string& root, const kvx::block_key& key, std::size_t at) {
  for (const auto& file : std::filesystem::recursive_directory_iterator(root)) {
    if (file.path().extension() != ".slab") continue;
    std::fstream slab(file.path(), std::ios::in | std::ios::out | std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(slab)), std::istreambuf_iterator<char>());
    const std::string wanted(reinterpret_cast<const char*>(key.bytes.data()), 16);
    for (std::size_t found = bytes.find(wanted); found != std::string::npos; found = bytes.find(wanted, found + 1)) {
      if (found % kvx::page_bytes != 64) continue;  // a header's own key
      const std::size_t place = found - 64 + at;
      slab.clear();
      slab.seekp(static_cast<std::streamoff>(place));
      slab.put(static_cast<char>(bytes[place] ^ 1));
    }
  }
}

}  // namespace

TEST_CASE("blocks come from storage into the pages, and pass memory by") {
  fixture f;
  const auto ticket = f.load();
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.outcome().ok());
  CHECK(ticket.loaded_blocks() == blocks);
  CHECK(f.arrived(blocks));
  CHECK(f.reader->read() == blocks);
  CHECK(f.reader->most_lent() <= f.reader->capacity());
  const kvx::metrics_snapshot stats = f.cache->stats();
  CHECK(stats.memory.blocks == 0);
  CHECK(stats.storage.read_bytes == blocks * f.cache->block_bytes());
  CHECK(stats.load.blocks == blocks);
  CHECK(stats.load.failed_blocks == 0);
  std::vector<kvx::completion> ended(4);
  REQUIRE(f.cache->poll(ended) == 1);
  CHECK(ended[0].ticket == ticket.id());
  CHECK(ended[0].kind == kvx::completion::operation::load);
  CHECK(ended[0].outcome.ok());
}

TEST_CASE("what is in memory comes from there, the rest from storage") {
  fixture f;
  const kvx::plan plan = f.cache->match(f.chain);
  kvx::plan front = plan;
  front.truncate(4);
  {
    const auto pre = f.cache->prefetch(front);
    REQUIRE(pre.wait_for(patience));
  }
  f.reader->close();
  const auto ticket = f.load(plan);
  CHECK(ticket.planned_blocks() == blocks);
  CHECK(ticket.wait_loaded(4, patience));
  CHECK_FALSE(ticket.wait_loaded(5, 1ms));
  CHECK_FALSE(ticket.projected_remaining().has_value());  // memory says nothing of storage
  f.reader->open();
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.wait_loaded(blocks, 0ms));
  CHECK(ticket.projected_remaining() == std::chrono::duration<double>(0));
  CHECK(ticket.loaded_blocks() == blocks);
  CHECK(f.arrived(blocks));
  CHECK(f.reader->read() == blocks - 4);
  CHECK(f.cache->stats().memory.blocks == 4);
  CHECK(f.cache->erase(plan.keys) == blocks);  // nothing stayed pinned
}

TEST_CASE("from a later block on, and fewer than planned") {
  fixture f;
  const kvx::plan plan = f.cache->match(f.chain);
  const auto ticket = f.cache->load_direct(plan, pages_from(loaded_from + 3, 4), f.reader, {}, 3);
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == 7);
  CHECK(ticket.outcome(2) == kvx::errc::ok);
  for (std::size_t b = 0; b < blocks; ++b) {
    const auto page = static_cast<kvx::block_id>(loaded_from + b);
    CHECK((b >= 3 && b < 7 ? f.engine.holds(page, f.chain.key(b)) : f.engine.poisoned(page)));
  }
}

TEST_CASE("what was damaged on storage or on its way into the staging memory never reaches a page") {
  fixture f;
  constexpr std::size_t bad = 4;
  SUBCASE("on storage") {
    const std::size_t header_bytes = f.cache->block_bytes() - 3 * kvx::page_bytes;
    damage_on_storage(f.root.path(), f.chain.key(bad), header_bytes + 100);
  }
  SUBCASE("in its header") { damage_on_storage(f.root.path(), f.chain.key(bad), 300); }
  SUBCASE("on the way") { f.reader->damage(bad + 1); }
  const auto ticket = f.load();
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == bad);
  CHECK(ticket.outcome(bad) == kvx::errc::miss);
  CHECK(ticket.outcome(blocks - 1) == kvx::errc::miss);
  CHECK(f.engine.poisoned(loaded_from + bad));
  for (std::size_t b = 0; b < bad; ++b)
    CHECK(f.engine.holds(static_cast<kvx::block_id>(loaded_from + b), f.chain.key(b)));
  CHECK(f.cache->stats().storage.damaged == 1);
  CHECK(f.cache->match(f.chain).blocks() == bad);
  CHECK(f.cache->drain(patience));
  CHECK(f.reader->lent() == 0);
}

TEST_CASE("an error of the device is a miss and keeps the block, a file that ended early loses it") {
  fixture f;
  std::size_t left = 0;
  SUBCASE("error") {
    f.reader->fail_with(EIO);
    left = blocks;
  }
  SUBCASE("short") {
    f.reader->fail_with(ENODATA);
    left = 0;
  }
  const auto ticket = f.load();
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == 0);
  CHECK(f.arrived(0));
  CHECK(f.cache->drain(patience));
  CHECK(f.cache->stats().storage.errors >= 1);
  CHECK(f.cache->match(f.chain).blocks() == left);
  f.reader->fail_with(0);
  const auto again = f.load();
  REQUIRE(again.wait_for(patience));
  CHECK(again.loaded_blocks() == left);
}

TEST_CASE("after errors in a row storage is left alone") {
  kvx::options o = small_options({});
  o.breaker_failures = 2;
  o.breaker_pause = patience;
  fixture f(o, 1);
  f.reader->fail_with(EIO);
  for (int i = 0; i < 2; ++i) REQUIRE(f.load().wait_for(patience));
  REQUIRE(f.cache->drain(patience));
  f.reader->fail_with(0);
  const std::size_t before = f.reader->read();
  const auto ticket = f.load(f.cache->match(f.chain));
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == 0);
  CHECK(f.reader->read() == before);
}

TEST_CASE("storage that sits on reads past deadlines is left alone, and what it brings later says nothing for it") {
  kvx::options o = small_options({});
  o.load_deadline = 30ms;
  o.breaker_failures = 2;
  o.breaker_pause = patience;
  fixture f(o, 4);
  const kvx::plan plan = f.cache->match(f.chain);
  f.reader->close();
  for (int i = 0; i < 2; ++i) REQUIRE(f.load(plan).wait_for(patience));
  f.reader->open();
  REQUIRE(f.cache->drain(patience));
  CHECK(f.cache->stats().breaker_load.opened == 1);
  const std::size_t before = f.reader->read();
  const auto ticket = f.load(plan);
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.outcome(0) == kvx::errc::miss);
  CHECK(f.reader->read() == before);
}

TEST_CASE("without storage, and more of it than a prefetch may keep, what is in memory comes") {
  test_engine engine{test_engine::shape{}};
  kvx::options o = small_options({});
  o.memory_bytes = 12U * 16384;
  kvx::host_cache<> cache(o, engine.layout());
  const kvx::sequence chain = cache.make_sequence(tokens_of(1, 4 * blocks + 1));
  for (std::size_t b = 0; b < blocks; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
  REQUIRE(cache.save(chain, 0, pages_from(0, blocks)).wait_stored(patience));
  const auto reader = std::make_shared<odd_reader>(cache.block_bytes(), 1);
  const auto ticket = cache.load_direct(cache.match(chain), pages_from(loaded_from, blocks), reader);
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == blocks);
  for (std::size_t b = 0; b < blocks; ++b)
    CHECK(engine.holds(static_cast<kvx::block_id>(loaded_from + b), chain.key(b)));
  CHECK(reader->read() == 0);
}

TEST_CASE("copies that wait on one stream do not hide that those on another ended") {
  kvx_test::temporary_directory root;
  test_engine engine{test_engine::shape{.pages = 128}};
  const kvx::options o = small_options(root.path());
  kvx::sequence chain;
  {
    kvx::host_cache<> first(o, engine.layout());
    chain = first.make_sequence(tokens_of(1, 4 * blocks + 1));
    for (std::size_t b = 0; b < blocks; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    REQUIRE(first.save(chain, 0, pages_from(0, blocks)).wait_stored(patience));
  }
  kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, held_transfer> cache(o, engine.layout());
  const auto reader = std::make_shared<odd_reader>(cache.block_bytes(), 2 * blocks);
  held_transfer::held = true;
  const kvx::plan plan = cache.match(chain);
  const auto waits = cache.load_direct(plan, pages_from(loaded_from, blocks), reader, held_transfer::stream_type{1});
  while (reader->read() != blocks) std::this_thread::sleep_for(1ms);
  const auto goes = cache.load_direct(plan, pages_from(64, blocks), reader, held_transfer::stream_type{2});
  CHECK(goes.wait_for(patience));
  CHECK(goes.loaded_blocks() == blocks);
  CHECK_FALSE(waits.done());
  held_transfer::held = false;
  CHECK(waits.wait_for(patience));
}

TEST_CASE("what is proved while a copy is being submitted goes into one call, and reaches the pages") {
  fixture f;
  f.cache.reset();
  kvx::options with = small_options(f.root.path());
  kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, gated_transfer> cache(with, f.engine.layout());
  const auto several = std::make_shared<several_readers>(cache.block_bytes(), blocks);
  gated_transfer::open = false;
  gated_transfer::loads = 0;
  const auto ticket = cache.load_direct(cache.match(f.chain), pages_from(loaded_from, blocks), several);
  const auto until = std::chrono::steady_clock::now() + patience;
  const auto waits = [&] {
    return cache.stats().storage.read_bytes == blocks * cache.block_bytes() && gated_transfer::loads == 1;
  };
  while (!waits() && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(1ms);
  CHECK(waits());
  CHECK_FALSE(cache.drain(1ms));
  gated_transfer::open = true;
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == blocks);
  CHECK(f.arrived(blocks));
  CHECK(gated_transfer::loads == 3);  // one, 8, and one that nobody else would take
}

TEST_CASE("cancelled or too late: the ticket ends, and no page is written although the reads go on") {
  kvx::options o = small_options({});
  kvx::errc why = kvx::errc::cancelled;
  bool by_deadline = false;
  SUBCASE("cancelled") {}
  SUBCASE("too late") {
    o.load_deadline = 50ms;
    why = kvx::errc::timed_out;
    by_deadline = true;
  }
  fixture f(o, 4);
  f.reader->close();
  auto ticket = f.load();
  while (!f.reader->waits()) std::this_thread::sleep_for(1ms);
  if (!by_deadline) {
    CHECK_FALSE(ticket.done());
    ticket.cancel();
  }
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.outcome() == kvx::status{why});
  CHECK(ticket.loaded_blocks() == 0);
  const kvx::metrics_snapshot stats = f.cache->stats();
  CHECK(stats.load.failed_blocks == 0);
  CHECK(stats.load.timed_out_blocks == (by_deadline ? blocks : 0));
  CHECK(stats.load.cancelled_blocks == (by_deadline ? 0 : blocks));
  CHECK(stats.storage.timeouts == (by_deadline ? f.reader->capacity() : 0));  // all that were begun
  f.reader->open();
  REQUIRE(f.cache->drain(patience));
  CHECK(f.arrived(0));
  CHECK(f.reader->lent() == 0);
  CHECK(f.reader->read() <= 1);  // those that were not started are not read any more
}

TEST_CASE("a ticket that is dropped leaves its load alone") {
  fixture f;
  f.reader->close();
  { const auto dropped = f.load(); }
  f.reader->open();
  REQUIRE(f.cache->drain(patience));
  CHECK(f.arrived(blocks));
}

TEST_CASE("a cache that is destroyed waits for its reads, and its readers hear of the files that it closes") {
  fixture f;
  f.reader->close();
  auto ticket = f.load();
  std::thread later([&] {
    std::this_thread::sleep_for(20ms);
    f.reader->open();
  });
  f.cache.reset();
  later.join();
  CHECK(ticket.done());
  CHECK(ticket.loaded_blocks() == 0);
  CHECK(f.arrived(0));
  CHECK(f.reader->lent() == 0);
  CHECK_FALSE(f.reader->detached().empty());
  ticket.cancel();  // there is nobody to tell
}

TEST_CASE("several loads and readers at once") {
  fixture f(3);
  const auto second = std::make_shared<kvx::archetype::direct_reader>(f.cache->block_bytes(), 2);
  const kvx::plan plan = f.cache->match(f.chain);
  std::vector<kvx::direct_load_ticket> tickets;
  for (kvx::block_id i = 0; i < 8; ++i) {
    const auto pages = pages_from(loaded_from + i * 10, plan.blocks());
    tickets.push_back(i % 2 == 0 ? f.cache->load_direct(plan, pages, f.reader)
                                 : f.cache->load_direct(plan, pages, second));
  }
  for (const auto& each : tickets) {
    REQUIRE(each.wait_for(patience));
    CHECK(each.loaded_blocks() == blocks);
  }
  for (kvx::block_id i = 0; i < 8 * blocks; ++i) CHECK(f.engine.holds(loaded_from + i, f.chain.key(i % blocks)));
  CHECK(f.reader->read() == 4 * blocks);
  CHECK(f.reader->most_lent() <= 3);
}

TEST_CASE("what does not fit is refused") {
  fixture f;
  const kvx::plan plan = f.cache->match(f.chain);
  const auto refused = [&](const kvx::direct_load_ticket& ticket) {
    return ticket.done() && ticket.outcome() == kvx::status{kvx::errc::bad_argument} && ticket.loaded_blocks() == 0 &&
           ticket.outcome(0) == kvx::errc::bad_argument;
  };
  const auto small = std::make_shared<kvx::archetype::direct_reader>(f.cache->block_bytes() - kvx::page_bytes, 2);
  CHECK(refused(f.cache->load_direct(plan, pages_from(loaded_from, blocks), small)));
  CHECK(refused(f.cache->load_direct(plan, pages_from(loaded_from, blocks), std::shared_ptr<odd_reader>{})));
  CHECK(refused(f.cache->load_direct(plan, pages_from(loaded_from, blocks + 1), f.reader)));
  CHECK(refused(f.cache->load_direct(plan, pages_from(loaded_from, 1), f.reader, {}, blocks)));
  const auto nowhere = f.cache->load_direct(plan, pages_from(124, blocks), f.reader);  // beyond the last page
  REQUIRE(nowhere.wait_for(patience));
  CHECK(nowhere.outcome(4) == kvx::errc::bad_argument);
  CHECK(nowhere.loaded_blocks() == 4);
  const auto nothing = f.cache->load_direct(plan, pages_from(loaded_from, 0), f.reader);
  CHECK(nothing.done());
  CHECK(nothing.outcome().ok());
  CHECK(f.cache->drain(patience));
}

TEST_CASE("a plan whose blocks are gone is a miss") {
  fixture f;
  const kvx::plan plan = f.cache->match(f.chain);
  REQUIRE(f.cache->erase(plan.keys) == blocks);
  const auto ticket = f.load(plan);
  REQUIRE(ticket.wait_for(patience));
  CHECK(ticket.loaded_blocks() == 0);
  CHECK(ticket.outcome(0) == kvx::errc::miss);
  CHECK(f.reader->read() == 0);
}

TEST_CASE("on a device that is late and out of order, done means arrived") {
  kvx_test::temporary_directory root;
  test_engine engine{test_engine::shape{}};
  const kvx::options o = small_options(root.path());
  kvx::sequence chain;
  {
    kvx::host_cache<> first(o, engine.layout());
    chain = first.make_sequence(tokens_of(1, 4 * blocks + 1));
    for (std::size_t b = 0; b < blocks; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    REQUIRE(first.save(chain, 0, pages_from(0, blocks)).wait_stored(patience));
  }
  bool fails = false;
  SUBCASE("all of it") {}
  SUBCASE("a copy fails") { fails = true; }
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    kvx::deferred_device device({.seed = seed, .workers = 2});
    kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, kvx::posix, kvx::deferred_transfer> cache(
        o, engine.layout(), kvx::deferred_transfer(device));
    const auto reader = std::make_shared<odd_reader>(cache.block_bytes(), 3);
    const kvx::deferred_stream stream = device.create_stream();
    for (kvx::block_id p = loaded_from; p < 64; ++p) engine.poison(p);
    if (fails) device.fail_copy(seed);
    const kvx::plan plan = cache.match(chain);
    REQUIRE(plan.blocks() == blocks);
    const auto ticket = cache.load_direct(plan, pages_from(loaded_from, blocks), reader, stream);
    std::size_t seen = 0;
    while (!ticket.done() || seen < ticket.loaded_blocks()) {
      for (; seen < ticket.loaded_blocks(); ++seen)
        REQUIRE(engine.holds(static_cast<kvx::block_id>(loaded_from + seen), chain.key(seen)));
    }
    for (std::size_t b = 0; b < blocks; ++b)
      if (ticket.outcome(b) == kvx::errc::ok)
        CHECK(engine.holds(static_cast<kvx::block_id>(loaded_from + b), chain.key(b)));
    CHECK((seen == blocks) == !fails);
    if (fails) CHECK(ticket.outcome(seen) == kvx::errc::device_failed);
  }
}
