// SPDX-License-Identifier: Apache-2.0
#include "store_fixture.hpp"

#include <kvx/store/block_store.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace kvx;
using namespace kvx::store;
using kvx_test::holds;
using kvx_test::key_of;
using kvx_test::save;
using kvx_test::small_store;
using kvx_test::watch;
namespace fs = std::filesystem;

namespace {

using store_ptr = std::unique_ptr<block_store>;

store_ptr open_store(const store_options& options, std::uint8_t model = 1) {
  return std::make_unique<block_store>(options, small_store::identity(model), small_store::geometry());
}

const auto now = std::chrono::steady_clock::now;

// As a process killed with -9 leaves it: nothing more is written, and its heartbeat stands still.
void kill(store_ptr& store, std::vector<store_ptr>& graveyard) { graveyard.push_back(std::move(store)); }

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator(directory)) out.push_back(entry.path().filename().string());
  std::sort(out.begin(), out.end());
  return out;
}

fs::path only_file(const fs::path& directory) {
  const auto names = names_in(directory);
  REQUIRE(names.size() == 1);
  return directory / names[0];
}

std::size_t fill(block_store& store, std::uint64_t first_key) {
  std::size_t saved = 0;
  while (save(store, key_of(first_key + saved)) != no_slot) ++saved;
  REQUIRE(store.flush_journal().ok());
  return saved;
}

}  // namespace

TEST_CASE("a store has no slots before it grows, and grows up to the cap") {
  const kvx_test::scratch scratch;
  const auto store = open_store(small_store::options(scratch / "root"));
  CHECK(kvx_test::recover(*store).empty());
  CHECK(store->slots_per_extent() == 5);
  CHECK(store->slot_count() == 20);
  CHECK(store->allocate().status().code() == errc::no_space);
  std::set<slot_index> slots;
  for (int extent = 0; extent < 4; ++extent) {
    const auto gained = store->grow();
    REQUIRE(gained.ok());
    CHECK(*gained == 5);
  }
  CHECK(store->grow().status().code() == errc::no_space);
  CHECK(store->free_slots() == 20);
  CHECK(store->own_slots() == 20);
  while (const auto slot = store->allocate()) CHECK(slots.insert(*slot).second);
  CHECK(slots.size() == 20);
  CHECK(*slots.rbegin() < store->slot_count());
}

TEST_CASE("freed slots are reused first in, first out, and only once their eviction is in the journal") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 1);
  auto store = open_store(options);
  REQUIRE(store->grow().ok());
  CHECK(fill(*store, 0) == 5);
  for (const slot_index slot : {3U, 1U, 4U}) {
    store->log_evict(slot);
    store->free(slot);
  }
  CHECK(store->allocate().status().code() == errc::no_space);
  REQUIRE(store->flush_journal().ok());
  CHECK(store->free_slots() == 3);
  {
    // At this moment, before anything is written anew, the journal already gives them up.
    const auto reader = open_store(options);
    CHECK(kvx_test::recover(*reader) == kvx_test::recovered{{key_of(0), 0}, {key_of(2), 2}});
  }
  for (const slot_index slot : {3U, 1U, 4U}) CHECK(*store->allocate() == slot);
  // A slot that was never written needs no eviction, and free() logs one that was forgotten.
  store->free(1);
  CHECK(*store->allocate() == 1);
  store->free(0);
  CHECK(store->allocate().status().code() == errc::no_space);
  REQUIRE(store->flush_journal().ok());
  CHECK(*store->allocate() == 0);
  // Freeing twice, or what is not there, is ignored.
  store->free(1);
  store->free(1);
  store->free(1'000'000);
  CHECK(store->free_slots() == 1);
}

