// SPDX-License-Identifier: Apache-2.0
#include "store_fixture.hpp"

#include <kvx/store/block_store.hpp>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <skip.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <thread>
#include <vector>

using namespace kvx;
using namespace kvx::store;
using kvx_test::small_store;
namespace fs = std::filesystem;

namespace {

// The text of the refusal; empty when there was none.
std::string refusal(const store_options& options, const slot_geometry& geometry = small_store::geometry()) {
  try {
    const block_store store(options, small_store::identity(), geometry);
  } catch (const error& refused) {
    return refused.what();
  }
  return {};
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Files may be read and written by their owner, directories entered as well, and nothing else, by nobody else.
void check_private(const fs::path& root) {
  std::size_t files = 0;
  std::vector<fs::path> all{root};
  for (const auto& entry : fs::recursive_directory_iterator(root)) all.push_back(entry.path());
  for (const fs::path& path : all) {
    struct ::stat about {};
    REQUIRE(::lstat(path.c_str(), &about) == 0);
    CAPTURE(path.string());
    if (S_ISDIR(about.st_mode)) {
      CHECK((about.st_mode & 07777U) == 0700U);
    } else {
      CHECK(S_ISREG(about.st_mode));
      CHECK((about.st_mode & 07777U) == 0600U);
      ++files;
    }
  }
  CHECK(files >= 5);
}

class umask_guard {
 public:
  explicit umask_guard(mode_t mask) : old_(::umask(mask)) {}
  umask_guard(const umask_guard&) = delete;
  umask_guard& operator=(const umask_guard&) = delete;
  ~umask_guard() { ::umask(old_); }

 private:
  mode_t old_;
};

}  // namespace

TEST_CASE("files and directories are private whatever the umask") {
  for (const mode_t mask : {mode_t{0}, mode_t{022}, mode_t{077}, mode_t{0277}, mode_t{0777}}) {
    CAPTURE(mask);
    const kvx_test::scratch scratch;
    const umask_guard guard(mask);
    block_store store(small_store::options(scratch / "root", 2, 20), small_store::identity(), small_store::geometry());
    REQUIRE(store.grow().ok());
    // Until the journal has a checkpoint too.
    auto time = std::chrono::steady_clock::now();
    for (std::uint64_t key = 0; key < 1000; ++key) {
      if (const slot_index slot = kvx_test::save(store, kvx_test::key_of(key)); slot != no_slot) store.free(slot);
      REQUIRE(store.flush_journal().ok());
      if (key % 10 == 0) REQUIRE(store.maintain(time += std::chrono::seconds(1)).ok());
    }
    check_private(scratch.path() / "root");
  }
}

TEST_CASE("a root that others own or may write to is refused, unless the options say otherwise") {
  const kvx_test::scratch scratch;
  auto options = small_store::options(scratch / "root");
  fs::create_directory(options.root);
  for (const auto perms : {fs::perms::group_write, fs::perms::others_write}) {
    fs::permissions(options.root, fs::perms::owner_all | perms);
    CHECK(says(refusal(options), "allow_shared_root"));
    options.allow_shared_root = true;
    CHECK(refusal(options).empty());
    options.allow_shared_root = false;
  }
  fs::permissions(options.root, fs::perms::owner_all | fs::perms::group_read | fs::perms::others_read);
  CHECK(refusal(options).empty());
  if (::geteuid() != 0) {
    kvx_test::skip("a root of another user is not tested: it takes root to make one");
    return;
  }
  REQUIRE(::chown(options.root.c_str(), 65534, 65534) == 0);
  CHECK(says(refusal(options), "belongs to user 65534"));
  options.allow_shared_root = true;
  CHECK(refusal(options).empty());
}

TEST_CASE("symbolic links are refused, at the root and inside it, and nothing is written through them") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root");
  const fs::path elsewhere = scratch.path() / "elsewhere";
  fs::create_directory(elsewhere);
  fs::permissions(elsewhere, fs::perms::owner_all);
  const fs::path root = options.root;
  SUBCASE("the root itself") { fs::create_directory_symlink(elsewhere, root); }
  SUBCASE("the root, with a slash behind it") {
    fs::create_directory_symlink(elsewhere, root);
    auto slashed = options;
    slashed.root += "/";
    CHECK(says(refusal(slashed), "symbolic link"));
  }
  SUBCASE("the extents") {
    fs::create_directory(root);
    fs::permissions(root, fs::perms::owner_all);
    fs::create_directory_symlink(elsewhere, root / "extents");
  }
  SUBCASE("the writers") {
    fs::create_directory(root);
    fs::permissions(root, fs::perms::owner_all);
    fs::create_directory_symlink(elsewhere, root / "writers");
  }
  CHECK(says(refusal(options), "symbolic link"));
  CHECK(fs::is_empty(elsewhere));
}

