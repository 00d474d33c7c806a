// SPDX-License-Identifier: Apache-2.0
#include <kvx/store/heartbeat.hpp>
#include <kvx/store/journal_format.hpp>
#include <kvx/store/root.hpp>
#include <kvx/store/slab.hpp>
#include <kvx/store/slot_format.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

using namespace kvx;
using namespace kvx::store;

namespace {

// What storage holds, byte by byte: when one of these changes, every existing cache is lost, and the version of what
// changed has to change with it. Computed by store_golden.py from docs/format.md, not by this library.
constexpr std::string_view slot_header =
    "896b7678736c6f7401000000001000000700000001000000050000000b0000000102030405060708090a0b0c0d0e0f10"
    "1112131415161718191a1b1c1d1e1f2028292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f4041424344454647"
    "505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f01000200080003000400000000000000"
    "8877665544332211005008000000000008070605040302016300000000000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
    "000000000000000000000000000000000000000000000000000000000000000003000000050000001500000000000000"
    "00000000000000000000000000000000e8030000eb030000ee030000f1030000f403000000000000c8c9cacbcccdcecf"
    "d0d1d2000000000000000000000000007d7b0a045d4127b7231a05c0dcc34248c35b3a2b20ffa446";
constexpr std::string_view slot_header_seal = "abc7e92f9d6dd0d6";
constexpr std::string_view root_page =
    "896b7678726f6f7401000000001000000000800000000000101112131415161718191a1b1c1d1e1f";
constexpr std::string_view root_page_seal = "e155851290c84c3b";
constexpr std::string_view superblock =
    "896b7678736c616201000000001000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
    "070000000500000001000200080003000400000000000000887766554433221100100000000000000050080000000000"
    "00600800000000001500000003000000aea037a8e99e51cb00008000000000000f000000000000001011121314151617"
    "18191a1b1c1d1e1fa0a1a2a3a4a5a6a7a8a9aaabacadaeaf06000000000000000c00000000000000";
constexpr std::string_view superblock_seal = "97e51b4f98005392";
constexpr std::string_view heartbeat_page =
    "896b7678626561740100000001000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf4d00000000000000cb04fb711f010000";
constexpr std::string_view heartbeat_page_seal = "ac202f5a77ce1835";
constexpr std::string_view segment_head =
    "896b766a010001000500000000000000210000000000000000000000ac000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
    "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2007000000050000000100020008000300"
    "040000000000000088776655443322110010000000000000005008000000000000600800000000001500000003000000"
    "aea037a8e99e51cb00008000000000000f00000000000000101112131415161718191a1b1c1d1e1f0c00000000000000"
    "03000000000000000000000000000000000000000000000010000000";
constexpr std::string_view segment_head_seal = "0239019f135bde29";
constexpr std::string_view records_16 =
    "896b766a01000200050000000000000021000000000000000300000068000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
    "0100000004000000090000000000000028292a2b2c2d2e2f3031323334353637505152535455565758595a5b5c5d5e5f"
    "020000000400000001000000050000000a0000000000000028292a2b2c2d2e2f30313233343536375051525354555657"
    "58595a5b5c5d5e5f";
constexpr std::string_view records_16_seal = "bcb9c7af48bf78b9";
constexpr std::string_view records_32 =
    "896b766a01000200050000000000000022000000000000000100000050000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
    "0100000004000000090000000000000028292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f4041424344454647"
    "505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f";
constexpr std::string_view records_32_seal = "0dde2f63919009d7";
constexpr std::string_view checkpoint_head =
    "896b766a010003000300000000000000150000000000000000000000ac000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
    "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2007000000050000000100020008000300"
    "040000000000000088776655443322110010000000000000005008000000000000600800000000001500000003000000"
    "aea037a8e99e51cb00008000000000000f00000000000000101112131415161718191a1b1c1d1e1f0c00000000000000"
    "00000000000000000200000000000000010000000000000020000000";
constexpr std::string_view checkpoint_head_seal = "ffc6017044ae864a";

template <std::size_t N>
std::array<std::byte, N> sequence(unsigned first) {
  std::array<std::byte, N> out;
  for (std::size_t i = 0; i < N; ++i) out[i] = static_cast<std::byte>(first + i);
  return out;
}

std::string hex(std::span<const std::byte> bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  for (const std::byte b : bytes) {
    out += digits[std::to_integer<std::size_t>(b >> 4)];
    out += digits[std::to_integer<std::size_t>(b & std::byte{15})];
  }
  return out;
}

// The written part, zeros, the seal.
void check(std::span<const std::byte> bytes, std::string_view expected, std::string_view seal) {
  const std::size_t written = expected.size() / 2;
  REQUIRE(written + 8 <= bytes.size());
  CHECK(hex(bytes.first(written)) == expected);
  CHECK(detail::all_zero(bytes.subspan(written, bytes.size() - 8 - written)));
  CHECK(hex(bytes.last(8)) == seal);
}

struct example {
  slot_identity identity;
  slot_geometry geometry;
  block_key key, parent;
  writer_id writer;
  root_facts root;
  store_description description;

