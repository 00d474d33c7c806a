// SPDX-License-Identifier: Apache-2.0
#include "store_fixture.hpp"

#include <kvx/detail/page_checksum.hpp>
#include <kvx/store/slot_format.hpp>

#include <doctest/doctest.h>
#include <exhaustive.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <vector>

using namespace kvx;
using namespace kvx::store;

namespace {

constexpr std::size_t sector_bytes = 512;

// A block of 64 KiB payload: layers of 1, 3 and 12 pages, tokens and extra present.
struct stored_block {
  slot_geometry geometry;
  slot_identity identity;
  std::vector<token_id> tokens;
  std::vector<std::byte> extra;
  std::vector<std::byte> slot;
  slot_expectation expected;

  explicit stored_block(std::uint64_t key = 1, std::uint64_t number = 7, std::uint64_t generation = 3,
                        std::uint8_t writer = 9) {
    const std::vector<std::size_t> layers{4096, 3 * 4096 - 5, 12 * 4096 - 4000};
    geometry = slot_geometry::make(16, 100, layers);
    identity.identity_digest.bytes[3] = std::byte{5};
    identity.shard = {1, 2, 4, 0, 1, 0x1122'3344'5566'7788U};
    identity.hash_id = 1;
    for (token_id t = 0; t < 16; ++t) tokens.push_back(t * 1000 + static_cast<token_id>(key));
    extra.assign(10, std::byte{0x55});
    block_header header;
    header.key = kvx_test::key_of(key);
    header.parent = kvx_test::key_of(1000);
    header.generation = generation;
    header.slot_number = number;
    header.writer.bytes[0] = std::byte{writer};
    header.tokens = tokens;
    header.extra = extra;
    header.has_tokens = true;
    slot.resize(geometry.stride);
    kvx_test::fill_payload(std::span(slot).subspan(geometry.header_bytes), kvx_test::key_of(100 * key + generation));
    encode_slot(slot, geometry, identity, header);
    expected = {header.key, header.parent, tokens, extra, header.writer, number};
  }
  /// From the bytes, and from the checksums of the pages, which must say the same.
  [[nodiscard]] slot_verdict verify() const {
    const slot_verdict verdict = verify_slot(slot, geometry, identity, expected);
    std::vector<std::uint64_t> values(geometry.payload_bytes / page_bytes);
    detail::page_checksums(slot.data() + geometry.header_bytes, values);
    if (verify_slot(std::span(slot).first(geometry.header_bytes), values, geometry, identity, expected) != verdict)
      throw std::logic_error("the checksums of the pages prove something else");
    return verdict;
  }
  [[nodiscard]] std::span<std::byte> sector(std::size_t i, std::size_t bytes) {
    return std::span(slot).subspan(i * bytes, bytes);
  }
};

// Puts the header's checksum right, for damage that a checksum alone would catch.
void reseal(stored_block& block) {
  const std::size_t sealed = block.geometry.header_bytes - 8;
  detail::store_le(block.slot.data() + sealed, checksum(std::span(block.slot).first(sealed)));
}

}  // namespace

TEST_CASE("geometry: layers start on pages, sizes are pages, the header is as long as it must be") {
  const std::vector<std::size_t> layers{1, 4096, 4097};
  const auto g = slot_geometry::make(16, 5, layers);
  CHECK(g.layer_bytes == std::vector<std::size_t>{4096, 4096, 8192});
  CHECK(g.layer_offsets == std::vector<std::size_t>{0, 4096, 8192});
  CHECK(g.payload_bytes == 16384);
  CHECK(g.header_bytes == 4096);
  CHECK(g.stride == 20480);
  const std::vector<std::size_t> many(600, 4096);
  CHECK(slot_geometry::make(16, 0, many).header_bytes == 8192);
  CHECK(slot_geometry::make(4096, 0, layers).header_bytes == 20480);
}

TEST_CASE("geometry: sizes that cannot be are refused, whatever they would overflow") {
  const std::size_t huge = std::numeric_limits<std::size_t>::max();
  const std::vector<std::size_t> one{4096};
  CHECK_THROWS_AS((void)slot_geometry::make(0, 0, one), error);
  CHECK_THROWS_AS((void)slot_geometry::make(huge, 0, one), error);
  CHECK_THROWS_AS((void)slot_geometry::make(16, huge, one), error);
  CHECK_THROWS_AS((void)slot_geometry::make(16, 0, {}), error);
  for (const std::size_t bad : {std::size_t{0}, huge, huge - 4095, std::size_t{1} << 60U}) {
    const std::vector<std::size_t> layers{4096, bad};
    CHECK_THROWS_AS((void)slot_geometry::make(16, 0, layers), error);
  }
}

TEST_CASE("a slot is what was stored, and its header can be read alone") {
  const stored_block block;
  CHECK(block.verify() == slot_verdict::ok);
  parsed_header found;
  CHECK(parse_header(std::span(block.slot).first(block.geometry.header_bytes), block.geometry, block.identity, found) ==
        slot_verdict::ok);
  CHECK(found.key == block.expected.key);
  CHECK(found.parent == *block.expected.parent);
  CHECK(found.generation == 3);
  CHECK(found.slot_number == 7);
  CHECK(found.writer == *block.expected.writer);
  CHECK(found.has_tokens);
  CHECK(found.token_count == 16);
  CHECK(found.extra_bytes == 10);
}

TEST_CASE("whatever differs from what the reader insists on is refused, and says why") {
  const stored_block block;
  const auto with = [&](auto&& change) {
    slot_expectation wanted = block.expected;
    change(wanted);
    return verify_slot(block.slot, block.geometry, block.identity, wanted);
  };
  CHECK(with([](auto& e) { e.key.bytes[31] = std::byte{1}; }) == slot_verdict::other_key);
  CHECK(with([](auto& e) { e.parent->bytes[0] ^= std::byte{1}; }) == slot_verdict::other_key);
  CHECK(with([](auto& e) { e.parent.reset(); }) == slot_verdict::ok);
  CHECK(with([](auto& e) { e.slot_number = 8; }) == slot_verdict::other_place);
  CHECK(with([](auto& e) { e.writer->bytes[15] = std::byte{1}; }) == slot_verdict::other_place);
  CHECK(with([](auto& e) { e.writer.reset(); }) == slot_verdict::ok);
  CHECK(with([](auto& e) { e.extra = {}; }) == slot_verdict::other_tokens);
  CHECK(with([](auto& e) { e.tokens = {}, e.extra = {}; }) == slot_verdict::ok);
  CHECK(with([](auto& e) { e.tokens = e.tokens.first(15); }) == slot_verdict::other_tokens);
  for (std::size_t i = 0; i < block.tokens.size(); ++i) {
    std::vector<token_id> other = block.tokens;
    ++other[i];
    CHECK(with([&](auto& e) { e.tokens = other; }) == slot_verdict::other_tokens);
  }
  std::vector<std::byte> other_extra = block.extra;
  other_extra.back() = std::byte{0};
  CHECK(with([&](auto& e) { e.extra = other_extra; }) == slot_verdict::other_tokens);
  CHECK(with([&](auto& e) { e.tokens = {}, e.extra = other_extra; }) == slot_verdict::other_tokens);

  const auto as = [&](auto&& change) {
    slot_identity who = block.identity;
    change(who);
    return verify_slot(block.slot, block.geometry, who, block.expected);
  };
  CHECK(as([](auto& w) { w.identity_digest.bytes[0] = std::byte{1}; }) == slot_verdict::other_identity);
  CHECK(as([](auto& w) { w.hash_id = 2; }) == slot_verdict::other_identity);
  CHECK(as([](auto& w) { w.shard.group = 0; }) == slot_verdict::other_shard);
  CHECK(as([](auto& w) { w.shard.tensor_rank = 3; }) == slot_verdict::other_shard);
  CHECK(as([](auto& w) { w.shard.tensor_size = 8; }) == slot_verdict::other_shard);
  CHECK(as([](auto& w) { w.shard.pipeline_rank = 1; }) == slot_verdict::other_shard);
  CHECK(as([](auto& w) { w.shard.pipeline_size = 2; }) == slot_verdict::other_shard);
  CHECK(as([](auto& w) { w.shard.layout_fingerprint = 0; }) == slot_verdict::other_shard);
}

TEST_CASE("a slot without tokens says so, and is no match for a reader that has some") {
  stored_block block;
  block_header header;
  header.key = block.expected.key;
  header.slot_number = 7;
  encode_slot(block.slot, block.geometry, block.identity, header);
  slot_expectation wanted;
  wanted.key = header.key;
  wanted.slot_number = 7;
  CHECK(verify_slot(block.slot, block.geometry, block.identity, wanted) == slot_verdict::ok);
  wanted.tokens = block.tokens;
  CHECK(verify_slot(block.slot, block.geometry, block.identity, wanted) == slot_verdict::other_tokens);
}

TEST_CASE("every single bit of a stored block is covered, padding included") {
  stored_block block;
  const std::size_t bits = block.slot.size() * 8;
  std::size_t served = 0;
  for (std::size_t bit = 0; bit < bits; bit += kvx_test::exhaustive_step(29)) {
    const auto mask = static_cast<std::byte>(1U << (bit % 8));
    block.slot[bit / 8] ^= mask;
    served += block.verify() == slot_verdict::ok ? 1U : 0U;
    block.slot[bit / 8] ^= mask;
  }
  CHECK(served == 0);
  CHECK(block.verify() == slot_verdict::ok);
}

TEST_CASE("checksums of fewer or more pages prove nothing") {
  const stored_block block;
  const auto header = std::span(block.slot).first(block.geometry.header_bytes);
  for (const std::size_t pages :
       {std::size_t{0}, block.geometry.payload_bytes / page_bytes - 1, block.geometry.payload_bytes / page_bytes + 1}) {
    const std::vector<std::uint64_t> values(pages);
    CHECK(verify_slot(header, values, block.geometry, block.identity, block.expected) == slot_verdict::wrong_size);
  }
}

TEST_CASE("every other length is refused") {
  stored_block block;
  std::vector<std::byte> longer = block.slot;
  longer.resize(block.slot.size() + page_bytes);
  std::size_t served = 0;
  for (std::size_t length = 0; length <= longer.size(); ++length) {
    if (length == block.slot.size()) continue;
    served +=
        verify_slot(std::span(longer).first(length), block.geometry, block.identity, block.expected) == slot_verdict::ok
            ? 1U
            : 0U;
  }
  CHECK(served == 0);
  // What a short read leaves in a buffer of the right size: old bytes or zeros behind the cut.
  const std::vector<std::byte> whole = block.slot;
  for (std::size_t cut = 0; cut < whole.size(); cut += kvx_test::exhaustive_step(11)) {
    std::fill(block.slot.begin() + static_cast<std::ptrdiff_t>(cut), block.slot.end(), std::byte{0xA5});
    served += block.verify() == slot_verdict::ok ? 1U : 0U;
    std::copy(whole.begin(), whole.end(), block.slot.begin());
  }
  CHECK(served == 0);
}

TEST_CASE("every sector zeroed, swapped, duplicated or stale is refused") {
  for (const std::size_t bytes : {sector_bytes, page_bytes}) {
    CAPTURE(bytes);
    const stored_block fresh;
    const stored_block stale(1, 7, 2);      // the same block, written one generation earlier
    const stored_block neighbour(2, 8, 4);  // another block of the same writer
    stored_block block;
    const std::size_t sectors = block.slot.size() / bytes;
    std::size_t served = 0;
    std::size_t tried = 0;
    const auto judge = [&] {
      if (block.slot == fresh.slot) return;
      ++tried;
      served += block.verify() == slot_verdict::ok ? 1U : 0U;
      block.slot = fresh.slot;
    };
    for (std::size_t i = 0; i < sectors; ++i) {
      const auto target = block.sector(i, bytes);
      std::fill(target.begin(), target.end(), std::byte{0});
      judge();
      for (const stored_block* other : {&stale, &neighbour}) {
        std::memcpy(block.sector(i, bytes).data(), other->slot.data() + i * bytes, bytes);
        judge();
      }
      for (std::size_t j = i + 1; j < sectors; j += kvx_test::exhaustive_step(7)) {
        std::memcpy(block.sector(i, bytes).data(), fresh.slot.data() + j * bytes, bytes);
        judge();
        std::memcpy(block.sector(i, bytes).data(), fresh.slot.data() + j * bytes, bytes);
        std::memcpy(block.sector(j, bytes).data(), fresh.slot.data() + i * bytes, bytes);
        judge();
      }
    }
    CHECK(served == 0);
    CHECK(tried > sectors * 3);
  }
}

TEST_CASE("a write torn at any page is refused, in either order") {
  const stored_block old(1, 7, 2);
  const stored_block fresh(2, 7, 3);
  stored_block block(2, 7, 3);
  for (std::size_t cut = page_bytes; cut < block.slot.size(); cut += page_bytes) {
    std::copy(old.slot.begin() + static_cast<std::ptrdiff_t>(cut), old.slot.end(),
              block.slot.begin() + static_cast<std::ptrdiff_t>(cut));
    CHECK(block.verify() == slot_verdict::payload_damaged);
    block.slot = fresh.slot;
    std::copy(old.slot.begin(), old.slot.begin() + static_cast<std::ptrdiff_t>(cut), block.slot.begin());
    CHECK(block.verify() != slot_verdict::ok);
    block.slot = fresh.slot;
  }
}

TEST_CASE("a valid payload under a valid header of anything else is refused") {
  // All have the same payload bytes; only what the digests are bound to differs.
  const auto graft = [](stored_block header, const stored_block& digests) {
    std::memcpy(header.slot.data() + header.geometry.digests_offset(),
                digests.slot.data() + digests.geometry.digests_offset(),
                digests.geometry.layer_bytes.size() * slot_geometry::layer_digest_bytes);
    std::copy(digests.slot.begin() + static_cast<std::ptrdiff_t>(digests.geometry.header_bytes), digests.slot.end(),
              header.slot.begin() + static_cast<std::ptrdiff_t>(header.geometry.header_bytes));
    reseal(header);
    return header.verify();
  };
  const stored_block block;
  CHECK(graft(block, block) == slot_verdict::ok);
  CHECK(graft(block, stored_block(2)) == slot_verdict::payload_damaged);           // another key
  CHECK(graft(block, stored_block(1, 8)) == slot_verdict::payload_damaged);        // another slot
  CHECK(graft(block, stored_block(1, 7, 4)) == slot_verdict::payload_damaged);     // another generation
  CHECK(graft(block, stored_block(1, 7, 3, 1)) == slot_verdict::payload_damaged);  // another writer
  stored_block other_shard;
  other_shard.identity.shard.tensor_rank = 3;
  block_header header;
  header.key = block.expected.key;
  header.parent = *block.expected.parent;
  header.generation = 3;
  header.slot_number = 7;
  header.writer = *block.expected.writer;
  header.tokens = block.tokens;
  header.extra = block.extra;
  header.has_tokens = true;
  encode_slot(other_shard.slot, other_shard.geometry, other_shard.identity, header);
  CHECK(graft(block, other_shard) == slot_verdict::payload_damaged);
}

TEST_CASE("the digest of each layer is bound to the layer") {
  const std::vector<std::size_t> layers{8192, 8192};
  stored_block block;
  block.geometry = slot_geometry::make(16, 100, layers);
  block.slot.assign(block.geometry.stride, std::byte{0});
  block_header header;
  header.key = block.expected.key;
  header.slot_number = 7;
  const auto payload = std::span(block.slot).subspan(block.geometry.header_bytes);
  for (std::size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<std::byte>(i / 8192 + 1);
  encode_slot(block.slot, block.geometry, block.identity, header);
  block.expected = {header.key, std::nullopt, {}, {}, std::nullopt, 7};
  REQUIRE(block.verify() == slot_verdict::ok);
  const std::size_t digests = block.geometry.digests_offset();
  std::swap_ranges(payload.begin(), payload.begin() + 8192, payload.begin() + 8192);
  std::swap_ranges(block.slot.begin() + static_cast<std::ptrdiff_t>(digests),
                   block.slot.begin() + static_cast<std::ptrdiff_t>(digests + 8),
                   block.slot.begin() + static_cast<std::ptrdiff_t>(digests + 8));
  reseal(block);
  CHECK(block.verify() == slot_verdict::payload_damaged);
}

TEST_CASE("layers of several runs of pages: every page counts, and its place") {
  const std::vector<std::size_t> layers{page_bytes, (2 * slot_impl::pages_per_run + 3) * page_bytes};
  stored_block block;
  block.geometry = slot_geometry::make(16, 0, layers);
  block.slot.assign(block.geometry.stride, std::byte{0});
  block_header header;
  header.key = block.expected.key;
  header.slot_number = 7;
  kvx_test::fill_payload(std::span(block.slot).subspan(block.geometry.header_bytes), header.key);
  encode_slot(block.slot, block.geometry, block.identity, header);
  block.expected = {header.key, std::nullopt, {}, {}, std::nullopt, 7};
  REQUIRE(block.verify() == slot_verdict::ok);
  for (std::size_t at = block.geometry.header_bytes + 17; at < block.slot.size(); at += page_bytes) {
    block.slot[at] ^= std::byte{4};
    CHECK(block.verify() == slot_verdict::payload_damaged);
    block.slot[at] ^= std::byte{4};
  }
  // Two whole runs change places.
  const auto first = block.slot.begin() + static_cast<std::ptrdiff_t>(block.geometry.header_bytes + page_bytes);
  const auto run = static_cast<std::ptrdiff_t>(slot_impl::pages_per_run * page_bytes);
  std::swap_ranges(first, first + run, first + run);
  CHECK(block.verify() == slot_verdict::payload_damaged);
}

TEST_CASE("headers that fit their checksum and make no sense are refused without being believed") {
  const auto change32 = [](std::size_t at, std::uint32_t value) {
    stored_block block;
    detail::store_le(block.slot.data() + at, value);
    reseal(block);
    return block.verify();
  };
  CHECK(change32(0, 0) == slot_verdict::not_a_slot);
  CHECK(change32(8, slot_format_version + 1) == slot_verdict::other_format);
  CHECK(change32(12, 8192) == slot_verdict::other_geometry);
  CHECK(change32(16, 99) == slot_verdict::other_identity);
  CHECK(change32(20, 3) == slot_verdict::other_format);   // a flag of the future
  CHECK(change32(20, 0) == slot_verdict::other_format);   // tokens, and none
  CHECK(change32(24, 17) == slot_verdict::other_format);  // more tokens than there is room for
  CHECK(change32(24, 0xFFFF'FFFFU) == slot_verdict::other_format);
  CHECK(change32(28, 101) == slot_verdict::other_format);  // more extra than there is room for
  CHECK(change32(28, 0xFFFF'FFFFU) == slot_verdict::other_format);
  CHECK(change32(152, 4096) == slot_verdict::other_geometry);
  CHECK(change32(192, 1) == slot_verdict::other_format);  // a MAC that nobody here can check
  CHECK(change32(240, 1) == slot_verdict::other_format);  // reserved
  CHECK(change32(224, 4) == slot_verdict::other_geometry);
  CHECK(change32(228, 17) == slot_verdict::other_geometry);
  CHECK(change32(232, 0xFFFF'FFFFU) == slot_verdict::other_geometry);
}

TEST_CASE("a version from elsewhere is told apart from damage before its checksum is looked at") {
  stored_block block;
  detail::store_le<std::uint32_t>(block.slot.data() + 8, 2);
  CHECK(block.verify() == slot_verdict::other_format);
}

TEST_CASE("random edits of many bytes are never served, and never read out of bounds") {
  stored_block block;
  const stored_block fresh;
  std::mt19937_64 random(20240611);
  std::size_t served = 0;
  const std::size_t rounds = 200'000 / kvx_test::exhaustive_step(40);
  for (std::size_t round = 0; round < rounds; ++round) {
    const std::size_t edits = 1 + random() % 8;
    // Half of the rounds aim at the fixed header, and put its checksum right again.
    const bool aimed = random() % 2 == 0;
    std::size_t lowest = block.slot.size();
    std::size_t highest = 0;
    for (std::size_t i = 0; i < edits; ++i) {
      const std::size_t at = random() % (aimed ? slot_geometry::fixed_header_bytes : block.slot.size());
      block.slot[at] = static_cast<std::byte>(random());
      lowest = std::min(lowest, at);
      highest = std::max(highest, at);
    }
    if (aimed) reseal(block);
    if (block.slot != fresh.slot && block.verify() == slot_verdict::ok) ++served;
    std::copy(fresh.slot.begin() + static_cast<std::ptrdiff_t>(lowest),
              fresh.slot.begin() + static_cast<std::ptrdiff_t>(highest + 1),
              block.slot.begin() + static_cast<std::ptrdiff_t>(lowest));
    if (aimed)
      std::memcpy(block.slot.data() + block.geometry.header_bytes - 8,
                  fresh.slot.data() + block.geometry.header_bytes - 8, 8);
  }
  CHECK(block.slot == fresh.slot);
  CHECK(served == 0);
}
