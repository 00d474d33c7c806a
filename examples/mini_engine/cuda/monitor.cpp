// SPDX-License-Identifier: Apache-2.0
#include "monitor.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cmath>

namespace mini_engine::cuda {
namespace {

// NVML's C interface, as far as it is used; its header need not be there.
using device = struct nvmlDevice_st*;
using sample = struct nvmlGpmSample_st*;
using status = int;

struct support {
  unsigned version, is_supported;
};
struct metric {
  unsigned id;
  status outcome;
  double value;
  struct {
    char *short_name, *long_name, *unit;
  } about;
};
struct metrics {
  unsigned version, count;
  sample first, second;
  metric values[512];  // room for as many as newer drivers know
};

constexpr unsigned version_1 = 1;
constexpr unsigned sm_util = 2, dram_bandwidth_util = 10, pcie_sent = 20,
                   pcie_received = 21;  // per cent; MiB per second

}  // namespace

struct monitor::library {
  ~library() {
    if (before != nullptr) free_sample(before);
    if (after != nullptr) free_sample(after);
    if (started) shutdown();
    if (file != nullptr) ::dlclose(file);
  }

  template <class Function>
  bool find(Function& to, const char* name) {
    to = reinterpret_cast<Function>(::dlsym(file, name));
    return to != nullptr;
  }

  bool open() {
    file = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    status (*device_by_bus)(const char*, device*) = nullptr;
    status (*query)(device, support*) = nullptr;
    status (*allocate)(sample*) = nullptr;
    if (file == nullptr || !find(initialize, "nvmlInit_v2") || !find(shutdown, "nvmlShutdown") ||
        !find(device_by_bus, "nvmlDeviceGetHandleByPciBusId_v2") || !find(query, "nvmlGpmQueryDeviceSupport") ||
        !find(allocate, "nvmlGpmSampleAlloc") || !find(free_sample, "nvmlGpmSampleFree") ||
        !find(take, "nvmlGpmSampleGet") || !find(compute, "nvmlGpmMetricsGet")) {
      return false;
    }
    started = initialize() == 0;
    int current = 0;
    char bus[32];
    if (!started || cudaGetDevice(&current) != cudaSuccess ||
        cudaDeviceGetPCIBusId(bus, sizeof bus, current) != cudaSuccess || device_by_bus(bus, &gpu) != 0) {
      return false;
    }
    support supported{version_1, 0};
    return query(gpu, &supported) == 0 && supported.is_supported != 0 && allocate(&before) == 0 &&
           allocate(&after) == 0;
  }

  void* file = nullptr;
  bool started = false;
  status (*initialize)() = nullptr;
  status (*shutdown)() = nullptr;
  status (*free_sample)(sample) = nullptr;
  status (*take)(device, sample) = nullptr;
  status (*compute)(metrics*) = nullptr;
  device gpu = nullptr;
  sample before = nullptr, after = nullptr;
  bool taken = false;
};

monitor::monitor() : library_(std::make_unique<library>()) {
  if (!library_->open()) library_.reset();
}

monitor::~monitor() = default;

void monitor::start() {
  if (library_) library_->taken = library_->take(library_->gpu, library_->before) == 0;
}

std::optional<gpu_activity> monitor::stop() {
  if (!library_ || !library_->taken || library_->take(library_->gpu, library_->after) != 0) return std::nullopt;
  const auto wanted = std::make_unique<metrics>();
  wanted->version = version_1;
  wanted->first = library_->before;
  wanted->second = library_->after;
  for (const unsigned id : {sm_util, dram_bandwidth_util, pcie_sent, pcie_received})
    wanted->values[wanted->count++].id = id;
  if (library_->compute(wanted.get()) != 0) return std::nullopt;
  for (unsigned i = 0; i < wanted->count; ++i) {
    if (wanted->values[i].outcome != 0 || !std::isfinite(wanted->values[i].value)) return std::nullopt;
  }
  constexpr double mebi = 1 << 20;
  return gpu_activity{wanted->values[0].value / 100, wanted->values[1].value / 100, wanted->values[3].value * mebi,
                      wanted->values[2].value * mebi};
}

}  // namespace mini_engine::cuda
