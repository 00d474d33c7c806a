// SPDX-License-Identifier: Apache-2.0
// c++ -std=c++20 -O2 -Iinclude examples/04_storage.cpp -pthread -o 04_storage && ./04_storage
//
// Blocks on storage outlive the process, are brought into memory while a request waits in the queue, and are only
// served after they proved themselves.

#include <kvx/kvx.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace std::chrono_literals;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "04_storage: failed: %s\n", what);
  std::exit(1);
}

/// One layer, two heads: a page is 16 tokens of 64 floats, once for keys and once for values.
struct toy_engine {
  static constexpr std::uint32_t page_tokens = 16;
  static constexpr std::size_t page_bytes = page_tokens * 64 * sizeof(float);
  static constexpr std::size_t pages = 64;

  [[nodiscard]] kvx::layout layout() {
    std::byte* const key_tensor = keys.data();
    std::byte* const value_tensor = values.data();
    kvx::separate_kv tensors;
    tensors.shape = {.block_tokens = page_tokens,
                     .page_tokens = page_tokens,
                     .layers = 1,
                     .heads = 2,
                     .head_dim = 32,
                     .element = kvx::element_type::f32};
    tensors.page_count = pages;
    tensors.keys = {&key_tensor, 1};
    tensors.values = {&value_tensor, 1};
    tensors.tensor_bytes = keys.size();
    return kvx::layout(page_tokens, {tensors});
  }
  void fill(kvx::block_id page, const kvx::block_key& key) {
    for (std::size_t i = 0; i < page_bytes; ++i)
      keys[page * page_bytes + i] = values[page * page_bytes + i] = key.bytes[i % 16];
  }
  [[nodiscard]] bool holds(kvx::block_id page, const kvx::block_key& key) const {
    for (std::size_t i = 0; i < page_bytes; ++i)
      if (keys[page * page_bytes + i] != key.bytes[i % 16] || values[page * page_bytes + i] != key.bytes[i % 16])
        return false;
    return true;
  }

  std::vector<std::byte> keys = std::vector<std::byte>(pages * page_bytes);
  std::vector<std::byte> values = std::vector<std::byte>(pages * page_bytes);
};

/// A directory of one's own, removed at the end.
struct temporary_directory {
  temporary_directory() : path((std::filesystem::temp_directory_path() / "kvx-example-XXXXXX").string()) {
    check(::mkdtemp(path.data()) != nullptr, "a temporary directory can be made");
  }
  ~temporary_directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;

  std::string path;
};

constexpr std::size_t blocks = 24;

std::vector<kvx::block_id> pages_from(kvx::block_id first) {
  std::vector<kvx::block_id> ids(blocks);
  for (std::size_t b = 0; b < blocks; ++b) ids[b] = first + static_cast<kvx::block_id>(b);
  return ids;
}

/// Flips a bit of every page behind the superblocks, as a failing drive might.
void damage(const std::string& root) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".slab") continue;
    std::fstream slab(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    for (std::size_t at = kvx::page_bytes + 100; at < entry.file_size(); at += kvx::page_bytes) {
      slab.seekg(static_cast<std::streamoff>(at));
      const int old = slab.get();
      slab.seekp(static_cast<std::streamoff>(at));
      slab.put(static_cast<char>(old ^ 0x10));
    }
    check(slab.good(), "the slab can be damaged");
  }
}

}  // namespace

int main() {
  const temporary_directory directory;
  toy_engine engine;
  kvx::options options;
  options.identity = {"toy-model", "weights-1", "f32"};
  // [options]
  options.memory_bytes = 8U << 20U;
  options.root = directory.path;       // a local drive or a parallel file system
  options.storage_bytes = 16U << 20U;  // of all processes that use the root
  options.prompts_trusted = true;      // nobody hostile chooses prompts; else take kvx::shared_cache
  // [/options]
  options.load_deadline = 60s;  // nobody waits for this program, and its machine may be busy

  std::vector<kvx::token_id> prompt(blocks * toy_engine::page_tokens + 1);
  for (std::size_t t = 0; t < prompt.size(); ++t) prompt[t] = static_cast<kvx::token_id>(3 * t + 1);

  {
    kvx::host_cache<> cache(options, engine.layout());
    const kvx::sequence chain = cache.make_sequence(prompt);
    for (std::size_t b = 0; b < blocks; ++b) engine.fill(static_cast<kvx::block_id>(b), chain.key(b));
    const auto save = cache.save(chain, 0, pages_from(0));
    // Engines do not wait for it; this program is about to end the cache.
    check(save.wait_stored(60s) && save.outcome().ok(), "the blocks are on storage");
    std::printf("saved %zu blocks of %zu bytes\n", chain.blocks(), cache.block_bytes());
  }

  {
    kvx::host_cache<> cache(options, engine.layout());  // as after a restart, or on another machine
    const kvx::sequence chain = cache.make_sequence(prompt);
    const kvx::plan plan = cache.match(chain);
    check(plan.blocks() == blocks && plan.where(0) == kvx::tier::storage, "they are found on storage");

    const kvx::prefetch_ticket arriving = cache.prefetch(plan);
    std::size_t turns = 1;  // of a scheduler that has other requests to run
    while (!arriving.wait_for(1ms)) ++turns;
    check(arriving.ready_blocks() == blocks, "all have been read and verified");

    const auto load = cache.load(plan, pages_from(32));
    load.wait();
    check(load.loaded_blocks() == blocks && load.outcome().ok(), "all are loaded");
    for (std::size_t b = 0; b < blocks; ++b)
      check(engine.holds(static_cast<kvx::block_id>(32 + b), chain.key(b)), "every byte is what was saved");
    check(cache.match(chain).where(0) == kvx::tier::memory, "from now on they are in memory too");
    std::printf("loaded %zu blocks after a restart; the scheduler had %zu turn(s) meanwhile\n", load.loaded_blocks(),
                turns);
  }

  {
    kvx::options other = options;
    other.identity.revision = "weights-2";
    kvx::host_cache<> cache(other, engine.layout());
    check(cache.match(prompt).empty(), "another revision of the weights never sees them");
  }

  damage(directory.path);
  {
    kvx::host_cache<> cache(options, engine.layout());
    const kvx::plan plan = cache.match(prompt);
    const kvx::prefetch_ticket arriving = cache.prefetch(plan);
    check(arriving.wait_for(60s), "damage is noticed at once");
    check(arriving.ready_blocks() == 0, "what is damaged is a miss");
    check(cache.load(plan, pages_from(32)).loaded_blocks() == 0, "and is never loaded");
    const std::uint64_t damaged = cache.stats().storage.damaged;
    check(damaged > 0, "and it is counted");
    std::printf("after damage: nothing served, %llu block(s) counted as damaged\n",
                static_cast<unsigned long long>(damaged));
  }
}
