// SPDX-License-Identifier: Apache-2.0
#include <kvx/layout.hpp>
#include <kvx/layout/static_layout.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace {

using kvx::kv_shape;
using kvx::token_order;

enum class slot_order { halves, per_token, per_head };

// An engine of known geometry: its memory, the description under test, and where every element really is.
struct engine {
  std::string name;
  kv_shape shape;
  slot_order order = slot_order::halves;
  std::size_t parts = 2;  // keys and values; 1 for latents
  std::vector<std::vector<std::byte>> memory;
  kvx::layer_group group;
  std::function<std::byte*(std::size_t layer, std::size_t part, std::size_t page, std::size_t token, std::size_t head,
                           std::size_t channel)>
      address;

  std::byte* allocate(std::size_t bytes) {
    memory.emplace_back(bytes);
    return memory.back().data();
  }
  std::vector<std::byte*> allocate(std::size_t count, std::size_t bytes) {
    std::vector<std::byte*> out;
    for (std::size_t i = 0; i < count; ++i) out.push_back(allocate(bytes));
    return out;
  }
  [[nodiscard]] std::size_t element() const { return kvx::element_bytes(shape.element); }
  // Offset of an element from the start of its page's keys or values, in bytes.
  [[nodiscard]] std::size_t in_page(std::size_t token, std::size_t head, std::size_t channel) const {
    const std::size_t row =
        shape.order == token_order::nhd ? token * shape.heads + head : head * shape.page_tokens + token;
    return (row * shape.head_dim + channel) * element();
  }
  [[nodiscard]] std::size_t half() const {
    return std::size_t{shape.page_tokens} * shape.heads * shape.head_dim * element();
  }
};

using random_source = std::mt19937;

std::size_t pick(random_source& random, std::size_t low, std::size_t high) { return low + random() % (high - low + 1); }

kv_shape random_shape(random_source& random) {
  kv_shape shape;
  shape.page_tokens = static_cast<std::uint32_t>(pick(random, 1, 5));
  shape.block_tokens = shape.page_tokens * static_cast<std::uint32_t>(pick(random, 1, 4));
  shape.layers = pick(random, 1, 4);
  shape.heads = pick(random, 1, 4);
  shape.head_dim = pick(random, 1, 6);
  shape.element =
      std::vector{kvx::element_type::f32, kvx::element_type::bf16, kvx::element_type::f8_e4m3}[random() % 3];
  shape.order = random() % 2 == 0 ? token_order::nhd : token_order::hnd;
  return shape;
}

std::size_t random_page_count(random_source& random, const kv_shape& shape) {
  return shape.block_tokens / shape.page_tokens * pick(random, 1, 4) + pick(random, 0, 2);
}

engine separate(random_source& random) {
  engine e;
  e.name = "separate_kv";
  e.shape = random_shape(random);
  const std::size_t pages = random_page_count(random, e.shape);
  const std::size_t gap = pick(random, 0, 1) * pick(random, 0, 40);
  const std::size_t stride = e.half() + gap;
  const auto keys = e.allocate(e.shape.layers, pages * stride);
  const auto values = e.allocate(e.shape.layers, pages * stride);
  e.group = kvx::separate_kv{.shape = e.shape,
                             .page_count = pages,
                             .keys = keys,
                             .values = values,
                             .tensor_bytes = pages * stride,
                             .page_stride = gap == 0 ? 0 : stride};
  const engine plain = {
      .name = {}, .shape = e.shape, .order = {}, .parts = 2, .memory = {}, .group = {}, .address = {}};
  e.address = [=](auto layer, auto part, auto page, auto token, auto head, auto channel) {
    return (part == 0 ? keys : values)[layer] + page * stride + plain.in_page(token, head, channel);
  };
  return e;
}

