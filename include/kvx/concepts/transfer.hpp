// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/layout.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace kvx {

/// One block on its way between engine memory and a slot.
/// Shape   pages: layout.pages_per_block(group) ids; payload: the slot's payload, on a page boundary; page_checksums:
/// empty, or one per page of the payload
struct block_copy {
  std::byte* payload = nullptr;
  std::span<const block_id> pages{};
  /// Filled by the saves of a `digesting_transfer`.
  std::span<std::uint64_t> page_checksums{};
};

/// Blocks of one group to move together.
/// Shape   layer_offsets: layer_count(group) entries, bytes from payload to each layer
struct transfer_batch {
  std::size_t group = 0;
  std::span<const std::size_t> layer_offsets{};
  std::span<const block_copy> blocks{};
};

/// Moves blocks between engine memory and slots in the order of the engine's streams.
///
/// `load` writes engine pages, `save` reads them. Both start after everything already submitted to
/// `stream`, and everything they need (copies, events) is submitted before they return; the batch and
/// its spans may die then. The operation is a copyable handle onto the work under way:
///   wait_layer(l, s)  what is submitted to s from now on sees layer l of every block (loads)
///   done()            nothing of the operation touches engine memory or slots any more; true for ever after
///   outcome()         after done(): ok or device_failed
///   wait()            blocks the calling host thread until done()
/// A default-constructed operation is done and ok.
/// Thread  load, save: any, concurrently; operations: any, concurrently
/// Stream  the caller's; never a synchronisation with the host
/// Errors  device_failed from load/save: nothing was submitted, or everything submitted has ended
template <class T, class Layout>
concept transfer_engine = kv_layout<Layout> && requires {
  typename T::stream_type;
  typename T::operation;
} && std::default_initializable<typename T::operation> && std::copyable<typename T::operation> &&
    requires(T engine, const Layout& layout, const transfer_batch& batch, typename T::stream_type stream,
             const typename T::operation& op, std::size_t layer, std::span<std::byte> arena) {
  { engine.load(layout, batch, stream) } -> std::same_as<result<typename T::operation>>;
  { engine.save(layout, batch, stream) } -> std::same_as<result<typename T::operation>>;
  { engine.register_arena(arena) } -> std::same_as<status>;
  { op.wait_layer(layer, stream) } -> std::same_as<status>;
  { op.done() }
  noexcept->std::same_as<bool>;
  { op.outcome() }
  noexcept->std::same_as<status>;
  op.wait();
};

/// A transfer engine that can say the checksums of what it saves, so that nobody has to read it again for them.
///
/// Where a block to save has room for them, `page_checksums` holds XXH3-64 (seed 0) of each page of the payload as it
/// is then, padding included, once the operation is done() and its outcome ok. The room lives as long as that.
template <class T, class Layout>
concept digesting_transfer = transfer_engine<T, Layout> && T::digests_pages;

namespace archetype {

/// The least that models `transfer_engine`: copies at once, on the caller's thread.
class transfer {
 public:
  struct stream_type {};

  class operation {
   public:
    [[nodiscard]] status wait_layer(std::size_t, stream_type) const { return {}; }
    [[nodiscard]] bool done() const noexcept { return true; }
    [[nodiscard]] status outcome() const noexcept { return {}; }
    void wait() const {}
  };

  template <kv_layout Layout>
  [[nodiscard]] result<operation> load(const Layout& layout, const transfer_batch& batch, stream_type) {
    each(layout, batch, [](std::byte* slot, const fragment& f) { std::memcpy(f.data, slot, f.bytes); });
    return operation{};
  }
  template <kv_layout Layout>
  [[nodiscard]] result<operation> save(const Layout& layout, const transfer_batch& batch, stream_type) {
    each(layout, batch, [](std::byte* slot, const fragment& f) { std::memcpy(slot, f.data, f.bytes); });
    return operation{};
  }
  [[nodiscard]] status register_arena(std::span<std::byte>) { return {}; }

 private:
  template <class Layout, class Copy>
  static void each(const Layout& layout, const transfer_batch& batch, Copy copy) {
    for (std::size_t layer = 0; layer < batch.layer_offsets.size(); ++layer) {
      for (const block_copy& block : batch.blocks) {
        std::byte* const slot = block.payload + batch.layer_offsets[layer];
        layout.for_each_fragment(batch.group, layer, block.pages, [&](const fragment& f) { copy(slot + f.offset, f); });
      }
    }
  }
};

}  // namespace archetype

static_assert(transfer_engine<archetype::transfer, archetype::layout>);

}  // namespace kvx