TEST_CASE("an eviction that cannot be written keeps its slot from being reused") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 1);
  auto store = open_store(options);
  REQUIRE(store->grow().ok());
  CHECK(fill(*store, 0) == 5);
  store->log_evict(2);
  store->free(2);
  {
    const kvx_test::file_size_limit limit(frame_bytes);
    CHECK(store->flush_journal().code() == errc::io_failed);
  }
  CHECK(store->allocate().status().code() == errc::no_space);
  store->log_evict(3);
  store->free(3);
  REQUIRE(store->flush_journal().ok());
  CHECK(*store->allocate() == 2);
  CHECK(*store->allocate() == 3);
  const auto reader = open_store(options);
  CHECK(kvx_test::recover(*reader) == kvx_test::recovered{{key_of(0), 0}, {key_of(1), 1}, {key_of(4), 4}});
}

TEST_CASE("every write gets a generation of its own, and only an allocated own slot gets one") {
  const kvx_test::scratch scratch;
  const auto store = open_store(small_store::options(scratch / "root"));
  CHECK(store->prepare_write(0).status().code() == errc::miss);
  REQUIRE(store->grow().ok());
  CHECK(store->prepare_write(0).status().code() == errc::miss);
  std::set<std::uint64_t> generations;
  std::optional<writer_id> writer;
  for (int round = 0; round < 50; ++round) {
    const auto slot = store->allocate();
    REQUIRE(slot.ok());
    // The same slot may be prepared again, after a failed write: a torn first try must not pass for the second.
    for (int attempt = 0; attempt < 2; ++attempt) {
      const auto ticket = store->prepare_write(*slot);
      REQUIRE(ticket.ok());
      CHECK(generations.insert(ticket->generation).second);
      CHECK(ticket->slot_number == *slot);
      CHECK(ticket->writer == store->writer_of(*slot));
      CHECK(ticket->place.offset == superblock_bytes + *slot * store->geometry().stride);
      if (!writer) writer = ticket->writer;
      CHECK(ticket->writer == *writer);
    }
    store->free(*slot);
  }
  CHECK(generations.count(0) == 0);
}

TEST_CASE("after a kill the next opening finds every block that was flushed, oldest first, and proves it") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root");
  std::vector<store_ptr> graveyard;
  auto store = open_store(options);
  REQUIRE(store->grow().ok());
  REQUIRE(store->grow().ok());
  for (std::uint64_t n = 0; n < 6; ++n) REQUIRE(save(*store, key_of(n), key_of(n + 100)) != no_slot);
  REQUIRE(store->flush_journal().ok());
  store->log_evict(1);
  store->free(1);
  REQUIRE(store->flush_journal().ok());
  save(*store, key_of(50));  // not flushed: lost, and no harm done
  kill(store, graveyard);

  store = open_store(options);
  std::vector<std::pair<block_key, block_key>> keys;
  std::vector<slot_index> slots;
  REQUIRE(store
              ->recover([&](const recovered_block& block) {
                keys.emplace_back(block.key, block.parent);
                slots.push_back(block.where);
              })
              .ok());
  REQUIRE(keys.size() == 5);
  std::size_t at = 0;
  for (const std::uint64_t n : {0U, 2U, 3U, 4U, 5U}) {
    CHECK(keys[at] == std::pair(key_of(n), key_of(n + 100)));
    CHECK(holds(*store, slots[at], key_of(n)));
    CHECK_FALSE(holds(*store, slots[at], key_of(n + 1)));
    ++at;
  }
  // Foreign slots are read, never written.
  CHECK(store->prepare_write(slots[0]).status().code() == errc::miss);
  CHECK(store->allocate().status().code() == errc::no_space);
  REQUIRE(store->grow().ok());
  CHECK(*store->allocate() >= 10);
}

TEST_CASE("a slab written over after the journal was read is a miss, never another block") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 1);
  auto writer = open_store(options);
  REQUIRE(writer->grow().ok());
  CHECK(fill(*writer, 0) == 5);
  const auto reader = open_store(options);
  const auto found = kvx_test::recover(*reader);
  REQUIRE(found.size() == 5);
  for (const auto& [key, slot] : found) CHECK(holds(*reader, slot, key));
  writer->free(2);
  REQUIRE(writer->flush_journal().ok());
  REQUIRE(save(*writer, key_of(77)) == 2);
  for (const auto& [key, slot] : found) CHECK(holds(*reader, slot, key) == (slot != 2));
}

