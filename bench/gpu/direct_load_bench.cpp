// SPDX-License-Identifier: Apache-2.0
// From storage into the pages of an engine on a GPU, from a cache that is not open yet: through the host's memory
// (prefetch, then load), and straight through staging memory on the device (load_direct), with reads of the host's and
// of cuFile's. Beside them, in the same rounds, what the host reads without looking at it, which is the ceiling.
#include <kvx/io/cufile.hpp>
#include <kvx/presets/cuda.hpp>
#include <kvx/transfer/cuda/checksum.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "device.hpp"
#include "engine_memory.hpp"
#include "measure.hpp"

using namespace kvx_bench;

namespace {

constexpr std::chrono::seconds patience{120};

struct settings {
  std::string root;
  std::size_t blocks = 2048;
  std::size_t layers = 32;
  std::size_t fragment_bytes = 32U << 10U;
  std::size_t rounds = 5;
  unsigned threads = 16;
  std::size_t staging_mib = 256;
};

/// The engine's pool, and the same bytes once more to compare with.
class pool {
 public:
  explicit pool(const settings& with)
      : region_bytes_(with.blocks * with.fragment_bytes), regions_(2 * with.layers), pages_(with.blocks) {
    memory_ = allocate<std::byte>(bytes());
    wanted_ = allocate<std::byte>(bytes());
    values_ = allocate<std::uint64_t>(2 * pages());
    must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
    std::vector<std::uint64_t> random((64 * mib + region_bytes_) / 8);
    std::mt19937_64 from(7);
    for (std::uint64_t& word : random) word = from();
    for (std::size_t r = 0; r < regions_; ++r)
      must(cudaMemcpy(wanted_ + r * region_bytes_, random.data() + 8 * (r * 131'071 % (8 * mib / 8)), region_bytes_,
                      cudaMemcpyDefault),
           "filling the pool");
    must(cudaMemcpy(memory_, wanted_, bytes(), cudaMemcpyDeviceToDevice), "filling the pool");
  }
  ~pool() {
    static_cast<void>(cudaFree(memory_));
    static_cast<void>(cudaFree(wanted_));
    static_cast<void>(cudaFree(values_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  pool(const pool&) = delete;
  pool& operator=(const pool&) = delete;

  [[nodiscard]] std::size_t bytes() const { return regions_ * region_bytes_; }
  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  [[nodiscard]] paged_device_layout layout(std::size_t fragment_bytes) const {
    std::vector<std::byte*> regions;
    for (std::size_t r = 0; r < regions_; ++r) regions.push_back(memory_ + r * region_bytes_);
    return {std::move(regions), fragment_bytes, pages_};
  }
  void clear() { must(cudaMemset(memory_, 0, bytes()), "clearing the pool"); }
  void check() {
    for (std::byte* const each : {memory_, wanted_})
      if (!kvx::cuda_page_values(kernels(), each, pages(), values_ + (each == memory_ ? 0 : pages()), stream_).ok())
        must(cudaErrorUnknown, "checksums of the pool");
    std::vector<std::uint64_t> values(2 * pages());
    must(cudaStreamSynchronize(stream_), "checksums of the pool");
    must(cudaMemcpy(values.data(), values_, values.size() * 8, cudaMemcpyDefault), "checksums of the pool");
    if (std::equal(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(pages()),
                   values.begin() + static_cast<std::ptrdiff_t>(pages())))
      return;
    std::fprintf(stderr, "the pages hold something else than what was saved\n");
    std::exit(1);
  }

 private:
  template <class T>
  static T* allocate(std::size_t count) {
    void* made = nullptr;
    must(cudaMalloc(&made, count * sizeof(T)), "device memory for two pools");
    return static_cast<T*>(made);
  }
  [[nodiscard]] std::size_t pages() const { return bytes() / kvx::page_bytes; }

  std::size_t region_bytes_;
  std::size_t regions_;
  std::size_t pages_;
  std::byte* memory_ = nullptr;
  std::byte* wanted_ = nullptr;
  std::uint64_t* values_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

using cache = kvx::gpu_cache<paged_device_layout>;

class measurement {
 public:
  explicit measurement(const settings& with) : with_(with), pool_(with), ids_(with.blocks) {
    std::iota(ids_.begin(), ids_.end(), kvx::block_id{0});
    kvx::cuda_transfer_options o;
    o.kernels = kernels();
    const kvx::cuda_transfer first(o);
    transfer_ = o;
    transfer_.load_costs = first.load_costs();  // an engine calibrates once
    transfer_.save_costs = first.save_costs();
    save();
  }

  [[nodiscard]] std::size_t bytes() const { return pool_.bytes(); }
  [[nodiscard]] std::size_t block_bytes() const { return block_bytes_; }

  /// Reads of the slabs into memory that is pinned already, as many threads as the others have.
  double ceiling() {
    if (pinned_ == nullptr) must(cudaHostAlloc(&pinned_, with_.threads * piece, cudaHostAllocDefault), "pinned memory");
    std::vector<std::pair<int, std::uint64_t>> pieces;
    std::vector<int> files;
    std::size_t left = pool_.bytes();
    for (const auto& file : std::filesystem::recursive_directory_iterator(with_.root)) {
      if (file.path().extension() != ".slab") continue;
      int descriptor = ::open(file.path().c_str(), O_RDONLY | O_DIRECT);
      if (descriptor < 0) descriptor = ::open(file.path().c_str(), O_RDONLY);
      files.push_back(descriptor);
      const std::size_t whole = std::min<std::size_t>(left, file.file_size() / piece * piece);
      for (std::size_t at = 0; at < whole; at += piece) pieces.emplace_back(descriptor, at);
      left -= whole;
    }
    std::atomic<std::size_t> next{0};
    std::atomic<std::size_t> read{0};
    const auto began = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < with_.threads; ++t) {
      threads.emplace_back([&, buffer = static_cast<std::byte*>(pinned_) + t * piece] {
        for (std::size_t i = next++; i < pieces.size(); i = next++) {
          const ssize_t moved = ::pread(pieces[i].first, buffer, piece, static_cast<off_t>(pieces[i].second));
          read += moved > 0 ? static_cast<std::size_t>(moved) : 0;
        }
      });
    }
    for (std::thread& each : threads) each.join();
    const double took = seconds_since(began);
    for (const int each : files) ::close(each);
    return took * static_cast<double>(pool_.bytes()) / static_cast<double>(read);
  }

  /// Shape   opened: seconds until a load could begin
  double through_memory(double& opened) {
    return measured(pool_.bytes() / 8 * 9 + 64 * mib, opened, [&](cache& c, const kvx::plan& plan) {
      // Half of the memory may be pinned, and the engine takes what is ready as it comes.
      std::size_t done = 0;
      const auto until = std::chrono::steady_clock::now() + patience;
      kvx::prefetch_ticket arriving = c.prefetch(plan);
      std::vector<kvx::load_ticket<cudaStream_t>> loads;
      while (done < plan.blocks() && std::chrono::steady_clock::now() < until) {
        arriving.wait_ready(std::min(plan.blocks(), done + with_.blocks / 8), std::chrono::milliseconds(100));
        const std::size_t ready = arriving.ready_blocks();
        if (ready > done) {
          loads.push_back(c.load(plan, std::span(ids_).subspan(done, ready - done), pool_.stream(), done));
          done = loads.back().loaded_blocks();
        } else if (arriving.done()) {
          arriving = c.prefetch(plan, done);
        }
      }
      for (const auto& each : loads) each.wait();
      return done;
    });
  }

  double direct(kvx::cufile_way way, double& opened) {
    return measured(64 * block_bytes_, opened, [&](cache& c, const kvx::plan& plan) {
      kvx::cufile_options o = reader_options();
      o.through = way;
      const auto began = std::chrono::steady_clock::now();
      const auto reader = std::make_shared<kvx::cufile>(o);
      opened += seconds_since(began);
      const auto ticket = c.load_direct(plan, ids_, reader, pool_.stream());
      ticket.wait_for(patience);
      return ticket.loaded_blocks();
    });
  }
  /// The same with a cache and a reader that are there already, as all requests but the first find them.
  double direct_again(kvx::cufile_way way) {
    cache c(options(64 * block_bytes_), pool_.layout(with_.fragment_bytes), kvx::cuda_transfer(transfer_));
    kvx::cufile_options o = reader_options();
    o.through = way;
    const auto reader = std::make_shared<kvx::cufile>(o);
    static_cast<void>(load_all(c, reader));
    pool_.clear();
    must(cudaDeviceSynchronize(), "clearing the pool");
    const auto began = std::chrono::steady_clock::now();
    load_all(c, reader);
    const double took = seconds_since(began);
    pool_.check();
    return took;
  }

  [[nodiscard]] kvx::cufile_options reader_options() const {
    kvx::cufile_options o;
    o.kernels = kernels();
    o.block_bytes = block_bytes_;
    o.staging_bytes = with_.staging_mib * mib;
    o.threads = with_.threads;
    return o;
  }

 private:
  static constexpr std::size_t piece = 2 * mib;

  static double seconds_since(std::chrono::steady_clock::time_point began) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }
  [[nodiscard]] kvx::options options(std::uint64_t memory_bytes) const {
    kvx::options o;
    o.identity = {"bench", "1", "bf16"};
    o.root = with_.root;
    o.memory_bytes = memory_bytes;
    o.storage_bytes = 2 * pool_.bytes() + 1024 * mib;
    o.prompts_trusted = true;
    o.load_deadline = patience;
    o.save_deadline = patience;
    o.io.threads = with_.threads;
    o.io.in_flight_bytes = 512 * mib;
    return o;
  }
  [[nodiscard]] std::vector<kvx::token_id> prompt() const {
    std::vector<kvx::token_id> tokens(16 * with_.blocks + 1);
    std::iota(tokens.begin(), tokens.end(), kvx::token_id{1});
    return tokens;
  }
  void save() {
    cache c(options(pool_.bytes() / 8 * 9 + 64 * mib), pool_.layout(with_.fragment_bytes),
            kvx::cuda_transfer(transfer_));
    block_bytes_ = c.block_bytes();
    const kvx::sequence chain = c.make_sequence(prompt());
    const auto saved = c.save(chain, 0, ids_, pool_.stream());
    if (saved.wait_stored(patience) && saved.outcome().ok()) return;
    std::fprintf(stderr, "saving under %s failed: %s\n", with_.root.c_str(),
                 std::string(kvx::to_string(saved.outcome().code())).c_str());
    std::exit(1);
  }
  std::size_t load_all(cache& c, const std::shared_ptr<kvx::cufile>& reader) {
    const auto ticket = c.load_direct(c.match(prompt()), ids_, reader, pool_.stream());
    ticket.wait_for(patience);
    return ticket.loaded_blocks();
  }

  template <class Load>
  double measured(std::uint64_t memory_bytes, double& opened, Load&& load) {
    pool_.clear();
    must(cudaDeviceSynchronize(), "clearing the pool");
    const std::vector<kvx::token_id> tokens = prompt();
    const auto began = std::chrono::steady_clock::now();
    cache c(options(memory_bytes), pool_.layout(with_.fragment_bytes), kvx::cuda_transfer(transfer_));
    opened = seconds_since(began);
    const std::size_t loaded = load(c, c.match(tokens));
    const double took = seconds_since(began);
    if (loaded != with_.blocks) {
      std::fprintf(stderr, "only %zu of %zu blocks were loaded\n", loaded, with_.blocks);
      std::exit(1);
    }
    pool_.check();
    return took;
  }

  settings with_;
  pool pool_;
  std::vector<kvx::block_id> ids_;
  kvx::cuda_transfer_options transfer_;
  std::size_t block_bytes_ = 0;
  void* pinned_ = nullptr;
};

int run(const settings& with) {
  measurement m(with);
  const kvx::cufile_report found = kvx::cufile::probe(with.root, m.reader_options());
  std::printf("%zu blocks of %.1f MiB, %.2f GB; %u threads\n", with.blocks,
              static_cast<double>(m.block_bytes()) / static_cast<double>(mib), static_cast<double>(m.bytes()) / 1e9,
              with.threads);
  std::printf("cuFile: %s\n", found.text.c_str());
  struct series {
    const char* name;
    std::function<double(double&)> run;
    std::vector<double> seconds, opened;
  };
  std::vector<series> all;
  all.push_back({"reads alone", [&](double&) { return m.ceiling(); }, {}, {}});
  all.push_back({"through memory, opened", [&](double& o) { return m.through_memory(o); }, {}, {}});
  all.push_back({"direct, opened", [&](double& o) { return m.direct(kvx::cufile_way::host, o); }, {}, {}});
  all.push_back({"direct, again", [&](double&) { return m.direct_again(kvx::cufile_way::host); }, {}, {}});
  if (found.usable) {
    all.push_back({"cuFile, opened", [&](double& o) { return m.direct(kvx::cufile_way::cufile, o); }, {}, {}});
    all.push_back({"cuFile, again", [&](double&) { return m.direct_again(kvx::cufile_way::cufile); }, {}, {}});
  }
  for (std::size_t round = 0; round < with.rounds; ++round) {
    for (series& each : all) {
      double opened = 0;
      each.seconds.push_back(each.run(opened));
      each.opened.push_back(opened);
    }
  }
  std::printf("\n%-24s %9s %9s %9s   %s\n", "", "ms", "open ms", "GB/s", "time / reads alone (95 %)");
  for (const series& each : all) {
    const double seconds = median(each.seconds).middle;
    const interval against = ratio(each.seconds, all.front().seconds);
    std::printf("%-24s %9.1f %9.1f %9.2f   %.3f (%.3f-%.3f)\n", each.name, 1e3 * seconds,
                1e3 * median(each.opened).middle, static_cast<double>(m.bytes()) / 1e9 / seconds, against.middle,
                against.low, against.high);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  settings with;
  bool understood = argc % 2 == 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view option = argv[i];
    const char* const value = argv[i + 1];
    if (option == "--root")
      with.root = value;
    else if (option == "--blocks")
      with.blocks = std::strtoull(value, nullptr, 10);
    else if (option == "--fragment-kib")
      with.fragment_bytes = std::strtoull(value, nullptr, 10) * 1024;
    else if (option == "--rounds")
      with.rounds = std::strtoull(value, nullptr, 10);
    else if (option == "--threads")
      with.threads = static_cast<unsigned>(std::strtoul(value, nullptr, 10));
    else if (option == "--staging-mib")
      with.staging_mib = std::strtoull(value, nullptr, 10);
    else
      understood = false;
  }
  if (!understood || with.root.empty() || with.blocks < 64 || with.rounds == 0 || with.threads == 0 ||
      with.fragment_bytes % kvx::page_bytes != 0) {
    std::fprintf(
        stderr,
        "usage: direct_load_bench --root DIR [--blocks N] [--fragment-kib K] [--rounds N] [--threads N] "
        "[--staging-mib N]\n  DIR is made, and removed at the end; the fragments of a block are 64 of K KiB\n");
    return 2;
  }
  const kvx::cuda_probe device = kvx::cuda_transfer::probe();
  if (!device.usable) {
    std::fprintf(stderr, "skipped: %s\n", device.text.c_str());
    return 77;
  }
  if (std::filesystem::exists(with.root)) {
    std::fprintf(stderr, "--root %s exists; name a directory that does not\n", with.root.c_str());
    return 2;
  }
  std::filesystem::create_directories(with.root);
  const int outcome = run(with);
  std::filesystem::remove_all(with.root);
  return outcome;
}
