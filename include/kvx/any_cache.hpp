// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/direct_reader.hpp>
#include <kvx/detail/staging_source.hpp>
#include <kvx/direct_ticket.hpp>
#include <kvx/metrics/snapshot.hpp>
#include <kvx/plan.hpp>
#include <kvx/sequence.hpp>
#include <kvx/tickets.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

namespace kvx {

/// A cache of any policies behind one indirect call per batch, for engines that keep templates out of their
/// scheduler. It has the operations of kvx::cache; see there.
/// Thread  as the cache's
/// Cost    one indirect call per operation
template <class Stream>
class any_cache {
 public:
  using stream_type = Stream;
  using group_block_ids = std::span<const std::span<const block_id>>;

  /// Takes the cache over. Caches do not move their threads' data, so a cache may be moved in after use.
  template <class Cache>
  requires(!std::same_as<Cache, any_cache> &&
           std::same_as<typename Cache::stream_type, Stream>) explicit any_cache(Cache&& held)
      : held_(std::make_unique<model<Cache>>(std::forward<Cache>(held))) {}

  [[nodiscard]] result<block_key> root(const scope& where) const { return held_->root(where); }
  [[nodiscard]] plan match(std::span<const token_id> tokens, const scope& where = {},
                           std::span<const block_extra> extras = {}) const {
    plan found;
    if (const auto from = held_->root(where)) held_->match(tokens, *from, extras, found);
    return found;
  }
  void match(std::span<const token_id> tokens, const block_key& from, std::span<const block_extra> extras,
             plan& found) const {
    held_->match(tokens, from, extras, found);
  }
  [[nodiscard]] plan match(const sequence& prompt) const { return held_->match(prompt); }
  [[nodiscard]] std::size_t available(std::span<const block_key> keys) const { return held_->available(keys); }
  [[nodiscard]] prefetch_ticket prefetch(plan what, std::size_t first = 0) {
    return held_->prefetch(std::move(what), first);
  }
  [[nodiscard]] load_ticket<Stream> load(const plan& what, std::span<const block_id> ids, Stream stream = {},
                                         std::size_t first = 0) {
    return held_->load(what, {&ids, 1}, stream, first);
  }
  [[nodiscard]] load_ticket<Stream> load(const plan& what, group_block_ids ids, Stream stream = {},
                                         std::size_t first = 0) {
    return held_->load(what, ids, stream, first);
  }
  template <direct_reader Reader>
  [[nodiscard]] direct_load_ticket load_direct(const plan& what, std::span<const block_id> ids,
                                               const std::shared_ptr<Reader>& through, Stream stream = {},
                                               std::size_t first = 0) {
    return load_direct(what, group_block_ids(&ids, 1), through, stream, first);
  }
  template <direct_reader Reader>
  [[nodiscard]] direct_load_ticket load_direct(const plan& what, group_block_ids ids,
                                               const std::shared_ptr<Reader>& through, Stream stream = {},
                                               std::size_t first = 0) {
    if (through == nullptr) return direct_load_ticket(errc::bad_argument);
    return held_->load_direct(what, ids, std::make_shared<detail::staging_source_of<Reader>>(through), stream, first);
  }
  [[nodiscard]] save_ticket save(const sequence& from, std::size_t first, std::span<const block_id> ids,
                                 Stream stream = {}) {
    return held_->save(from, first, {&ids, 1}, stream);
  }
  [[nodiscard]] save_ticket save(const sequence& from, std::size_t first, group_block_ids ids, Stream stream = {}) {
    return held_->save(from, first, ids, stream);
  }
  [[nodiscard]] sequence make_sequence(std::span<const token_id> tokens = {}, const scope& where = {},
                                       std::span<const block_extra> extras = {}) const {
    return held_->make_sequence(tokens, where, extras);
  }
  status extend(sequence& chain, std::span<const token_id> tokens, std::span<const block_extra> extras = {}) const {
    return held_->extend(chain, tokens, extras);
  }
  void hint(const sequence& request, const hints& news) { held_->hint(request.keys(), news); }
  void hint(std::span<const block_key> keys, const hints& news) { held_->hint(keys, news); }
  std::size_t erase(std::span<const block_key> keys) { return held_->erase(keys); }
  [[nodiscard]] std::size_t poll(std::span<completion> out) { return held_->poll(out); }
  bool drain(std::chrono::milliseconds limit) { return held_->drain(limit); }
  void report_prefill(std::size_t tokens, std::chrono::duration<double> took) { held_->report_prefill(tokens, took); }
  [[nodiscard]] metrics_snapshot stats() const { return held_->stats(); }
  [[nodiscard]] std::uint32_t block_tokens() const noexcept { return held_->block_tokens(); }
  [[nodiscard]] std::size_t block_bytes(std::size_t group = 0) const noexcept { return held_->block_bytes(group); }

