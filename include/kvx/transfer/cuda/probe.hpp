// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace kvx {

struct cuda_probe {
  bool usable = false;
  std::string text;  ///< the device's name, or why there is none
};

namespace cuda {

/// Whether a device can be used; starts nothing on it.
[[nodiscard]] inline cuda_probe probe(int device) {
  const auto failed = [](cudaError_t code, const std::string& remedy) {
    static_cast<void>(::cudaGetLastError());
    return cuda_probe{
        false, std::string("CUDA: ") + ::cudaGetErrorString(code) + " (" + ::cudaGetErrorName(code) + "); " + remedy};
  };
  int count = 0;
  if (const cudaError_t e = ::cudaGetDeviceCount(&count); e != cudaSuccess) {
    return failed(e, e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice
                         ? "install NVIDIA's driver and make the device visible to this process, or use host_transfer"
                         : "use host_transfer on this machine");
  }
  if (device < 0 || device >= count) {
    return {false, "CUDA: there is no device " + std::to_string(device) + ", this process sees " +
                       std::to_string(count) + "; check the option `device`"};
  }
  cudaDeviceProp properties{};
  if (const cudaError_t e = ::cudaGetDeviceProperties(&properties, device); e != cudaSuccess) {
    return failed(e, "the device does not answer");
  }
  if (properties.unifiedAddressing == 0) {
    return {false, std::string("CUDA: ") + properties.name + " has no unified addresses, which copies rely on"};
  }
  return {true, properties.name};
}

}  // namespace cuda
}  // namespace kvx
