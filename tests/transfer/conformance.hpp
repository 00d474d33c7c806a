// SPDX-License-Identifier: Apache-2.0
// What every transfer engine must do. A new engine writes a fixture and one TEST_CASE_TEMPLATE_INVOKE line; see
// host_test.cpp and deferred_test.cpp. A fixture is constructed from a seed and has
//   transfer          the engine's type
//   seeds             how many seeds are worth trying
//   engine()          the engine
//   new_stream()      a stream_type
//   allocate(n)       n bytes of engine memory, as long as the fixture lives
//   slot_memory(n)    n bytes of host memory that slots may lie in, aligned to a page
//   write, read       host to engine memory and back, at once
//   fill_on, read_on  the same as work on a stream: what a missing wait would race with
//   slow_on           work that may take a while
//   synchronize(s)    until the stream is empty
#pragma once

#include <kvx/concepts/transfer.hpp>
#include <kvx/detail/page_checksum.hpp>
#include <kvx/types.hpp>

#include <doctest/doctest.h>
#include <bytes.hpp>
#include <toy_layout.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <vector>

namespace kvx_test {

using bytes = std::vector<std::byte>;

inline constexpr std::byte canary{0xC7};
inline constexpr std::size_t guard_bytes = 4096;

inline std::vector<toy_group> one_group(const toy_group& group) { return {group}; }

/// Shapes that engines have, small: separate and fused keys and values, unequal layers, several pages per block.
inline std::vector<std::vector<toy_group>> geometries() {
  toy_group separate;
  toy_group fused;
  fused.regions = 1;
  fused.layers = 3;
  fused.fragment_bytes = 512;
  toy_group odd;
  odd.fragment_bytes = 1;
  odd.growth = 3;
  odd.layers = 5;
  odd.gap = 7;
  odd.pages_per_block = 3;
  toy_group token_granular;
  token_granular.fragment_bytes = 64;
  token_granular.pages_per_block = 16;
  token_granular.page_count = 256;
  toy_group large;
  large.fragment_bytes = 70'000;
  large.layers = 1;
  return {{separate}, {fused}, {odd}, {token_granular}, {large}, {separate, odd, fused}};
}

/// Engine memory with guards and gaps, and the image of what it should hold.
template <class Fixture>
class toy_engine {
 public:
  toy_engine(Fixture& fixture, std::vector<toy_group> groups, std::uint64_t seed) : fixture_(fixture), groups_(groups) {
    std::vector<std::vector<std::byte*>> bases(groups.size());
    for (std::size_t g = 0; g < groups.size(); ++g) {
      for (std::size_t r = 0; r < groups[g].layers * groups[g].regions; ++r) {
        const std::size_t layer = r / groups[g].regions;
        region one;
        one.image = bytes(groups[g].region_bytes(layer) + 2 * guard_bytes, canary);
        one.base = fixture.allocate(one.image.size());
        const bytes pattern = noise(groups[g].region_bytes(layer), seed * 1'000'003 + g * 1000 + r);
        for (std::size_t page = 0; page < groups[g].page_count; ++page) {
          const auto from = static_cast<std::ptrdiff_t>(page * groups[g].stride(layer));
          std::copy_n(pattern.begin() + from, groups[g].fragment(layer),
                      one.image.begin() + from + static_cast<std::ptrdiff_t>(guard_bytes));
        }
        fixture.write(one.base, one.image.data(), one.image.size());
        bases[g].push_back(one.base + guard_bytes);
        regions_.push_back(std::move(one));
        index_.push_back({g, r});
      }
    }
    layout_ = std::make_unique<toy_layout>(16, groups, bases);
  }

  [[nodiscard]] const toy_layout& layout() const { return *layout_; }
  [[nodiscard]] const toy_group& group(std::size_t g) const { return groups_[g]; }

  /// Where a layer's piece of a page stands in engine memory and in the image.
  struct place {
    std::byte* memory;
    std::byte* image;
    std::size_t size;
  };
  [[nodiscard]] place at(std::size_t g, std::size_t layer, std::size_t part, kvx::block_id page) {
    const std::size_t wanted = layer * groups_[g].regions + part;
    for (std::size_t i = 0; i < index_.size(); ++i) {
      if (index_[i].group != g || index_[i].region != wanted) continue;
      const std::size_t offset = guard_bytes + page * groups_[g].stride(layer);
      return {regions_[i].base + offset, regions_[i].image.data() + offset, groups_[g].fragment(layer)};
    }
    FAIL("no such region");
    return {};
  }