engine token_pool(random_source& random) {
  engine e;
  e.name = "token_pool_kv";
  e.shape = random_shape(random);
  e.shape.page_tokens = 1;
  const std::size_t tokens = random_page_count(random, e.shape);
  const auto keys = e.allocate(e.shape.layers, tokens * e.half());
  const auto values = e.allocate(e.shape.layers, tokens * e.half());
  kv_shape given = e.shape;
  given.page_tokens = static_cast<std::uint32_t>(random() % 2);
  e.group = kvx::token_pool_kv{
      .shape = given, .token_count = tokens, .keys = keys, .values = values, .tensor_bytes = tokens * e.half()};
  const engine plain = {
      .name = {}, .shape = e.shape, .order = {}, .parts = 2, .memory = {}, .group = {}, .address = {}};
  e.address = [=](auto layer, auto part, auto page, auto token, auto head, auto channel) {
    return (part == 0 ? keys : values)[layer] + page * plain.half() + plain.in_page(token, head, channel);
  };
  return e;
}

engine fused(random_source& random, kvx::kv_interleaving interleaving) {
  using kvx::kv_interleaving;
  engine e;
  e.name = "fused_kv";
  e.shape = random_shape(random);
  if (interleaving == kv_interleaving::per_token) e.shape.order = token_order::nhd;
  if (interleaving == kv_interleaving::per_token) e.order = slot_order::per_token;
  if (interleaving == kv_interleaving::per_head) e.order = slot_order::per_head;
  const std::size_t pages = random_page_count(random, e.shape);
  const std::size_t bytes = pages * 2 * e.half();
  const auto tensors = e.allocate(e.shape.layers, bytes);
  e.group = kvx::fused_kv{
      .shape = e.shape, .interleaving = interleaving, .page_count = pages, .tensors = tensors, .tensor_bytes = bytes};
  const engine plain = {
      .name = {}, .shape = e.shape, .order = {}, .parts = 2, .memory = {}, .group = {}, .address = {}};
  e.address = [=](auto layer, auto part, auto page, auto token, auto head, auto channel) {
    const kv_shape& s = plain.shape;
    const std::size_t vector = s.head_dim * plain.element();
    switch (interleaving) {
      case kv_interleaving::tensor_halves:
        return tensors[layer] + (part * pages + page) * plain.half() + plain.in_page(token, head, channel);
      case kv_interleaving::page_halves:
        return tensors[layer] + (page * 2 + part) * plain.half() + plain.in_page(token, head, channel);
      case kv_interleaving::per_token:
        return tensors[layer] + page * 2 * plain.half() + ((token * 2 + part) * s.heads + head) * vector +
               channel * plain.element();
      default: {
        const std::size_t row = s.order == token_order::nhd ? token * s.heads + head : head * s.page_tokens + token;
        return tensors[layer] + page * 2 * plain.half() + (row * 2 + part) * vector + channel * plain.element();
      }
    }
  };
  return e;
}

engine cross_layer(random_source& random) {
  engine e;
  e.name = "cross_layer_kv";
  e.shape = random_shape(random);
  const std::size_t pages = random_page_count(random, e.shape);
  const std::size_t layers = e.shape.layers;
  const std::size_t half = e.half();
  const std::size_t bytes = pages * layers * 2 * half;
  std::size_t page_stride = 0;
  std::size_t layer_stride = 0;
  std::size_t value_offset = 0;
  switch (random() % 3) {
    case 0:
      page_stride = layers * 2 * half, layer_stride = 2 * half, value_offset = half;
      break;
    case 1:
      page_stride = half, layer_stride = 2 * pages * half, value_offset = pages * half;
      break;
    default:
      page_stride = 2 * half, layer_stride = 2 * pages * half, value_offset = half;
      break;
  }
  std::byte* const base = e.allocate(bytes);
  e.group = kvx::cross_layer_kv{.shape = e.shape,
                                .page_count = pages,
                                .base = base,
                                .bytes = bytes,
                                .page_stride = page_stride,
                                .layer_stride = layer_stride,
                                .value_offset = value_offset};
  const engine plain = {
      .name = {}, .shape = e.shape, .order = {}, .parts = 2, .memory = {}, .group = {}, .address = {}};
  e.address = [=](auto layer, auto part, auto page, auto token, auto head, auto channel) {
    return base + layer * layer_stride + part * value_offset + page * page_stride + plain.in_page(token, head, channel);
  };
  return e;
}

