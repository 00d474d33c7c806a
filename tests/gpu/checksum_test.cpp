// SPDX-License-Identifier: Apache-2.0
#include <kvx/store/checksum.hpp>
#include <kvx/transfer/cuda/checksum.hpp>
#include <kvx/types.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "fixture.hpp"

namespace {

struct pages_on_device {
  explicit pages_on_device(std::size_t count) : host(count * kvx::page_bytes) {
    std::mt19937_64 random(count);
    for (std::byte& b : host) b = static_cast<std::byte>(random() >> 56U);
    kvx_gpu::check(cudaMalloc(reinterpret_cast<void**>(&pages), host.size()));
    kvx_gpu::check(cudaMalloc(reinterpret_cast<void**>(&values), count * sizeof(std::uint64_t)));
    kvx_gpu::check(cudaMalloc(reinterpret_cast<void**>(&wrong), sizeof(std::uint32_t)));
    kvx_gpu::check(cudaMemset(wrong, 0, sizeof(std::uint32_t)));
    upload();
  }
  ~pages_on_device() {
    static_cast<void>(cudaFree(pages));
    static_cast<void>(cudaFree(values));
    static_cast<void>(cudaFree(wrong));
  }
  pages_on_device(const pages_on_device&) = delete;
  pages_on_device& operator=(const pages_on_device&) = delete;

  void upload() const {
    kvx_gpu::check(cudaMemcpy(pages, host.data(), host.size(), cudaMemcpyHostToDevice));
    // From pageable memory it returns before its last bytes have arrived, and the test's streams do not wait for it.
    kvx_gpu::check(cudaDeviceSynchronize());
  }
  [[nodiscard]] std::size_t count() const { return host.size() / kvx::page_bytes; }

  std::vector<std::byte> host;
  std::byte* pages = nullptr;
  std::uint64_t* values = nullptr;
  std::uint32_t* wrong = nullptr;
};

cudaStream_t a_stream() {
  cudaStream_t made = nullptr;
  kvx_gpu::check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
  return made;
}

}  // namespace

TEST_CASE("a page has the value on the device that it has on the host") {
  const cudaStream_t stream = a_stream();
  for (const std::size_t count : {1U, 2U, 7U, 8U, 9U, 63U, 64U, 65U, 1000U, 20'000U}) {
    CAPTURE(count);
    pages_on_device at(count);
    REQUIRE(kvx::cuda_page_values(kvx_gpu::kernels(), at.pages, count, at.values, stream).ok());
    kvx_gpu::check(cudaStreamSynchronize(stream));
    std::vector<std::uint64_t> values(count);
    kvx_gpu::check(cudaMemcpy(values.data(), at.values, count * 8, cudaMemcpyDeviceToHost));
    std::size_t equal = 0;
    for (std::size_t p = 0; p < count; ++p) {
      equal +=
          values[p] == kvx::store::checksum(std::span(at.host).subspan(p * kvx::page_bytes, kvx::page_bytes)) ? 1U : 0U;
    }
    CHECK(equal == count);
  }
}

TEST_CASE("one bit in one page is noticed on the device, and counted once per page") {
  const cudaStream_t stream = a_stream();
  pages_on_device at(1001);
  REQUIRE(kvx::cuda_page_values(kvx_gpu::kernels(), at.pages, at.count(), at.values, stream).ok());
  REQUIRE(kvx::cuda_check_pages(kvx_gpu::kernels(), at.pages, at.count(), at.values, at.wrong, stream).ok());
  kvx_gpu::check(cudaStreamSynchronize(stream));
  std::uint32_t wrong = 0;
  kvx_gpu::check(cudaMemcpy(&wrong, at.wrong, sizeof wrong, cudaMemcpyDeviceToHost));
  CHECK(wrong == 0);
  for (const std::size_t byte : {std::size_t{0}, 500 * kvx::page_bytes + 4095, 1000 * kvx::page_bytes + 2048}) {
    at.host[byte] ^= std::byte{1};
  }
  at.host[1] ^= std::byte{0x80};
  at.upload();
  REQUIRE(kvx::cuda_check_pages(kvx_gpu::kernels(), at.pages, at.count(), at.values, at.wrong, stream).ok());
  kvx_gpu::check(cudaStreamSynchronize(stream));
  kvx_gpu::check(cudaMemcpy(&wrong, at.wrong, sizeof wrong, cudaMemcpyDeviceToHost));
  CHECK(wrong == 3);
}

TEST_CASE("checksums run at the speed of the device's memory") {
  constexpr std::size_t bytes = std::size_t{2} << 30U;
  std::byte* pages = nullptr;
  std::byte* copy = nullptr;
  std::uint64_t* values = nullptr;
  kvx_gpu::check(cudaMalloc(reinterpret_cast<void**>(&pages), bytes));
  kvx_gpu::check(cudaMalloc(reinterpret_cast<void**>(&copy), bytes));
  kvx_gpu::check(cudaMalloc(reinterpret_cast<void**>(&values), bytes / kvx::page_bytes * 8));
  kvx_gpu::check(cudaMemset(pages, 0x5A, bytes));
  const cudaStream_t stream = a_stream();
  cudaEvent_t began = nullptr;
  cudaEvent_t ended = nullptr;
  kvx_gpu::check(cudaEventCreate(&began));
  kvx_gpu::check(cudaEventCreate(&ended));
  const auto best_ms = [&](auto work) {
    float best = 1e9F;
    for (int round = 0; round < 8; ++round) {
      kvx_gpu::check(cudaEventRecord(began, stream));
      work();
      kvx_gpu::check(cudaEventRecord(ended, stream));
      kvx_gpu::check(cudaEventSynchronize(ended));
      float ms = 0;
      kvx_gpu::check(cudaEventElapsedTime(&ms, began, ended));
      best = std::min(best, ms);
    }
    return static_cast<double>(best);
  };
  const double copied =
      best_ms([&] { kvx_gpu::check(cudaMemcpyAsync(copy, pages, bytes, cudaMemcpyDeviceToDevice, stream)); });
  const double hashed = best_ms(
      [&] { REQUIRE(kvx::cuda_page_values(kvx_gpu::kernels(), pages, bytes / kvx::page_bytes, values, stream).ok()); });
  const double gb = static_cast<double>(bytes) / 1e6;
  std::printf("checksums: %.0f GB/s; a copy on the device reads and writes %.0f GB/s\n", gb / hashed, 2 * gb / copied);
  CHECK(hashed < 1.5 * copied);
  static_cast<void>(cudaFree(pages));
  static_cast<void>(cudaFree(copy));
  static_cast<void>(cudaFree(values));
}