  example() {
    identity.identity_digest.bytes = sequence<32>(1);
    identity.shard = {1, 2, 8, 3, 4, 0x1122'3344'5566'7788U};
    identity.hash_id = 7;
    const std::vector<std::size_t> layers{5000, 130 * page_bytes, 1};
    geometry = slot_geometry::make(5, 21, layers);
    key.bytes = sequence<32>(40);
    parent.bytes = sequence<32>(80);
    writer.bytes = sequence<16>(0xA0);
    root.extent_bytes = 8U << 20U;
    root.id.bytes = sequence<16>(0x10);
    description = describe(identity, geometry, root);
  }
};

std::vector<std::byte> dirty_page() { return std::vector<std::byte>(page_bytes, std::byte{0xEE}); }

}  // namespace

TEST_CASE("bytes of a slot") {
  const example e;
  std::vector<std::byte> slot(e.geometry.stride, std::byte{0xEE});
  for (std::size_t i = 0; i < e.geometry.payload_bytes; ++i) {
    slot[e.geometry.header_bytes + i] = static_cast<std::byte>(i * 31 + i / page_bytes);
  }
  const std::vector<token_id> tokens{1000, 1003, 1006, 1009, 1012};
  const auto extra = sequence<11>(200);
  block_header header;
  header.key = e.key;
  header.parent = e.parent;
  header.generation = 0x0102'0304'0506'0708U;
  header.slot_number = 99;
  header.writer = e.writer;
  header.tokens = tokens;
  header.extra = extra;
  header.has_tokens = true;
  encode_slot(slot, e.geometry, e.identity, header);
  check(std::span(slot).first(e.geometry.header_bytes), slot_header, slot_header_seal);
}

TEST_CASE("bytes of the root file, a superblock and a heartbeat") {
  const example e;
  auto page = dirty_page();
  encode_root(page, e.root);
  check(page, root_page, root_page_seal);
  page = dirty_page();
  encode_superblock(page, e.description, {e.writer, 6, 12});
  check(page, superblock, superblock_seal);
  page = dirty_page();
  encode_heartbeat(page, e.writer, 77, true, 1'234'567'890'123U);
  check(page, heartbeat_page, heartbeat_page_seal);
}

TEST_CASE("bytes of a journal") {
  const example e;
  auto page = dirty_page();
  encode_journal_head(page, {frame_kind::segment_head, 5, 33, 0, e.writer}, {e.description, 12, 3, 0, 0, 16});
  check(page, segment_head, segment_head_seal);
  page = dirty_page();
  encode_journal_head(page, {frame_kind::checkpoint_head, 3, 21, 0, e.writer}, {e.description, 12, 0, 2, 1, 32});
  check(page, checkpoint_head, checkpoint_head_seal);

  const auto records = [&](std::initializer_list<journal_record> all, std::uint64_t frame, std::size_t digest_bytes) {
    page = dirty_page();
    std::size_t used = 0;
    for (const journal_record& each : all) {
      used += encode_record(std::span(page).subspan(frame_head_bytes + used), each, digest_bytes);
    }
    seal_frame(page, {frame_kind::records, 5, frame, static_cast<std::uint32_t>(all.size()), e.writer}, used);
  };
  const journal_record insert{journal_op::insert, 4, 9, e.key, e.parent};
  const journal_record evict{journal_op::evict, 4, 0, {}, {}};
  records({insert, evict, {journal_op::insert, 5, 10, e.key, e.parent}}, 33, 16);
  check(page, records_16, records_16_seal);
  records({insert}, 34, 32);
  check(page, records_32, records_32_seal);
}