engine mla(random_source& random) {
  engine e;
  e.name = "mla_latents";
  e.shape = random_shape(random);
  e.shape.heads = 1;
  e.shape.order = token_order::nhd;
  e.parts = 1;
  const std::size_t pages = random_page_count(random, e.shape);
  const auto tensors = e.allocate(e.shape.layers, pages * e.half());
  e.group = kvx::mla_latents{.block_tokens = e.shape.block_tokens,
                             .page_tokens = e.shape.page_tokens,
                             .latent_dim = e.shape.head_dim,
                             .element = e.shape.element,
                             .page_count = pages,
                             .tensors = tensors,
                             .tensor_bytes = pages * e.half()};
  const engine plain = {
      .name = {}, .shape = e.shape, .order = {}, .parts = 1, .memory = {}, .group = {}, .address = {}};
  e.address = [=](auto layer, auto, auto page, auto token, auto head, auto channel) {
    return tensors[layer] + page * plain.half() + plain.in_page(token, head, channel);
  };
  return e;
}

// Rows apart inside a page, pages apart inside the rows: [H][pages][N][D] with values channel-major, [D][pages][N].
engine rows_by_hand(random_source& random) {
  engine e;
  e.name = "rows by hand";
  e.shape = random_shape(random);
  e.shape.order = token_order::hnd;
  const kv_shape s = e.shape;
  const std::size_t pages = random_page_count(random, s);
  const std::size_t vector = s.head_dim * e.element();
  const std::size_t bytes = pages * e.half();
  const auto keys = e.allocate(s.layers, bytes);
  const auto values = e.allocate(s.layers, bytes);
  const std::uint64_t blocks_pages = s.block_tokens / s.page_tokens;
  e.group.element = s.element;
  e.group.page_count = pages;
  e.group.pages_per_block = blocks_pages;
  for (std::size_t l = 0; l < s.layers; ++l) {
    const std::vector<kvx::axis_extent> axes{{kvx::axis::token, blocks_pages},
                                             {kvx::axis::head, s.heads},
                                             {kvx::axis::token, s.page_tokens},
                                             {kvx::axis::channel, s.head_dim}};
    kvx::layer_regions layer;
    for (const auto& [role, base] : {std::pair{kvx::tensor_role::key, keys[l]}, {kvx::tensor_role::value, values[l]}}) {
      layer.regions.push_back({.role = role,
                               .axes = axes,
                               .base = base,
                               .bytes = bytes,
                               .page_stride = s.page_tokens * vector,
                               .row_bytes = s.page_tokens * vector,
                               .rows = s.heads,
                               .row_stride = pages * s.page_tokens * vector});
    }
    e.group.layers.push_back(layer);
  }
  e.address = [=, element = e.element()](auto layer, auto part, auto page, auto token, auto head, auto channel) {
    return (part == 0 ? keys : values)[layer] + ((head * pages + page) * s.page_tokens + token) * vector +
           channel * element;
  };
  return e;
}

engine make_engine(random_source& random, std::size_t which) {
  switch (which) {
    case 0:
      return separate(random);
    case 1:
      return token_pool(random);
    case 2:
      return fused(random, kvx::kv_interleaving::tensor_halves);
    case 3:
      return fused(random, kvx::kv_interleaving::page_halves);
    case 4:
      return fused(random, kvx::kv_interleaving::per_token);
    case 5:
      return fused(random, kvx::kv_interleaving::per_head);
    case 6:
      return cross_layer(random);
    case 7:
      return mla(random);
    default:
      return rows_by_hand(random);
  }
}
constexpr std::size_t engine_kinds = 9;

