// SPDX-License-Identifier: Apache-2.0
#include <kvx/transfer/deferred.hpp>

#include "conformance.hpp"

#include <doctest/doctest.h>
#include <bytes.hpp>
#include <host_memory.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace {

using kvx::deferred_device;
using kvx::deferred_stream;
using kvx::deferred_transfer;
using kvx::errc;

template <unsigned Workers>
class deferred_fixture {
 public:
  using transfer = deferred_transfer;
  static constexpr std::uint64_t seeds = 16;

  explicit deferred_fixture(std::uint64_t seed) : device_({.seed = seed, .workers = Workers}), engine_(device_) {}

  deferred_device& device() { return device_; }
  deferred_transfer& engine() { return engine_; }
  deferred_stream new_stream() { return device_.create_stream(); }
  std::byte* allocate(std::size_t n) { return memory_.allocate(n); }
  std::byte* slot_memory(std::size_t n) { return memory_.allocate(n); }
  void write(std::byte* to, const std::byte* from, std::size_t n) { std::memcpy(to, from, n); }
  void read(std::byte* to, const std::byte* from, std::size_t n) { std::memcpy(to, from, n); }
  void fill_on(deferred_stream stream, std::byte* to, std::byte value, std::size_t n) {
    stream.enqueue([=] { std::memset(to, std::to_integer<int>(value), n); });
  }
  void read_on(deferred_stream stream, std::byte* to, const std::byte* from, std::size_t n) {
    stream.enqueue([=] { std::memcpy(to, from, n); });
  }
  void slow_on(deferred_stream stream) {
    for (int i = 0; i < 4; ++i) stream.enqueue([] {});
  }
  void synchronize(deferred_stream stream) { stream.synchronize(); }

 private:
  kvx_test::host_memory memory_;
  deferred_device device_;
  deferred_transfer engine_;
};

}  // namespace

using namespace kvx_test;

TYPE_TO_STRING(deferred_fixture<0>);
TYPE_TO_STRING(deferred_fixture<1>);
TYPE_TO_STRING(deferred_fixture<3>);
TEST_CASE_TEMPLATE_INVOKE(transfer_conformance, deferred_fixture<0>, deferred_fixture<1>, deferred_fixture<3>);

namespace {

using top = bench_top<deferred_fixture<0>>;

constexpr std::uint64_t tries = 64;

// How many of `tries` seeds show what `shows` looks for.
template <class Shows>
std::uint64_t seeds_that_show(Shows shows) {
  std::uint64_t count = 0;
  for (std::uint64_t seed = 1; seed <= tries; ++seed) {
    if (shows(seed)) ++count;
  }
  return count;
}

toy_group layers_of(std::size_t count) {
  toy_group group;
  group.layers = count;
  return group;
}

}  // namespace

TEST_CASE("a reader that does not wait sees poison") {
  const std::uint64_t shown = seeds_that_show([](std::uint64_t seed) {
    top t{one_group({}), 0, 1, seed};
    // The right bytes stand there already: without poison the mistake would pass for correct.
    t.expect_saved(t.to);
    for (std::size_t l = 0; l < t.layers(); ++l) {
      const bytes layer = t.engine.layer_image(0, l, t.to[0]);
      std::copy(layer.begin(), layer.end(), t.slots.payload(0) + t.slots.offsets[l]);
    }
    auto loaded = t.load(t.to);
    REQUIRE(loaded.ok());
    bytes seen(t.engine.layout().layer_bytes(0, 1));
    t.engine.read_layer_on(t.stream, 0, 1, t.to[0], seen.data());
    t.fixture.device().synchronize();
    CHECK(t.engine.intact());
    const bool poisoned = std::count(seen.begin(), seen.end(), deferred_transfer::poison) > 200;
    if (!poisoned) CHECK(seen == t.engine.layer_image(0, 1, t.to[0]));
    return poisoned;
  });
  CHECK(shown > tries / 2);
}

