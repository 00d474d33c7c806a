// SPDX-License-Identifier: Apache-2.0
// match over a root that holds a million blocks: nanoseconds per block all in (hashing, lookup, the plan), against
//   floor     hashing the same prompt and nothing else
//   baseline  hashing, and a std::unordered_map under a std::shared_mutex, as a plain index would do it
// and: allocations per call, the same with several readers at once, with a writer beside, bytes of index per block,
// and the time from construction until the first hit with the page cache cold.
//
//   match_bench --root DIRECTORY [--blocks 1000000] [--prompt-blocks 8192] [--rounds 41]
//
// DIRECTORY is made, used, and removed.
#include <kvx/kvx.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <random>
#include <shared_mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "measure.hpp"

namespace {
std::atomic<std::uint64_t> allocations{0};
}

// Not inlined: g++ would see malloc's memory freed by delete, and warn.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* at = std::malloc(bytes)) return at;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* at) noexcept { std::free(at); }
[[gnu::noinline]] void operator delete(void* at, std::size_t) noexcept { std::free(at); }

namespace {

using namespace kvx_bench;

constexpr std::uint32_t block_tokens = 16;

struct settings {
  std::string root;
  std::size_t blocks = 1'000'000;
  std::size_t prompt_blocks = 8192;
  std::size_t rounds = 41;
};

/// The smallest engine there is: one layer of one page's size.
struct engine {
  std::vector<std::byte> keys = std::vector<std::byte>(16 * 2048);
  std::vector<std::byte> values = std::vector<std::byte>(16 * 2048);
  kvx::layout layout() {
    kvx::separate_kv tensors;
    tensors.shape = {
        .block_tokens = block_tokens, .page_tokens = block_tokens, .layers = 1, .heads = 1, .head_dim = 64};
    tensors.shape.element = kvx::element_type::bf16;
    tensors.page_count = 16;
    std::byte* const k = keys.data();
    std::byte* const v = values.data();
    tensors.keys = {&k, 1};
    tensors.values = {&v, 1};
    tensors.tensor_bytes = keys.size();
    return kvx::layout(block_tokens, {tensors});
  }
};

kvx::options options(const settings& with, std::size_t stride) {
  kvx::options o;
  o.identity = {"bench", "1", "bf16"};
  o.memory_bytes = 4 * mib;
  o.root = with.root;
  o.extent_bytes = kvx::page_bytes + (std::size_t{1} << 16U) * stride;
  o.storage_bytes = ((with.blocks + (1U << 16U) - 1) >> 16U) * o.extent_bytes;
  o.prompts_trusted = true;
  return o;
}

std::vector<kvx::token_id> prompt(const settings& with, std::size_t number) {
  std::vector<kvx::token_id> tokens(with.prompt_blocks * block_tokens + 1);
  std::mt19937_64 random(number);
  for (kvx::token_id& t : tokens) t = static_cast<kvx::token_id>(random() % 128'000);
  return tokens;
}

using chain = kvx::key_chain<kvx::xxh3_128>;
using digest = kvx::xxh3_128::digest_type;

std::vector<digest> keys_of(const kvx::options& o, std::span<const kvx::token_id> tokens) {
  std::vector<digest> keys(tokens.size() / block_tokens);
  digest parent = chain::root(o.identity, block_tokens, {});
  chain hashing;
  hashing.extend(tokens, block_tokens, {}, parent, keys);
  return keys;
}

/// Journals a million blocks without writing any payload: match looks at none.
void build(const settings& with, const kvx::options& o, kvx::layout layout) {
  const std::vector<std::size_t> layers{layout.layer_bytes(0, 0)};
  const auto geometry = kvx::store::slot_geometry::make(block_tokens, o.extra_bytes, layers);
  kvx::store::store_options at;
  at.root = o.root;
  at.capacity_bytes = o.storage_bytes;
  at.extent_bytes = o.extent_bytes;
  at.digest_bytes = digest::size();
  at.preallocate = false;
  const kvx::store::slot_identity who{chain::identity_digest(o.identity, block_tokens),
                                      kvx::shard{0, 0, 1, 0, 1, layout.fingerprint(0)}, kvx::xxh3_128::id};
  kvx::store::block_store store(at, who, geometry);
  if (!store.recover([](const kvx::store::recovered_block&) {})) std::exit(1);
  std::size_t stored = 0;
  for (std::size_t p = 0; stored < with.blocks; ++p) {
    kvx::block_key parent = kvx::to_block_key(chain::root(o.identity, block_tokens, {}));
    for (const digest& key : keys_of(o, prompt(with, p))) {
      if (store.free_slots() == 0 && !store.grow()) std::exit(1);
      const auto slot = store.allocate();
      const auto ticket = store.prepare_write(*slot);
      store.log_insert(kvx::to_block_key(key), parent, *slot, ticket->generation);
      parent = kvx::to_block_key(key);
      if (++stored == with.blocks) break;
    }
    if (!store.flush_journal() || !store.maintain()) std::exit(1);
  }
}

void drop_page_cache(const std::string& root) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (!entry.is_regular_file()) continue;
    const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    ::fdatasync(file);
    ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    ::close(file);
  }
}

/// What one would write without thinking twice.
struct plain_index {
  struct hash {
    std::size_t operator()(const digest& key) const noexcept {
      std::size_t word;
      std::memcpy(&word, key.bytes.data(), sizeof word);
      return word;
    }
  };
  std::shared_mutex mutex;
  std::unordered_map<digest, std::uint64_t, hash> map;
};

}  // namespace