// Where each byte of the layer has to be, in the order that docs and fingerprints promise.
std::vector<std::byte*> expected_bytes(const engine& e, std::size_t layer, std::span<const kvx::block_id> pages) {
  const kv_shape& s = e.shape;
  std::vector<std::byte*> out;
  const auto element = [&](std::size_t part, std::size_t page, std::size_t token, std::size_t head,
                           std::size_t channel) {
    std::byte* const at = e.address(layer, part, pages[page], token, head, channel);
    for (std::size_t b = 0; b < e.element(); ++b) out.push_back(at + b);
  };
  const auto page_of = [&](auto&& body) {  // tokens and heads of every page, in the page's order
    for (std::size_t page = 0; page < pages.size(); ++page) {
      const std::size_t outer = s.order == token_order::nhd ? s.page_tokens : s.heads;
      const std::size_t inner = s.order == token_order::nhd ? s.heads : s.page_tokens;
      for (std::size_t o = 0; o < outer; ++o) {
        for (std::size_t i = 0; i < inner; ++i) {
          if (s.order == token_order::nhd)
            body(page, o, i);
          else
            body(page, i, o);
        }
      }
    }
  };
  switch (e.order) {
    case slot_order::halves:
      for (std::size_t part = 0; part < e.parts; ++part) {
        page_of([&](auto page, auto token, auto head) {
          for (std::size_t c = 0; c < s.head_dim; ++c) element(part, page, token, head, c);
        });
      }
      break;
    case slot_order::per_token:
      for (std::size_t page = 0; page < pages.size(); ++page) {
        for (std::size_t token = 0; token < s.page_tokens; ++token) {
          for (std::size_t part = 0; part < 2; ++part) {
            for (std::size_t head = 0; head < s.heads; ++head) {
              for (std::size_t c = 0; c < s.head_dim; ++c) element(part, page, token, head, c);
            }
          }
        }
      }
      break;
    case slot_order::per_head:
      page_of([&](auto page, auto token, auto head) {
        for (std::size_t part = 0; part < 2; ++part) {
          for (std::size_t c = 0; c < s.head_dim; ++c) element(part, page, token, head, c);
        }
      });
      break;
  }
  return out;
}

bool inside_one_allocation(const engine& e, const kvx::fragment& f) {
  return std::any_of(e.memory.begin(), e.memory.end(), [&](const std::vector<std::byte>& m) {
    return !std::less<>{}(f.data, m.data()) && !std::less<>{}(m.data() + m.size(), f.data + f.bytes);
  });
}

template <kvx::kv_layout Layout>
std::vector<kvx::fragment> fragments_of(const Layout& layout, std::size_t layer, std::span<const kvx::block_id> pages) {
  std::vector<kvx::fragment> out;
  layout.for_each_fragment(0, layer, pages, [&](const kvx::fragment& f) { out.push_back(f); });
  return out;
}

template <kvx::kv_layout Layout>
void check_every_block(const engine& e, const Layout& layout, random_source& random) {
  std::vector<kvx::block_id> order(layout.page_count(0));
  std::iota(order.begin(), order.end(), kvx::block_id{0});
  if (random() % 4 != 0) std::shuffle(order.begin(), order.end(), random);
  std::set<std::byte*> used;
  const std::size_t per_block = layout.pages_per_block(0);
  for (std::size_t first = 0; first + per_block <= order.size(); first += per_block) {
    const std::span<const kvx::block_id> pages = std::span(order).subspan(first, per_block);
    for (std::size_t layer = 0; layer < layout.layer_count(0); ++layer) {
      std::vector<std::byte*> bytes;
      for (const kvx::fragment& f : fragments_of(layout, layer, pages)) {
        CHECK(f.bytes > 0);
        CHECK(f.offset == bytes.size());
        CHECK(inside_one_allocation(e, f));
        for (std::size_t b = 0; b < f.bytes; ++b) bytes.push_back(f.data + b);
      }
      REQUIRE(bytes.size() == layout.layer_bytes(0, layer));
      CHECK(bytes == expected_bytes(e, layer, pages));
      const std::size_t before = used.size();
      used.insert(bytes.begin(), bytes.end());
      CHECK(used.size() == before + bytes.size());
    }
  }
}

}  // namespace

