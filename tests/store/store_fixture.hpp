// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/detail/random.hpp>
#include <kvx/store/block_store.hpp>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <bytes.hpp>
#include <file_size_limit.hpp>
#include <temporary_directory.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvx_test {

/// A temporary directory, for tests that take paths apart.
class scratch {
 public:
  [[nodiscard]] std::filesystem::path path() const { return directory_.path(); }
  [[nodiscard]] std::string operator/(const std::string& name) const { return (path() / name).string(); }

 private:
  temporary_directory directory_;
};

/// What a file system charges for everything below a directory, itself included.
[[nodiscard]] inline std::uint64_t disk_usage(const std::filesystem::path& root) {
  struct ::stat about {};
  if (::lstat(root.c_str(), &about) != 0) return 0;  // vanished meanwhile
  std::uint64_t bytes = static_cast<std::uint64_t>(about.st_blocks) * 512U;
  if (S_ISDIR(about.st_mode)) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(root, ignored)) bytes += disk_usage(entry.path());
  }
  return bytes;
}

[[nodiscard]] inline std::vector<std::byte> read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::vector<char> chars((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto bytes = std::as_bytes(std::span(chars));
  return {bytes.begin(), bytes.end()};
}
// In place: file systems flush a file that is truncated and written anew, and loops here write thousands.
inline void write_file(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  if (!std::filesystem::exists(path)) std::ofstream{path};
  std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  out.close();
  REQUIRE(out.good());
  if (std::filesystem::file_size(path) != bytes.size()) std::filesystem::resize_file(path, bytes.size());
}

[[nodiscard]] inline kvx::block_key key_of(std::uint64_t n) {
  kvx::block_key key;
  kvx::detail::store_le(key.bytes.data(), n + 1);
  kvx::detail::store_le(key.bytes.data() + 8, n * 0x9E37'79B9'7F4A'7C15U);
  return key;
}

/// A small store: two layers of a page each, so that a slot is 12 KiB.
struct small_store {
  static kvx::store::slot_geometry geometry(std::size_t layers = 2) {
    const std::vector<std::size_t> bytes(layers, 3000);
    return kvx::store::slot_geometry::make(4, 16, bytes);
  }
  static kvx::store::slot_identity identity(std::uint8_t model = 1) {
    kvx::store::slot_identity made;
    made.identity_digest.bytes[0] = std::byte{model};
    made.shard.layout_fingerprint = 77;
    made.hash_id = 1;
    return made;
  }
  static kvx::store::store_options options(const std::string& root, std::size_t extents = 4,
                                           std::size_t slots_per_extent = 5) {
    kvx::store::store_options made;
    made.root = root;
    made.extent_bytes = 4096 + slots_per_extent * 12288;
    made.capacity_bytes = extents * made.extent_bytes;
    made.digest_bytes = 16;
    made.journal_segment_bytes = 4 * 4096;
    return made;
  }
};

/// Bytes that follow from the key alone, so that what is read can be judged.
inline void fill_payload(std::span<std::byte> payload, const kvx::block_key& key) {
  std::uint64_t state = kvx::store::checksum(key.bytes);
  for (std::size_t i = 0; i + 8 <= payload.size(); i += 8) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    kvx::detail::store_le(payload.data() + i, state);
  }
}

/// Does for one block what a cache does: allocate, encode, write, log. Returns the slot, or no_slot.
inline kvx::slot_index save(kvx::store::block_store& store, const kvx::block_key& key,
                            const kvx::block_key& parent = {}) {
  const auto slot = store.allocate();
  if (!slot) return kvx::no_slot;
  const auto ticket = store.prepare_write(*slot);
  if (!ticket) return kvx::no_slot;
  const kvx::detail::aligned_buffer buffer(store.geometry().stride);
  fill_payload(buffer.span().subspan(store.geometry().header_bytes), key);
  kvx::store::block_header header;
  header.key = key;
  header.parent = parent;
  header.generation = ticket->generation;
  header.slot_number = ticket->slot_number;
  header.writer = ticket->writer;
  kvx::store::encode_slot(buffer.span(), store.geometry(), store.identity(), header);
  if (!kvx::detail::pwrite_all(ticket->place.file, buffer.span(), ticket->place.offset)) return kvx::no_slot;
  store.log_insert(key, parent, *slot, ticket->generation);
  return *slot;
}

/// Whether the slot proves to be the block of that key.
inline bool holds(const kvx::store::block_store& store, kvx::slot_index slot, const kvx::block_key& key) {
  const auto place = store.place_for_read(slot);
  if (!place) return false;
  const kvx::detail::aligned_buffer buffer(store.geometry().stride), expected(store.geometry().payload_bytes);
  if (!kvx::detail::pread_all(place->file, buffer.span(), place->offset)) return false;
  kvx::store::slot_expectation wanted;
  wanted.key = key;
  wanted.writer = store.writer_of(slot);
  wanted.slot_number = kvx::store::block_store::slot_number(slot);
  if (kvx::store::verify_slot(buffer.span(), store.geometry(), store.identity(), wanted) !=
      kvx::store::slot_verdict::ok) {
    return false;
  }
  fill_payload(expected.span(), key);
  const auto payload = buffer.span().subspan(store.geometry().header_bytes);
  REQUIRE(same_bytes(payload, expected.span()));  // proved, and still wrong
  return true;
}

using recovered = std::vector<std::pair<kvx::block_key, kvx::slot_index>>;

inline recovered recover(kvx::store::block_store& store) {
  recovered out;
  const kvx::status outcome = store.recover([&](const kvx::store::recovered_block& block) {
    CHECK_FALSE(block.own);
    CHECK(block.where < store.slot_count());
    out.emplace_back(block.key, block.where);
  });
  CHECK(outcome.ok());
  return out;
}

/// Lets a store watch the others for as long as it takes to call one dead, and a little more.
inline kvx::store::steady_time watch(kvx::store::block_store& store, kvx::store::steady_time from,
                                     const std::function<void(kvx::store::steady_time)>& meanwhile = {}) {
  for (int seconds = 0; seconds < 14; ++seconds) {
    from += std::chrono::seconds(1);
    if (meanwhile) meanwhile(from);
    CHECK(store.maintain(from).ok());
  }
  return from;
}

}  // namespace kvx_test