TEST_CASE("a reader that waits for another layer sees poison") {
  const std::uint64_t shown = seeds_that_show([](std::uint64_t seed) {
    top t{one_group(layers_of(4)), 0, 2, seed};
    t.expect_loaded(t.to);
    auto loaded = t.load(t.to);
    REQUIRE(loaded.ok());
    REQUIRE(loaded->wait_layer(2, t.stream).ok());
    bytes seen(t.engine.layout().layer_bytes(0, 3));
    t.engine.read_layer_on(t.stream, 0, 3, t.to[0], seen.data());
    t.fixture.device().synchronize();
    return seen != t.engine.layer_image(0, 3, t.to[0]);
  });
  CHECK(shown > tries / 8);
}

TEST_CASE("a source that changes before the save is done damages the slot") {
  const std::uint64_t shown = seeds_that_show([](std::uint64_t seed) {
    top t{one_group({}), 0, 1, seed};
    t.expect_saved(t.from);
    auto saved = t.save(t.from);
    REQUIRE(saved.ok());
    t.engine.fill_block_on(t.stream, 0, t.from[0], std::byte{0x44});
    t.fixture.device().synchronize();
    return !t.slots.intact();
  });
  CHECK(shown > tries / 2);
}

TEST_CASE("a slot that is read before the save is done holds poison") {
  top t{one_group({}), 0, 1, 3};
  auto saved = t.save(t.from);
  REQUIRE(saved.ok());
  bool poisoned = false;
  while (t.fixture.device().step()) {
    const std::byte* const payload = t.slots.payload(0);
    poisoned = poisoned || (payload[0] == deferred_transfer::poison && payload[255] == deferred_transfer::poison);
  }
  CHECK(poisoned);
  CHECK(saved->done());
}

TEST_CASE("done and each layer's event come after the copies they stand for, step by step") {
  for (std::uint64_t seed = 1; seed <= tries; ++seed) {
    CAPTURE(seed);
    top t{one_group(layers_of(3)), 0, 3, seed};
    t.expect_loaded(t.to);
    const auto complete = [&](std::size_t l) {
      return std::all_of(t.to.begin(), t.to.end(), [&](const auto& pages) {
        for (std::size_t part = 0; part < 2; ++part) {
          const auto p = t.engine.at(0, l, part, pages[0]);
          if (!kvx_test::same_bytes({p.image, p.size}, {p.memory, p.size})) return false;
        }
        return true;
      });
    };
    auto loaded = t.load(t.to);
    REQUIRE(loaded.ok());
    CHECK(!loaded->done());
    std::vector<int> reached(t.layers(), 0);
    std::vector<int> early(t.layers(), 0);
    for (std::size_t l = 0; l < t.layers(); ++l) {
      const deferred_stream watcher = t.fixture.new_stream();
      REQUIRE(loaded->wait_layer(l, watcher).ok());
      watcher.enqueue([&, l] {
        ++reached[l];
        if (!complete(l)) ++early[l];
      });
    }
    bool was_done = false;
    while (t.fixture.device().step()) {
      const bool done = loaded->done();
      if (done) {
        CHECK(t.engine.intact());
      } else {
        CHECK(!was_done);
      }
      was_done = done;
    }
    CHECK(was_done);
    CHECK(reached == std::vector<int>(3, 1));
    CHECK(early == std::vector<int>(3, 0));
  }
}

TEST_CASE("load and save return while the device stands still, and nothing moves until it goes on") {
  bench_top<deferred_fixture<1>> t{one_group({}), 0, 2, 3};
  t.fixture.device().hold();
  auto loaded = t.load(t.to);
  REQUIRE(loaded.ok());
  CHECK(loaded->wait_layer(0, t.stream).ok());
  std::atomic<bool> ran{false};
  t.stream.enqueue([&] { ran = true; });
  CHECK(!t.fixture.device().step());
  std::this_thread::sleep_for(std::chrono::milliseconds{20});
  CHECK(!loaded->done());
  CHECK(!ran);
  CHECK(t.engine.intact());
  t.fixture.device().release();
  loaded->wait();
  t.stream.synchronize();
  CHECK(ran);
  t.expect_loaded(t.to);
  CHECK(t.engine.intact());
}

