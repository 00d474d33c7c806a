// SPDX-License-Identifier: Apache-2.0
// Blocks from storage and to storage through the cache, against
//   ceiling   a raw O_DIRECT loop over one file as large as the cache's slabs, a batch further in every round as they
//             are, the best of a sweep over threads and request size
//   baseline  one file per block: written to a temporary name and renamed, opened for every read, by the same threads
// All take turns in every round; printed are medians, the rounds' ratios with their 95 % intervals, and processor time.
// Loads are cold: blocks are read with O_DIRECT and were evicted from memory before.
//
//   storage_bench [--dir .] [--block-mib 2|5] [--batch-mib 128] [--rounds 15] [--io uring|posix]
#include <kvx/io/uring.hpp>
#include <kvx/kvx.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "measure.hpp"

namespace {

using namespace kvx_bench;
using namespace std::chrono_literals;

struct settings {
  std::string directory = ".";
  std::size_t block_mib = 2;
  std::size_t batch_mib = 128;
  std::size_t rounds = 15;
  std::string io = "uring";
};

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "storage_bench: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

/// Runs `work(i)` for i below `count` on some threads.
template <class Work>
void spread(std::size_t threads, std::size_t count, Work work) {
  std::atomic<std::size_t> next{0};
  std::vector<std::thread> running;
  for (std::size_t t = 0; t < threads; ++t)
    running.emplace_back([&] {
      for (std::size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) work(i);
    });
  for (std::thread& t : running) t.join();
}

void whole(bool read, int file, std::byte* data, std::size_t bytes, std::uint64_t offset) {
  const ssize_t moved = read ? ::pread(file, data, bytes, static_cast<off_t>(offset))
                             : ::pwrite(file, data, bytes, static_cast<off_t>(offset));
  if (moved != static_cast<ssize_t>(bytes)) fail(read ? "read" : "write");
}

/// One preallocated, once written file of some batches, and the batch of bytes that goes in and out of it.
class raw_file {
 public:
  raw_file(const std::string& path, std::span<std::byte> buffer, std::size_t batches)
      : buffer_(buffer), batches_(batches) {
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
    if (file_ < 0 || ::posix_fallocate(file_, 0, static_cast<off_t>(batches * buffer.size())) != 0) fail(path);
    for (std::size_t i = 0; i < batches; ++i) move(false, 4, 4 * mib);
  }
  ~raw_file() { ::close(file_); }
  raw_file(const raw_file&) = delete;
  raw_file& operator=(const raw_file&) = delete;

  /// The oldest batch: what was written longest ago is read or overwritten.
  void move(bool read, std::size_t threads, std::size_t piece) {
    const std::size_t first = next_[read]++ % batches_ * buffer_.size();
    spread(threads, buffer_.size() / piece,
           [&](std::size_t i) { whole(read, file_, buffer_.data() + i * piece, piece, first + i * piece); });
  }
  /// The same from `source`, copied on the way as a save is.
  void copy_and_write(std::span<const std::byte> source, std::size_t threads, std::size_t piece) {
    const std::size_t first = next_[false]++ % batches_ * buffer_.size();
    spread(threads, buffer_.size() / piece, [&](std::size_t i) {
      std::memcpy(buffer_.data() + i * piece, source.data() + i * piece, piece);
      whole(false, file_, buffer_.data() + i * piece, piece, first + i * piece);
    });
  }

 private:
  std::span<std::byte> buffer_;
  std::size_t batches_;
  std::size_t next_[2] = {};
  int file_ = -1;
};

/// How it is done elsewhere: a file per block.
class file_per_block {
 public:
  file_per_block(std::string directory, std::span<std::byte> buffer, std::size_t block_bytes)
      : directory_(std::move(directory)), buffer_(buffer), block_bytes_(block_bytes) {
    std::filesystem::create_directories(directory_);
  }
  void move(bool read, std::size_t threads) {
    spread(threads, buffer_.size() / block_bytes_, [&](std::size_t i) {
      const std::string name = directory_ + "/" + std::to_string(i);
      const std::string temporary = name + ".tmp";
      const int file = read ? ::open(name.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)
                            : ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
      if (file < 0) fail(name);
      whole(read, file, buffer_.data() + i * block_bytes_, block_bytes_, 0);
      ::close(file);
      if (!read && ::rename(temporary.c_str(), name.c_str()) != 0) fail(name);
    });
  }