int main(int argc, char** argv) {
  settings with;
  CLI::App app{"match over an index of a million blocks"};
  app.add_option("--root", with.root)->required();
  app.add_option("--blocks", with.blocks);
  app.add_option("--prompt-blocks", with.prompt_blocks);
  app.add_option("--rounds", with.rounds);
  CLI11_PARSE(app, argc, argv);
  if (std::filesystem::exists(with.root)) {
    std::fprintf(stderr, "match_bench: '%s' exists; name a directory that may be made and removed\n",
                 with.root.c_str());
    return 1;
  }
  engine small;
  const kvx::options o = options(with, 2 * kvx::page_bytes);
  build(with, o, small.layout());

  std::vector<double> opening;
  for (int round = 0; round < 5; ++round) {
    drop_page_cache(with.root);
    const auto tokens = prompt(with, 0);
    opening.push_back(timed([&] {
                        const kvx::host_cache<> cache(o, small.layout());
                        if (cache.match(tokens).blocks() != with.prompt_blocks)
                          std::fprintf(stderr, "match_bench: no hit after opening\n");
                      }).seconds);
  }

  const kvx::host_cache<> cache(o, small.layout());
  const std::size_t prompts = with.blocks / with.prompt_blocks;
  plain_index plain;
  std::vector<std::vector<kvx::token_id>> texts;
  for (std::size_t p = 0; p < prompts; ++p) {
    texts.push_back(prompt(with, p));
    for (const digest& key : keys_of(o, texts.back())) plain.map.emplace(key, p);
  }
  const kvx::block_key root = *cache.root({});
  const auto blocks = static_cast<double>(with.prompt_blocks);
  kvx::plan plan;
  std::vector<double> match_ns, hash_ns, plain_ns;
  std::uint64_t allocated = 0;
  for (std::size_t round = 0; round < with.rounds; ++round) {
    const auto& text = texts[round * 7919 % prompts];
    match_ns.push_back(1e9 / blocks * timed([&] {
                                        const std::uint64_t before = allocations.load();
                                        cache.match(text, root, {}, plan);
                                        if (round > 0) allocated += allocations.load() - before;
                                      }).seconds);
    if (plan.blocks() != with.prompt_blocks) std::fprintf(stderr, "match_bench: %zu blocks found\n", plan.blocks());
    const auto& other = texts[(round * 7919 + prompts / 3) % prompts];
    std::vector<digest> keys(with.prompt_blocks);
    chain hashing;
    hash_ns.push_back(1e9 / blocks * timed([&] {
                                       digest parent = kvx::detail::from_block_key<digest>(root);
                                       hashing.extend(other, block_tokens, {}, parent, keys);
                                     }).seconds);
    const auto& third = texts[(round * 7919 + 2 * prompts / 3) % prompts];
    std::size_t found = 0;
    plain_ns.push_back(1e9 / blocks * timed([&] {
                                        digest parent = kvx::detail::from_block_key<digest>(root);
                                        hashing.extend(third, block_tokens, {}, parent, keys);
                                        for (const digest& key : keys) {
                                          const std::shared_lock lock(plain.mutex);
                                          found += plain.map.count(key);
                                        }
                                      }).seconds);
    if (found != with.prompt_blocks) std::fprintf(stderr, "match_bench: the baseline found %zu\n", found);
  }

  const auto together = [&](std::size_t readers) {
    std::vector<double> ns(readers);
    std::vector<std::thread> running;
    for (std::size_t r = 0; r < readers; ++r) {
      running.emplace_back([&, r] {
        kvx::plan mine;
        std::vector<double> each;
        for (std::size_t round = 0; round < with.rounds; ++round)
          each.push_back(1e9 / blocks *
                         timed([&] { cache.match(texts[(round * 7919 + r * 31) % prompts], root, {}, mine); }).seconds);
        ns[r] = median(each).middle;
      });
    }
    for (std::thread& t : running) t.join();
    return median(ns).middle;
  };
  const double one = together(1);
  const double two = together(2);

  const interval all_in = median(match_ns);
  const interval floor = median(hash_ns);
  const interval baseline = median(plain_ns);
  std::printf("%zu blocks, prompts of %zu blocks, %zu rounds\n", with.blocks, with.prompt_blocks, with.rounds);
  std::printf("match, all in          %6.1f ns/block (%.1f-%.1f); goal <= 40: %s; allocations in %zu calls: %llu\n",
              all_in.middle, all_in.low, all_in.high,
              all_in.high <= 40 ? "reached"
              : all_in.low > 40 ? "missed"
                                : "inconclusive",
              with.rounds - 1, static_cast<unsigned long long>(allocated));
  std::printf("hashing alone          %6.1f ns/block (%.1f-%.1f)\n", floor.middle, floor.low, floor.high);
  std::printf("hashing + shared map   %6.1f ns/block (%.1f-%.1f)\n", baseline.middle, baseline.low, baseline.high);
  std::printf("readers at once        %6.1f ns/block each with 1, %.1f with 2\n", one, two);
  std::printf("index                  %6.1f bytes/block\n",
              static_cast<double>(cache.index_bytes()) / static_cast<double>(with.blocks));
  const interval open = median(opening);
  std::printf("open, cold, until hit  %6.2f s (%.2f-%.2f); goal < 1: %s\n", open.middle, open.low, open.high,
              open.high < 1 ? "reached" : "missed");
  std::filesystem::remove_all(with.root);
  return 0;
}
