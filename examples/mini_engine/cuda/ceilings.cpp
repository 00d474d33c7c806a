// SPDX-License-Identifier: Apache-2.0
#include "ceilings.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>
#include <vector>

#include "../huge_array.hpp"
#include "../stopwatch.hpp"
#include "buffer.hpp"
#include "kernels.hpp"

namespace mini_engine::cuda {

double measure_plain_product(transformer& compute) {
  constexpr std::size_t n = 8192;
  const cudaStream_t stream = compute.stream();
  const device_buffer<__nv_bfloat16> x(n * n), w(n * n), y(n * n);
  fill_random(x.data(), x.size(), 1, 1.0f, stream);
  fill_random(w.data(), w.size(), 2, 1.0f, stream);
  constexpr int repeats = 10;
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const event begin, end;
    begin.record(stream);
    compute.products().multiply(x.data(), n, w.data(), n, n, y.data());
    end.record(stream);
    seconds.push_back(end.seconds_since(begin));
  }
  std::sort(seconds.begin(), seconds.end());
  return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) / seconds[seconds.size() / 2];
}

link_rates measure_link(cudaStream_t stream) {
  constexpr std::size_t bytes = std::size_t{1} << 30;
  const device_buffer<std::byte> there(bytes);
  const pinned_buffer<std::byte> here(bytes);
  const auto best = [&](void* to, const void* from, cudaMemcpyKind kind) {
    double rate = 0;
    for (int i = 0; i < 3; ++i) {
      const event begin, end;
      begin.record(stream);
      check(cudaMemcpyAsync(to, from, bytes, kind, stream), "the link cannot be measured");
      end.record(stream);
      rate = std::max(rate, static_cast<double>(bytes) / end.seconds_since(begin));
    }
    return rate;
  };
  return {best(there.data(), here.data(), cudaMemcpyHostToDevice),
          best(here.data(), there.data(), cudaMemcpyDeviceToHost)};
}

double measure_storage(const std::string& directory, std::uint64_t bytes) {
  namespace files = std::filesystem;
  struct file {
    int descriptor;
    std::uint64_t size;
  };
  std::vector<file> all;
  std::error_code ignored;
  for (const auto& entry : files::recursive_directory_iterator(directory, ignored)) {
    if (!entry.is_regular_file(ignored) || entry.path().extension() != ".slab") continue;
    int descriptor = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (descriptor < 0) descriptor = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor >= 0) all.push_back({descriptor, entry.file_size(ignored)});
  }
  // As large as what kvx reads into, so that no cache of the processor takes what is read.
  huge_array<std::byte> memory(std::size_t{1} << 30);
  double best = 0;
  for (const auto& [threads, piece] : {std::pair<std::size_t, std::size_t>{4, 4 << 20}, {8, 4 << 20}, {16, 1 << 20}}) {
    struct part {
      const file* of;
      std::uint64_t offset;
    };
    std::vector<part> parts;
    for (const file& f : all) {
      for (std::uint64_t at = 0; at + piece <= f.size && parts.size() * piece < bytes; at += piece)
        parts.push_back({&f, at});
    }
    if (parts.empty()) continue;
    std::atomic<std::size_t> next{0};
    std::atomic<std::uint64_t> read{0};
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> readers;
    for (std::size_t t = 0; t < threads; ++t) {
      readers.emplace_back([&, size = piece] {
        for (std::size_t i = next++; i < parts.size(); i = next++) {
          const ssize_t got = ::pread(parts[i].of->descriptor, memory.data() + i * size % memory.size(), size,
                                      static_cast<off_t>(parts[i].offset));
          if (got > 0) read += static_cast<std::uint64_t>(got);
        }
      });
    }
    for (std::thread& each : readers) each.join();
    best = std::max(best, static_cast<double>(read) / seconds_since(begin));
  }
  for (const file& f : all) ::close(f.descriptor);
  return best;
}

}  // namespace mini_engine::cuda