 private:
  std::string directory_;
  std::span<std::byte> buffer_;
  std::size_t block_bytes_;
};

/// A cache over an engine with one batch of pages, whose prompts take turns so that each load is cold.
class cached {
 public:
  static constexpr std::uint32_t block_tokens = 16;
  // Enough that a prompt has long left memory when its turn comes.
  static constexpr std::size_t prompts = 8;
  // What storage holds: more, so that a prompt is loaded long before its places are needed.
  static constexpr std::size_t batches = prompts + 6;

  cached(const settings& with, const std::string& root) : with_(with) {
    constexpr std::size_t fragment_bytes = 32U << 10U;
    const std::size_t layers = with.block_mib * mib / (2 * fragment_bytes);
    blocks_ = with.batch_mib / with.block_mib;
    std::vector<std::byte*> keys;
    std::vector<std::byte*> values;
    const std::size_t tensor_bytes = blocks_ * fragment_bytes;
    pages_ = memory(2 * layers * tensor_bytes);
    for (std::size_t l = 0; l < layers; ++l) {
      keys.push_back(pages_.data() + 2 * l * tensor_bytes);
      values.push_back(pages_.data() + (2 * l + 1) * tensor_bytes);
    }
    kvx::separate_kv tensors;
    tensors.shape.block_tokens = tensors.shape.page_tokens = block_tokens;
    tensors.shape.layers = static_cast<std::uint32_t>(layers);
    tensors.shape.heads = 8;
    tensors.shape.head_dim = fragment_bytes / (block_tokens * 8 * 2);
    tensors.shape.element = kvx::element_type::bf16;
    tensors.page_count = blocks_;
    tensors.keys = keys;
    tensors.values = values;
    tensors.tensor_bytes = tensor_bytes;
    kvx::options o;
    o.identity = {"bench", "1", "bf16"};
    o.root = root;
    // A prefetch pins half of the memory at most, and the next prompt must find none of its blocks there.
    o.memory_bytes = (2 * with.batch_mib + with.batch_mib / 2) * mib;
    o.storage_bytes = batches * with.batch_mib * mib + 256 * mib;
    o.extent_bytes = 256 * mib;
    o.prompts_trusted = true;
    o.lease = 1ms;
    o.load_deadline = o.save_deadline = 600s;
    const kvx::layout layout(block_tokens, {tensors});
    if (with.io == "uring") {
      cache_ = std::make_unique<kvx::any_cache<kvx::host_stream>>(cache_of<kvx::uring>(o, layout));
    } else {
      cache_ = std::make_unique<kvx::any_cache<kvx::host_stream>>(cache_of<kvx::posix>(o, layout));
    }
    ids_.resize(blocks_);
    for (std::size_t i = 0; i < blocks_; ++i) ids_[i] = static_cast<kvx::block_id>(i);
  }

  [[nodiscard]] double batch_bytes() const { return static_cast<double>(blocks_ * with_.block_mib * mib); }

