// SPDX-License-Identifier: Apache-2.0
// How fast cuda_transfer moves blocks between a GPU and pinned memory, by each technique and by the one it chooses,
// against one large pinned copy of as many bytes; and what that costs the host, and other work on the GPU. Ceiling and
// techniques take turns in every round; printed are medians, and medians of the rounds' ratios with 95 % intervals.
//
//   cuda_transfer_bench [--mib 256] [--rounds 9] [--parts rates,counts,both,beside] [--json FILE]
#include <kvx/transfer/cuda.hpp>

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "../measure.hpp"
#include "device.hpp"
#include "engine_memory.hpp"

namespace {

using kvx::cuda_technique;
using kvx_bench::interval;
using kvx_bench::median;
using kvx_bench::mib;
using kvx_bench::must;
using kvx_bench::ratio;
using kvx_bench::workload;

constexpr std::size_t layers = 80;
constexpr std::array fragments{2U << 10U, 4U << 10U, 8U << 10U, 16U << 10U, 32U << 10U, 64U << 10U, 256U << 10U};

struct settings {
  std::size_t bytes = 256 * mib;
  std::size_t rounds = 9;
  std::string parts = "rates,counts,both,beside";
  std::string json;

  [[nodiscard]] bool has(const char* part) const { return parts.find(part) != std::string::npos; }
};

/// One engine per way of choosing; index 4 chooses by itself.
struct engines {
  static constexpr std::array names{"strided", "batched", "staged", "direct", "chosen"};
  std::vector<std::unique_ptr<kvx::cuda_transfer>> all;
  double made_seconds = 0;

  explicit engines(std::span<std::byte> arena) {
    for (std::size_t i = 0; i < names.size(); ++i) {
      kvx::cuda_transfer_options with;
      with.kernels = kvx_bench::kernels();
      if (i < 4) {
        with.technique = static_cast<cuda_technique>(i);
        with.load_costs = with.save_costs = kvx::cuda_costs{};
      }
      const double took = kvx_bench::timed([&] { all.push_back(std::make_unique<kvx::cuda_transfer>(with)); }).seconds;
      if (i == 4) made_seconds = took;
    }
    // The first pins it, the others find it pinned.
    for (const auto& each : all) {
      if (!each->register_arena(arena)) must(cudaErrorHostMemoryAlreadyRegistered, "the arena");
    }
  }
};

class bench {
 public:
  bench(const settings& with, std::span<std::byte> arena) : with_(with), arena_(arena), engines_(arena) {
    for (cudaStream_t& stream : streams_) must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    cudaDeviceProp device{};
    must(cudaGetDeviceProperties(&device, 0), "the device");
    std::printf("%s, %zu MiB per call, medians of %zu rounds, GB/s (1e9); engine made in %.0f ms\n", device.name,
                with.bytes / mib, with.rounds, engines_.made_seconds * 1e3);
    json_ += "{\"device\": \"" + std::string(device.name) + "\", \"bytes\": " + std::to_string(with.bytes) +
             ", \"construction_seconds\": " + std::to_string(engines_.made_seconds);
    for (const bool load : {false, true}) {
      const kvx::cuda_costs& c = load ? engines_.all[4]->load_costs() : engines_.all[4]->save_costs();
      std::printf(
          "%s: link %.1f GB/s, matrix %.2f us, entry %.2f and %.2f us, staged %.0f us + %.1f GB/s, direct %.0f us + "
          "%.1f GB/s\n",
          load ? "in " : "out", c.link_gb_per_s, c.strided_copy_us, c.small_entry_us, c.large_entry_us,
          c.staged_start_us, c.staged_gb_per_s, c.direct_start_us, c.direct_gb_per_s);
    }
  }

  void run() {
    if (with_.has("rates")) rates();
    if (with_.has("counts")) counts();
    if (with_.has("both")) both_ways();
    if (with_.has("beside")) beside();
    json_ += "}\n";
    if (with_.json.empty()) return;
    std::FILE* const file = std::fopen(with_.json.c_str(), "w");
    if (file == nullptr || std::fputs(json_.c_str(), file) < 0 || std::fclose(file) != 0) {
      std::fprintf(stderr, "cannot write %s\n", with_.json.c_str());
      std::exit(1);
    }
  }

