// SPDX-License-Identifier: Apache-2.0
#include "store_fixture.hpp"

#include <kvx/store/journal_reader.hpp>
#include <kvx/store/journal_writer.hpp>

#include <doctest/doctest.h>
#include <exhaustive.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace kvx;
using namespace kvx::store;

namespace {

constexpr std::size_t segment_bytes = 4 * frame_bytes;
constexpr std::uint64_t slots = 200;

struct line {
  slot_index slot;
  std::uint64_t generation;
  block_key key;
  friend bool operator==(const line&, const line&) = default;
};

// A journal in a directory, and what it ought to say.
struct written_journal {
  kvx_test::scratch directory;
  journal_scope scope;
  std::optional<journal_writer> writer;
  std::vector<line> live;  // oldest first
  std::set<std::pair<slot_index, std::uint64_t>> ever;
  std::uint64_t generation = 0;

  explicit written_journal(std::size_t digest_bytes = 16) {
    scope.writer.bytes[0] = std::byte{42};
    scope.digest_bytes = digest_bytes;
    scope.slots = slots;
    scope.description[0] = std::byte{7};
    auto made = journal_writer::make(open(), scope, 3, segment_bytes);
    REQUIRE(made.ok());
    writer.emplace(std::move(*made));
  }
  [[nodiscard]] detail::file open() const {
    auto opened = detail::open_root(directory.path().c_str());
    REQUIRE(opened.ok());
    return std::move(*opened);
  }
  journal_record insert(slot_index slot) {
    std::erase_if(live, [slot](const line& each) { return each.slot == slot; });
    ++generation;
    const block_key key = kvx_test::key_of(generation);
    block_key shown = key;
    std::fill(shown.bytes.begin() + static_cast<std::ptrdiff_t>(scope.digest_bytes), shown.bytes.end(), std::byte{0});
    live.push_back({slot, generation, shown});
    ever.emplace(slot, generation);
    return {journal_op::insert, slot, generation, key, kvx_test::key_of(generation - 1)};
  }
  journal_record evict(slot_index slot) {
    std::erase_if(live, [slot](const line& each) { return each.slot == slot; });
    return {journal_op::evict, slot, 0, {}, {}};
  }
  // Batches of a random workload.
  void work(std::size_t batches, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (std::size_t batch = 0; batch < batches; ++batch) {
      std::vector<journal_record> records;
      for (std::size_t i = 0; i < 1 + random() % 100; ++i) {
        const auto slot = static_cast<slot_index>(random() % slots);
        records.push_back(random() % 4 == 0 ? evict(slot) : insert(slot));
      }
      if (writer->compaction_due()) REQUIRE(writer->compact().ok());
      REQUIRE(writer->append(records).ok());
    }
  }
  [[nodiscard]] journal_image load() const { return journal_image::load(open().fd(), scope); }
  [[nodiscard]] static std::vector<line> lines(const journal_image& image) {
    std::vector<line> out;
    image.for_each_live([&](const journal_record& r) { out.push_back({r.slot, r.generation, r.key}); });
    return out;
  }
  // Whatever became of the files: nothing is said that was never written, and no slot twice.
  void check_sane(const journal_image& image) const {
    std::set<slot_index> seen;
    image.for_each_live([&](const journal_record& r) {
      REQUIRE(r.slot < slots);
      REQUIRE(ever.count({r.slot, r.generation}) == 1);
      REQUIRE(seen.insert(r.slot).second);
    });
  }
  [[nodiscard]] std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> out;
    for (const auto& entry : std::filesystem::directory_iterator(directory.path())) out.push_back(entry.path());
    std::sort(out.begin(), out.end());
    return out;
  }
};

}  // namespace

TEST_CASE("a journal says what is live, in the order of the inserts, through compactions, with keys of any length") {
  for (const std::size_t digest_bytes : {16U, 20U, 32U}) {
    CAPTURE(digest_bytes);
    written_journal journal(digest_bytes);
    for (std::uint64_t round = 0; round < 40; ++round) {
      journal.work(3, round);
      const auto image = journal.load();
      REQUIRE(image.complete());
      REQUIRE(written_journal::lines(image) == journal.live);
      REQUIRE(image.live_count() == journal.live.size());
    }
    CHECK(journal.writer->footprint_bytes() > segment_bytes);
  }
}

TEST_CASE("a journal's files stay below the stated bound, and a compaction leaves one segment and one checkpoint") {
  written_journal journal;
  const journal_limits limits{segment_bytes, checkpoint_bytes(slots, 16)};
  for (std::uint64_t round = 0; round < 100; ++round) {
    journal.work(1, round);
    std::uint64_t bytes = 0;
    for (const auto& file : journal.files()) bytes += std::filesystem::file_size(file);
    CHECK(bytes <= limits.most());
    CHECK(bytes == journal.writer->footprint_bytes());
  }
  REQUIRE(journal.writer->compact().ok());
  CHECK(journal.files().size() == 2);
  CHECK(written_journal::lines(journal.load()) == journal.live);
}