  /// The bytes of one layer of a block as the image has them, in slot order.
  [[nodiscard]] bytes layer_image(std::size_t g, std::size_t layer, std::span<const kvx::block_id> pages) {
    bytes out;
    for (std::size_t part = 0; part < groups_[g].regions; ++part) {
      for (const kvx::block_id page : pages) {
        const place p = at(g, layer, part, page);
        out.insert(out.end(), p.image, p.image + p.size);
      }
    }
    return out;
  }
  void set_layer_image(std::size_t g, std::size_t layer, std::span<const kvx::block_id> pages, const std::byte* from) {
    for (std::size_t part = 0; part < groups_[g].regions; ++part) {
      for (const kvx::block_id page : pages) {
        const place p = at(g, layer, part, page);
        std::copy_n(from, p.size, p.image);
        from += p.size;
      }
    }
  }

  /// Reads one layer of a block as work on a stream; `to` is complete once the stream is.
  template <class Stream>
  void read_layer_on(Stream stream, std::size_t g, std::size_t layer, std::span<const kvx::block_id> pages,
                     std::byte* to) {
    for (std::size_t part = 0; part < groups_[g].regions; ++part) {
      for (const kvx::block_id page : pages) {
        const place p = at(g, layer, part, page);
        fixture_.read_on(stream, to, p.memory, p.size);
        to += p.size;
      }
    }
  }

  /// Overwrites every layer of a block with one value, as work on a stream, in memory and image.
  template <class Stream>
  void fill_block_on(Stream stream, std::size_t g, std::span<const kvx::block_id> pages, std::byte value) {
    for (std::size_t layer = 0; layer < groups_[g].layers; ++layer) {
      for (std::size_t part = 0; part < groups_[g].regions; ++part) {
        for (const kvx::block_id page : pages) {
          const place p = at(g, layer, part, page);
          fixture_.fill_on(stream, p.memory, value, p.size);
          std::fill_n(p.image, p.size, value);
        }
      }
    }
  }

  /// Whether all of engine memory, guards and gaps included, is what the image says.
  [[nodiscard]] bool intact() {
    for (const region& one : regions_) {
      bytes now(one.image.size());
      fixture_.read(now.data(), one.base, now.size());
      if (!same_bytes(now, one.image)) return false;
    }
    return true;
  }

 private:
  struct region {
    std::byte* base = nullptr;
    bytes image;
  };
  struct region_index {
    std::size_t group;
    std::size_t region;
  };

  Fixture& fixture_;
  std::vector<toy_group> groups_;
  std::vector<region> regions_;
  std::vector<region_index> index_;
  std::unique_ptr<toy_layout> layout_;
};

/// Slots of one group, with guards, and the image of what they should hold.
template <class Fixture>
class toy_slots {
 public:
  toy_slots(Fixture& fixture, const toy_layout& layout, std::size_t g, std::size_t count, std::uint64_t seed) {
    for (std::size_t l = 0; l < layout.layer_count(g); ++l) {
      offsets.push_back(payload_bytes_);
      payload_bytes_ += kvx::round_up(layout.layer_bytes(g, l));
    }
    const std::size_t total = count * stride() + guard_bytes;
    memory_ = fixture.slot_memory(total);
    image_ = noise(total, seed);
    std::copy(image_.begin(), image_.end(), memory_);
  }

  [[nodiscard]] std::byte* payload(std::size_t slot) const { return memory_ + guard_bytes + slot * stride(); }
  [[nodiscard]] std::byte* image(std::size_t slot) { return image_.data() + guard_bytes + slot * stride(); }
  [[nodiscard]] bool intact() const { return same_bytes(image_, {memory_, image_.size()}); }
  [[nodiscard]] std::size_t payload_bytes() const { return payload_bytes_; }

  std::vector<std::size_t> offsets;

 private:
  [[nodiscard]] std::size_t stride() const { return payload_bytes_ + guard_bytes; }