 private:
  struct timing {
    double seconds = 0;
    double host_seconds = 0;
  };

  timing plain(bool load, std::byte* device, std::byte* host, std::size_t bytes) {
    timing t;
    t.seconds = kvx_bench::timed([&] {
                  must(load ? cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, streams_[0])
                            : cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, streams_[0]),
                       "a copy");
                  must(cudaStreamSynchronize(streams_[0]), "a copy");
                }).seconds;
    return t;
  }

  kvx::cuda_transfer::operation start(std::size_t engine, bool load, const workload& work, bool second = false) {
    auto& with = *engines_.all[engine];
    const auto made = load ? with.load(work.layout(), work.batch(second), streams_[0])
                           : with.save(work.layout(), work.batch(second), streams_[1]);
    if (!made) {
      std::fprintf(stderr, "%s refused: %s\n", load ? "load" : "save",
                   std::string(kvx::to_string(made.status().code())).c_str());
      std::exit(1);
    }
    return *made;
  }

  timing moved(std::size_t engine, bool load, const workload& work) {
    timing t;
    t.seconds = kvx_bench::timed([&] {
                  kvx::cuda_transfer::operation made;
                  t.host_seconds = kvx_bench::timed([&] { made = start(engine, load, work); }).seconds;
                  made.wait();
                  if (!made.outcome()) must(cudaErrorUnknown, "a transfer");
                }).seconds;
    return t;
  }

  void rates() {
    json_ += ", \"rates\": [";
    const char* comma = "";
    for (const bool constant : {true, false}) {
      for (const bool load : {false, true}) {
        std::printf("\n%s, layers %s; in brackets host us per call\n\n", load ? "into the device" : "out of the device",
                    constant ? "at a constant distance in one range" : "in allocations of their own");
        std::printf(
            "| fragment KiB | one copy | strided | batched | staged | direct | chosen | by | chosen / one copy |\n");
        std::printf("|---|---|---|---|---|---|---|---|---|\n");
        for (const std::size_t fragment : fragments) {
          const std::size_t blocks = std::max<std::size_t>(1, with_.bytes / (2 * layers * fragment));
          const workload work(arena_, layers, fragment, blocks, constant);
          std::vector<double> ceiling;
          std::array<std::vector<double>, 5> took;
          std::array<std::vector<double>, 5> host;
          for (std::size_t round = 0; round <= with_.rounds; ++round) {
            const double one = plain(load, scratch(), arena_.data(), work.bytes()).seconds;
            if (round > 0) ceiling.push_back(one);
            for (std::size_t e = 0; e < took.size(); ++e) {
              // Small entries take tens of milliseconds, and say the same each time.
              if (e == 1 && fragment < (16U << 10U) && round > 3) continue;
              if (e == 0 && !constant) continue;
              const timing t = moved(e, load, work);
              if (round == 0) continue;
              took[e].push_back(t.seconds);
              host[e].push_back(t.host_seconds);
            }
          }
          const auto rate = [&](const std::vector<double>& times) {
            return times.empty() ? 0.0 : static_cast<double>(work.bytes()) / median(times).middle / 1e9;
          };
          const interval of_ceiling = ratio(ceiling, took[4]);
          const auto by = kvx::to_string(load ? engines_.all[4]->last_load() : engines_.all[4]->last_save());
          std::printf("| %zu | %.1f |", fragment / 1024, rate(ceiling));
          json_ += std::string(comma) + "{\"fragment\": " + std::to_string(fragment) + ", \"direction\": \"" +
                   (load ? "in" : "out") + "\", \"constant_stride\": " + (constant ? "true" : "false") +
                   ", \"one_copy\": " + std::to_string(rate(ceiling));
          for (std::size_t e = 0; e < took.size(); ++e) {
            const double us = took[e].empty() ? 0 : median(host[e]).middle * 1e6;
            took[e].empty() ? std::printf(" - |") : std::printf(" %.1f (%.0f) |", rate(took[e]), us);
            json_ += ", \"" + std::string(engines::names[e]) + "\": " + std::to_string(rate(took[e])) + ", \"" +
                     engines::names[e] + "_host_us\": " + std::to_string(us);
          }
          std::printf(" %s | %.3f (%.3f-%.3f) |\n", std::string(by).c_str(), of_ceiling.middle, of_ceiling.low,
                      of_ceiling.high);
          std::fflush(stdout);
          json_ += ", \"by\": \"" + std::string(by) + "\", \"ratio\": [" + std::to_string(of_ceiling.low) + ", " +
                   std::to_string(of_ceiling.middle) + ", " + std::to_string(of_ceiling.high) + "]}";
          comma = ",\n ";
        }
      }
    }
    json_ += "]";
  }

  // Blocks of 16 fragments, so that a call can be as small as that.
  void counts() {
    constexpr std::size_t few_layers = 8;
    std::printf("\nthe choice by number of fragments (8 layers), us per call and the technique\n\n");
    std::printf("| | fragment KiB | constant distance | 16 | 160 | 1,600 | 16,000 |\n|---|---|---|---|---|---|---|\n");
    json_ += ", \"counts\": [";
    const char* comma = "";
    for (const bool load : {false, true}) {
      for (const bool constant : {true, false}) {
        for (const std::size_t fragment : {4U << 10U, 32U << 10U, 64U << 10U}) {
          std::printf("| %s | %zu | %s |", load ? "in" : "out", fragment / 1024, constant ? "yes" : "no");
          for (const std::size_t count : {16U, 160U, 1600U, 16000U}) {
            const workload work(arena_, few_layers, fragment, count / 16, constant);
            std::vector<double> ceiling;
            std::vector<double> took;
            for (std::size_t round = 0; round <= with_.rounds; ++round) {
              const double one = plain(load, scratch(), arena_.data(), work.bytes()).seconds;
              const double mine = moved(4, load, work).seconds;
              if (round == 0) continue;
              ceiling.push_back(one);
              took.push_back(mine);
            }
            const auto by = kvx::to_string(load ? engines_.all[4]->last_load() : engines_.all[4]->last_save());
            const interval part = ratio(ceiling, took);
            std::printf(" %.0f %s (%.2f) |", median(took).middle * 1e6, std::string(by).c_str(), part.middle);
            json_ += std::string(comma) + "{\"fragment\": " + std::to_string(fragment) + ", \"direction\": \"" +
                     (load ? "in" : "out") + "\", \"constant_stride\": " + (constant ? "true" : "false") +
                     ", \"fragments\": " + std::to_string(count) +
                     ", \"us\": " + std::to_string(median(took).middle * 1e6) + ", \"by\": \"" + std::string(by) +
                     "\", \"ratio\": " + std::to_string(part.middle) + "}";
            comma = ",\n ";
          }
          std::printf("\n");
          std::fflush(stdout);
        }
      }
    }
    json_ += "]";
  }

  void both_ways() {
    std::printf("\nboth ways at once, GB/s of both together\n\n");
    std::printf(
        "| fragment KiB | constant distance | two copies | chosen | chosen / two copies |\n|---|---|---|---|---|\n");
    json_ += ", \"both\": [";
    const char* comma = "";
    for (const bool constant : {true, false}) {
      for (const std::size_t fragment : fragments) {
        const std::size_t blocks = std::max<std::size_t>(1, with_.bytes / (2 * layers * fragment));
        const workload work(arena_, layers, fragment, blocks, constant);
        std::vector<double> ceiling;
        std::vector<double> took;
        for (std::size_t round = 0; round <= with_.rounds; ++round) {
          const double two =
              kvx_bench::timed([&] {
                must(cudaMemcpyAsync(arena_.data(), scratch(), work.bytes(), cudaMemcpyDeviceToHost, streams_[1]),
                     "out");
                must(cudaMemcpyAsync(scratch() + work.bytes(), arena_.data() + work.bytes(), work.bytes(),
                                     cudaMemcpyHostToDevice, streams_[0]),
                     "in");
                must(cudaStreamSynchronize(streams_[0]), "in");
                must(cudaStreamSynchronize(streams_[1]), "out");
              }).seconds;
          const double mine = kvx_bench::timed([&] {
                                std::thread saver([&] { start(4, false, work, true).wait(); });
                                start(4, true, work).wait();
                                saver.join();
                              }).seconds;
          if (round == 0) continue;
          ceiling.push_back(two);
          took.push_back(mine);
        }
        const interval part = ratio(ceiling, took);
        const double bytes = 2 * static_cast<double>(work.bytes());
        std::printf("| %zu | %s | %.1f | %.1f | %.3f (%.3f-%.3f) |\n", fragment / 1024, constant ? "yes" : "no",
                    bytes / median(ceiling).middle / 1e9, bytes / median(took).middle / 1e9, part.middle, part.low,
                    part.high);
        std::fflush(stdout);
        json_ += std::string(comma) + "{\"fragment\": " + std::to_string(fragment) +
                 ", \"constant_stride\": " + (constant ? "true" : "false") +
                 ", \"two_copies\": " + std::to_string(bytes / median(ceiling).middle / 1e9) +
                 ", \"chosen\": " + std::to_string(bytes / median(took).middle / 1e9) + ", \"ratio\": [" +
                 std::to_string(part.low) + ", " + std::to_string(part.middle) + ", " + std::to_string(part.high) +
                 "]}";
        comma = ",\n ";
      }
    }
    json_ += "]";
  }

  // Work of an engine on its stream, alone and beside transfers that never stop.
  void beside() {
    cublasHandle_t blas = nullptr;
    if (cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS) must(cudaErrorUnknown, "cuBLAS");
    cublasSetStream(blas, streams_[2]);
    constexpr int large = 8192;
    constexpr int small = 2048;
    constexpr std::size_t stream_bytes = 512 * mib;
    std::byte* const memory = scratch();
    const auto product = [&](int n) {
      const float one = 1;
      const float zero = 0;
      const std::size_t square = std::size_t{large} * large * 2;
      if (cublasGemmEx(blas, CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, memory, CUDA_R_16BF, n, memory + square,
                       CUDA_R_16BF, n, &zero, memory + 2 * square, CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS) {
        must(cudaErrorUnknown, "cuBLAS");
      }
    };
    struct task {
      const char* name;
      int repeats;
      std::function<void()> once;
    };
    const std::array<task, 3> tasks{
        task{"products of 2048 (short)", 400, [&] { product(small); }},
        task{"products of 8192 (long)", 8, [&] { product(large); }},
        task{"bound by device memory", 30,
             [&] { kvx_bench::scale(streams_[2], reinterpret_cast<float*>(memory), stream_bytes); }}};
    must(cudaMemset(memory, 0x11, 3 * std::size_t{large} * large * 2), "operands");
    cudaEvent_t began = nullptr;
    cudaEvent_t ended = nullptr;
    must(cudaEventCreate(&began), "an event");
    must(cudaEventCreate(&ended), "an event");
    const auto device_seconds = [&](const task& what) {
      must(cudaEventRecord(began, streams_[2]), "an event");
      for (int i = 0; i < what.repeats; ++i) what.once();
      must(cudaEventRecord(ended, streams_[2]), "an event");
      must(cudaEventSynchronize(ended), "the work");
      float ms = 0;
      must(cudaEventElapsedTime(&ms, began, ended), "an event");
      return static_cast<double>(ms) / 1e3;
    };
    std::printf("\nslowdown of other work, per cent (and GB/s of the copies meanwhile), fragments of 32 KiB\n\n");
    std::printf("| | work | alone us | strided | batched | staged | direct |\n|---|---|---|---|---|---|---|\n");
    json_ += ", \"beside\": [";
    const char* comma = "";
    const workload strided(arena_, layers, 32U << 10U, 24, true);
    const workload apart(arena_, layers, 32U << 10U, 24, false);
    for (const bool load : {false, true}) {
      for (const task& what : tasks) {
        device_seconds(what);
        std::array<std::vector<double>, 4> slower;
        std::array<std::vector<double>, 4> rates;
        std::vector<double> alone;
        for (std::size_t round = 0; round < with_.rounds; ++round) {
          for (std::size_t e = 0; e < 4; ++e) {
            const double before = device_seconds(what);
            std::atomic<bool> stop{false};
            std::atomic<std::size_t> calls{0};
            const workload& work = e == 0 ? strided : apart;
            std::thread mover([&] {
              // Two under way, so that the link never idles.
              kvx::cuda_transfer::operation last;
              while (!stop) {
                kvx::cuda_transfer::operation next = start(e, load, work);
                last.wait();
                last = std::move(next);
                ++calls;
              }
              last.wait();
            });
            while (calls < 2) std::this_thread::yield();
            const std::size_t first = calls;
            const auto clock = std::chrono::steady_clock::now();
            const double with = device_seconds(what);
            const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - clock).count();
            const std::size_t last = calls;
            stop = true;
            mover.join();
            const double after = device_seconds(what);
            slower[e].push_back(100 * (with / ((before + after) / 2) - 1));
            rates[e].push_back(static_cast<double>((last - first) * work.bytes()) / wall / 1e9);
            alone.push_back(before / what.repeats);
          }
        }
        std::printf("| %s | %s | %.1f |", load ? "in" : "out", what.name, median(alone).middle * 1e6);
        json_ += std::string(comma) + "{\"direction\": \"" + (load ? "in" : "out") + "\", \"work\": \"" + what.name +
                 "\", \"alone_us\": " + std::to_string(median(alone).middle * 1e6);
        for (std::size_t e = 0; e < 4; ++e) {
          const interval s = median(slower[e]);
          std::printf(" %.1f [%.1f, %.1f] (%.0f) |", s.middle, s.low, s.high, median(rates[e]).middle);
          json_ += ", \"" + std::string(engines::names[e]) + "\": {\"slower_percent\": [" + std::to_string(s.low) +
                   ", " + std::to_string(s.middle) + ", " + std::to_string(s.high) +
                   "], \"gb_per_s\": " + std::to_string(median(rates[e]).middle) + "}";
        }
        std::printf("\n");
        std::fflush(stdout);
        json_ += "}";
        comma = ",\n ";
      }
    }
    json_ += "]";
    cublasDestroy(blas);
  }

  // Device memory for the ceilings and for other work.
  std::byte* scratch() {
    if (scratch_ == nullptr) {
      void* at = nullptr;
      must(cudaMalloc(&at, 2048 * mib), "device memory");
      scratch_ = static_cast<std::byte*>(at);
    }
    return scratch_;
  }

  settings with_;
  std::span<std::byte> arena_;
  engines engines_;
  std::array<cudaStream_t, 3> streams_{};
  std::byte* scratch_ = nullptr;
  std::string json_;
};

}  // namespace

int main(int argc, char** argv) {
  settings with;
  bool understood = argc % 2 == 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view option = argv[i];
    const char* const value = argv[i + 1];
    if (option == "--mib")
      with.bytes = std::strtoull(value, nullptr, 10) * mib;
    else if (option == "--rounds")
      with.rounds = std::strtoull(value, nullptr, 10);
    else if (option == "--parts")
      with.parts = value;
    else if (option == "--json")
      with.json = value;
    else
      understood = false;
  }
  if (!understood || with.bytes < 8 * mib || with.bytes > 512 * mib || with.rounds == 0) {
    std::fprintf(
        stderr,
        "usage: cuda_transfer_bench [--mib 8..512] [--rounds N] [--parts rates,counts,both,beside] [--json F]\n");
    return 2;
  }
  const kvx::cuda_probe found = kvx::cuda_transfer::probe();
  if (!found.usable) {
    std::fprintf(stderr, "cuda_transfer_bench: %s\n", found.text.c_str());
    return 77;
  }
  bench(with, kvx_bench::memory(1152 * mib)).run();
  return 0;
}
