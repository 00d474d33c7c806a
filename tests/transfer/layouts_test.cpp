// SPDX-License-Identifier: Apache-2.0
// Transfer engines over kvx::layout: for each way to keep pages, a block saved from some pages and loaded into others
// leaves those equal, and everything else as it was.
#include <kvx/layout.hpp>
#include <kvx/transfer/deferred.hpp>
#include <kvx/transfer/host.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace {

constexpr std::size_t pages = 24;
constexpr std::uint32_t block_tokens = 16;

// Where page p of one tensor lies: bytes at base + p * stride.
struct page_place {
  std::byte* base;
  std::size_t stride;
  std::size_t bytes;
};

struct engine_memory {
  std::string name;
  std::vector<std::vector<std::byte>> tensors;
  std::vector<page_place> places;
  std::unique_ptr<kvx::layout> layout;

  std::byte* tensor(std::size_t bytes) {
    tensors.emplace_back(bytes);
    return tensors.back().data();
  }
};

kvx::kv_shape shape_of(std::uint32_t page_tokens) {
  return {.block_tokens = block_tokens, .page_tokens = page_tokens, .layers = 3, .heads = 2, .head_dim = 8};
}

std::size_t half_page(const kvx::kv_shape& s) {
  return s.page_tokens * s.heads * s.head_dim * kvx::element_bytes(s.element);
}

engine_memory separate(std::uint32_t page_tokens) {
  engine_memory m{"separate, pages of " + std::to_string(page_tokens), {}, {}, nullptr};
  const kvx::kv_shape shape = shape_of(page_tokens);
  std::vector<std::byte*> keys;
  std::vector<std::byte*> values;
  for (std::size_t l = 0; l < shape.layers; ++l) {
    for (auto* half : {&keys, &values}) {
      half->push_back(m.tensor(pages * half_page(shape)));
      m.places.push_back({half->back(), half_page(shape), half_page(shape)});
    }
  }
  m.layout = std::make_unique<kvx::layout>(
      block_tokens, std::vector<kvx::layer_group>{kvx::separate_kv{.shape = shape,
                                                                   .page_count = pages,
                                                                   .keys = keys,
                                                                   .values = values,
                                                                   .tensor_bytes = pages * half_page(shape)}});
  return m;
}

engine_memory fused(kvx::kv_interleaving how, const char* name) {
  engine_memory m{name, {}, {}, nullptr};
  const kvx::kv_shape shape = shape_of(8);
  const std::size_t half = half_page(shape);
  std::vector<std::byte*> tensors;
  for (std::size_t l = 0; l < shape.layers; ++l) {
    tensors.push_back(m.tensor(2 * pages * half));
    if (how == kvx::kv_interleaving::tensor_halves) {
      m.places.push_back({tensors.back(), half, half});
      m.places.push_back({tensors.back() + pages * half, half, half});
    } else {
      m.places.push_back({tensors.back(), 2 * half, 2 * half});
    }
  }
  m.layout = std::make_unique<kvx::layout>(
      block_tokens, std::vector<kvx::layer_group>{kvx::fused_kv{.shape = shape,
                                                                .interleaving = how,
                                                                .page_count = pages,
                                                                .tensors = tensors,
                                                                .tensor_bytes = 2 * pages * half}});
  return m;
}

engine_memory cross_layer() {
  engine_memory m{"one allocation, layers inside a page, with a gap", {}, {}, nullptr};
  const kvx::kv_shape shape = shape_of(16);
  const std::size_t half = half_page(shape);
  const std::size_t used = shape.layers * 2 * half;
  const std::size_t stride = used + 96;
  std::byte* const base = m.tensor(pages * stride);
  m.places.push_back({base, stride, used});
  m.layout = std::make_unique<kvx::layout>(block_tokens,
                                           std::vector<kvx::layer_group>{kvx::cross_layer_kv{.shape = shape,
                                                                                             .page_count = pages,
                                                                                             .base = base,
                                                                                             .bytes = pages * stride,
                                                                                             .page_stride = stride,
                                                                                             .layer_stride = 2 * half,
                                                                                             .value_offset = half}});
  return m;
}