  std::size_t payload_bytes_ = 0;
  std::byte* memory_ = nullptr;
  bytes image_;
};

/// Distinct pages for `blocks` blocks, in random order, `skip` of the shuffled ones left out.
inline std::vector<std::vector<kvx::block_id>> pick_pages(const toy_group& group, std::size_t blocks,
                                                          std::uint64_t seed, std::size_t skip = 0) {
  std::vector<kvx::block_id> all(group.page_count);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<kvx::block_id>(i);
  std::mt19937_64 random{seed};
  std::shuffle(all.begin(), all.end(), random);
  std::vector<std::vector<kvx::block_id>> out(blocks);
  std::size_t next = skip * group.pages_per_block;
  for (auto& pages : out) {
    for (std::size_t i = 0; i < group.pages_per_block; ++i) pages.push_back(all.at(next++));
  }
  return out;
}

/// An engine, its memory, slots of group `g` and the spans of a batch over all of them.
template <class Fixture>
struct bench_top {
  bench_top(std::vector<toy_group> groups, std::size_t group_number, std::size_t blocks, std::uint64_t seed)
      : fixture(seed),
        engine(fixture, std::move(groups), seed),
        g(group_number),
        slots(fixture, engine.layout(), g, blocks, seed + 77),
        from(pick_pages(engine.group(g), blocks, seed)),
        to(pick_pages(engine.group(g), blocks, seed, blocks)),
        stream(fixture.new_stream()) {}

  [[nodiscard]] std::size_t layers() const { return slots.offsets.size(); }
  [[nodiscard]] std::vector<kvx::block_copy> copies(const std::vector<std::vector<kvx::block_id>>& pages) const {
    std::vector<kvx::block_copy> out;
    for (std::size_t i = 0; i < pages.size(); ++i) out.push_back({slots.payload(i), pages[i]});
    return out;
  }
  auto load(const std::vector<std::vector<kvx::block_id>>& pages) {
    const auto blocks = copies(pages);
    return fixture.engine().load(engine.layout(), kvx::transfer_batch{g, slots.offsets, blocks}, stream);
  }
  auto save(const std::vector<std::vector<kvx::block_id>>& pages) {
    const auto blocks = copies(pages);
    return fixture.engine().save(engine.layout(), kvx::transfer_batch{g, slots.offsets, blocks}, stream);
  }
  /// What a finished save or load of these pages means, in the images.
  void expect_saved(const std::vector<std::vector<kvx::block_id>>& pages) {
    for (std::size_t i = 0; i < pages.size(); ++i) {
      for (std::size_t l = 0; l < layers(); ++l) {
        const bytes layer = engine.layer_image(g, l, pages[i]);
        std::copy(layer.begin(), layer.end(), slots.image(i) + slots.offsets[l]);
      }
    }
  }
  void expect_loaded(const std::vector<std::vector<kvx::block_id>>& pages) {
    for (std::size_t i = 0; i < pages.size(); ++i) {
      for (std::size_t l = 0; l < layers(); ++l) {
        engine.set_layer_image(g, l, pages[i], slots.image(i) + slots.offsets[l]);
      }
    }
  }