TEST_CASE("fragments cover every byte of every block once, in the promised order") {
  random_source random(1);
  for (int round = 0; round < 60; ++round) {
    for (std::size_t which = 0; which < engine_kinds; ++which) {
      const engine e = make_engine(random, which);
      CAPTURE(e.name);
      CAPTURE(round);
      const kvx::layout layout{e.shape.block_tokens, {e.group}};
      CHECK(layout.block_tokens() == e.shape.block_tokens);
      CHECK(layout.layer_count(0) == e.shape.layers);
      CHECK(layout.layer_bytes(0, 0) ==
            e.parts * e.shape.block_tokens * e.shape.heads * e.shape.head_dim * e.element());
      check_every_block(e, layout, random);
    }
  }
}

TEST_CASE("a constant layer stride is the distance of every fragment, and is found when there is one") {
  random_source random(2);
  std::size_t found = 0;
  for (int round = 0; round < 40; ++round) {
    for (std::size_t which = 0; which < engine_kinds; ++which) {
      const engine e = make_engine(random, which);
      const kvx::layout layout{e.shape.block_tokens, {e.group}};
      std::vector<kvx::block_id> pages(layout.pages_per_block(0));
      std::iota(pages.begin(), pages.end(), kvx::block_id{0});
      std::reverse(pages.begin(), pages.end());
      const auto address = [&](std::size_t layer, std::size_t f) {
        return reinterpret_cast<std::uintptr_t>(fragments_of(layout, layer, pages)[f].data);
      };
      const auto stride = layout.constant_layer_stride(0);
      if (which == 6) CHECK(stride.has_value());
      if (layout.layer_count(0) == 1) CHECK(stride == static_cast<std::ptrdiff_t>(layout.layer_bytes(0, 0)));
      bool constant = true;
      const std::size_t fragments = fragments_of(layout, 0, pages).size();
      for (std::size_t l = 1; l < layout.layer_count(0); ++l) {
        for (std::size_t f = 0; f < fragments; ++f) {
          constant = constant && address(l, f) - address(l - 1, f) == address(1, 0) - address(0, 0);
        }
      }
      CHECK(stride.has_value() == constant);
      if (stride && layout.layer_count(0) > 1) {
        CHECK(address(1, 0) - address(0, 0) == static_cast<std::uintptr_t>(*stride));
        ++found;
      }
    }
  }
  CHECK(found > 20);
}

TEST_CASE("neighbours are one fragment: whole pages, halves of a page, consecutive page ids") {
  engine e;
  e.shape = {.block_tokens = 8, .page_tokens = 8, .layers = 1, .heads = 2, .head_dim = 4};
  const auto tensors = e.allocate(1, 4 * 2 * e.half());
  const kvx::fused_kv fused{.shape = e.shape, .page_count = 4, .tensors = tensors, .tensor_bytes = 4 * 2 * e.half()};
  const kvx::layout halves{8, {fused}};
  const std::vector<kvx::block_id> page{2};
  REQUIRE(fragments_of(halves, 0, page).size() == 1);
  CHECK(fragments_of(halves, 0, page)[0].data == tensors[0] + 2 * 2 * e.half());
  CHECK(fragments_of(halves, 0, page)[0].bytes == 2 * e.half());
  CHECK(halves.runs(0, 0).size() == 1);

  const auto values = e.allocate(1, 4 * e.half());
  const kvx::separate_kv pair{.shape = {.block_tokens = 16, .page_tokens = 8, .layers = 1, .heads = 2, .head_dim = 4},
                              .page_count = 4,
                              .keys = tensors,
                              .values = values,
                              .tensor_bytes = 4 * e.half()};
  const kvx::layout separate{16, {pair}};
  CHECK(fragments_of(separate, 0, std::vector<kvx::block_id>{1, 2}).size() == 2);
  CHECK(fragments_of(separate, 0, std::vector<kvx::block_id>{2, 1}).size() == 4);
}