TEST_CASE("a journal that is never compacted stops at its limit and loses nothing") {
  written_journal journal;
  status outcome;
  for (int i = 0; i < 1000 && outcome; ++i) {
    std::vector<journal_record> records;
    for (slot_index slot = 0; slot < 50; ++slot) records.push_back(journal.insert(slot));
    outcome = journal.writer->append(records);
  }
  CHECK(outcome.code() == errc::no_space);
  CHECK(journal.load().complete());
  REQUIRE(journal.writer->compact().ok());
  CHECK(journal.writer->append(std::vector<journal_record>{journal.insert(199)}).ok());
}

TEST_CASE("names are never used twice") {
  written_journal journal;
  std::set<std::string> gone;
  std::set<std::string> before;
  for (std::uint64_t round = 0; round < 60; ++round) {
    journal.work(2, round);
    std::set<std::string> now;
    for (const auto& file : journal.files()) now.insert(file.filename().string());
    for (const std::string& name : before) {
      if (now.count(name) == 0) gone.insert(name);
    }
    for (const std::string& name : now) CHECK(gone.count(name) == 0);
    before = now;
  }
  CHECK(gone.size() > 10);
}

TEST_CASE("every truncation of every file: nothing false, and no more complete than it is") {
  written_journal journal;
  journal.work(25, 5);
  const std::vector<line> whole = journal.live;
  for (const auto& path : journal.files()) {
    CAPTURE(path.filename().string());
    const std::vector<std::byte> bytes = kvx_test::read_file(path);
    const bool checkpoint = path.extension() == ".checkpoint";
    const std::size_t step = kvx_test::exhaustive_step(61) * (checkpoint ? 7 : 13);
    for (std::size_t length = 0; length < bytes.size(); length += step) {
      std::filesystem::resize_file(path, length);
      const auto image = journal.load();
      journal.check_sane(image);
      if (checkpoint) REQUIRE_FALSE(image.complete());
      kvx_test::write_file(path, bytes);
    }
    std::filesystem::remove(path);
    const auto image = journal.load();
    journal.check_sane(image);
    if (checkpoint) CHECK_FALSE(image.complete());
    kvx_test::write_file(path, bytes);
  }
  CHECK(written_journal::lines(journal.load()) == whole);
}

TEST_CASE("every bit of a written frame counts: damage inside a journal is noticed, at its end it is the end") {
  written_journal journal;
  journal.work(12, 6);
  std::vector<journal_record> last{journal.insert(1), journal.insert(2)};
  REQUIRE(journal.writer->append(last).ok());
  std::size_t noticed = 0;
  std::size_t ends = 0;
  for (const auto& path : journal.files()) {
    std::vector<std::byte> bytes = kvx_test::read_file(path);
    for (std::size_t frame = 0; frame < bytes.size() / frame_bytes; ++frame) {
      if (!parse_frame(std::span(bytes).subspan(frame * frame_bytes, frame_bytes))) continue;  // room not yet used
      for (std::size_t bit = frame % 3; bit < frame_bytes * 8; bit += 13 * kvx_test::exhaustive_step(31)) {
        const std::size_t at = frame * frame_bytes + bit / 8;
        bytes[at] ^= static_cast<std::byte>(1U << (bit % 8));
        REQUIRE_FALSE(parse_frame(std::span(bytes).subspan(frame * frame_bytes, frame_bytes)).has_value());
        // One in a few is replayed from storage, which costs a thousand times more.
        if (bit % 16 == frame % 3) {
          kvx_test::write_file(path, bytes);
          const auto image = journal.load();
          journal.check_sane(image);
          ++(image.complete() ? ends : noticed);
        }
        bytes[at] ^= static_cast<std::byte>(1U << (bit % 8));
      }
      kvx_test::write_file(path, bytes);
    }
  }
  CHECK(noticed > 0);
  CHECK(ends > 0);
  CHECK(written_journal::lines(journal.load()) == journal.live);
}

