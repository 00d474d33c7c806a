// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.hpp"

#include <kvx/transfer/cuda.hpp>

#include <sys/statfs.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "../open_with.hpp"
#include "../serve_definitions.hpp"
#include "buffer.hpp"
#include "kernels.hpp"
#include "link_kernels.hpp"

namespace mini_engine {

template class basic_server<cuda::transformer, cudaStream_t>;

namespace cuda {

kvx::layout describe(const model_config& config, const paged_kv& kv) {
  std::vector<std::byte*> tensors;
  for (std::size_t l = 0; l < config.layers; ++l) tensors.push_back(reinterpret_cast<std::byte*>(kv.layer(l)));
  const auto tokens = static_cast<std::uint32_t>(kv.block_tokens());
  const kvx::kv_shape shape{.block_tokens = tokens,
                            .page_tokens = tokens,
                            .layers = config.layers,
                            .heads = config.kv_heads,
                            .head_dim = config.head_dim(),
                            .element = kvx::element_type::bf16};
  return {tokens,
          {kvx::fused_kv{.shape = shape,
                         .interleaving = kvx::kv_interleaving::page_halves,
                         .page_count = kv.pages(),
                         .tensors = tensors,
                         .tensor_bytes = kv.pages() * kv.page_bytes(),
                         .page_stride = kv.page_bytes()}}};
}

std::uint64_t memory_for(std::size_t tokens, const engine& e) {
  return mini_engine::memory_for(tokens, e.config().layers, e.kv.block_tokens(), e.kv.page_bytes());
}

kvx::cuda_transfer make_transfer(const kvx::cuda_transfer* measured) {
  kvx::cuda_transfer::options with;
  with.kernels = link_kernels();
  if (measured != nullptr) {
    with.load_costs = measured->load_costs();
    with.save_costs = measured->save_costs();
  }
  return kvx::cuda_transfer(with);
}

prefill_cost measure_cost(transformer& compute, std::size_t chunk_tokens) {
  paged_kv& kv = compute.kv();
  const std::size_t room = std::min(compute.config().context_tokens, kv.free_pages() * kv.block_tokens());
  const std::size_t many = std::min({chunk_tokens, compute.max_rows(), room});
  const std::size_t few = std::max<std::size_t>(1, many / 8), past = std::min<std::size_t>(8192, room - few);
  sequence scratch;
  if (room < 2 || !kv.reserve(scratch.pages, std::max(past + few, many))) return {chunk_tokens, 0, 0, 0};
  const std::vector<token_id> tokens(many, 0);
  const auto measure = [&](std::size_t start, std::size_t n) {
    const step s{&scratch, {tokens.data(), n}, start};
    double best = std::numeric_limits<double>::max();
    for (int repeat = 0; repeat < 3; ++repeat) {
      const auto begin = std::chrono::steady_clock::now();
      compute.forward({&s, 1});
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return best;
  };
  // What comes after a hit, and decoding: products of these sizes have kernels of their own, which are loaded when
  // first used.
  for (const std::size_t n : {std::size_t{1}, std::min(kv.block_tokens(), few)}) measure(past, n);
  const double whole = measure(0, many), part = measure(0, few), after = measure(past, few);
  kv.release(scratch.pages);
  const auto n = static_cast<double>(many), m = static_cast<double>(few), p = static_cast<double>(past);
  const double per_pair = past == 0 ? 0 : std::max(0.0, (after - part) / (m * p));
  const double per_token = many > few ? std::max(0.0, (whole - part - per_pair * (n * n - m * m) / 2) / (n - m)) : 0;
  return {chunk_tokens, std::max(0.0, part - per_token * m - per_pair * m * m / 2), per_token, per_pair};
}

namespace {

/// Whether a directory is on a local drive, which two threads keep busy, rather than in memory or on other machines.
bool on_a_drive(const std::string& directory) {
  std::error_code ignored;
  std::filesystem::create_directories(directory, ignored);
  struct statfs found {};
  if (directory.empty() || ::statfs(directory.c_str(), &found) != 0) return true;
  constexpr std::array<long, 3> drives = {0xEF53 /* ext4 */, 0x58465342 /* xfs */,
                                          static_cast<long>(0x9123683E) /* btrfs */};
  return std::find(drives.begin(), drives.end(), static_cast<long>(found.f_type)) != drives.end();
}

}  // namespace

void read_straight(const cache_settings& settings, bool single_prompt, engine& e) {
  const bool better = single_prompt && !settings.directory.empty() && !on_a_drive(settings.directory);
  if (settings.straight == straight_kind::never || (settings.straight == straight_kind::automatic && !better)) return;
  const std::size_t payload = e.config().layers * kvx::round_up(e.kv.page_bytes());
  kvx::cufile_options with;
  with.kernels = link_kernels();
  // A header has 8 bytes for each page of the payload, and a little more.
  with.block_bytes = payload + kvx::round_up(payload / kvx::page_bytes * 8) + 4 * kvx::page_bytes;
  with.staging_bytes = std::max(with.staging_bytes, 32 * with.block_bytes);
  with.threads =
      settings.io_threads != 0 ? settings.io_threads : std::clamp(std::thread::hardware_concurrency(), 2u, 12u);
  with.through = settings.straight == straight_kind::cufile ? kvx::cufile_way::cufile : kvx::cufile_way::host;
  try {
    e.reader = std::make_shared<kvx::cufile>(with);
  } catch (const kvx::error&) {
    // A device that has no room for it serves all the same.
    if (settings.straight != straight_kind::automatic) throw;
  }
}

external_cache open_cache(const cache_settings& settings, engine& e, const std::function<void()>& memory_is_there) {
  kvx::options options = options_for(settings, {e.of.digest(), "bf16"}, e.cost, e.config().context_tokens);
  io_kind io = settings.io;
  if (settings.io_threads == 0 && !on_a_drive(settings.directory)) {
    // Threads, because each ring would register all of the memory, which takes as long as the reads. And many, because
    // each reads and verifies at no more than the speed of one processor.
    if (io == io_kind::automatic) io = io_kind::posix;
    options.io.threads = std::clamp(std::thread::hardware_concurrency(), 2u, 16u);
    options.io.in_flight_bytes = std::max(options.io.in_flight_bytes, options.io.threads * std::size_t{8 << 20});
  }
  return open_with(io, options, describe(e.config(), e.kv), make_transfer(&e.link), memory_is_there);
}

namespace {

std::vector<std::uint64_t> digests_of_pages(engine& e, const std::vector<page_id>& pages, std::size_t blocks) {
  std::vector<std::uint64_t> digests(blocks * e.config().layers);
  if (blocks == 0) return digests;
  const device_buffer<std::uint32_t> ids(blocks);
  const device_buffer<std::uint64_t> to(digests.size());
  const cudaStream_t stream = e.compute.stream();
  check(cudaMemcpyAsync(ids.data(), pages.data(), ids.bytes(), cudaMemcpyHostToDevice, stream),
        "pages cannot be digested");
  digest_pages(e.kv.layer(0), ids.data(), blocks, e.config().layers, e.kv.layer_elements(), e.kv.page_elements(),
               to.data(), stream);
  check(cudaMemcpyAsync(digests.data(), to.data(), to.bytes(), cudaMemcpyDeviceToHost, stream),
        "pages cannot be digested");
  check(cudaStreamSynchronize(stream), "pages cannot be digested");
  return digests;
}

void swap_pages(engine& e, page_id a, page_id b) {
  const device_buffer<std::byte> held(e.kv.page_bytes());
  const cudaStream_t stream = e.compute.stream();
  const auto copy = [&](void* to, const void* from) {
    check(cudaMemcpyAsync(to, from, held.bytes(), cudaMemcpyDeviceToDevice, stream), "pages cannot be exchanged");
  };
  for (std::size_t l = 0; l < e.config().layers; ++l) {
    auto *first = e.kv.layer(l) + a * e.kv.page_elements(), *second = e.kv.layer(l) + b * e.kv.page_elements();
    copy(held.data(), first);
    copy(first, second);
    copy(second, held.data());
  }
  check(cudaStreamSynchronize(stream), "pages cannot be exchanged");
}

}  // namespace

server make_server(engine& e, opening_cache* cache, std::size_t chunk_tokens, bool patient) {
  server::straight_load straight;
  if (e.reader != nullptr) {
    straight = [&e](external_cache& from, const kvx::plan& what, std::span<const page_id> pages, std::size_t first) {
      return from.load_direct(what, pages, e.reader, e.compute.stream(), first);
    };
  }
  return {e.compute, e.cost, cache, chunk_tokens, patient, e.compute.stream(), stretch_blocks, std::move(straight)};
}

single_run run_alone(std::string name, engine& e, request& from, std::optional<opening_cache>& cache,
                     const cache_settings* to_open, const single_run_settings& how) {
  single_run run;
  run.name = std::move(name);
  from.submitted = std::chrono::steady_clock::now();
  if (to_open != nullptr && !cache) cache.emplace(*to_open, e);
  server one = make_server(e, cache ? &*cache : nullptr, how.chunk_tokens, how.patient);
  collect(
      one, from, e.kv.block_tokens(), how,
      [&](const std::vector<page_id>& pages, std::size_t blocks) { return digests_of_pages(e, pages, blocks); },
      [&](page_id i, page_id j) { swap_pages(e, i, j); }, run);
  run.open_seconds = to_open != nullptr ? cache->open_seconds() : 0;
  run.loaded_bytes = run.cached_tokens * e.kv_bytes_per_token();
  return run;
}

}  // namespace cuda
}  // namespace mini_engine
