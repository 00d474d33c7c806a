// SPDX-License-Identifier: Apache-2.0
#include <kvx/layout.hpp>
#include <kvx/layout/static_layout.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace {

using kvx::kv_shape;
using kvx::layer_group;
using kvx::layout;

constexpr kv_shape base_shape{.block_tokens = 16, .page_tokens = 16, .layers = 4, .heads = 8, .head_dim = 16};

std::size_t half_page(const kv_shape& s) {
  return std::size_t{s.page_tokens} * s.heads * s.head_dim * kvx::element_bytes(s.element);
}

// Memory for a description; addresses only, nothing is ever read.
struct pool {
  explicit pool(const kv_shape& s, std::size_t page_count = 16, std::size_t gap = 0)
      : shape(s), pages(page_count), tensor_bytes(page_count * half_page(s) * 2 + gap) {
    memory.resize(2 * s.layers * tensor_bytes);
    for (std::size_t l = 0; l < s.layers; ++l) {
      keys.push_back(memory.data() + 2 * l * tensor_bytes);
      values.push_back(memory.data() + (2 * l + 1) * tensor_bytes);
    }
  }
  [[nodiscard]] kvx::separate_kv separate() const {
    return {.shape = shape, .page_count = pages, .keys = keys, .values = values, .tensor_bytes = tensor_bytes};
  }
  [[nodiscard]] kvx::fused_kv fused(kvx::kv_interleaving interleaving) const {
    return {.shape = shape,
            .interleaving = interleaving,
            .page_count = pages,
            .tensors = keys,
            .tensor_bytes = tensor_bytes};
  }

  [[nodiscard]] std::byte* first() const { return keys.front(); }

  kv_shape shape;
  std::size_t pages;
  std::size_t tensor_bytes;
  std::vector<std::byte> memory;
  std::vector<std::byte*> keys;
  std::vector<std::byte*> values;
};

std::uint64_t fingerprint(const kv_shape& shape, const layer_group& group) {
  return layout(shape.block_tokens, {group}).fingerprint(0);
}
std::uint64_t fingerprint(const kv_shape& shape) {
  const std::uint64_t value = fingerprint(shape, pool(shape).separate());
  CHECK(value == kvx::fingerprint_of(shape));
  return value;
}
kv_shape with(const std::function<void(kv_shape&)>& change) {
  kv_shape shape = base_shape;
  change(shape);
  return shape;
}

