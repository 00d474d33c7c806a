// SPDX-License-Identifier: Apache-2.0
#include "store_fixture.hpp"

#include <kvx/store/block_store.hpp>

#include <doctest/doctest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>
#include <skip.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

using namespace kvx;
using namespace kvx::store;
using kvx_test::key_of;
using kvx_test::small_store;
namespace fs = std::filesystem;

namespace {

// A file system of a few MiB, there for this process only.
class small_file_system {
 public:
  explicit small_file_system(const fs::path& at) : at_(at) {
    fs::create_directory(at_);
    mounted_ = ::unshare(CLONE_NEWNS) == 0 && ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
               ::mount("kvx-test", at_.c_str(), "tmpfs", 0, "size=2m,mode=700") == 0;
  }
  small_file_system(const small_file_system&) = delete;
  small_file_system& operator=(const small_file_system&) = delete;
  ~small_file_system() {
    if (mounted_) (void)::umount2(at_.c_str(), MNT_DETACH);
  }
  [[nodiscard]] bool mounted() const { return mounted_; }

 private:
  fs::path at_;
  bool mounted_ = false;
};

// Somebody else's file, as large as there is room for.
void fill_up(const fs::path& file) {
  std::ofstream out(file, std::ios::binary | std::ios::app);
  const std::vector<char> chunk(4096, 'x');
  while (out.write(chunk.data(), static_cast<std::streamsize>(chunk.size())).flush()) {
  }
}

}  // namespace

TEST_CASE("a full file system: no extent is half claimed, nothing stored is lost, and it goes on when there is room") {
  const kvx_test::scratch scratch;
  const fs::path mount = scratch.path() / "mount";
  const small_file_system disk(mount);
  if (!disk.mounted()) {
    kvx_test::skip("a full file system is not tested: mounting a small tmpfs takes root and CAP_SYS_ADMIN");
    return;
  }
  auto options = small_store::options((mount / "root").string(), 100);
  block_store store(options, small_store::identity(), small_store::geometry());
  std::size_t claimed = 0;
  while (store.grow().ok()) ++claimed;
  CHECK(claimed > 20);
  CHECK(claimed < 100);
  CHECK(store.grow().status().code() == errc::no_space);
  std::size_t there = 0;
  for (const auto& extent : fs::directory_iterator(mount / "root" / "extents")) {
    CHECK_FALSE(fs::is_empty(extent.path()));
    ++there;
  }
  CHECK(there == claimed);

  // Slabs are reserved: saving into them needs no space that somebody else could take.
  fill_up(mount / "somebody");
  std::vector<slot_index> slots;
  std::uint64_t key = 0;
  for (slot_index slot = kvx_test::save(store, key_of(key)); slot != no_slot;
       slot = kvx_test::save(store, key_of(key))) {
    slots.push_back(slot);
    ++key;
  }
  CHECK(slots.size() == claimed * 5);
  CHECK(store.flush_journal().ok());

  // The journal wants a new segment and gets none: nothing is reused meanwhile, nothing is forgotten.
  auto time = std::chrono::steady_clock::now();
  status outcome;
  int flushes = 0;
  for (; flushes < 1000 && outcome; ++flushes) {
    store.free(slots.front());
    outcome = store.flush_journal();
    if (outcome && kvx_test::save(store, key_of(key)) != no_slot) ++key;
  }
  CHECK(outcome.code() == errc::no_space);
  CHECK(store.allocate().status().code() == errc::no_space);
  CHECK(store.maintain(time += std::chrono::seconds(1)).ok());
  CHECK(store.flush_journal().code() == errc::no_space);
  const std::uint64_t last = key - 1;
  CHECK(kvx_test::holds(store, slots.front(), key_of(last)));

  fs::remove(mount / "somebody");
  CHECK(store.flush_journal().ok());
  CHECK(store.allocate().ok());
  const std::size_t before = claimed;
  while (store.grow().ok()) ++claimed;
  CHECK(claimed <= before + 1);
  block_store reader(options, small_store::identity(), small_store::geometry());
  std::size_t found = 0;
  for (const auto& [each, slot] : kvx_test::recover(reader)) {
    CHECK(kvx_test::holds(reader, slot, each));
    ++found;
  }
  CHECK(found == slots.size() - 1);
}

TEST_CASE("a root that cannot be made on a full file system says so") {
  const kvx_test::scratch scratch;
  const fs::path mount = scratch.path() / "mount";
  const small_file_system disk(mount);
  if (!disk.mounted()) {
    kvx_test::skip("a root on a full file system is not tested: mounting a small tmpfs takes root and CAP_SYS_ADMIN");
    return;
  }
  fs::create_directory(mount / "root");
  fs::permissions(mount / "root", fs::perms::owner_all);
  fill_up(mount / "somebody");
  const auto options = small_store::options((mount / "root").string());
  try {
    const block_store store(options, small_store::identity(), small_store::geometry());
    FAIL("it was made");
  } catch (const error& refused) {
    CHECK(std::string(refused.what()).find("No space left") != std::string::npos);
  }
  // Nothing is left that a later opening would take for a root.
  fs::remove(mount / "somebody");
  CHECK(block_store(options, small_store::identity(), small_store::geometry()).slot_count() == 20);
}