TEST_CASE("several openings: blocks come in the order of the openings, whatever the ids") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 8);
  std::vector<store_ptr> graveyard;
  kvx_test::recovered expected;
  for (std::uint64_t opening = 0; opening < 6; ++opening) {
    auto store = open_store(options);
    CHECK(kvx_test::recover(*store) == expected);
    REQUIRE(store->grow().ok());
    const slot_index slot = save(*store, key_of(opening));
    expected.emplace_back(key_of(opening), slot);
    REQUIRE(store->flush_journal().ok());
    kill(store, graveyard);
  }
}

TEST_CASE("a lost or damaged journal is rebuilt from the slots' own headers") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root");
  std::vector<store_ptr> graveyard;
  auto store = open_store(options);
  for (int i = 0; i < 3; ++i) REQUIRE(store->grow().ok());
  CHECK(fill(*store, 0) == 15);
  // Slots written again come last, by generation.
  for (const slot_index slot : {4U, 11U}) store->free(slot);
  REQUIRE(store->flush_journal().ok());
  CHECK(save(*store, key_of(100)) == 4);
  CHECK(save(*store, key_of(101)) == 11);
  REQUIRE(store->flush_journal().ok());
  kill(store, graveyard);
  const fs::path journals = only_file(scratch.path() / "root" / "writers");
  const auto whole = kvx_test::recover(*open_store(options));
  REQUIRE(whole.size() == 15);
  CHECK(whole.back() == std::pair(key_of(101), slot_index{11}));

  SUBCASE("removed") { fs::remove_all(journals); }
  SUBCASE("emptied") {
    for (const std::string& name : names_in(journals)) fs::resize_file(journals / name, 0);
  }
  SUBCASE("damaged in the middle") {
    for (const std::string& name : names_in(journals)) {
      if (name.find(".journal") == std::string::npos) continue;
      std::vector<std::byte> bytes = kvx_test::read_file(journals / name);
      bytes[frame_bytes + 100] ^= std::byte{1};
      kvx_test::write_file(journals / name, bytes);
    }
  }
  const auto reader = open_store(options);
  const auto rebuilt = kvx_test::recover(*reader);
  CHECK(rebuilt == whole);
  for (const auto& [key, slot] : rebuilt) CHECK(holds(*reader, slot, key));
}

TEST_CASE("headers that are not of their own place are not recovered") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 1);
  std::vector<store_ptr> graveyard;
  auto store = open_store(options);
  REQUIRE(store->grow().ok());
  CHECK(fill(*store, 0) == 5);
  kill(store, graveyard);
  fs::remove_all(scratch.path() / "root" / "writers");
  fs::create_directory(scratch.path() / "root" / "writers");
  const fs::path slab = only_file(scratch.path() / "root" / "extents" / "0");
  std::vector<std::byte> bytes = kvx_test::read_file(slab);
  const std::size_t stride = small_store::geometry().stride;
  std::copy_n(bytes.begin() + 4096, stride, bytes.begin() + static_cast<std::ptrdiff_t>(4096 + stride));  // 0 over 1
  bytes[4096 + 3 * stride + 100] ^= std::byte{1};                                                         // 3 damaged
  kvx_test::write_file(slab, bytes);
  const auto reader = open_store(options);
  CHECK(kvx_test::recover(*reader) == kvx_test::recovered{{key_of(0), 0}, {key_of(2), 2}, {key_of(4), 4}});
  CHECK_FALSE(holds(*reader, 1, key_of(0)));
  CHECK_FALSE(holds(*reader, 1, key_of(1)));
}

