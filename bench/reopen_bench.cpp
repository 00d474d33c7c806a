// SPDX-License-Identifier: Apache-2.0
// How long a store takes to open and to say which blocks it holds, with nothing in the page cache: from its journal,
// and from its slots' headers where the journal is lost. Beside each, in the same rounds: reading the same bytes of the
// same files in order, which no reopening can beat. The slabs of the journal runs are sparse: no payload is read at
// opening.
//
//   reopen_bench --root DIRECTORY [--blocks 1000000] [--rebuild-blocks 20000] [--rounds 9]
//
// DIRECTORY is made, used, and removed; it must be on the file system in question.
#include <kvx/store/block_store.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "measure.hpp"

namespace {

using namespace kvx;
using namespace kvx::store;
namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& text) {
  std::fprintf(stderr, "reopen_bench: %s\n", text.c_str());
  std::exit(1);
}

struct arguments {
  std::string root;
  std::size_t blocks = 1'000'000;
  std::size_t rebuild_blocks = 20'000;
  std::size_t rounds = 9;
};

arguments parse(int argc, char** argv) {
  arguments out;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (i + 1 == argc) fail("'" + std::string(name) + "' needs a value, or is no option; see the top of the source");
    const char* value = argv[++i];
    if (name == "--root") {
      out.root = value;
    } else if (name == "--blocks") {
      out.blocks = std::strtoull(value, nullptr, 10);
    } else if (name == "--rebuild-blocks") {
      out.rebuild_blocks = std::strtoull(value, nullptr, 10);
    } else if (name == "--rounds") {
      out.rounds = std::strtoull(value, nullptr, 10);
    } else {
      fail("unknown option '" + std::string(name) + "'; see the top of the source");
    }
  }
  if (out.root.empty()) fail("--root names no directory");
  if (fs::exists(out.root)) fail("'" + out.root + "' exists; name a directory that may be made and removed");
  if (out.rounds == 0) fail("--rounds must be at least 1");
  return out;
}

slot_geometry geometry() {
  const std::vector<std::size_t> layers{page_bytes};
  return slot_geometry::make(16, 0, layers);
}

store_options options(const arguments& given, std::size_t blocks, std::size_t digest_bytes, bool preallocate) {
  store_options made;
  made.root = given.root;
  made.digest_bytes = digest_bytes;
  made.preallocate = preallocate;
  made.extent_bytes = page_bytes + (std::size_t{1} << 16U) * geometry().stride;
  if (blocks < (std::size_t{1} << 16U)) made.extent_bytes = page_bytes + (blocks + 7) / 8 * geometry().stride;
  const std::uint64_t per_extent = (made.extent_bytes - page_bytes) / geometry().stride;
  made.capacity_bytes = (blocks + per_extent - 1) / per_extent * made.extent_bytes;
  return made;
}

block_key key_of(std::uint64_t n) {
  block_key key;
  for (std::size_t i = 0; i < 16; i += 8) {
    detail::store_le(key.bytes.data() + i, (n + 1) * 0x9E37'79B9'7F4A'7C15U + i);
  }
  return key;
}

// A store that has lived: every slot written twice, so that evictions and a checkpoint are in the journal.
void build(const store_options& with, std::size_t blocks, bool payload) {
  block_store store(with, {}, geometry());
  while (store.own_slots() < blocks) {
    if (const auto gained = store.grow(); !gained) fail("the store does not grow: is there room under --root?");
  }
  const detail::aligned_buffer slot_bytes(geometry().stride);
  for (std::uint64_t n = 0; n < 2 * blocks; ++n) {
    const auto slot = store.allocate();
    const auto ticket = slot ? store.prepare_write(*slot) : result<write_ticket>(errc::miss);
    if (!ticket) fail("no free slot while building");
    if (payload) {
      block_header header;
      header.key = key_of(n);
      header.parent = key_of(n - 1);
      header.generation = ticket->generation;
      header.slot_number = ticket->slot_number;
      header.writer = ticket->writer;
      encode_slot(slot_bytes.span(), geometry(), store.identity(), header);
      if (!detail::pwrite_all(ticket->place.file, slot_bytes.span(), ticket->place.offset)) fail("a write failed");
    }
    store.log_insert(key_of(n), key_of(n - 1), *slot, ticket->generation);
    if (n < blocks) store.free(*slot);
    if (n % 4096 == 4095 || n + 1 == blocks || n + 1 == 2 * blocks) {
      if (!store.flush_journal() || !store.maintain()) fail("the journal cannot be written");
    }
  }
}

std::vector<fs::path> files_below(const fs::path& root, std::string_view but_not = {}) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.is_regular_file() && (but_not.empty() || entry.path().extension() != but_not))
      out.push_back(entry.path());
  }
  return out;
}

