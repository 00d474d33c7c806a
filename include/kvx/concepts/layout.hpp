// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvx {

/// One contiguous piece of a block in engine memory.
/// Units   bytes: of this piece; offset: bytes from the start of the layer in the slot
struct fragment {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::size_t offset = 0;
};

/// The engine's KV memory as data: which bytes of which pages make up a block.
///
/// A block of group g is `pages_per_block(g)` pages of the engine. In a slot its layers follow each
/// other, each starting on `page_bytes`; inside a layer the fragments follow each other unpadded.
/// Shape   pages: exactly pages_per_block(group) ids, each below page_count(group)
/// Thread  const calls from any thread
template <class Layout>
concept kv_layout = std::copy_constructible<Layout> &&
    requires(const Layout& layout, std::size_t group, std::size_t layer, std::span<const block_id> pages,
             void (*sink)(const fragment&)) {
  { layout.block_tokens() } -> std::convertible_to<std::uint32_t>;
  { layout.group_count() } -> std::convertible_to<std::size_t>;
  { layout.kind(group) } -> std::same_as<attention_kind>;
  { layout.window_tokens(group) } -> std::convertible_to<std::uint32_t>;
  { layout.layer_count(group) } -> std::convertible_to<std::size_t>;
  { layout.layer_bytes(group, layer) } -> std::convertible_to<std::size_t>;
  { layout.pages_per_block(group) } -> std::convertible_to<std::size_t>;
  { layout.page_count(group) } -> std::convertible_to<std::size_t>;
  { layout.fingerprint(group) } -> std::same_as<std::uint64_t>;
  layout.for_each_fragment(group, layer, pages, sink);
};

namespace archetype {

/// The least that models `kv_layout`: one group of one layer, whose blocks are one page of one allocation.
class layout {
 public:
  layout(std::byte* base, std::size_t block_bytes, std::size_t pages, std::uint32_t block_tokens)
      : base_(base), block_bytes_(block_bytes), pages_(pages), block_tokens_(block_tokens) {}

  [[nodiscard]] std::uint32_t block_tokens() const { return block_tokens_; }
  [[nodiscard]] std::size_t group_count() const { return 1; }
  [[nodiscard]] attention_kind kind(std::size_t) const { return attention_kind::full; }
  [[nodiscard]] std::uint32_t window_tokens(std::size_t) const { return 0; }
  [[nodiscard]] std::size_t layer_count(std::size_t) const { return 1; }
  [[nodiscard]] std::size_t layer_bytes(std::size_t, std::size_t) const { return block_bytes_; }
  [[nodiscard]] std::size_t pages_per_block(std::size_t) const { return 1; }
  [[nodiscard]] std::size_t page_count(std::size_t) const { return pages_; }
  [[nodiscard]] std::uint64_t fingerprint(std::size_t) const { return block_bytes_; }

  template <std::invocable<const fragment&> Sink>
  void for_each_fragment(std::size_t, std::size_t, std::span<const block_id> pages, Sink&& sink) const {
    const fragment whole{base_ + pages[0] * block_bytes_, block_bytes_, 0};
    sink(whole);
  }

 private:
  std::byte* base_;
  std::size_t block_bytes_;
  std::size_t pages_;
  std::uint32_t block_tokens_;
};

}  // namespace archetype

static_assert(kv_layout<archetype::layout>);

}  // namespace kvx