 private:
  struct interface {
    virtual ~interface() = default;
    virtual result<block_key> root(const scope&) const = 0;
    virtual void match(std::span<const token_id>, const block_key&, std::span<const block_extra>, plan&) const = 0;
    virtual plan match(const sequence&) const = 0;
    virtual std::size_t available(std::span<const block_key>) const = 0;
    virtual prefetch_ticket prefetch(plan, std::size_t) = 0;
    virtual load_ticket<Stream> load(const plan&, group_block_ids, Stream, std::size_t) = 0;
    virtual direct_load_ticket load_direct(const plan&, group_block_ids, const std::shared_ptr<detail::staging_source>&,
                                           Stream, std::size_t) = 0;
    virtual save_ticket save(const sequence&, std::size_t, group_block_ids, Stream) = 0;
    virtual sequence make_sequence(std::span<const token_id>, const scope&, std::span<const block_extra>) const = 0;
    virtual status extend(sequence&, std::span<const token_id>, std::span<const block_extra>) const = 0;
    virtual void hint(std::span<const block_key>, const hints&) = 0;
    virtual std::size_t erase(std::span<const block_key>) = 0;
    virtual std::size_t poll(std::span<completion>) = 0;
    virtual bool drain(std::chrono::milliseconds) = 0;
    virtual void report_prefill(std::size_t, std::chrono::duration<double>) = 0;
    virtual metrics_snapshot stats() const = 0;
    virtual std::uint32_t block_tokens() const noexcept = 0;
    virtual std::size_t block_bytes(std::size_t) const noexcept = 0;
  };

  template <class Cache>
  struct model final : interface {
    explicit model(Cache&& from) : cache(std::move(from)) {}

    result<block_key> root(const scope& where) const override { return cache.root(where); }
    void match(std::span<const token_id> tokens, const block_key& from, std::span<const block_extra> extras,
               plan& found) const override {
      cache.match(tokens, from, extras, found);
    }
    plan match(const sequence& prompt) const override { return cache.match(prompt); }
    std::size_t available(std::span<const block_key> keys) const override { return cache.available(keys); }
    prefetch_ticket prefetch(plan what, std::size_t first) override { return cache.prefetch(std::move(what), first); }
    load_ticket<Stream> load(const plan& what, group_block_ids ids, Stream stream, std::size_t first) override {
      return cache.load(what, ids, stream, first);
    }
    direct_load_ticket load_direct(const plan& what, group_block_ids ids,
                                   const std::shared_ptr<detail::staging_source>& through, Stream stream,
                                   std::size_t first) override {
      return cache.load_direct(what, ids, through, stream, first);
    }
    save_ticket save(const sequence& from, std::size_t first, group_block_ids ids, Stream stream) override {
      return cache.save(from, first, ids, stream);
    }
    sequence make_sequence(std::span<const token_id> tokens, const scope& where,
                           std::span<const block_extra> extras) const override {
      return cache.make_sequence(tokens, where, extras);
    }
    status extend(sequence& chain, std::span<const token_id> tokens,
                  std::span<const block_extra> extras) const override {
      return cache.extend(chain, tokens, extras);
    }
    void hint(std::span<const block_key> keys, const hints& news) override { cache.hint(keys, news); }
    std::size_t erase(std::span<const block_key> keys) override { return cache.erase(keys); }
    std::size_t poll(std::span<completion> out) override { return cache.poll(out); }
    bool drain(std::chrono::milliseconds limit) override { return cache.drain(limit); }
    void report_prefill(std::size_t tokens, std::chrono::duration<double> took) override {
      cache.report_prefill(tokens, took);
    }
    metrics_snapshot stats() const override { return cache.stats(); }
    std::uint32_t block_tokens() const noexcept override { return cache.block_tokens(); }
    std::size_t block_bytes(std::size_t group) const noexcept override { return cache.block_bytes(group); }

    Cache cache;
  };

  std::unique_ptr<interface> held_;
};

}  // namespace kvx