TEST_CASE("a root file that is a link, a FIFO, a directory, cut short, damaged or of another version is refused") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root");
  REQUIRE(refusal(options).empty());
  const fs::path file = fs::path(options.root) / "root";
  std::vector<std::byte> bytes = kvx_test::read_file(file);
  REQUIRE(bytes.size() == page_bytes);
  SUBCASE("link") {
    fs::rename(file, scratch.path() / "elsewhere");
    fs::create_symlink(scratch.path() / "elsewhere", file);
    CHECK(says(refusal(options), file.string()));
  }
  SUBCASE("FIFO") {
    fs::remove(file);
    REQUIRE(::mkfifo(file.c_str(), 0600) == 0);
    CHECK(says(refusal(options), "regular file"));
  }
  SUBCASE("directory") {
    fs::remove(file);
    fs::create_directory(file);
    CHECK_FALSE(refusal(options).empty());
  }
  SUBCASE("cut short") {
    fs::resize_file(file, page_bytes - 1);
    CHECK(says(refusal(options), "cut short"));
  }
  SUBCASE("another version") {
    detail::store_le<std::uint32_t>(bytes.data() + 8, root_format_version + 1);
    kvx_test::write_file(file, bytes);
    CHECK(says(refusal(options), "another version"));
    CHECK(kvx_test::read_file(file) == bytes);
  }
  SUBCASE("every bit") {
    for (std::size_t bit = 0; bit < bytes.size() * 8; bit += 5) {
      bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
      REQUIRE_FALSE(parse_root(bytes).ok());
      bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    }
    bytes[20] ^= std::byte{1};
    kvx_test::write_file(file, bytes);
    CHECK(says(refusal(options), "damaged"));
  }
}

TEST_CASE("slabs, heartbeats and journals that are links, FIFOs or directories are not followed and block nothing") {
  const kvx_test::scratch scratch;
  const auto options = small_store::options(scratch / "root", 6);
  {
    block_store store(options, small_store::identity(), small_store::geometry());
    REQUIRE(store.grow().ok());
    REQUIRE(kvx_test::save(store, kvx_test::key_of(1)) == 0);
  }
  const fs::path root = options.root;
  const fs::path slab = (*fs::directory_iterator(root / "extents" / "0")).path();
  const fs::path writer = (*fs::directory_iterator(root / "writers")).path();
  const auto other = detail::random_id();
  REQUIRE(other.ok());
  fs::create_directory(root / "extents" / "1");
  fs::create_symlink(slab, root / "extents" / "1" / slab_name(*other));
  fs::create_directory(root / "extents" / "2");
  REQUIRE(::mkfifo((root / "extents" / "2" / slab_name(*other)).c_str(), 0600) == 0);
  fs::create_directory(root / "extents" / "3");
  fs::create_directory(root / "extents" / "3" / slab_name(*other));
  fs::create_directory_symlink(root / "extents" / "0", root / "extents" / "4");
  REQUIRE(::mkfifo((writer / "99.journal").c_str(), 0600) == 0);
  fs::create_directory(root / "writers" / to_name(*other));
  REQUIRE(::mkfifo((root / "writers" / to_name(*other) / "heartbeat").c_str(), 0600) == 0);
  block_store store(options, small_store::identity(), small_store::geometry());
  CHECK(kvx_test::recover(store) == kvx_test::recovered{{kvx_test::key_of(1), 0}});
  (void)kvx_test::watch(store, std::chrono::steady_clock::now());
  REQUIRE(store.reclaim_dead().ok());
  CHECK_FALSE(fs::exists(slab));
  CHECK_FALSE(store.reclaim_dead().ok());
  for (const char* left : {"1", "2", "3", "4"})
    CHECK(fs::is_symlink(fs::symlink_status(root / "extents" / left)) == (left[0] == '4'));
  CHECK(store.grow().ok());
}

