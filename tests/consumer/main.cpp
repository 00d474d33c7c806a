// SPDX-License-Identifier: Apache-2.0
#include <kvx/kvx.hpp>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <numeric>
#include <vector>

// A cache over two pages of memory: what is saved from the first comes back into the second.
int main() {
  constexpr std::size_t half_floats = 16 * 2 * 8;
  std::vector<float> memory(2 * 2 * half_floats);
  std::iota(memory.begin(), memory.begin() + 2 * half_floats, 1.0F);
  std::byte* const tensor = reinterpret_cast<std::byte*>(memory.data());
  kvx::fused_kv pages;
  pages.shape = {
      .block_tokens = 16, .page_tokens = 16, .layers = 1, .heads = 2, .head_dim = 8, .element = kvx::element_type::f32};
  pages.page_count = 2;
  pages.tensors = {&tensor, 1};
  pages.tensor_bytes = memory.size() * sizeof(float);

  kvx::options options;
  options.identity = {"model", "revision", "f32"};
  options.memory_bytes = 1U << 20U;
  kvx::host_cache<> cache(options, kvx::layout(16, {pages}));

  std::vector<kvx::token_id> prompt(17);
  std::iota(prompt.begin(), prompt.end(), 100U);
  const kvx::block_id first = 0;
  const kvx::block_id second = 1;
  const auto save = cache.save(cache.make_sequence(prompt), 0, {&first, 1});
  if (!save.wait_stored(std::chrono::seconds(60)) || !save.outcome().ok()) return 1;
  const kvx::plan plan = cache.match(prompt);
  if (plan.matched_tokens() != 16) return 2;
  const auto load = cache.load(plan, {&second, 1});
  load.wait();
  if (load.loaded_blocks() != 1 || !load.outcome().ok()) return 3;
  for (std::size_t i = 0; i < 2 * half_floats; ++i)
    if (memory[2 * half_floats + i] != memory[i]) return 4;

  std::printf("kvx %d.%d.%d\n", kvx::version.major, kvx::version.minor, kvx::version.patch);
  return kvx::version >= kvx::version_number{0, 1, 0} ? 0 : 5;
}