  Fixture fixture;
  toy_engine<Fixture> engine;
  std::size_t g;
  toy_slots<Fixture> slots;
  std::vector<std::vector<kvx::block_id>> from;
  std::vector<std::vector<kvx::block_id>> to;
  typename Fixture::transfer::stream_type stream;
};

TEST_CASE_TEMPLATE_DEFINE("transfer engine", Fixture, transfer_conformance) {
  using transfer = typename Fixture::transfer;
  using operation = typename transfer::operation;
  static_assert(kvx::transfer_engine<transfer, toy_layout>);

  SUBCASE("a block comes back byte for byte and nothing else is touched, whatever its shape") {
    for (std::uint64_t seed = 1; seed <= Fixture::seeds; ++seed) {
      for (const auto& groups : geometries()) {
        for (std::size_t g = 0; g < groups.size(); ++g) {
          CAPTURE(seed);
          CAPTURE(g);
          CAPTURE(groups[g].fragment_bytes);
          bench_top<Fixture> t{groups, g, 2, seed};
          auto saved = t.save(t.from);
          REQUIRE(saved.ok());
          saved->wait();
          CHECK(saved->done());
          CHECK(saved->outcome().ok());
          t.expect_saved(t.from);
          CHECK(t.slots.intact());
          CHECK(t.engine.intact());

          auto loaded = t.load(t.to);
          REQUIRE(loaded.ok());
          loaded->wait();
          CHECK(loaded->done());
          CHECK(loaded->outcome().ok());
          t.expect_loaded(t.to);
          CHECK(t.engine.intact());
          CHECK(t.slots.intact());
        }
      }
    }
  }

  if constexpr (kvx::digesting_transfer<transfer, toy_layout>) {
    SUBCASE("a save says the checksums of the payload's pages, whatever its shape") {
      std::vector<std::vector<toy_group>> shapes = geometries();
      toy_group whole_pages;
      whole_pages.fragment_bytes = 3 * kvx::page_bytes;
      toy_group some_whole = whole_pages;
      some_whole.growth = 1000;
      shapes.push_back({whole_pages});
      shapes.push_back({some_whole});
      for (const auto& groups : shapes) {
        CAPTURE(groups[0].fragment_bytes);
        bench_top<Fixture> t{groups, 0, 2, 5};
        const std::size_t pages = t.slots.payload_bytes() / kvx::page_bytes;
        std::vector<std::uint64_t> checksums(2 * pages, 1);
        auto blocks = t.copies(t.from);
        for (std::size_t i = 0; i < blocks.size(); ++i)
          blocks[i].page_checksums = std::span(checksums).subspan(i * pages, pages);
        auto saved =
            t.fixture.engine().save(t.engine.layout(), kvx::transfer_batch{0, t.slots.offsets, blocks}, t.stream);
        REQUIRE(saved.ok());
        saved->wait();
        REQUIRE(saved->outcome().ok());
        t.expect_saved(t.from);
        CHECK(t.slots.intact());
        for (std::size_t page = 0; page < checksums.size(); ++page)
          CHECK(checksums[page] ==
                kvx::detail::page_checksum(t.slots.payload(page / pages) + page % pages * kvx::page_bytes));
      }
    }
  }

  SUBCASE("work behind wait_layer sees that layer of every block, on any stream and in any order of layers") {
    for (std::uint64_t seed = 1; seed <= Fixture::seeds; ++seed) {
      CAPTURE(seed);
      toy_group group;
      group.layers = 4;
      bench_top<Fixture> t{one_group(group), 0, 3, seed};
      t.expect_loaded(t.to);
      auto loaded = t.load(t.to);
      REQUIRE(loaded.ok());
      const auto other = t.fixture.new_stream();
      const std::size_t layer_bytes = t.engine.layout().layer_bytes(0, 0);
      std::vector<bytes> seen(2 * t.layers() * t.to.size(), bytes(layer_bytes));
      std::size_t next = 0;
      for (std::size_t l = 0; l < t.layers(); ++l) {
        REQUIRE(loaded->wait_layer(l, t.stream).ok());
        for (const auto& pages : t.to) t.engine.read_layer_on(t.stream, 0, l, pages, seen[next++].data());
      }
      for (std::size_t l = t.layers(); l-- > 0;) {
        REQUIRE(loaded->wait_layer(l, other).ok());
        for (const auto& pages : t.to) t.engine.read_layer_on(other, 0, l, pages, seen[next++].data());
      }
      t.fixture.synchronize(t.stream);
      t.fixture.synchronize(other);
      next = 0;
      for (std::size_t l = 0; l < t.layers(); ++l) {
        for (const auto& pages : t.to) CHECK(seen[next++] == t.engine.layer_image(0, l, pages));
      }
      for (std::size_t l = t.layers(); l-- > 0;) {
        for (const auto& pages : t.to) CHECK(seen[next++] == t.engine.layer_image(0, l, pages));
      }
      loaded->wait();
    }
  }

  SUBCASE("a save takes what earlier work of the stream wrote") {
    for (std::uint64_t seed = 1; seed <= Fixture::seeds; ++seed) {
      CAPTURE(seed);
      bench_top<Fixture> t{one_group({}), 0, 2, seed};
      t.fixture.slow_on(t.stream);
      t.engine.fill_block_on(t.stream, 0, t.from[0], std::byte{0x11});
      t.engine.fill_block_on(t.stream, 0, t.from[1], std::byte{0x22});
      auto saved = t.save(t.from);
      REQUIRE(saved.ok());
      t.expect_saved(t.from);
      saved->wait();
      CHECK(t.slots.intact());
      // Done means that the source may change without a trace.
      t.engine.fill_block_on(t.stream, 0, t.from[0], std::byte{0x33});
      t.fixture.synchronize(t.stream);
      CHECK(t.slots.intact());
      CHECK(t.engine.intact());
    }
  }

  SUBCASE("a load writes nothing that earlier work of the stream still reads") {
    for (std::uint64_t seed = 1; seed <= Fixture::seeds; ++seed) {
      CAPTURE(seed);
      bench_top<Fixture> t{one_group({}), 0, 2, seed};
      const std::size_t layer_bytes = t.engine.layout().layer_bytes(0, 0);
      std::vector<bytes> before;
      std::vector<bytes> seen(t.layers() * t.to.size(), bytes(layer_bytes));
      t.fixture.slow_on(t.stream);
      for (std::size_t l = 0; l < t.layers(); ++l) {
        for (const auto& pages : t.to) {
          t.engine.read_layer_on(t.stream, 0, l, pages, seen[before.size()].data());
          before.push_back(t.engine.layer_image(0, l, pages));
        }
      }
      auto loaded = t.load(t.to);
      REQUIRE(loaded.ok());
      loaded->wait();
      t.fixture.synchronize(t.stream);
      CHECK(seen == before);
      t.expect_loaded(t.to);
      CHECK(t.engine.intact());
    }
  }

  SUBCASE("a save and a load of the same stream pass a block on without the host") {
    for (std::uint64_t seed = 1; seed <= Fixture::seeds; ++seed) {
      CAPTURE(seed);
      bench_top<Fixture> t{one_group({}), 0, 2, seed};
      t.expect_loaded(t.from);
      auto loaded = t.load(t.from);
      REQUIRE(loaded.ok());
      for (std::size_t l = 0; l < t.layers(); ++l) REQUIRE(loaded->wait_layer(l, t.stream).ok());
      toy_slots<Fixture> second{t.fixture, t.engine.layout(), 0, 2, seed + 5};
      std::vector<kvx::block_copy> blocks;
      for (std::size_t i = 0; i < 2; ++i) blocks.push_back({second.payload(i), t.from[i]});
      auto saved = t.fixture.engine().save(t.engine.layout(), {0, second.offsets, blocks}, t.stream);
      REQUIRE(saved.ok());
      saved->wait();
      for (std::size_t i = 0; i < 2; ++i) {
        for (std::size_t l = 0; l < t.layers(); ++l) {
          const bytes layer = t.engine.layer_image(0, l, t.from[i]);
          std::copy(layer.begin(), layer.end(), second.image(i) + second.offsets[l]);
        }
      }
      CHECK(second.intact());
      CHECK(t.engine.intact());
      loaded->wait();
    }
  }

  SUBCASE("the batch may die as soon as load or save returns") {
    bench_top<Fixture> t{one_group({}), 0, 2, 1};
    {
      auto offsets = t.slots.offsets;
      auto pages = t.to;
      std::vector<kvx::block_copy> blocks;
      for (std::size_t i = 0; i < 2; ++i) blocks.push_back({t.slots.payload(i), pages[i]});
      const auto layout = std::make_unique<toy_layout>(t.engine.layout());
      t.fixture.slow_on(t.stream);
      auto loaded = t.fixture.engine().load(*layout, {0, offsets, blocks}, t.stream);
      REQUIRE(loaded.ok());
      std::fill(offsets.begin(), offsets.end(), std::size_t{0});
      for (auto& ids : pages) std::fill(ids.begin(), ids.end(), kvx::block_id{0});
      for (auto& block : blocks) block = {};
      loaded->wait();
    }
    t.expect_loaded(t.to);
    CHECK(t.engine.intact());
  }

  SUBCASE("loads and saves of several threads and streams do not disturb each other") {
    constexpr std::size_t thread_count = 4;
    constexpr std::size_t rounds = 20;
    toy_group group;
    group.page_count = thread_count * 2;
    group.layers = 3;
    Fixture fixture{5};
    toy_engine<Fixture> engine{fixture, one_group(group), 5};
    toy_slots<Fixture> slots{fixture, engine.layout(), 0, thread_count, 6};
    std::vector<typename transfer::stream_type> streams;
    for (std::size_t i = 0; i < thread_count; ++i) streams.push_back(fixture.new_stream());
    std::vector<int> good(thread_count, 0);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < thread_count; ++i) {
      threads.emplace_back([&, i] {
        const std::vector<kvx::block_id> here{static_cast<kvx::block_id>(2 * i)};
        const std::vector<kvx::block_id> there{static_cast<kvx::block_id>(2 * i + 1)};
        const std::vector<kvx::block_copy> out{{slots.payload(i), here}};
        const std::vector<kvx::block_copy> in{{slots.payload(i), there}};
        for (std::size_t round = 0; round < rounds; ++round) {
          auto saved = fixture.engine().save(engine.layout(), {0, slots.offsets, out}, streams[i]);
          if (!saved) return;
          saved->wait();
          auto loaded = fixture.engine().load(engine.layout(), {0, slots.offsets, in}, streams[i]);
          if (!loaded) return;
          loaded->wait();
          if (saved->outcome().ok() && loaded->outcome().ok()) ++good[i];
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const int count : good) CHECK(count == rounds);
    for (std::size_t i = 0; i < thread_count; ++i) {
      const std::vector<kvx::block_id> here{static_cast<kvx::block_id>(2 * i)};
      const std::vector<kvx::block_id> there{static_cast<kvx::block_id>(2 * i + 1)};
      for (std::size_t l = 0; l < group.layers; ++l) {
        const bytes layer = engine.layer_image(0, l, here);
        std::copy(layer.begin(), layer.end(), slots.image(i) + slots.offsets[l]);
        engine.set_layer_image(0, l, there, layer.data());
      }
    }
    CHECK(engine.intact());
    CHECK(slots.intact());
  }

  SUBCASE("a batch that contradicts the layout is refused whole and writes nothing") {
    toy_group group;
    group.pages_per_block = 2;
    bench_top<Fixture> t{one_group(group), 0, 2, 3};
    const auto refused = [&](std::size_t g, std::span<const std::size_t> offsets,
                             const std::vector<kvx::block_copy>& blocks) {
      const kvx::transfer_batch batch{g, offsets, blocks};
      CHECK(t.fixture.engine().load(t.engine.layout(), batch, t.stream).status() == kvx::errc::bad_argument);
      CHECK(t.fixture.engine().save(t.engine.layout(), batch, t.stream).status() == kvx::errc::bad_argument);
      t.fixture.synchronize(t.stream);
      CHECK(t.engine.intact());
      CHECK(t.slots.intact());
    };
    const std::vector<std::size_t>& offsets = t.slots.offsets;
    const kvx::block_copy good{t.slots.payload(0), t.from[0]};
    const auto last = static_cast<kvx::block_id>(group.page_count);
    const std::vector<kvx::block_id> past_end{0, last};
    const std::vector<kvx::block_id> null_page{kvx::null_block, 1};
    const std::vector<kvx::block_id> too_few{0};
    const std::vector<kvx::block_id> too_many{0, 1, 2};
    refused(1, offsets, {good});
    refused(0, std::span{offsets}.first(1), {good});
    refused(0, {}, {good});
    refused(0, offsets, {good, {t.slots.payload(1), past_end}});
    refused(0, offsets, {good, {t.slots.payload(1), null_page}});
    refused(0, offsets, {good, {t.slots.payload(1), too_few}});
    refused(0, offsets, {good, {t.slots.payload(1), too_many}});
    refused(0, offsets, {good, {t.slots.payload(1), {}}});
    refused(0, offsets, {good, {nullptr, t.from[1]}});
  }

  SUBCASE("an empty batch is done and harmless") {
    bench_top<Fixture> t{one_group({}), 0, 1, 4};
    auto loaded = t.fixture.engine().load(t.engine.layout(), {0, t.slots.offsets, {}}, t.stream);
    auto saved = t.fixture.engine().save(t.engine.layout(), {0, t.slots.offsets, {}}, t.stream);
    REQUIRE(loaded.ok());
    REQUIRE(saved.ok());
    for (auto* op : {&*loaded, &*saved}) {
      op->wait();
      CHECK(op->done());
      CHECK(op->outcome().ok());
      CHECK(op->wait_layer(0, t.stream).ok());
    }
    t.fixture.synchronize(t.stream);
    CHECK(t.engine.intact());
    CHECK(t.slots.intact());
  }

  SUBCASE("an operation is a handle: copies agree, default-constructed ones are done") {
    const operation none;
    CHECK(none.done());
    CHECK(none.outcome().ok());
    none.wait();
    bench_top<Fixture> t{one_group({}), 0, 2, 5};
    CHECK(none.wait_layer(0, t.stream).ok());

    operation kept;
    {
      auto loaded = t.load(t.to);
      REQUIRE(loaded.ok());
      const operation copy = *loaded;
      kept = copy;
    }
    CHECK(kept.wait_layer(1, t.stream).ok());
    operation moved = std::move(kept);
    kept = moved;
    kept.wait();
    CHECK(kept.done());
    CHECK(moved.done());
    CHECK(moved.outcome().ok());
    t.fixture.synchronize(t.stream);
    t.expect_loaded(t.to);
    CHECK(t.engine.intact());
  }

  SUBCASE("an arena may be registered before it is used") {
    Fixture fixture{6};
    std::byte* const arena = fixture.slot_memory(2 * kvx::page_bytes);
    const kvx::status registered = fixture.engine().register_arena({arena, 2 * kvx::page_bytes});
    CHECK((registered.ok() || registered.code() == kvx::errc::unsupported));
  }
}

}  // namespace kvx_test
