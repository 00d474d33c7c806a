// SPDX-License-Identifier: Apache-2.0
// Engines capture their steps into graphs while kvx moves blocks.
#include <kvx/transfer/cuda.hpp>

#include "../transfer/conformance.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>

#include "fixture.hpp"

using namespace kvx_test;
using device_fixture = kvx_gpu::cuda_fixture<-1, true>;

namespace {

/// Captures a fill of `bytes` at `to`, with `meanwhile` in the middle, and replays it.
template <class Meanwhile>
void capture_and_replay(cudaStreamCaptureMode mode, cudaStream_t stream, std::byte* to, std::byte value,
                        Meanwhile meanwhile) {
  kvx_gpu::check(cudaStreamBeginCapture(stream, mode));
  kvx_gpu::spin_and_fill(stream, 10, to, value, 64);
  meanwhile();
  kvx_gpu::spin_and_fill(stream, 10, to + 64, value, 64);
  cudaGraph_t graph = nullptr;
  kvx_gpu::check(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t ready = nullptr;
  kvx_gpu::check(cudaGraphInstantiate(&ready, graph, 0));
  kvx_gpu::check(cudaGraphLaunch(ready, stream));
  kvx_gpu::check(cudaStreamSynchronize(stream));
  bytes seen(128);
  kvx_gpu::check(cudaMemcpy(seen.data(), to, seen.size(), cudaMemcpyDeviceToHost));
  CHECK(seen == bytes(128, value));
  kvx_gpu::check(cudaGraphExecDestroy(ready));
  kvx_gpu::check(cudaGraphDestroy(graph));
}

}  // namespace

TEST_CASE("loads and saves of any thread leave a capture alone, whatever its mode") {
  bench_top<device_fixture> t{one_group({}), 0, 2, 1};
  std::byte* const to = t.fixture.allocate(128);
  const cudaStream_t captured = t.fixture.new_stream();
  int value = 1;
  for (const auto mode :
       {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed}) {
    for (const bool same_thread : {true, false}) {
      CAPTURE(static_cast<int>(mode));
      CAPTURE(same_thread);
      capture_and_replay(mode, captured, to, static_cast<std::byte>(value++), [&] {
        const auto move = [&] {
          auto saved = t.save(t.from);
          REQUIRE(saved.ok());
          while (!saved->done()) std::this_thread::yield();
          CHECK(saved->outcome().ok());
          auto loaded = t.load(t.to);
          REQUIRE(loaded.ok());
          CHECK(loaded->wait_layer(0, t.stream).ok());
          loaded->wait();
          CHECK(loaded->outcome().ok());
        };
        if (same_thread) {
          move();
        } else {
          std::thread(move).join();
        }
      });
      t.expect_saved(t.from);
      t.expect_loaded(t.to);
      CHECK(t.slots.intact());
      CHECK(t.engine.intact());
    }
  }
}

TEST_CASE("an engine made, and an arena pinned, while another thread captures leave the capture alone") {
  bench_top<device_fixture> t{one_group({}), 0, 1, 1};
  std::byte* const to = t.fixture.allocate(128);
  const cudaStream_t captured = t.fixture.new_stream();
  capture_and_replay(cudaStreamCaptureModeGlobal, captured, to, std::byte{0x42}, [&] {
    std::thread([] {
      kvx::cuda_transfer_options with;
      with.kernels = kvx_gpu::kernels();
      host_memory memory;
      kvx::cuda_transfer engine(with);
      CHECK(engine.register_arena({memory.allocate(1U << 20U), 1U << 20U}).ok());
    }).join();
  });
}

TEST_CASE("a stream that is being captured is refused, and its capture goes on") {
  bench_top<device_fixture> t{one_group({}), 0, 2, 1};
  std::byte* const to = t.fixture.allocate(128);
  auto before = t.load(t.to);
  REQUIRE(before.ok());
  capture_and_replay(cudaStreamCaptureModeThreadLocal, t.stream, to, std::byte{0x17}, [&] {
    CHECK(t.load(t.to).status() == kvx::errc::bad_argument);
    CHECK(t.save(t.from).status() == kvx::errc::bad_argument);
    CHECK(before->wait_layer(0, t.stream) == kvx::errc::bad_argument);
  });
  before->wait();
  t.expect_loaded(t.to);
  CHECK(t.engine.intact());
}
