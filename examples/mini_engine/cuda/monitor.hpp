// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>

namespace mini_engine::cuda {

/// What the GPU did between two moments, by its own counters (NVML's GPU performance monitoring, on Hopper and newer).
struct gpu_activity {
  double sm_active;      // share of time in which a multiprocessor had work, over all of them
  double memory_active;  // share of the memory's bandwidth
  double bytes_received_per_second, bytes_sent_per_second;  // over PCIe, protocol included
};

/// Reads those counters, where there are any. NVML comes with the driver and is opened when it is used.
/// The counters are read every tenth of a second or so: shorter spans tell nothing.
/// Thread  one
class monitor {
 public:
  monitor();
  ~monitor();
  monitor(const monitor&) = delete;
  monitor& operator=(const monitor&) = delete;

  void start();
  /// Since start(); nothing where the GPU or the driver does not tell.
  std::optional<gpu_activity> stop();

 private:
  struct library;
  std::unique_ptr<library> library_;  // null: no NVML, or a GPU without such counters
};

}  // namespace mini_engine::cuda
