// SPDX-License-Identifier: Apache-2.0
// Slots go from a file to staging memory, both ways, and from there to the engine's pages.
//
// KVX_TEST_STORAGE: a directory for the files. Where cuFile does not take its file system, the part about that is
// skipped; what cufile does then, reading through the host, is not.
#include <kvx/detail/file.hpp>
#include <kvx/detail/page_checksum.hpp>
#include <kvx/io/cufile.hpp>
#include <kvx/transfer/cuda.hpp>

#include <doctest/doctest.h>
#include <patient_options.hpp>
#include <skip.hpp>
#include <temporary_directory.hpp>
#include <toy_layout.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "fixture.hpp"

using kvx::cufile_way;
using kvx_gpu::check;

namespace {

constexpr std::size_t blocks = 24;
constexpr std::size_t piece = 32'768;  // keys, or values, of one layer of one page

/// A directory on the storage to be tested, and a file of slots full of noise in it.
struct slots {
  kvx_test::temporary_directory own;
  std::string directory = own.path();
  std::size_t payload_bytes;
  std::size_t slot_bytes;
  std::vector<std::byte> image;
  kvx::detail::opened_file file;

  explicit slots(std::size_t payload)
      : payload_bytes(payload), slot_bytes(payload + kvx::page_bytes), image(blocks * slot_bytes) {
    if (const char* const given = std::getenv("KVX_TEST_STORAGE")) directory = given;
    std::mt19937_64 random(payload);
    for (std::byte& b : image) b = static_cast<std::byte>(random() >> 56U);
    const auto here = kvx::detail::open_root(directory.c_str());
    REQUIRE(here.ok());
    name_ = *kvx::detail::random_name("kvx-test-");
    {
      const auto made = kvx::detail::create_file(here->fd(), name_.c_str());
      REQUIRE(made.ok());
      REQUIRE(kvx::detail::pwrite_all(made->handle.fd(), image, 0).ok());
    }
    auto opened = kvx::detail::open_file(here->fd(), name_.c_str(), kvx::detail::file_access::read,
                                         kvx::detail::file_mode::direct);
    REQUIRE(opened.ok());
    file = std::move(*opened);
  }
  ~slots() {
    std::error_code ignored;
    std::filesystem::remove(std::filesystem::path(directory) / name_, ignored);
  }
  slots(const slots&) = delete;
  slots& operator=(const slots&) = delete;

  [[nodiscard]] std::span<const std::byte> slot(std::size_t i) const {
    return std::span(image).subspan(i * slot_bytes, slot_bytes);
  }

 private:
  std::string name_;
};

struct one_read {
  std::vector<std::byte> header = std::vector<std::byte>(kvx::page_bytes);
  std::vector<std::uint64_t> values;
  kvx::io_result outcome;
  std::byte* payload = nullptr;
  std::atomic<bool> came{false};

  [[nodiscard]] kvx::direct_request request(const slots& from, std::size_t slot) {
    values.assign(from.payload_bytes / kvx::page_bytes, 0);
    return {from.file.handle.fd(),
            slot * from.slot_bytes,
            from.payload_bytes,
            header,
            values,
            nullptr,
            this,
            [](void* context, const kvx::io_result& how, std::byte* where) noexcept {
              auto& self = *static_cast<one_read*>(context);
              self.outcome = how;
              self.payload = where;
              self.came = true;
            }};
  }
  void expect(std::span<const std::byte> slot) {
    const auto deadline = std::chrono::steady_clock::now() + kvx_test::patience;
    while (!came && std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::microseconds{50});
    REQUIRE(came);
    REQUIRE(outcome.error == 0);
    REQUIRE(payload != nullptr);
    CHECK(outcome.bytes == slot.size());
    CHECK(std::equal(header.begin(), header.end(), slot.begin()));
    std::size_t equal = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      equal += values[i] == kvx::detail::page_checksum(slot.data() + (i + 1) * kvx::page_bytes) ? 1U : 0U;
    }
    CHECK(equal == values.size());
    std::vector<std::byte> seen(slot.size() - header.size());
    check(cudaMemcpy(seen.data(), payload, seen.size(), cudaMemcpyDeviceToHost));
    CHECK(std::equal(seen.begin(), seen.end(), slot.begin() + kvx::page_bytes));
  }
};

kvx::cufile_options options(const slots& file, cufile_way way) {
  kvx::cufile_options with;
  with.kernels = kvx_gpu::kernels();
  with.block_bytes = file.slot_bytes;
  with.staging_bytes = blocks / 2 * file.slot_bytes;
  with.through = way;
  return with;
}

/// The engine's pages, in an allocation per layer and half.
struct engine_pages {
  kvx_test::toy_group group;
  std::vector<std::byte*> regions;
  std::optional<kvx_test::toy_layout> layout;
  std::vector<std::size_t> offsets;

