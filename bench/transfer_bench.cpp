// SPDX-License-Identifier: Apache-2.0
// How fast transfer engines on the host move blocks, against one large memcpy of the same bytes (the ceiling) and a
// loop of one memcpy per fragment over ready-made addresses (the baseline). All three run in every round, in turn, over
// the same memory; printed are medians and the median of the rounds' ratios with its 95 % interval.
//
//   transfer_bench [--mib 64] [--rounds 41] [--threads 1]
#include <kvx/transfer/host.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "measure.hpp"

namespace {

using kvx_bench::interval;
using kvx_bench::median;
using kvx_bench::memory;
using kvx_bench::mib;

constexpr std::size_t layers = 8;
constexpr std::size_t regions = 2;

/// Keys and values of each layer in allocations of their own, pages without gaps.
class paged_layout {
 public:
  paged_layout(std::byte* base, std::size_t fragment_bytes, std::size_t pages)
      : base_(base), fragment_bytes_(fragment_bytes), pages_(pages) {}

  [[nodiscard]] std::uint32_t block_tokens() const { return 16; }
  [[nodiscard]] std::size_t group_count() const { return 1; }
  [[nodiscard]] kvx::attention_kind kind(std::size_t) const { return kvx::attention_kind::full; }
  [[nodiscard]] std::uint32_t window_tokens(std::size_t) const { return 0; }
  [[nodiscard]] std::size_t layer_count(std::size_t) const { return layers; }
  [[nodiscard]] std::size_t layer_bytes(std::size_t, std::size_t) const { return regions * fragment_bytes_; }
  [[nodiscard]] std::size_t pages_per_block(std::size_t) const { return 1; }
  [[nodiscard]] std::size_t page_count(std::size_t) const { return pages_; }
  [[nodiscard]] std::uint64_t fingerprint(std::size_t) const { return fragment_bytes_; }

  template <class Sink>
  void for_each_fragment(std::size_t, std::size_t layer, std::span<const kvx::block_id> pages, Sink&& sink) const {
    for (std::size_t r = 0; r < regions; ++r) {
      std::byte* const region = base_ + (layer * regions + r) * pages_ * fragment_bytes_;
      sink(kvx::fragment{region + pages[0] * fragment_bytes_, fragment_bytes_, r * fragment_bytes_});
    }
  }

 private:
  std::byte* base_;
  std::size_t fragment_bytes_;
  std::size_t pages_;
};

template <class Work>
double seconds(Work work) {
  return kvx_bench::timed(work).seconds;
}

void measure(std::size_t fragment_bytes, std::size_t bytes, std::size_t rounds, unsigned threads, std::byte* engine,
             std::byte* slots) {
  const std::size_t block_bytes = layers * regions * fragment_bytes;
  const std::size_t blocks = bytes / block_bytes;
  // Twice as many pages as the batch takes, so that it is scattered.
  const std::size_t pages = 2 * blocks;
  const paged_layout layout{engine, fragment_bytes, pages};
  std::vector<kvx::block_id> ids(pages);
  for (std::size_t i = 0; i < pages; ++i) ids[i] = static_cast<kvx::block_id>(i);
  std::shuffle(ids.begin(), ids.end(), std::mt19937_64{1});
  std::vector<std::size_t> offsets;
  for (std::size_t l = 0; l < layers; ++l) offsets.push_back(l * regions * fragment_bytes);
  std::vector<kvx::block_copy> copies;
  for (std::size_t i = 0; i < blocks; ++i) copies.push_back({slots + i * block_bytes, std::span{ids}.subspan(i, 1)});
  const kvx::transfer_batch batch{0, offsets, copies};

  struct piece {
    std::byte* engine;
    std::byte* slot;
  };
  std::vector<piece> pieces;
  for (const kvx::block_copy& copy : copies) {
    for (std::size_t l = 0; l < layers; ++l) {
      layout.for_each_fragment(0, l, copy.pages, [&](const kvx::fragment& f) {
        pieces.push_back({f.data, copy.payload + offsets[l] + f.offset});
      });
    }
  }

  kvx::host_transfer transfer{kvx::host_transfer::options{threads}};
  const std::size_t moved = blocks * block_bytes;
  for (const bool load : {true, false}) {
    std::vector<double> ceiling;
    std::vector<double> baseline;
    std::vector<double> kvx_time;
    for (std::size_t round = 0; round < rounds + 2; ++round) {
      const double c = seconds([&] { load ? std::memcpy(engine, slots, moved) : std::memcpy(slots, engine, moved); });
      const double b = seconds([&] {
        for (const piece& p : pieces) {
          load ? std::memcpy(p.engine, p.slot, fragment_bytes) : std::memcpy(p.slot, p.engine, fragment_bytes);
        }
      });
      const double k = seconds([&] {
        const auto operation = load ? transfer.load(layout, batch, {}) : transfer.save(layout, batch, {});
        if (!operation) std::abort();
      });
      if (round < 2) continue;
      ceiling.push_back(c);
      baseline.push_back(b);
      kvx_time.push_back(k);
    }
    std::vector<double> to_ceiling;
    std::vector<double> to_baseline;
    for (std::size_t i = 0; i < rounds; ++i) {
      to_ceiling.push_back(ceiling[i] / kvx_time[i]);
      to_baseline.push_back(baseline[i] / kvx_time[i]);
    }
    const interval top = median(to_ceiling);
    const interval base = median(to_baseline);
    const auto rate = [&](const std::vector<double>& times) {
      return static_cast<double>(moved) / median(times).middle / 1e9;
    };
    std::printf("| %s | %zu | %.2f | %.2f | %.2f | %.3f (%.3f-%.3f) | %.3f (%.3f-%.3f) |\n", load ? "load" : "save",
                fragment_bytes / 1024, rate(ceiling), rate(baseline), rate(kvx_time), top.middle, top.low, top.high,
                base.middle, base.low, base.high);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t bytes = 64 * mib;
  std::size_t rounds = 41;
  unsigned threads = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view option = argv[i];
    const auto value = static_cast<std::size_t>(std::strtoull(argv[i + 1], nullptr, 10));
    if (option == "--mib" && value > 3)
      bytes = value * mib;
    else if (option == "--rounds" && value > 0)
      rounds = value;
    else if (option == "--threads" && value > 0)
      threads = static_cast<unsigned>(value);
    else
      argc = 0;
  }
  if (argc % 2 == 0) {
    std::fprintf(stderr, "usage: transfer_bench [--mib N>3] [--rounds N] [--threads N]\n");
    return 2;
  }
  std::byte* const engine = memory(2 * bytes).data();
  std::byte* const slots = memory(bytes).data();
  std::printf("host_transfer, %u thread(s), %zu MiB per batch, %zu layers, GB/s (1e9), medians of %zu rounds\n\n",
              threads, bytes / mib, layers, rounds);
  std::printf("| | fragment KiB | one memcpy | loop of memcpy | kvx | kvx / one memcpy | kvx / loop |\n");
  std::printf("|---|---|---|---|---|---|---|\n");
  for (const std::size_t kib : {4U, 8U, 16U, 32U, 64U, 128U, 256U}) {
    measure(kib * 1024, bytes, rounds, threads, engine, slots);
  }
  return 0;
}
