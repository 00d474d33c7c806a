// SPDX-License-Identifier: Apache-2.0
// Keys per second: each hasher alone, and the chain that match() runs over a prompt. The baseline is hashing the same
// tokens in one piece, which nothing can beat that reads them all. Then the checksums of pages from memory, alone and
// while they are copied, beside xxHash as the compiler's target builds it and a copy by memcpy.

#include <kvx/concepts/hasher.hpp>
#include <kvx/detail/page_checksum.hpp>
#include <kvx/hash/key_chain.hpp>
#include <kvx/hash/sha256.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/types.hpp>

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

namespace {

constexpr std::size_t prompt_tokens = 131'072;

std::vector<kvx::token_id> make_prompt() {
  std::mt19937 random(1);
  std::vector<kvx::token_id> tokens(prompt_tokens);
  for (kvx::token_id& token : tokens) token = static_cast<kvx::token_id>(random() % 128'000U);
  return tokens;
}

void count_blocks(benchmark::State& state, std::size_t blocks) {
  const double all = static_cast<double>(state.iterations()) * static_cast<double>(blocks);
  state.counters["per_block"] = benchmark::Counter(all, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

/// One digest of as many bytes as the argument says.
template <kvx::hasher H>
void digest_of(benchmark::State& state) {
  const std::vector<std::byte> bytes(static_cast<std::size_t>(state.range(0)), std::byte{7});
  for (auto _ : state) benchmark::DoNotOptimize(H::hash(bytes));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

/// The whole prompt in one digest: the ceiling.
template <kvx::hasher H>
void prompt_at_once(benchmark::State& state) {
  const std::vector<kvx::token_id> tokens = make_prompt();
  for (auto _ : state) benchmark::DoNotOptimize(H::hash(std::as_bytes(std::span(tokens))));
  count_blocks(state, prompt_tokens / static_cast<std::size_t>(state.range(0)));
}

/// Chained keys of a prompt in blocks of as many tokens as the argument says.
template <kvx::hasher H>
void prompt_in_blocks(benchmark::State& state) {
  const auto block_tokens = static_cast<std::uint32_t>(state.range(0));
  const std::vector<kvx::token_id> tokens = make_prompt();
  kvx::key_chain<H> chain;
  const auto root = chain.root({"model", "revision", "bf16"}, block_tokens, {});
  std::vector<typename H::digest_type> keys(prompt_tokens / block_tokens);
  for (auto _ : state) {
    auto parent = root;
    chain.extend(tokens, block_tokens, {}, parent, keys);
    benchmark::DoNotOptimize(keys.data());
    benchmark::ClobberMemory();
  }
  count_blocks(state, keys.size());
}

constexpr std::size_t payload_pages = (128U << 20U) / kvx::page_bytes;  // far above the caches

struct payload {
  std::vector<std::byte> from = std::vector<std::byte>(payload_pages * kvx::page_bytes, std::byte{7});
  std::vector<std::byte> to = std::vector<std::byte>((payload_pages + 1) * kvx::page_bytes, std::byte{1});
  std::vector<std::uint64_t> checksums = std::vector<std::uint64_t>(payload_pages);
  std::byte* const target =
      reinterpret_cast<std::byte*>(kvx::round_up(reinterpret_cast<std::size_t>(to.data()), kvx::page_bytes));
};

template <class Work>
void over_payload(benchmark::State& state, Work work) {
  payload p;
  for (auto _ : state) {
    work(p);
    benchmark::DoNotOptimize(p.checksums.data());
    benchmark::DoNotOptimize(p.target);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(p.from.size()));
}
void xxhash_each(const std::byte* pages, std::span<std::uint64_t> to) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = kvx::detail::page_checksum(pages + i * kvx::page_bytes);
}
void pages_xxhash(benchmark::State& state) {
  over_payload(state, [](payload& p) { xxhash_each(p.from.data(), p.checksums); });
}
void pages_kvx(benchmark::State& state) {
  over_payload(state, [](payload& p) { kvx::detail::page_checksums(p.from.data(), p.checksums); });
}
void pages_memcpy_then_xxhash(benchmark::State& state) {
  over_payload(state, [](payload& p) {
    std::memcpy(p.target, p.from.data(), p.from.size());
    xxhash_each(p.target, p.checksums);
  });
}
void pages_copied_by_kvx(benchmark::State& state) {
  over_payload(state, [](payload& p) { kvx::detail::copy_pages(p.from.data(), p.target, p.checksums); });
}

}  // namespace

BENCHMARK(pages_xxhash);
BENCHMARK(pages_kvx);
BENCHMARK(pages_memcpy_then_xxhash);
BENCHMARK(pages_copied_by_kvx);
BENCHMARK_TEMPLATE(digest_of, kvx::xxh3_128)->Arg(64)->Arg(96)->Arg(1024)->Arg(65536);
BENCHMARK_TEMPLATE(digest_of, kvx::sha256)->Arg(64)->Arg(96)->Arg(1024)->Arg(65536);
BENCHMARK_TEMPLATE(prompt_at_once, kvx::xxh3_128)->Arg(16);
BENCHMARK_TEMPLATE(prompt_at_once, kvx::sha256)->Arg(16);
BENCHMARK_TEMPLATE(prompt_in_blocks, kvx::xxh3_128)->Arg(16)->Arg(32)->Arg(64)->Arg(256)->Arg(1024);
BENCHMARK_TEMPLATE(prompt_in_blocks, kvx::sha256)->Arg(16)->Arg(32)->Arg(64)->Arg(256)->Arg(1024);
BENCHMARK_MAIN();
