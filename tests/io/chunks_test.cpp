// SPDX-License-Identifier: Apache-2.0
#include <kvx/detail/io_chunks.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <span>
#include <vector>

using kvx::detail::io_chunks;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20U;
constexpr std::size_t chunk = io_chunks::least_chunk_bytes;

/// Nothing is behind it: chunks only count.
const std::span<std::byte> arena(reinterpret_cast<std::byte*>(std::size_t{1} << 40U), 2 * chunk + mib);

struct pins {
  bool allowed = true;
  std::vector<std::size_t> numbers{};
  bool operator()(std::size_t number, std::span<std::byte> memory) {
    numbers.push_back(number);
    CHECK(memory.data() == arena.data() + number * chunk);
    return allowed;
  }
};

}  // namespace

TEST_CASE("a chunk is pinned when as many bytes as it has went through it") {
  io_chunks chunks;
  pins pin;
  CHECK(chunks.use(arena.data(), mib, pin) == -1);  // no arena yet
  chunks.open(arena);
  for (std::size_t moved = 0; moved + mib < chunk; moved += mib) CHECK(chunks.use(arena.data(), mib, pin) == -1);
  CHECK(pin.numbers.empty());
  CHECK(chunks.pinned_bytes() == 0);
  CHECK(chunks.use(arena.data() + 5 * mib, mib, pin) == 0);
  CHECK(chunks.use(arena.data(), mib, pin) == 0);
  CHECK(pin.numbers == std::vector<std::size_t>{0});
  CHECK(chunks.pinned_bytes() == chunk);
  // The last chunk is as long as the arena.
  CHECK(chunks.use(arena.data() + 2 * chunk, mib, pin) == 2);
  CHECK(chunks.pinned_bytes() == chunk + mib);
}

TEST_CASE("a piece that leaves a pinned chunk is cut, or goes without") {
  io_chunks chunks;
  pins pin;
  chunks.open(arena);
  std::byte* const seam = arena.data() + chunk;
  CHECK(chunks.shorten(seam - mib, 3 * mib) == 3 * mib);
  CHECK(chunks.use(seam - mib, chunk, pin) == -1);  // pinned now, but cut before that
  CHECK(chunks.pinned_bytes() == chunk);
  CHECK(chunks.shorten(seam - mib, 3 * mib) == mib);
  CHECK(chunks.use(seam - mib, mib, pin) == 0);
  CHECK(chunks.use(seam - mib, 2 * mib, pin) == -1);
  CHECK(chunks.shorten(seam, 3 * mib) == 3 * mib);
  CHECK(chunks.shorten(arena.data() + arena.size(), mib) == mib);
}

TEST_CASE("after a refusal nothing more is pinned, and what is pinned stays so") {
  io_chunks chunks;
  pins pin;
  chunks.open(arena);
  CHECK(chunks.use(arena.data(), chunk, pin) == 0);
  pin.allowed = false;
  CHECK(chunks.use(arena.data() + chunk, chunk, pin) == -1);
  CHECK(chunks.use(arena.data() + 2 * chunk, mib, pin) == -1);
  CHECK(pin.numbers == std::vector<std::size_t>{0, 1});
  CHECK(chunks.use(arena.data(), mib, pin) == 0);
  CHECK(chunks.pinned_bytes() == chunk);
}

TEST_CASE("however large an arena is, its chunks fit a kernel's table") {
  for (const std::size_t gib : {1U, 33U, 500U, 1023U}) {
    const std::span<std::byte> large(arena.data(), gib << 30U);
    CHECK(io_chunks::count_of(large) <= io_chunks::most_chunks);
    CHECK(io_chunks::count_of(large) * io_chunks::most_chunk_bytes >= large.size());
  }
}