TEST_CASE("other models, shards and geometries share the root and its cap, and never see each other's blocks") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root");
  const auto one = open_store(options, 1);
  const auto two = open_store(options, 2);
  slot_identity other_rank = small_store::identity(1);
  other_rank.shard.tensor_rank = 1;
  other_rank.shard.tensor_size = 2;
  block_store three(options, other_rank, small_store::geometry());
  block_store four(options, small_store::identity(1), small_store::geometry(3));
  for (block_store* each : {one.get(), two.get(), &three, &four}) REQUIRE(each->grow().ok());
  for (block_store* each : {one.get(), two.get(), &three, &four}) {
    CHECK(each->grow().status().code() == errc::no_space);
    CHECK(fill(*each, 0) == each->slots_per_extent());
  }
  CHECK(four.slots_per_extent() == 3);
  CHECK(kvx_test::recover(*open_store(options, 1)).size() == 5);
  CHECK(kvx_test::recover(*open_store(options, 3)).empty());
  const auto reader = open_store(options, 2);
  const auto found = kvx_test::recover(*reader);
  REQUIRE(found.size() == 5);
  for (const auto& [key, slot] : found) {
    CHECK(holds(*reader, slot, key));
    CHECK_FALSE(holds(*one, slot, key));  // it knows of no slab there
  }
}

TEST_CASE("a dead writer's extents are reclaimed one by one, a live writer's never") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 3);
  std::vector<store_ptr> graveyard;
  auto dead = open_store(options);
  REQUIRE(dead->grow().ok());
  REQUIRE(dead->grow().ok());
  CHECK(fill(*dead, 0) == 10);
  const auto alive = open_store(options);
  kvx_test::recover(*alive);
  REQUIRE(alive->grow().ok());
  CHECK(fill(*alive, 100) == 5);
  kill(dead, graveyard);

  const auto store = open_store(options);
  CHECK(kvx_test::recover(*store).size() == 15);
  CHECK(store->grow().status().code() == errc::no_space);
  auto time = now();
  const auto beat = [&](steady_time at) { CHECK(alive->maintain(at).ok()); };
  for (int seconds = 0; seconds < 9; ++seconds) {
    time += std::chrono::seconds(1);
    beat(time);
    REQUIRE(store->maintain(time).ok());
    CHECK(store->reclaim_dead().status().code() == errc::miss);
  }
  time = watch(*store, time, beat);

  std::set<std::size_t> taken;
  for (int i = 0; i < 2; ++i) {
    const auto range = store->reclaim_dead();
    REQUIRE(range.ok());
    CHECK(range->count == 5);
    CHECK(taken.insert(range->first).second);
    // Not to be used, by reading or by growing, before the cache has forgotten it.
    const auto slot = static_cast<slot_index>(range->first);
    CHECK_FALSE(store->place_for_read(slot).ok());
    CHECK_FALSE(store->writer_of(slot).has_value());
    CHECK(store->grow().status().code() == errc::no_space);
    store->release(*range);
    REQUIRE(store->grow().ok());
    CHECK(store->writer_of(slot).has_value());
  }
  CHECK(taken == std::set<std::size_t>{0, 5});
  CHECK(store->reclaim_dead().status().code() == errc::miss);
  // The dead writer's journal went with its last extent; the living ones' are there.
  CHECK(names_in(scratch.path() / "root" / "writers").size() == 2);
  watch(*store, time, beat);
  CHECK(store->reclaim_dead().status().code() == errc::miss);
  for (slot_index slot = 10; slot < 15; ++slot) CHECK(holds(*alive, slot, key_of(90 + slot)));
}

TEST_CASE("an observer that slept does not call a writer dead at its first look") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 1);
  const auto alive = open_store(options);
  REQUIRE(alive->grow().ok());
  const auto store = open_store(options, 2);
  kvx_test::recover(*store);
  auto time = now();
  REQUIRE(store->maintain(time).ok());
  time += std::chrono::hours(1);
  REQUIRE(store->maintain(time).ok());
  CHECK(store->reclaim_dead().status().code() == errc::miss);
  REQUIRE(alive->maintain(time).ok());
  time += std::chrono::hours(1);
  REQUIRE(store->maintain(time).ok());
  CHECK(store->reclaim_dead().status().code() == errc::miss);
}