  /// Saves the next prompt and waits until it is stored; storage evicts the oldest.
  void save() {
    if (chains_.size() == prompts) chains_.erase(chains_.begin());
    chains_.push_back(cache_->make_sequence(fresh_tokens()));
    const auto ticket = cache_->save(chains_.back(), 0, ids_);
    if (!ticket.wait_stored(600s) || !ticket.outcome().ok())
      std::fprintf(stderr, "storage_bench: a save was not stored: %s\n",
                   std::string(to_string(ticket.outcome().code())).c_str());
  }
  /// Brings the oldest prompt into memory, verified.
  void load() {
    const kvx::sequence& oldest = chains_.front();
    kvx::plan plan = cache_->match(oldest);
    for (std::size_t b = 0; b < plan.blocks(); ++b)
      if (plan.where(b) != kvx::tier::storage) std::fprintf(stderr, "storage_bench: block %zu is not cold\n", b);
    const auto pre = cache_->prefetch(std::move(plan));
    if (!pre.wait_for(600s) || !pre.outcome().ok() || pre.ready_blocks() != blocks_)
      std::fprintf(stderr, "storage_bench: a load ended after %zu of %zu blocks: %s\n", pre.ready_blocks(), blocks_,
                   std::string(to_string(pre.outcome().code())).c_str());
    chains_.erase(chains_.begin());
  }
  [[nodiscard]] kvx::metrics_snapshot stats() const { return cache_->stats(); }

 private:
  template <class Io>
  using cache_of = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::fifo, Io, kvx::host_transfer>;

  std::vector<kvx::token_id> fresh_tokens() {
    std::vector<kvx::token_id> tokens(blocks_ * block_tokens + 1);
    for (kvx::token_id& t : tokens) t = static_cast<kvx::token_id>(random_());
    return tokens;
  }