TEST_CASE("the same seed gives the same order, another seed another one") {
  const auto order_of = [](std::uint64_t seed, unsigned workers) {
    deferred_device device{{.seed = seed, .workers = workers}};
    std::vector<int> order;
    std::vector<deferred_stream> streams;
    device.hold();
    for (int s = 0; s < 4; ++s) streams.push_back(device.create_stream());
    for (int i = 0; i < 10; ++i) {
      for (int s = 0; s < 4; ++s) streams[static_cast<std::size_t>(s)].enqueue([&order, s] { order.push_back(s); });
    }
    device.release();
    device.synchronize();
    return order;
  };
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    CHECK(order_of(seed, 0) == order_of(seed, 0));
    CHECK(order_of(seed, 0) == order_of(seed, 1));
    CHECK(order_of(seed, 0) != order_of(seed + 1, 0));
  }
}

TEST_CASE("a stream runs in order, with gaps in which others run") {
  deferred_device device{{.seed = 7, .workers = 1}};
  const deferred_stream a = device.create_stream();
  const deferred_stream b = device.create_stream();
  std::vector<int> seen;
  for (int i = 0; i < 100; ++i) {
    a.enqueue([&seen, i] { seen.push_back(i); });
    b.enqueue([&seen] { seen.push_back(-1); });
  }
  device.synchronize();
  REQUIRE(seen.size() == 200);
  CHECK(!std::is_sorted(seen.begin(), seen.end()));
  std::erase(seen, -1);
  CHECK(std::is_sorted(seen.begin(), seen.end()));
}

TEST_CASE("a copy that fails, whichever it is, fails its operation and nothing else, and nothing hangs") {
  constexpr std::uint64_t copies = 2 * 3;
  for (std::uint64_t n = 1; n <= copies; ++n) {
    for (std::uint64_t seed = 1; seed <= 8; ++seed) {
      CAPTURE(n);
      CAPTURE(seed);
      top t{one_group(layers_of(3)), 0, 2, seed};
      t.fixture.device().fail_copy(n);
      auto failing = t.load(t.from);
      REQUIRE(failing.ok());
      auto good = t.load(t.to);
      REQUIRE(good.ok());
      int reached = 0;
      for (std::size_t l = 0; l < t.layers(); ++l) CHECK(failing->wait_layer(l, t.stream).ok());
      t.stream.enqueue([&reached] { ++reached; });
      failing->wait();
      good->wait();
      t.stream.synchronize();
      CHECK(failing->done());
      CHECK(failing->outcome() == errc::device_failed);
      CHECK(good->outcome().ok());
      CHECK(reached == 1);
      t.expect_loaded(t.to);
      t.expect_loaded(t.from);
      CHECK(!t.engine.intact());
    }
  }
}

TEST_CASE("a refused submission leaves no trace") {
  top t{one_group({}), 0, 1, 2};
  t.fixture.device().fail_submission(2);
  CHECK(t.save(t.from).ok());
  CHECK(t.load(t.to).status() == errc::device_failed);
  t.fixture.device().synchronize();
  t.expect_saved(t.from);
  CHECK(t.engine.intact());
  CHECK(t.slots.intact());
  CHECK(t.load(t.to).ok());
}

TEST_CASE("a copy that never ends keeps its operation open until the device is gone") {
  const toy_group group = layers_of(2);
  deferred_transfer::operation stuck;
  {
    bench_top<deferred_fixture<1>> t{one_group(group), 0, 1, 4};
    t.fixture.device().hang_copy(2);
    auto loaded = t.load(t.to);
    REQUIRE(loaded.ok());
    stuck = *loaded;
    t.stream.synchronize();
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
    CHECK(!stuck.done());
    CHECK(!t.fixture.device().step());
  }
  CHECK(stuck.done());
  CHECK(stuck.outcome() == errc::device_failed);
  stuck.wait();
}