TEST_CASE("options that cannot be are refused by name") {
  const kvx_test::scratch scratch;
  const auto with = [&](auto&& change) {
    auto options = small_store::options(scratch / "root");
    change(options);
    return refusal(options);
  };
  CHECK(says(with([](auto& o) { o.root.clear(); }), "store_options::root"));
  CHECK(says(with([&](auto& o) { o.root = scratch / "no/such"; }), "make the directory above it"));
  CHECK(says(with([](auto& o) { o.capacity_bytes = 0; }), "capacity_bytes"));
  CHECK(says(with([](auto& o) { o.extent_bytes = 8192; }), "extent_bytes"));
  REQUIRE(refusal(small_store::options(scratch / "root")).empty());
  CHECK(says(with([](auto& o) { o.extent_bytes += 4096; }), "extent_bytes"));
  CHECK(says(with([](auto& o) { o.extent_bytes = 0, o.capacity_bytes = 4096; }), "capacity"));
  CHECK(says(with([](auto& o) { o.digest_bytes = 15; }), "digest_bytes"));
  CHECK(says(with([](auto& o) { o.digest_bytes = 33; }), "digest_bytes"));
  CHECK(says(with([](auto& o) { o.dead_after = std::chrono::milliseconds{0}; }), "dead_after"));
  CHECK(says(with([](auto& o) { o.journal_segment_bytes = 5000; }), "journal_segment_bytes"));
  CHECK(says(with([](auto& o) { o.journal_segment_bytes = std::size_t{1} << 30U; }), "journal_segment_bytes"));
  CHECK(says(with([](auto& o) { o.capacity_bytes = std::uint64_t{1} << 62U; }), "2^32"));
  const std::vector<std::size_t> large{1U << 20U};
  CHECK(says(refusal(small_store::options(scratch / "root"), slot_geometry::make(16, 0, large)), "one slot"));
}

TEST_CASE("the size of extents: one GiB, less where the capacity is small, and who comes later takes what is there") {
  const std::vector<std::size_t> layers(8, 65536);
  const auto geometry = slot_geometry::make(16, 64, layers);
  const auto extent_of = [&](std::uint64_t capacity) {
    const kvx_test::scratch scratch;
    store_options options;
    options.root = scratch / "root";
    options.capacity_bytes = capacity;
    return block_store(options, small_store::identity(), geometry).extent_bytes();
  };
  CHECK(extent_of(std::uint64_t{1} << 40U) == std::uint64_t{1} << 30U);
  CHECK(extent_of(std::uint64_t{1} << 30U) == std::uint64_t{1} << 27U);
  CHECK(extent_of(8U << 20U) == page_bytes + 4 * geometry.stride);
  CHECK(extent_of(1U << 20U) == 1U << 20U);
  const kvx_test::scratch scratch;
  auto options = small_store::options(scratch / "root");
  const std::uint64_t extent = options.extent_bytes;
  REQUIRE(refusal(options).empty());
  options.extent_bytes = 0;
  options.capacity_bytes *= 100;
  CHECK(block_store(options, small_store::identity(), small_store::geometry()).extent_bytes() == extent);
}

TEST_CASE("of many that make one root at once, all agree on one") {
  for (int round = 0; round < 20; ++round) {
    const kvx_test::scratch scratch;
    std::vector<std::uint64_t> seen(6);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      threads.emplace_back([&, i] {
        auto options = small_store::options(scratch / "root", 100);
        options.extent_bytes = 0;
        options.capacity_bytes += i * 65536;
        const block_store store(options, small_store::identity(), small_store::geometry());
        seen[i] = store.extent_bytes();
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::uint64_t each : seen) CHECK(each == seen[0]);
    std::size_t names = 0;
    for (const auto& entry : fs::directory_iterator(scratch.path() / "root")) names += entry.exists() ? 1U : 0U;
    CHECK(names == 3);  // no temporary is left
  }
}