void drop_page_cache(const fs::path& root) {
  for (const fs::path& path : files_below(root)) {
    const detail::file file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file || ::fdatasync(file.fd()) != 0 || ::posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED) != 0) {
      fail("cannot drop the page cache of " + path.string());
    }
  }
}

std::uint64_t read_in_order(const std::vector<fs::path>& files, bool direct) {
  std::uint64_t bytes = 0;
  const detail::aligned_buffer buffer(4 * kvx_bench::mib);
  for (const fs::path& path : files) {
    const detail::file file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0)));
    if (!file) fail("cannot open " + path.string());
    for (;;) {
      const ssize_t got = ::read(file.fd(), buffer.data(), buffer.size());
      if (got < 0) fail("cannot read " + path.string());
      if (got == 0) break;
      bytes += static_cast<std::uint64_t>(got);
    }
  }
  return bytes;
}

void measure(const char* what, const arguments& given, const store_options& with, std::size_t blocks, bool slabs) {
  std::vector<double> opened;
  std::vector<double> raw;
  std::uint64_t bytes = 0;
  for (std::size_t round = 0; round < given.rounds; ++round) {
    std::size_t found = 0;
    drop_page_cache(given.root);
    opened.push_back(kvx_bench::timed([&] {
                       block_store store(with, {}, geometry());
                       std::vector<std::pair<block_key, slot_index>> index;
                       index.reserve(blocks);
                       (void)store.recover(
                           [&](const recovered_block& block) { index.emplace_back(block.key, block.where); });
                       found = index.size();
                     }).seconds);
    if (found != blocks) fail(std::string(what) + ": found " + std::to_string(found) + " blocks");
    drop_page_cache(given.root);
    raw.push_back(
        kvx_bench::timed([&] { bytes = read_in_order(files_below(given.root, slabs ? "" : ".slab"), slabs); }).seconds);
  }
  const auto time = kvx_bench::median(opened);
  const auto floor = kvx_bench::median(raw);
  const auto times = kvx_bench::ratio(opened, raw);
  std::printf("%-28s %9zu blocks  %8.1f ms [%.1f, %.1f]  raw read of %7.1f MiB %8.1f ms  ratio %.2f [%.2f, %.2f]\n",
              what, blocks, time.middle * 1e3, time.low * 1e3, time.high * 1e3,
              static_cast<double>(bytes) / static_cast<double>(kvx_bench::mib), floor.middle * 1e3, times.middle,
              times.low, times.high);
}

}  // namespace

int main(int argc, char** argv) try {
  const arguments given = parse(argc, argv);
  const std::size_t blocks = given.blocks;
  for (const std::size_t digest_bytes : {16U, 32U}) {
    const auto with = options(given, blocks, digest_bytes, false);
    build(with, blocks, false);
    const std::string what = "journal, " + std::to_string(digest_bytes) + "-byte keys";
    measure(what.c_str(), given, with, blocks, false);
    fs::remove_all(given.root);
  }
  if (given.rebuild_blocks != 0) {
    const auto with = options(given, given.rebuild_blocks, 16, true);
    build(with, given.rebuild_blocks, true);
    fs::remove_all(fs::path(given.root) / "writers");
    measure("headers, journal lost", given, with, given.rebuild_blocks, true);
    fs::remove_all(given.root);
  }
  return 0;
} catch (const std::exception& failure) {
  fail(failure.what());
}