TEST_CASE("streams that are null, of another device or asked for a layer that is not there are refused") {
  top t{one_group({}), 0, 1, 2};
  deferred_device other;
  const deferred_stream foreign = other.create_stream();
  const auto blocks = t.copies(t.to);
  const kvx::transfer_batch batch{0, t.slots.offsets, blocks};
  for (const deferred_stream stream : {deferred_stream{}, foreign}) {
    CHECK(t.fixture.engine().load(t.engine.layout(), batch, stream).status() == errc::bad_argument);
    CHECK(t.fixture.engine().save(t.engine.layout(), batch, stream).status() == errc::bad_argument);
  }
  auto loaded = t.load(t.to);
  REQUIRE(loaded.ok());
  CHECK(loaded->wait_layer(0, {}) == errc::bad_argument);
  CHECK(loaded->wait_layer(0, foreign) == errc::bad_argument);
  CHECK(loaded->wait_layer(2, t.stream) == errc::bad_argument);
  loaded->wait();
}

TEST_CASE("real delays pass for real") {
  using namespace std::chrono_literals;
  for (const unsigned workers : {0U, 1U}) {
    deferred_device device{{.min_delay = 10ms, .max_delay = 12ms, .workers = workers, .real_time = true}};
    const deferred_stream stream = device.create_stream();
    const auto began = std::chrono::steady_clock::now();
    for (int i = 0; i < 3; ++i) stream.enqueue([] {});
    stream.synchronize();
    CHECK(std::chrono::steady_clock::now() - began >= 30ms);
  }
}

TEST_CASE("options that cannot be are refused by name") {
  using namespace std::chrono_literals;
  CHECK_THROWS_WITH_AS((deferred_device{{.min_delay = 2us, .max_delay = 1us}}),
                       "kvx: deferred_device::options::min_delay is 2000 ns with a max_delay of 1000 ns; give 0 <= "
                       "min_delay <= max_delay",
                       kvx::error);
  CHECK_THROWS_AS((deferred_device{{.min_delay = -1us}}), kvx::error);
  deferred_device device;
  CHECK_THROWS_AS((deferred_transfer{device, 0}), kvx::error);
}

TEST_CASE("work may enqueue more work, and what it captured dies outside the device's lock") {
  deferred_device device;
  const deferred_stream stream = device.create_stream();
  std::atomic<int> count{0};
  std::shared_ptr<void> last{&count, [stream, &count](void*) { stream.enqueue([&count] { ++count; }); }};
  stream.enqueue([&count, stream, last = std::move(last)] { stream.enqueue([&count] { ++count; }); });
  while (count < 2) stream.synchronize();
  CHECK(count == 2);
}

TEST_CASE("many small operations of two threads go through") {
  deferred_device device{{.seed = 11, .workers = 1}};
  bench_top<deferred_fixture<0>> shapes{one_group({}), 0, 2, 1};
  deferred_transfer engine{device};
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      const deferred_stream stream = device.create_stream();
      const std::vector<kvx::block_copy> blocks{{shapes.slots.payload(i), shapes.from[i]}};
      const kvx::transfer_batch batch{0, shapes.slots.offsets, blocks};
      for (int round = 0; round < 2000; ++round) {
        auto saved = engine.save(shapes.engine.layout(), batch, stream);
        auto loaded = saved.ok() ? engine.load(shapes.engine.layout(), batch, stream) : std::move(saved);
        if (!loaded) return;
        if (!loaded->wait_layer(1, stream)) return;
        if (round % 100 == 99) {
          stream.synchronize();
          loaded->wait();
        }
        ++good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(good == 4000);
  device.synchronize();
}