TEST_CASE("a heartbeat between the verdict and the removal saves the writer") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 1);
  const auto sleeper = open_store(options);
  REQUIRE(sleeper->grow().ok());
  CHECK(fill(*sleeper, 0) == 5);
  const auto store = open_store(options);
  kvx_test::recover(*store);
  const auto time = watch(*store, now());
  REQUIRE(sleeper->maintain(time).ok());
  CHECK(store->reclaim_dead().status().code() == errc::miss);
  CHECK(holds(*sleeper, 0, key_of(0)));
}

TEST_CASE("a writer that ends in order leaves its extents to be taken at once, and its blocks to be read until then") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 1);
  {
    const auto first = open_store(options);
    REQUIRE(first->grow().ok());
    REQUIRE(save(*first, key_of(1)) != no_slot);  // the destructor flushes
  }
  const auto store = open_store(options);
  CHECK(kvx_test::recover(*store).size() == 1);
  CHECK(holds(*store, 0, key_of(1)));
  CHECK(store->reclaim_dead().ok());
  { const auto idle = open_store(options); }
  CHECK(names_in(scratch.path() / "root" / "writers").empty());
}

TEST_CASE("predecessors are reclaimed before other models, the oldest first") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 4);
  for (const std::uint8_t model : std::initializer_list<std::uint8_t>{2, 1, 2, 1}) {
    const auto store = open_store(options, model);
    kvx_test::recover(*store);
    REQUIRE(store->grow().ok());
    CHECK(fill(*store, model) == 5);
  }
  const auto store = open_store(options, 1);
  kvx_test::recover(*store);
  std::vector<std::size_t> order;
  while (const auto range = store->reclaim_dead()) order.push_back(range->first / 5);
  CHECK(order == std::vector<std::size_t>{1, 3, 0, 2});
}

TEST_CASE("a writer taken for dead notices, says what it lost, and starts anew") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 3);
  std::vector<int> closed;  // told of the last ones by the store's end
  const auto sleeper = open_store(options);
  REQUIRE(sleeper->grow().ok());
  REQUIRE(sleeper->grow().ok());
  CHECK(fill(*sleeper, 0) == 10);
  const auto old_id = sleeper->writer_of(0);
  auto time = now();
  REQUIRE(sleeper->maintain(time).ok());
  sleeper->free(0);
  REQUIRE(sleeper->flush_journal().ok());
  const auto in_flight = sleeper->allocate();
  REQUIRE(in_flight.ok());
  const auto ticket = sleeper->prepare_write(*in_flight);
  REQUIRE(ticket.ok());

  const auto taker = open_store(options, 2);
  kvx_test::recover(*taker);
  time = watch(*taker, time);
  const auto taken = taker->reclaim_dead();
  REQUIRE(taken.ok());
  CHECK(taken->first == 0);
  taker->release(*taken);
  REQUIRE(taker->grow().ok());
  CHECK(fill(*taker, 500) == 5);

  // It wakes: the write that was on its way goes to a file that nobody else can open any more.
  sleeper->on_files([&](int file, bool open) {
    if (!open) closed.push_back(file);
  });
  const detail::aligned_buffer junk(sleeper->geometry().stride);
  CHECK(detail::pwrite_all(ticket->place.file, junk.span(), ticket->place.offset).ok());
  REQUIRE(sleeper->maintain(time).ok());
  const auto lost = sleeper->take_lost();
  REQUIRE(lost.ok());
  CHECK(lost->first == 0);
  CHECK(lost->count == 5);
  CHECK(sleeper->take_lost().status().code() == errc::miss);
  CHECK(sleeper->allocate().status().code() == errc::no_space);
  sleeper->log_insert(key_of(600), {}, *in_flight, ticket->generation);
  sleeper->free(*in_flight);
  REQUIRE(sleeper->flush_journal().ok());
  // What is left of the old self is read like anybody's.
  CHECK(holds(*sleeper, 7, key_of(7)));
  CHECK(sleeper->prepare_write(7).status().code() == errc::miss);
  CHECK(closed.empty());
  sleeper->release(*lost);
  CHECK(closed == std::vector<int>{ticket->place.file});
  REQUIRE(sleeper->maintain(time += std::chrono::seconds(1)).ok());
  const auto gained = sleeper->grow();
  REQUIRE(gained.ok());
  const auto slot = sleeper->allocate();
  REQUIRE(slot.ok());
  CHECK(sleeper->writer_of(*slot) != old_id);
  CHECK(save(*sleeper, key_of(700)) != no_slot);
  REQUIRE(sleeper->flush_journal().ok());
  for (slot_index i = 0; i < 5; ++i) CHECK(holds(*taker, i, key_of(500 + i)));
}

