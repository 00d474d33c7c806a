// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/page_checksum.hpp>

#include <doctest/doctest.h>
#include <bytes.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace {

constexpr std::size_t pages = 37;

}  // namespace

TEST_CASE("the checksums of pages are XXH3's, whatever computes them") {
  const std::vector<std::byte> from = kvx_test::noise(pages * kvx::page_bytes + 64, 11);
  for (const std::size_t skew : {0U, 1U, 8U, 33U}) {
    std::vector<std::uint64_t> found(pages);
    kvx::detail::page_checksums(from.data() + skew, found);
    for (std::size_t i = 0; i < pages; ++i)
      CHECK(found[i] == XXH3_64bits(from.data() + skew + i * kvx::page_bytes, kvx::page_bytes));
  }
}

TEST_CASE("pages copied with their checksums are whole, and nothing beside them is touched") {
  const std::vector<std::byte> from = kvx_test::noise(pages * kvx::page_bytes + 64, 11);
  kvx::detail::aligned_buffer to((pages + 2) * kvx::page_bytes);
  for (const std::size_t skew : {0U, 1U, 8U, 33U}) {
    std::fill_n(to.data(), to.span().size(), std::byte{0xC7});
    std::vector<std::uint64_t> found(pages);
    kvx::detail::copy_pages(from.data() + skew, to.data() + kvx::page_bytes, found);
    CHECK(kvx_test::same_bytes(std::span(from).subspan(skew, pages * kvx::page_bytes),
                               to.span().subspan(kvx::page_bytes, pages * kvx::page_bytes)));
    const auto untouched = [&](std::size_t page) {
      return std::all_of(to.data() + page * kvx::page_bytes, to.data() + (page + 1) * kvx::page_bytes,
                         [](std::byte b) { return b == std::byte{0xC7}; });
    };
    CHECK(untouched(0));
    CHECK(untouched(pages + 1));
    for (std::size_t i = 0; i < pages; ++i)
      CHECK(found[i] == XXH3_64bits(from.data() + skew + i * kvx::page_bytes, kvx::page_bytes));
  }
}