TEST_CASE("frames of another place, file, writer or store are not believed") {
  written_journal journal;
  journal.work(8, 7);
  written_journal other;
  other.scope.writer.bytes[0] = std::byte{43};
  auto made = journal_writer::make(other.open(), other.scope, 3, segment_bytes);
  CHECK_FALSE(made.ok());  // the first segment's name is taken
  const auto files = journal.files();
  for (const auto& path : files) {
    if (path.extension() != ".journal") continue;
    const std::vector<std::byte> bytes = kvx_test::read_file(path);
    std::vector<std::byte> changed = bytes;
    // Every pair of frames swapped, every frame duplicated over every other.
    for (std::size_t i = 0; i < 4; ++i) {
      for (std::size_t j = 0; j < 4; ++j) {
        const auto from = std::span(bytes).subspan(j * frame_bytes, frame_bytes);
        std::copy(from.begin(), from.end(), changed.begin() + static_cast<std::ptrdiff_t>(i * frame_bytes));
        kvx_test::write_file(path, changed);
        journal.check_sane(journal.load());
        changed = bytes;
      }
    }
    kvx_test::write_file(path, bytes);
  }
  journal_scope stranger = journal.scope;
  stranger.writer.bytes[5] = std::byte{1};
  CHECK_FALSE(journal_image::load(journal.open().fd(), stranger).complete());
  stranger = journal.scope;
  stranger.description[100] = std::byte{1};
  CHECK_FALSE(journal_image::load(journal.open().fd(), stranger).complete());
  stranger = journal.scope;
  stranger.digest_bytes = 32;
  CHECK_FALSE(journal_image::load(journal.open().fd(), stranger).complete());
}

TEST_CASE("slots beyond the reader's cap are dropped") {
  written_journal journal;
  REQUIRE(journal.writer->append(std::vector{journal.insert(3), journal.insert(150)}).ok());
  journal_scope smaller = journal.scope;
  smaller.slots = 100;
  const auto image = journal_image::load(journal.open().fd(), smaller);
  const auto lines = written_journal::lines(image);
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].slot == 3);
}

TEST_CASE("an append that failed half way is tried again with more, and says the same") {
  written_journal journal;
  std::vector<journal_record> batch;
  for (slot_index slot = 0; slot < 120; ++slot) batch.push_back(journal.insert(slot));
  for (slot_index slot = 10; slot < 20; ++slot) batch.push_back(journal.evict(slot));
  {
    // Writes beyond the first frame of records fail.
    const kvx_test::file_size_limit limit(2 * frame_bytes);
    CHECK(journal.writer->append(batch).os_error() == EFBIG);
  }
  CHECK(journal.load().complete());
  CHECK(journal.load().live_count() > 0);
  for (slot_index slot = 0; slot < 20; ++slot) batch.push_back(journal.evict(slot));
  for (slot_index slot = 0; slot < 3; ++slot) batch.push_back(journal.insert(slot));
  REQUIRE(journal.writer->append(batch).ok());
  const auto image = journal.load();
  CHECK(image.complete());
  CHECK(written_journal::lines(image) == journal.live);
}

TEST_CASE("a checkpoint that cannot be written costs nothing") {
  written_journal journal;
  journal.work(4, 9);
  const auto before = journal.files();
  {
    const kvx_test::file_size_limit limit(frame_bytes);
    CHECK(journal.writer->compact().os_error() == EFBIG);
  }
  CHECK(journal.files() == before);
  journal.work(4, 10);
  REQUIRE(journal.writer->compact().ok());
  CHECK(journal.files().size() == 2);
  CHECK(written_journal::lines(journal.load()) == journal.live);
}

TEST_CASE("a writer does not compact a journal that does not read back whole") {
  written_journal journal;
  journal.work(4, 11);
  const auto path = journal.files().front();
  std::vector<std::byte> bytes = kvx_test::read_file(path);
  bytes[frame_bytes + 60] ^= std::byte{1};
  kvx_test::write_file(path, bytes);
  const auto before = journal.files();
  CHECK(journal.writer->compact().os_error() == EBADMSG);
  CHECK(journal.files() == before);
}

TEST_CASE("random bytes for a journal: no crash, nothing believed") {
  written_journal journal;
  journal.work(25, 8);
  std::mt19937_64 random(99);
  const auto files = journal.files();
  const std::size_t rounds = 3000 / kvx_test::exhaustive_step(10);
  for (std::size_t round = 0; round < rounds; ++round) {
    const auto& path = files[random() % files.size()];
    const std::vector<std::byte> bytes = kvx_test::read_file(path);
    std::vector<std::byte> changed = bytes;
    for (std::size_t i = 0; i < 1 + random() % 6; ++i)
      changed[random() % changed.size()] = static_cast<std::byte>(random());
    // Half of the frames get their checksum put right: then only sense is left to judge by.
    if (random() % 2 == 0) {
      const std::size_t at = random() % (changed.size() / frame_bytes) * frame_bytes;
      const auto frame = std::span(changed).subspan(at, frame_bytes);
      const std::size_t field = random() % 48;
      frame[field] = static_cast<std::byte>(random());
      detail::store_le(frame.data() + frame_bytes - 8, checksum(frame.first(frame_bytes - 8)));
    }
    kvx_test::write_file(path, changed);
    std::size_t reported = 0;
    journal.load().for_each_live([&](const journal_record& r) {
      REQUIRE(r.slot < slots);
      ++reported;
    });
    REQUIRE(reported <= slots);
    kvx_test::write_file(path, bytes);
  }
}