TEST_CASE("a writer whose directory was removed claims nothing under its old name") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 3);
  const auto store = open_store(options);
  REQUIRE(store->grow().ok());
  const auto old_id = store->writer_of(0);
  fs::remove_all(scratch.path() / "root" / "writers" / to_name(*old_id));
  REQUIRE(store->grow().ok());
  CHECK(store->free_slots() == 5);
  const auto slot = store->allocate();
  REQUIRE(slot.ok());
  CHECK(store->writer_of(*slot) != old_id);
  CHECK(fs::exists(scratch.path() / "root" / "writers" / to_name(*store->writer_of(*slot)) / "heartbeat"));
  CHECK(store->writer_of(0) == old_id);
}

TEST_CASE("a foreign extent that somebody else reclaimed is reported, and kept apart from what comes in its place") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 1);
  {
    const auto first = open_store(options);
    REQUIRE(first->grow().ok());
    CHECK(fill(*first, 0) == 5);
  }
  const auto reader = open_store(options);
  CHECK(kvx_test::recover(*reader).size() == 5);
  const auto taker = open_store(options);
  kvx_test::recover(*taker);
  const auto range = taker->reclaim_dead();
  REQUIRE(range.ok());
  taker->release(*range);
  REQUIRE(taker->grow().ok());
  CHECK(fill(*taker, 50) == 5);
  CHECK(holds(*reader, 0, key_of(0)));  // unlinked, still open: a hit while it lasts
  REQUIRE(reader->maintain(now()).ok());
  const auto lost = reader->take_lost();
  REQUIRE(lost.ok());
  CHECK(lost->first == 0);
  CHECK_FALSE(reader->place_for_read(0).ok());
  reader->release(*lost);
  CHECK(reader->take_lost().status().code() == errc::miss);
}

TEST_CASE("an extent whose maker died between mkdir and its slab, or inside the slab's making, is reclaimed") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 3);
  const auto store = open_store(options);
  const fs::path extents = scratch.path() / "root" / "extents";
  fs::create_directory(extents / "0");
  const auto id = detail::random_id();
  REQUIRE(id.ok());
  fs::create_directory(extents / "1");
  kvx_test::write_file(extents / "1" / slab_name(*id), {});
  const auto other = detail::random_id();
  REQUIRE(other.ok());
  fs::create_directory(extents / "2");
  kvx_test::write_file(extents / "2" / slab_name(*other), std::vector<std::byte>(65536));
  CHECK(kvx_test::recover(*store).empty());
  CHECK(store->grow().status().code() == errc::no_space);
  CHECK(store->reclaim_dead().status().code() == errc::miss);
  watch(*store, now());
  for (int i = 0; i < 3; ++i) {
    const auto range = store->reclaim_dead();
    REQUIRE(range.ok());
    store->release(*range);
    REQUIRE(store->grow().ok());
  }
  CHECK(fill(*store, 0) == 15);
}