  explicit engine_pages(std::size_t payload_bytes) {
    group.layers = payload_bytes / (2 * piece);
    group.fragment_bytes = piece;
    group.page_count = 2 * blocks;
    for (std::size_t r = 0; r < 2 * group.layers; ++r) {
      void* at = nullptr;
      check(cudaMalloc(&at, group.region_bytes(0)));
      check(cudaMemset(at, 0, group.region_bytes(0)));
      regions.push_back(static_cast<std::byte*>(at));
    }
    check(cudaDeviceSynchronize());
    layout.emplace(16, std::vector<kvx_test::toy_group>{group}, std::vector<std::vector<std::byte*>>{regions});
    for (std::size_t l = 0; l < group.layers; ++l) offsets.push_back(l * layout->layer_bytes(0, l));
  }
  ~engine_pages() {
    for (std::byte* at : regions) static_cast<void>(cudaFree(at));
  }
  engine_pages(const engine_pages&) = delete;
  engine_pages& operator=(const engine_pages&) = delete;

  [[nodiscard]] bool holds(kvx::block_id at, std::span<const std::byte> payload) const {
    std::vector<std::byte> seen(piece);
    bool equal = true;
    for (std::size_t l = 0; l < group.layers; ++l) {
      layout->for_each_fragment(0, l, {&at, 1}, [&](const kvx::fragment& each) {
        check(cudaMemcpy(seen.data(), each.data, each.bytes, cudaMemcpyDeviceToHost));
        const auto expected = payload.subspan(offsets[l] + each.offset, each.bytes);
        equal = equal && std::equal(expected.begin(), expected.end(), seen.begin());
      });
    }
    return equal;
  }
};

void read_and_load(const slots& file, cufile_way way) {
  kvx::cufile reader(options(file, way));
  const engine_pages engine(file.payload_bytes);
  kvx::cuda_transfer_options with;
  with.kernels = kvx_gpu::kernels();
  with.load_costs = with.save_costs = kvx::cuda_costs{};
  kvx::cuda_transfer transfer(with);
  REQUIRE(transfer.register_staging(reader.staging()).ok());
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::vector<std::unique_ptr<one_read>> reads;
  std::vector<kvx::direct_request> requests;
  for (std::size_t i = 0; i < blocks; ++i) {
    reads.push_back(std::make_unique<one_read>());
    requests.push_back(reads.back()->request(file, i));
  }
  reader.submit(requests);
  for (std::size_t i = 0; i < blocks; ++i) {
    reads[i]->expect(file.slot(i));
    const kvx::block_id to = static_cast<kvx::block_id>(2 * blocks - 1 - 2 * i);
    const kvx::block_copy copy{reads[i]->payload, {&to, 1}};
    auto loaded = transfer.load(*engine.layout, {0, engine.offsets, {&copy, 1}}, stream);
    REQUIRE(loaded.ok());
    loaded->wait();
    REQUIRE(loaded->outcome().ok());
    CHECK(transfer.last_load() == kvx::cuda_technique::direct);
    reader.give_back(reads[i]->payload);
  }
  for (std::size_t i = 0; i < blocks; ++i) {
    const auto at = static_cast<kvx::block_id>(2 * blocks - 1 - 2 * i);
    CHECK(engine.holds(at, file.slot(i).subspan(kvx::page_bytes)));
  }
  reader.detach(file.file.handle.fd());
  CHECK(reader.stop(kvx_test::patience));
  check(cudaStreamDestroy(stream));
}

}  // namespace

TEST_CASE("slots read through the host are right on the device, and in the engine's pages") {
  for (const std::size_t mib : {2U, 5U}) {
    CAPTURE(mib);
    read_and_load(slots(mib << 20U), cufile_way::host);
  }
}

TEST_CASE("slots read through cuFile are right on the device, and in the engine's pages") {
  for (const std::size_t mib : {2U, 5U}) {
    CAPTURE(mib);
    const slots file(mib << 20U);
    const kvx::cufile_report report = kvx::cufile::probe(file.directory, options(file, cufile_way::cufile));
    std::printf("cufile, blocks of %zu MiB: %s\n", mib, report.text.c_str());
    if (!report.usable) kvx_test::skip("cuFile is not tested here: " + report.text);
    try {
      read_and_load(file, cufile_way::cufile);
    } catch (const kvx::error& missing) {
      // No library or no driver of its: then there is nothing to fall back from.
      CHECK_FALSE(report.usable);
      CHECK(missing.code() == kvx::errc::unsupported);
    }
  }
}

TEST_CASE("staging memory is device memory of the engine's device, and nothing else") {
  kvx::cuda_transfer_options with;
  with.kernels = kvx_gpu::kernels();
  with.load_costs = with.save_costs = kvx::cuda_costs{};
  kvx::cuda_transfer transfer(with);
  std::vector<std::byte> pageable(1U << 20U);
  CHECK(transfer.register_staging(pageable) == kvx::errc::bad_argument);
  void* pinned = nullptr;
  check(cudaHostAlloc(&pinned, 1U << 20U, cudaHostAllocDefault));
  CHECK(transfer.register_staging({static_cast<std::byte*>(pinned), 1U << 20U}) == kvx::errc::bad_argument);
  check(cudaFreeHost(pinned));
}