std::string refusal(std::uint32_t block_tokens, const std::vector<layer_group>& groups) {
  try {
    const layout made(block_tokens, groups);
  } catch (const kvx::error& e) {
    CHECK(e.code() == kvx::errc::bad_argument);
    return e.what();
  }
  return "accepted";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("fingerprints are pinned: they are an on-disk format") {
  static_assert(kvx::fingerprint_of(base_shape) == kvx::fingerprint_of(kv_shape{base_shape}));
  CHECK(fingerprint(base_shape) == 0xde0d'ec01'bb65'2bf6U);
  CHECK(fingerprint(with([](kv_shape& s) { s.order = kvx::token_order::hnd; })) == 0x6f4a'40f6'4241'45f9U);
}

TEST_CASE("the fingerprint ignores what may change from run to run") {
  const std::uint64_t expected = fingerprint(base_shape);
  CHECK(fingerprint(base_shape, pool(base_shape, 9).separate()) == expected);
  const pool spaced(base_shape, 4, 512);
  kvx::separate_kv with_stride = spaced.separate();
  with_stride.page_stride = half_page(base_shape) + 64;
  CHECK(fingerprint(base_shape, with_stride) == expected);
  std::vector<std::byte*> reversed(spaced.keys.rbegin(), spaced.keys.rend());
  kvx::separate_kv other_bases = spaced.separate();
  other_bases.keys = reversed;
  CHECK(fingerprint(base_shape, other_bases) == expected);
}

TEST_CASE("token-major layouts have one fingerprint for every page size, head-major ones do not") {
  const auto paged = [](kvx::token_order order, std::uint32_t page_tokens) {
    return fingerprint(with([&](kv_shape& s) { s.order = order, s.page_tokens = page_tokens; }));
  };
  using kvx::token_order;
  CHECK(paged(token_order::nhd, 16) == paged(token_order::nhd, 8));
  CHECK(paged(token_order::nhd, 16) == paged(token_order::nhd, 1));
  CHECK(paged(token_order::hnd, 16) != paged(token_order::hnd, 8));
  CHECK(paged(token_order::hnd, 16) != paged(token_order::nhd, 16));
  // One token per page leaves no order to choose.
  CHECK(paged(token_order::hnd, 1) == paged(token_order::nhd, 1));
}

TEST_CASE("equal sizes of different meaning have different fingerprints") {
  std::vector<std::uint64_t> seen{fingerprint(base_shape)};
  const auto add = [&](const std::function<void(kv_shape&)>& change) { seen.push_back(fingerprint(with(change))); };
  add([](kv_shape& s) { s.heads = 16, s.head_dim = 8; });
  add([](kv_shape& s) { s.heads = 4, s.head_dim = 32; });
  add([](kv_shape& s) { s.element = kvx::element_type::f16; });
  add([](kv_shape& s) { s.element = kvx::element_type::f8_e4m3, s.head_dim = 32; });
  add([](kv_shape& s) { s.element = kvx::element_type::f8_e5m2, s.head_dim = 32; });
  add([](kv_shape& s) { s.element = kvx::element_type::i8, s.head_dim = 32; });
  add([](kv_shape& s) { s.order = kvx::token_order::hnd; });
  add([](kv_shape& s) { s.block_tokens = s.page_tokens = 32, s.head_dim = 8; });
  add([](kv_shape& s) { s.layers = 2, s.heads = 16; });
  add([](kv_shape& s) { s.kind = kvx::attention_kind::sliding_window, s.window_tokens = 64; });
  const pool memory(base_shape);
  seen.push_back(fingerprint(base_shape, memory.fused(kvx::kv_interleaving::per_token)));
  seen.push_back(fingerprint(base_shape, memory.fused(kvx::kv_interleaving::per_head)));
  seen.push_back(fingerprint(base_shape, kvx::mla_latents{.block_tokens = 16,
                                                          .page_tokens = 16,
                                                          .latent_dim = 256,
                                                          .page_count = 4,
                                                          .tensors = memory.keys,
                                                          .tensor_bytes = memory.tensor_bytes}));
  layer_group values_first = memory.separate();
  for (kvx::layer_regions& layer : values_first.layers) std::swap(layer.regions[0], layer.regions[1]);
  seen.push_back(fingerprint(base_shape, values_first));
  for (std::size_t i = 0; i < seen.size(); ++i) {
    for (std::size_t j = i + 1; j < seen.size(); ++j) {
      CAPTURE(i);
      CAPTURE(j);
      CHECK(seen[i] != seen[j]);
    }
  }
}

TEST_CASE("the same slot bytes have the same fingerprint, whatever the engine's allocation") {
  const std::uint64_t expected = fingerprint(base_shape);
  const pool memory(base_shape);
  CHECK(fingerprint(base_shape, memory.fused(kvx::kv_interleaving::page_halves)) == expected);
  CHECK(fingerprint(base_shape, memory.fused(kvx::kv_interleaving::tensor_halves)) == expected);
  const std::size_t half = half_page(base_shape);
  const kvx::cross_layer_kv whole{.shape = base_shape,
                                  .page_count = 4,
                                  .base = memory.first(),
                                  .bytes = 4 * 8 * half,
                                  .page_stride = 8 * half,
                                  .layer_stride = 2 * half,
                                  .value_offset = half};
  CHECK(fingerprint(base_shape, whole) == expected);
  CHECK(layout(16, {whole}).constant_layer_stride(0) == static_cast<std::ptrdiff_t>(2 * half));
  kv_shape window = base_shape;
  window.kind = kvx::attention_kind::sliding_window;
  window.window_tokens = 64;
  kv_shape longer = window;
  longer.window_tokens = 128;
  CHECK(fingerprint(window) == fingerprint(longer));
}

TEST_CASE("groups keep their own page tables, kinds and sizes") {
  const pool full(base_shape);
  kv_shape window_shape = base_shape;
  window_shape.page_tokens = 4;
  window_shape.layers = 2;
  window_shape.kind = kvx::attention_kind::sliding_window;
  window_shape.window_tokens = 128;
  const pool window(window_shape, 12);
  std::vector<std::byte> states(3 * 100);
  layer_group state;
  state.kind = kvx::attention_kind::recurrent;
  state.element = kvx::element_type::f32;
  state.page_count = 3;
  state.layers = {{{{.role = kvx::tensor_role::state,
                     .axes = {{kvx::axis::state, 25}},
                     .base = states.data(),
                     .bytes = states.size(),
                     .page_stride = 100,
                     .row_bytes = 100}}}};
  const layout all{16, {full.separate(), window.separate(), state}};
  REQUIRE(all.group_count() == 3);
  CHECK(all.kind(0) == kvx::attention_kind::full);
  CHECK(all.kind(1) == kvx::attention_kind::sliding_window);
  CHECK(all.kind(2) == kvx::attention_kind::recurrent);
  CHECK(all.window_tokens(0) == 0);
  CHECK(all.window_tokens(1) == 128);
  CHECK(all.pages_per_block(0) == 1);
  CHECK(all.pages_per_block(1) == 4);
  CHECK(all.page_count(0) == 16);
  CHECK(all.page_count(1) == 12);
  CHECK(all.layer_count(1) == 2);
  CHECK(all.layer_bytes(1, 0) == 2 * 4 * half_page(window_shape));
  CHECK(all.layer_bytes(2, 0) == 100);
  CHECK(all.fingerprint(0) == fingerprint(base_shape));
}

TEST_CASE("layers of different sizes have no constant stride and their own bytes") {
  const pool memory(base_shape);
  layer_group group = memory.separate();
  for (kvx::region& r : group.layers[2].regions) {
    r.axes = {{kvx::axis::token, 16}, {kvx::axis::head, 4}, {kvx::axis::channel, 16}};
    r.row_bytes /= 2;
  }
  const layout made{16, {group}};
  CHECK(made.layer_bytes(0, 2) == made.layer_bytes(0, 1) / 2);
  CHECK_FALSE(made.constant_layer_stride(0).has_value());
  CHECK(made.fingerprint(0) != fingerprint(base_shape));
}

TEST_CASE("descriptions that contradict themselves are refused, by name") {
  const pool memory(base_shape);
  const auto described = [&](const std::function<void(kvx::separate_kv&)>& change) -> std::string {
    kvx::separate_kv from = memory.separate();
    change(from);
    try {
      return refusal(16, {from});
    } catch (const kvx::error& e) {
      return e.what();
    }
  };
  using from_type = kvx::separate_kv;
  CHECK(described([](from_type&) {}) == "accepted");
  CHECK(has(described([](from_type& f) { f.shape.page_tokens = 3; }), "not a multiple of page_tokens"));
  CHECK(has(described([](from_type& f) { f.shape.page_tokens = 0; }), "page_tokens must not be 0"));
  CHECK(has(described([](from_type& f) { f.shape.heads = 0; }), "must not be 0"));
  CHECK(has(described([](from_type& f) { f.shape.layers = 3; }), "one tensor per layer"));
  CHECK(has(described([](from_type& f) { f.shape.element = kvx::element_type{}; }), "element"));
  CHECK(has(described([](from_type& f) { f.page_count = 0; }), "page_count is 0"));
  CHECK(has(described([](from_type& f) { f.page_count = 33; }), "bytes is less than page_count pages need"));
  CHECK(has(described([](from_type& f) { f.page_count = std::size_t{1} << 33U; }), "block_id"));
  CHECK(has(described([](from_type& f) { f.tensor_bytes /= 4; }), "bytes is less than"));
  CHECK(has(described([](from_type& f) { f.page_stride = 100; }), "pages overlap"));
  CHECK(has(described([](from_type& f) { f.page_stride = std::numeric_limits<std::size_t>::max() / 2; }), "memory"));
  CHECK(has(described([](from_type& f) { f.shape.heads = std::numeric_limits<std::size_t>::max() / 2; }), "memory"));
  CHECK(has(described([](from_type& f) { f.values = f.keys; }), "two regions overlap"));
  CHECK(has(described([](from_type& f) { f.shape.window_tokens = 5; }), "not sliding_window"));
  CHECK(has(described([](from_type& f) { f.shape.kind = kvx::attention_kind::sliding_window; }), "window_tokens is 0"));
  CHECK(has(described([](from_type& f) { f.shape.block_tokens = 32; }), "block_tokens"));

  kvx::fused_kv heads_first = memory.fused(kvx::kv_interleaving::per_token);
  heads_first.shape.order = kvx::token_order::hnd;
  CHECK_THROWS_WITH_AS(layer_group{heads_first}, doctest::Contains("per_head"), kvx::error);
  kvx::fused_kv tiny = memory.fused(kvx::kv_interleaving::page_halves);
  tiny.tensor_bytes = 8;
  CHECK_THROWS_WITH_AS(layer_group{tiny}, doctest::Contains("less than one page"), kvx::error);
  kvx::token_pool_kv pool_of_two{.shape = base_shape,
                                 .token_count = 4,
                                 .keys = memory.keys,
                                 .values = memory.values,
                                 .tensor_bytes = memory.tensor_bytes};
  CHECK_THROWS_WITH_AS(layer_group{pool_of_two}, doctest::Contains("a page is one token"), kvx::error);
  kvx::cross_layer_kv outside{.shape = base_shape,
                              .page_count = 1,
                              .base = memory.first(),
                              .bytes = 100,
                              .page_stride = 8,
                              .layer_stride = 99,
                              .value_offset = 4};
  CHECK_THROWS_WITH_AS(layer_group{outside}, doctest::Contains("outside of bytes"), kvx::error);
}

TEST_CASE("regions that do not fit are refused, with group, layer and region named") {
  const pool memory(base_shape);
  const auto edited = [&](const std::function<void(layer_group&)>& change) {
    layer_group group = memory.separate();
    change(group);
    return refusal(16, {memory.separate(), group});
  };
  CHECK(refusal(0, {memory.separate()}) == "kvx: layout: block_tokens is 0");
  CHECK(refusal(16, {}) == "kvx: layout: there is no layer group");
  CHECK(has(refusal(32, {memory.separate()}), "the token axes do not multiply to the layout's block_tokens"));
  CHECK(edited([](layer_group& g) { g.layers.clear(); }) == "kvx: layout: group 1: there is no layer");
  CHECK(edited([](layer_group& g) { g.layers[2].regions.clear(); }) ==
        "kvx: layout: group 1, layer 2: there is no region");
  CHECK(edited([](layer_group& g) { g.layers[3].regions[1].base = nullptr; }) ==
        "kvx: layout: group 1, layer 3, region 1: base is null");
  CHECK(has(edited([](layer_group& g) { g.pages_per_block = 0; }), "pages_per_block is 0"));
  CHECK(has(edited([](layer_group& g) { g.pages_per_block = 17; }), "less than one block needs"));
  CHECK(has(edited([](layer_group& g) { g.layers[0].regions[0].row_bytes = 0; }), "row_bytes or rows is 0"));
  CHECK(has(edited([](layer_group& g) { g.layers[0].regions[0].rows = 0; }), "row_bytes or rows is 0"));
  CHECK(has(edited([](layer_group& g) { g.layers[0].regions[0].axes[0].extent = 0; }), "extent 0"));
  CHECK(has(edited([](layer_group& g) { g.layers[0].regions[0].axes.pop_back(); }), "another number of bytes"));
  CHECK(has(edited([](layer_group& g) { g.layers[0].regions[0].row_bytes -= 2; }), "another number of bytes"));
  CHECK(has(edited([](layer_group& g) {
              g.layers[0].regions[0].rows = 2;
              g.layers[0].regions[0].row_stride = 1;
            }),
            "rows overlap"));
  CHECK(has(edited([](layer_group& g) { g.layers[0].regions[0].bytes = std::numeric_limits<std::size_t>::max(); }),
            "address space"));
  CHECK(has(edited([](layer_group& g) {
              for (kvx::axis_extent& a : g.layers[0].regions[0].axes) a.extent = std::uint64_t{1} << 40U;
            }),
            "multiply to more than memory"));
}

TEST_CASE("overlap is found wherever two pages, or rows of pages, meet") {
  // Two tensors of four pages, 24 bytes of 64 each, in one allocation; the second begins at every offset.
  std::vector<std::byte> memory(1024);
  constexpr std::size_t stride = 64;
  const auto made = [&](std::size_t offset, std::size_t rows) {
    const std::size_t row_bytes = 24 / rows;
    const std::size_t row_stride = rows == 1 ? 0 : 16;
    layer_group group;
    group.page_count = 4;
    kvx::region r{.role = kvx::tensor_role::key,
                  .axes = {{kvx::axis::token, 4}, {kvx::axis::channel, 3}},
                  .base = memory.data() + 256,
                  .bytes = 256,
                  .page_stride = stride,
                  .row_bytes = row_bytes,
                  .rows = rows,
                  .row_stride = row_stride};
    group.layers.resize(1);
    group.layers[0].regions.push_back(r);
    r.base = memory.data() + offset;
    group.layers[0].regions.push_back(r);
    return refusal(4, {group});
  };
  for (const std::size_t rows : {std::size_t{1}, std::size_t{2}, std::size_t{3}}) {
    for (std::size_t offset = 0; offset + 256 <= memory.size(); ++offset) {
      bool overlaps = false;
      std::vector<bool> taken(memory.size(), false);
      for (const std::size_t base : {std::size_t{256}, offset}) {
        for (std::size_t page = 0; page < 4; ++page) {
          for (std::size_t row = 0; row < rows; ++row) {
            for (std::size_t b = 0; b < 24 / rows; ++b) {
              const std::size_t at = base + page * stride + row * 16 + b;
              overlaps = overlaps || taken[at];
              taken[at] = true;
            }
          }
        }
      }
      CAPTURE(rows);
      CAPTURE(offset);
      CHECK(made(offset, rows) == (overlaps ? "kvx: layout: group 0: two regions overlap" : "accepted"));
    }
  }
}

TEST_CASE("groups may take turns on the same pool") {
  const pool memory(base_shape);
  kv_shape window = base_shape;
  window.kind = kvx::attention_kind::sliding_window;
  window.window_tokens = 64;
  kvx::separate_kv second = memory.separate();
  second.shape = window;
  CHECK(refusal(16, {memory.separate(), second}) == "accepted");
}