engine_memory latents() {
  engine_memory m{"latents", {}, {}, nullptr};
  constexpr std::size_t dim = 36;
  constexpr std::size_t page = 4 * dim * 2;
  std::vector<std::byte*> tensors;
  for (std::size_t l = 0; l < 3; ++l) {
    tensors.push_back(m.tensor(pages * page));
    m.places.push_back({tensors.back(), page, page});
  }
  m.layout = std::make_unique<kvx::layout>(
      block_tokens, std::vector<kvx::layer_group>{kvx::mla_latents{.block_tokens = block_tokens,
                                                                   .page_tokens = 4,
                                                                   .latent_dim = dim,
                                                                   .page_count = pages,
                                                                   .tensors = tensors,
                                                                   .tensor_bytes = pages * page}});
  return m;
}

std::vector<engine_memory> all_layouts() {
  std::vector<engine_memory> out;
  out.push_back(separate(16));
  out.push_back(separate(4));
  out.push_back(fused(kvx::kv_interleaving::tensor_halves, "fused, halves of the tensor"));
  out.push_back(fused(kvx::kv_interleaving::page_halves, "fused, halves of the page"));
  out.push_back(fused(kvx::kv_interleaving::per_token, "fused, per token"));
  out.push_back(cross_layer());
  out.push_back(latents());
  return out;
}

template <class Engine>
void move_a_block(Engine& engine, typename Engine::stream_type stream) {
  for (engine_memory& m : all_layouts()) {
    CAPTURE(m.name);
    const kvx::layout& layout = *m.layout;
    std::mt19937_64 random{7};
    for (auto& tensor : m.tensors) {
      for (std::byte& b : tensor) b = static_cast<std::byte>(random() >> 56U);
    }
    std::vector<kvx::block_id> ids(pages);
    for (std::size_t i = 0; i < pages; ++i) ids[i] = static_cast<kvx::block_id>(i);
    std::shuffle(ids.begin(), ids.end(), random);
    const std::size_t n = layout.pages_per_block(0);
    REQUIRE(2 * n <= pages);
    const std::span<const kvx::block_id> from = std::span{ids}.first(n);
    const std::span<const kvx::block_id> to = std::span{ids}.subspan(n, n);

    std::vector<std::size_t> offsets;
    std::size_t payload_bytes = 0;
    for (std::size_t l = 0; l < layout.layer_count(0); ++l) {
      offsets.push_back(payload_bytes);
      payload_bytes += kvx::round_up(layout.layer_bytes(0, l));
    }
    std::vector<std::byte> slot(payload_bytes);

    auto expected = m.tensors;
    for (const page_place& place : m.places) {
      for (std::size_t t = 0; t < m.tensors.size(); ++t) {
        std::byte* const first = m.tensors[t].data();
        if (std::less<>{}(place.base, first) || !std::less<>{}(place.base, first + m.tensors[t].size())) continue;
        const auto offset = static_cast<std::size_t>(place.base - first);
        for (std::size_t i = 0; i < n; ++i) {
          std::copy_n(m.tensors[t].data() + offset + from[i] * place.stride, place.bytes,
                      expected[t].data() + offset + to[i] * place.stride);
        }
      }
    }

    const kvx::block_copy out{slot.data(), from};
    auto saved = engine.save(layout, {0, offsets, {&out, 1}}, stream);
    REQUIRE(saved.ok());
    saved->wait();
    const kvx::block_copy in{slot.data(), to};
    auto loaded = engine.load(layout, {0, offsets, {&in, 1}}, stream);
    REQUIRE(loaded.ok());
    loaded->wait();
    CHECK(m.tensors == expected);
  }
}

}  // namespace

TEST_CASE("host_transfer moves blocks of every layout") {
  kvx::host_transfer engine;
  move_a_block(engine, kvx::host_stream{});
}

TEST_CASE("deferred_transfer moves blocks of every layout") {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    kvx::deferred_device device{{.seed = seed, .workers = 0}};
    kvx::deferred_transfer engine{device};
    move_a_block(engine, device.create_stream());
  }
}
