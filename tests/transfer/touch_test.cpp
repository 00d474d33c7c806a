// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/touch.hpp>

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace {

struct mapping {
  explicit mapping(std::size_t bytes) : size(bytes) {
    void* const got =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(got != MAP_FAILED);
    at = static_cast<std::byte*>(got);
    // Pages of 4 KiB, so that one that was left out shows.
    ::madvise(at, size, MADV_NOHUGEPAGE);
  }
  mapping(const mapping&) = delete;
  mapping& operator=(const mapping&) = delete;
  ~mapping() { ::munmap(at, size); }

  std::size_t resident() const {
    std::vector<unsigned char> pages(size / 4096);
    REQUIRE(::mincore(at, size, pages.data()) == 0);
    return static_cast<std::size_t>(
        std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1U) != 0; }));
  }

  std::size_t size;
  std::byte* at = nullptr;
};

}  // namespace

TEST_CASE("all pages are there afterwards, and what was written before is kept") {
  const mapping memory((std::size_t{130} << 20U) + 3 * 4096);  // in several pieces, the last of them short
  memory.at[5000] = std::byte{7};
  memory.at[memory.size - 1] = std::byte{9};
  REQUIRE(memory.resident() == 2);
  kvx::detail::touch_in_parallel({memory.at, memory.size});
  CHECK(memory.resident() == memory.size / 4096);
  CHECK(memory.at[5000] == std::byte{7});
  CHECK(memory.at[memory.size - 1] == std::byte{9});
  CHECK(memory.at[70U << 20U] == std::byte{0});
}

TEST_CASE("memory that begins and ends within pages is touched whole, and no more than that") {
  const mapping memory(16 * 4096);
  kvx::detail::touch_in_parallel({memory.at + 4096 + 100, 2 * 4096});
  CHECK(memory.resident() == 3);
  kvx::detail::touch_in_parallel({});
}

TEST_CASE("memory that is not mapped is left to whoever uses it") {
  const mapping memory(4 * 4096);
  ::munmap(memory.at + 2 * 4096, 4096);
  kvx::detail::touch_in_parallel({memory.at, memory.size});
  CHECK(memory.at[0] == std::byte{0});
}