TEST_CASE("a maker whose empty directory was taken for a dead one's goes elsewhere") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 2);
  const auto store = open_store(options);
  const fs::path extents = scratch.path() / "root" / "extents";
  const auto root = detail::open_root(extents.c_str());
  REQUIRE(root.ok());
  const store_description description{};
  const auto id = detail::random_id();
  const auto rival = detail::random_id();
  REQUIRE(id.ok());
  REQUIRE(rival.ok());

  SUBCASE("removed between mkdir and create") {
    const auto directory = detail::make_directory(root->fd(), "0");
    REQUIRE(directory.ok());
    fs::remove(extents / "0");
    const auto made = extents_impl::make_slab(directory->fd(), {65536, false, true, {*id, 0, 1}}, description);
    CHECK(is_gone(made.status()));
  }
  SUBCASE("removed, and made again by another: the later of two slabs withdraws") {
    fs::create_directory(extents / "0");
    const auto directory = detail::open_directory(root->fd(), "0");
    REQUIRE(directory.ok());
    kvx_test::write_file(extents / "0" / slab_name(*rival), std::vector<std::byte>(10));
    const auto made = extents_impl::make_slab(directory->fd(), {65536, false, true, {*id, 0, 1}}, description);
    CHECK(made.status().code() == errc::miss);
    CHECK(give_back_extent(root->fd(), 0, *id).os_error() == ENOTEMPTY);
    CHECK(names_in(extents / "0") == std::vector<std::string>{slab_name(*rival)});
  }
  SUBCASE("two slabs in one extent, both of dead writers") {
    fs::create_directory(extents / "0");
    kvx_test::write_file(extents / "0" / slab_name(*id), std::vector<std::byte>(10));
    kvx_test::write_file(extents / "0" / slab_name(*rival), std::vector<std::byte>(10));
    kvx_test::recover(*store);
    watch(*store, now());
    CHECK(store->reclaim_dead().ok());
    CHECK(names_in(extents).empty());
  }
}

TEST_CASE("what this version does not know is left alone, for ever") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 3);
  {
    const auto first = open_store(options);
    REQUIRE(first->grow().ok());
    REQUIRE(first->grow().ok());
    CHECK(fill(*first, 0) == 10);
  }
  const fs::path extents = scratch.path() / "root" / "extents";
  const fs::path slab = only_file(extents / "0");
  std::vector<std::byte> bytes = kvx_test::read_file(slab);
  detail::store_le<std::uint32_t>(bytes.data() + 8, slab_format_version + 1);
  kvx_test::write_file(slab, bytes);
  kvx_test::write_file(extents / "1" / "README", std::vector<std::byte>(3));
  fs::create_directory(extents / "not-a-number");
  const auto store = open_store(options);
  const auto found = kvx_test::recover(*store);
  CHECK(found.size() == 5);
  watch(*store, now());
  CHECK(store->reclaim_dead().status().code() == errc::miss);
  REQUIRE(store->grow().ok());
  CHECK(store->grow().status().code() == errc::no_space);
  CHECK(kvx_test::read_file(slab) == bytes);
  CHECK(names_in(extents / "1").size() == 2);
  CHECK(fs::exists(extents / "not-a-number"));
}

TEST_CASE("a slab in another extent than it was made for, or under another name, is a miss") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 3);
  {
    const auto first = open_store(options);
    REQUIRE(first->grow().ok());
    CHECK(fill(*first, 0) == 5);
  }
  const fs::path extents = scratch.path() / "root" / "extents";
  const fs::path slab = only_file(extents / "0");
  const auto other = detail::random_id();
  REQUIRE(other.ok());
  SUBCASE("moved") { fs::rename(extents / "0", extents / "2"); }
  SUBCASE("renamed") { fs::rename(slab, extents / "0" / slab_name(*other)); }
  SUBCASE("cut short") { fs::resize_file(slab, fs::file_size(slab) - 1); }
  SUBCASE("superblock damaged") {
    std::vector<std::byte> bytes = kvx_test::read_file(slab);
    bytes[40] ^= std::byte{1};
    kvx_test::write_file(slab, bytes);
  }
  SUBCASE("of another root") { fs::remove(scratch.path() / "root" / "root"); }
  CHECK(kvx_test::recover(*open_store(options)).empty());
}

TEST_CASE("a smaller cap than before: what lies beyond is not read, and removed once its writer is dead") {
  const kvx_test::scratch scratch;
  auto options = small_store::options(scratch / "root", 4);
  {
    const auto first = open_store(options);
    for (int i = 0; i < 4; ++i) REQUIRE(first->grow().ok());
    CHECK(fill(*first, 0) == 20);
  }
  options.capacity_bytes /= 2;
  const auto store = open_store(options);
  CHECK(kvx_test::recover(*store).size() == 10);
  REQUIRE(store->maintain(now()).ok());
  CHECK(names_in(scratch.path() / "root" / "extents") == std::vector<std::string>{"0", "1"});
  CHECK(holds(*store, 9, key_of(9)));
}

