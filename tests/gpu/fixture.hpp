// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/transfer/cuda.hpp>

#include <doctest/doctest.h>
#include <host_memory.hpp>
#include <skip.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "device.hpp"

namespace kvx_gpu {

inline void check(cudaError_t code) { REQUIRE_MESSAGE(code == cudaSuccess, cudaGetErrorString(code)); }

/// The transfer conformance suite's fixture.
/// Shape   OneRange: engine memory comes from one allocation, so that regions of one size lie at equal distances
template <int Technique, bool OneRange>
class cuda_fixture {
 public:
  using transfer = kvx::cuda_transfer;
  static constexpr std::uint64_t seeds = 2;

  explicit cuda_fixture(std::uint64_t) : engine_(options()) {
    if (OneRange) range_ = device_bytes(range_bytes);
  }
  ~cuda_fixture() {
    for (cudaStream_t stream : streams_) static_cast<void>(cudaStreamSynchronize(stream));
    for (cudaStream_t stream : streams_) static_cast<void>(cudaStreamDestroy(stream));
    for (std::byte* at : allocations_) static_cast<void>(cudaFree(at));
  }
  cuda_fixture(const cuda_fixture&) = delete;
  cuda_fixture& operator=(const cuda_fixture&) = delete;

  kvx::cuda_transfer& engine() { return engine_; }
  cudaStream_t new_stream() {
    cudaStream_t made = nullptr;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    streams_.push_back(made);
    return made;
  }
  std::byte* allocate(std::size_t n) {
    if (!OneRange) return device_bytes(n);
    std::byte* const at = range_ + used_;
    used_ += (n + 255) / 256 * 256;
    REQUIRE(used_ <= range_bytes);
    return at;
  }
  std::byte* slot_memory(std::size_t n) {
    std::byte* const at = host_.allocate(n);
    const kvx::status registered = engine_.register_arena({at, kvx::round_up(n)});
    REQUIRE(registered.ok());
    return at;
  }
  void write(std::byte* to, const std::byte* from, std::size_t n) { check(cudaMemcpy(to, from, n, cudaMemcpyDefault)); }
  void read(std::byte* to, const std::byte* from, std::size_t n) { check(cudaMemcpy(to, from, n, cudaMemcpyDefault)); }
  void fill_on(cudaStream_t stream, std::byte* to, std::byte value, std::size_t n) {
    check(cudaMemsetAsync(to, std::to_integer<int>(value), n, stream));
  }
  void read_on(cudaStream_t stream, std::byte* to, const std::byte* from, std::size_t n) {
    check(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToHost, stream));
  }
  void slow_on(cudaStream_t stream) { spin(stream, 5000); }
  void synchronize(cudaStream_t stream) { check(cudaStreamSynchronize(stream)); }

 private:
  static constexpr std::size_t range_bytes = 16U << 20U;

  static kvx::cuda_transfer_options options() {
    kvx::cuda_transfer_options with;
    check(cudaGetDevice(&with.device));
    with.kernels = kernels();
    with.load_costs = with.save_costs = kvx::cuda_costs{};
    with.piece_bytes = 4096;  // so that copies of few bytes change streams
    with.staging_bytes = 1U << 20U;
    with.staging_pieces = 4;
    if constexpr (Technique >= 0) with.technique = static_cast<kvx::cuda_technique>(Technique);
    return with;
  }
  std::byte* device_bytes(std::size_t n) {
    void* at = nullptr;
    check(cudaMalloc(&at, n));
    allocations_.push_back(static_cast<std::byte*>(at));
    return allocations_.back();
  }

  kvx_test::host_memory host_;
  std::vector<std::byte*> allocations_;
  std::vector<cudaStream_t> streams_;
  std::byte* range_ = nullptr;
  std::size_t used_ = 0;
  kvx::cuda_transfer engine_;
};

}  // namespace kvx_gpu