  settings with_;
  std::size_t blocks_ = 0;
  std::span<std::byte> pages_;
  std::vector<kvx::block_id> ids_;
  std::vector<kvx::sequence> chains_;
  std::unique_ptr<kvx::any_cache<kvx::host_stream>> cache_;
  std::mt19937_64 random_{1};
};

struct series {
  std::vector<double> rate;  // bytes per second
  std::vector<double> cpu;   // CPU-ms per GiB
  void add(double bytes, const cost& c) {
    rate.push_back(bytes / c.seconds);
    cpu.push_back(1e3 * c.cpu_seconds / (bytes / (1024.0 * mib)));
  }
};

void print(const char* name, const series& s, const series& ceiling) {
  const interval rate = median(s.rate);
  const interval to = ratio(s.rate, ceiling.rate);
  std::printf("  %-24s %7.2f GB/s  %6.1f CPU-ms/GiB   %.3f of raw (%.3f-%.3f)\n", name, rate.middle / 1e9,
              median(s.cpu).middle, to.middle, to.low, to.high);
}

struct way {
  std::size_t threads;
  std::size_t piece;
};

way best_way(raw_file& file, bool read, double bytes) {
  way best{1, mib};
  double most = 0;
  for (const std::size_t threads : {1U, 2U, 4U, 8U, 16U}) {
    for (const std::size_t piece : {mib / 2, mib, 4 * mib}) {
      std::vector<double> rates;
      for (int i = 0; i < 3; ++i) rates.push_back(bytes / timed([&] { file.move(read, threads, piece); }).seconds);
      const double rate = median(rates).middle;
      if (rate <= most) continue;
      most = rate;
      best = {threads, piece};
    }
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  settings with;
  CLI::App app{"Storage load and save through the cache, against a raw loop and one file per block"};
  app.add_option("--dir", with.directory, "where to write; about three dozen batches of space");
  app.add_option("--block-mib", with.block_mib);
  app.add_option("--batch-mib", with.batch_mib, "bytes per measurement");
  app.add_option("--rounds", with.rounds);
  app.add_option("--io", with.io)->check(CLI::IsMember({"uring", "posix"}));
  CLI11_PARSE(app, argc, argv);
  with.batch_mib = with.batch_mib / with.block_mib * with.block_mib;

  const std::string directory = with.directory + "/kvx-storage-bench-" + std::to_string(::getpid());
  std::filesystem::create_directories(directory);
  {
    const std::size_t bytes = with.batch_mib * mib / (4 * mib) * (4 * mib);
    const std::span<std::byte> buffer = memory(bytes);
    raw_file raw(directory + "/raw", buffer, cached::batches);
    const std::span<std::byte> pages = memory(bytes);
    file_per_block files(directory + "/files", buffer.first(bytes / (with.block_mib * mib) * (with.block_mib * mib)),
                         with.block_mib * mib);
    cached cache(with, directory + "/root");
    const auto raw_bytes = static_cast<double>(bytes);
    const double file_bytes = static_cast<double>(bytes / (with.block_mib * mib) * (with.block_mib * mib));
    // Each place once, so that what follows overwrites, as the raw loop does.
    for (std::size_t i = 0; i < 2 * cached::batches; ++i) cache.save();
    files.move(false, 4);
    const way reading = best_way(raw, true, raw_bytes);
    const way writing = best_way(raw, false, raw_bytes);

    series raw_read, raw_write, copied_write, kvx_read, kvx_write, file_read, file_write;
    std::vector<double> verify_ms, load_apart, xxh3_ms;
    for (std::size_t round = 0; round < with.rounds; ++round) {
      raw_read.add(raw_bytes, timed([&] { raw.move(true, reading.threads, reading.piece); }));
      const auto before = cache.stats().latency.verify;
      const cost load = timed([&] { cache.load(); });
      const double verify = 1e-9 * static_cast<double>(cache.stats().latency.verify.sum_ns - before.sum_ns);
      kvx_read.add(cache.batch_bytes(), load);
      const double gib = cache.batch_bytes() / (1024.0 * mib);
      verify_ms.push_back(1e3 * verify / gib);
      load_apart.push_back(1e3 * (load.cpu_seconds - verify) / gib);
      const cost hash = timed([&] {
        XXH64_hash_t all = 0;
        for (std::size_t at = 0; at + kvx::page_bytes <= buffer.size(); at += kvx::page_bytes)
          all ^= XXH3_64bits(buffer.data() + at, kvx::page_bytes);
        volatile XXH64_hash_t sink = all;
        static_cast<void>(sink);
      });
      xxh3_ms.push_back(1e3 * hash.seconds / (raw_bytes / (1024.0 * mib)));
      file_read.add(file_bytes, timed([&] { files.move(true, reading.threads); }));
      raw_write.add(raw_bytes, timed([&] { raw.move(false, writing.threads, writing.piece); }));
      copied_write.add(raw_bytes, timed([&] { raw.copy_and_write(pages, writing.threads, writing.piece); }));
      kvx_write.add(cache.batch_bytes(), timed([&] { cache.save(); }));
      file_write.add(file_bytes, timed([&] { files.move(false, writing.threads); }));
    }
    std::printf("blocks of %zu MiB, batches of %zu MiB, %zu rounds, backend %s\n", with.block_mib, with.batch_mib,
                with.rounds, with.io.c_str());
    std::printf("load (raw: %zu threads, %zu KiB)\n", reading.threads, reading.piece / 1024);
    print("raw loop", raw_read, raw_read);
    print("kvx, verified", kvx_read, raw_read);
    print("one file per block", file_read, raw_read);
    std::printf(
        "  kvx's verification: %.1f CPU-ms/GiB, %.2f x one XXH3 pass over memory; everything else: %.1f CPU-ms/GiB\n",
        median(verify_ms).middle, ratio(verify_ms, xxh3_ms).middle, median(load_apart).middle);
    std::printf("  goal >= 0.95 of raw: %s; ahead of a file per block: %s\n",
                verdict(ratio(kvx_read.rate, raw_read.rate), 0.95), verdict(ratio(kvx_read.rate, file_read.rate), 1.0));
    std::printf("save, from engine pages until stored (raw: %zu threads, %zu KiB)\n", writing.threads,
                writing.piece / 1024);
    print("raw loop", raw_write, raw_write);
    print("raw loop that copies", copied_write, raw_write);
    print("kvx, copied and sealed", kvx_write, raw_write);
    print("one file per block", file_write, raw_write);
    std::printf("  goal >= 0.95 of raw: %s; ahead of a file per block: %s\n",
                verdict(ratio(kvx_write.rate, raw_write.rate), 0.95),
                verdict(ratio(kvx_write.rate, file_write.rate), 1.0));
  }
  std::filesystem::remove_all(directory);
  return 0;
}