TEST_CASE("everything below the root stays below the cap and the stated allowance") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 8, 12);
  std::vector<store_ptr> stores;
  for (int i = 0; i < 3; ++i) stores.push_back(open_store(options, static_cast<std::uint8_t>(i % 2)));
  auto time = now();
  std::uint64_t key = 0;
  std::uint64_t most = 0;
  for (int round = 0; round < 300; ++round) {
    time += std::chrono::seconds(1);
    block_store& store = *stores[static_cast<std::size_t>(round) % 3];
    (void)store.grow();
    for (slot_index slot = 0; slot < 40; ++slot)
      store.free(static_cast<slot_index>((key * 7 + slot) % store.slot_count()));
    REQUIRE(store.flush_journal().ok());
    while (save(store, key_of(key)) != no_slot) ++key;
    REQUIRE(store.flush_journal().ok());
    REQUIRE(store.maintain(time).ok());
    const std::uint64_t used = kvx_test::disk_usage(scratch.path() / "root");
    most = std::max(most, used);
    REQUIRE(used <= options.capacity_bytes + store.metadata_allowance_bytes(3));
  }
  CHECK(key > 1000);
  CHECK(most > options.capacity_bytes * 3 / 4);
  CHECK(stores[0]->footprint_bytes() >= options.capacity_bytes * 3 / 4);
  CHECK(stores[0]->footprint_bytes() <= options.capacity_bytes + stores[0]->metadata_allowance_bytes(3));
}

TEST_CASE("the journal survives many rounds, compactions included, and still tells the order") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 2, 20);
  auto store = open_store(options);
  REQUIRE(store->grow().ok());
  REQUIRE(store->grow().ok());
  kvx_test::recovered expected;
  std::uint64_t key = 0;
  auto time = now();
  for (int round = 0; round < 120; ++round) {
    while (true) {
      const slot_index slot = save(*store, key_of(key));
      if (slot == no_slot) break;
      expected.emplace_back(key_of(key++), slot);
    }
    REQUIRE(store->flush_journal().ok());
    for (int i = 0; i < 9; ++i) {
      const auto victim = expected.begin() + (round * 5 + i) % static_cast<int>(expected.size());
      store->log_evict(victim->second);
      store->free(victim->second);
      expected.erase(victim);
    }
    REQUIRE(store->flush_journal().ok());
    REQUIRE(store->maintain(time += std::chrono::seconds(1)).ok());
  }
  const auto reader = open_store(options);
  CHECK(kvx_test::recover(*reader) == expected);
  for (const auto& [found, slot] : expected) CHECK(holds(*reader, slot, found));
  const auto names = names_in(only_file(scratch.path() / "root" / "writers"));
  CHECK(std::any_of(names.begin(), names.end(), [](const auto& n) { return n.ends_with(".checkpoint"); }));
}

TEST_CASE("files are announced when they open and when they close") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 2);
  {
    const auto first = open_store(options);
    REQUIRE(first->grow().ok());
  }
  std::set<int> open;  // told of the last ones by the store's end
  const auto note = [&](int file, bool opened) {
    if (opened) {
      CHECK(open.insert(file).second);
    } else {
      CHECK(open.erase(file) == 1);
    }
  };
  const auto store = open_store(options);
  store->on_files(note);
  CHECK(open.empty());
  kvx_test::recover(*store);
  CHECK(open.size() == 1);
  REQUIRE(store->grow().ok());
  CHECK(open.size() == 2);
  CHECK(open.count(store->place_for_read(5)->file) == 1);
  const auto range = store->reclaim_dead();
  REQUIRE(range.ok());
  CHECK(open.size() == 2);
  store->release(*range);
  CHECK(open.size() == 1);
  open.clear();
  store->on_files(note);
  CHECK(open.size() == 1);
}