TEST_CASE("tensors that happen to touch are never one fragment") {
  engine e;
  e.shape = {.block_tokens = 4, .page_tokens = 4, .layers = 1, .heads = 1, .head_dim = 8};
  std::byte* const both = e.allocate(2 * e.half());
  const std::vector<std::byte*> keys{both};
  const std::vector<std::byte*> values{both + e.half()};
  const kvx::layout layout{
      4,
      {kvx::separate_kv{.shape = e.shape, .page_count = 1, .keys = keys, .values = values, .tensor_bytes = e.half()}}};
  CHECK(fragments_of(layout, 0, std::vector<kvx::block_id>{0}).size() == 2);
}

namespace {

template <kv_shape Shape>
struct shape_constant {
  static constexpr kv_shape value = Shape;
};
using small = shape_constant<kv_shape{.block_tokens = 4, .page_tokens = 2, .layers = 3, .heads = 2, .head_dim = 5}>;
using hnd = shape_constant<kv_shape{.block_tokens = 6,
                                    .page_tokens = 3,
                                    .layers = 2,
                                    .heads = 4,
                                    .head_dim = 3,
                                    .element = kvx::element_type::f8_e4m3,
                                    .order = token_order::hnd}>;
using tokens = shape_constant<kv_shape{
    .block_tokens = 5, .page_tokens = 1, .layers = 2, .heads = 2, .head_dim = 4, .element = kvx::element_type::f32}>;
using window = shape_constant<kv_shape{.block_tokens = 4,
                                       .page_tokens = 4,
                                       .layers = 1,
                                       .heads = 1,
                                       .head_dim = 2,
                                       .kind = kvx::attention_kind::sliding_window,
                                       .window_tokens = 32}>;

}  // namespace

TEST_CASE_TEMPLATE("static extents give what the same shape gives at run time", S, small, hnd, tokens, window) {
  constexpr kv_shape shape = S::value;
  using static_type = kvx::static_layout<shape>;
  static_assert(kvx::kv_layout<static_type>);
  static_assert(static_type::layer_bytes(0, 0) ==
                2 * shape.block_tokens * shape.heads * shape.head_dim * kvx::element_bytes(shape.element));
  static_assert(static_type::fingerprint(0) != 0);
  static_assert(static_type::layer_count(0) == shape.layers);

  random_source random(3);
  engine e;
  e.shape = shape;
  const std::size_t pages = 9;
  const std::size_t stride = e.half() + 7;
  const auto keys = e.allocate(shape.layers, pages * stride);
  const auto values = e.allocate(shape.layers, pages * stride);
  e.group = kvx::separate_kv{.shape = shape,
                             .page_count = pages,
                             .keys = keys,
                             .values = values,
                             .tensor_bytes = pages * stride,
                             .page_stride = stride};
  e.address = [&e, stride, keys, values](auto layer, auto part, auto page, auto token, auto head, auto channel) {
    return (part == 0 ? keys : values)[layer] + page * stride + e.in_page(token, head, channel);
  };
  const kvx::layout dynamic{shape.block_tokens, {e.group}};
  const static_type fixed{e.group};
  CHECK(fixed.block_tokens() == dynamic.block_tokens());
  CHECK(fixed.group_count() == dynamic.group_count());
  CHECK(fixed.kind(0) == dynamic.kind(0));
  CHECK(fixed.window_tokens(0) == dynamic.window_tokens(0));
  CHECK(fixed.page_count(0) == dynamic.page_count(0));
  CHECK(fixed.pages_per_block(0) == dynamic.pages_per_block(0));
  CHECK(fixed.fingerprint(0) == dynamic.fingerprint(0));
  for (std::size_t l = 0; l < shape.layers; ++l) CHECK(fixed.layer_bytes(0, l) == dynamic.layer_bytes(0, l));
  check_every_block(e, fixed, random);
  check_every_block(e, dynamic, random);

  kv_shape other = shape;
  other.heads *= 2;
  other.head_dim *= 3;
  const std::size_t bytes = pages * stride * 6;
  const auto more_keys = e.allocate(shape.layers, bytes);
  const auto more_values = e.allocate(shape.layers, bytes);
  CHECK_THROWS_AS(
      static_type(kvx::separate_kv{
          .shape = other, .page_count = pages, .keys = more_keys, .values = more_values, .tensor_bytes = bytes}),
      kvx::error);
}
