// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/hints.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvx {

/// A request's committed tokens and the running chain of its blocks' keys.
///
/// Made by `cache::make_sequence` and grown by `cache::extend`, so that chunked prefill and decode save
/// increments without hashing again. Speculative tokens do not belong in it; what was appended too early
/// is taken back with `truncate`.
/// Thread  one at a time
class sequence {
 public:
  sequence() = default;
  sequence(const block_key& root, std::uint32_t block_tokens, std::uint64_t id = 0)
      : root_(root), block_tokens_(block_tokens), id_(id) {}

  /// Of the request: policies that learn count what is loaded and saved under one id as one request, however many
  /// calls it takes. `cache::make_sequence` gives a new one; 0: none.
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  /// For a worker that is sent its scheduler's plan: `set_id(plan.lease.id)`.
  void set_id(std::uint64_t id) noexcept { id_ = id; }

  /// Number of full blocks, each with a key.
  [[nodiscard]] std::size_t blocks() const noexcept { return keys_.size(); }
  [[nodiscard]] std::uint32_t block_tokens() const noexcept { return block_tokens_; }
  [[nodiscard]] std::span<const token_id> tokens() const noexcept { return tokens_; }
  /// Empty where the engine gave keys and no tokens.
  [[nodiscard]] std::span<const token_id> tokens(std::size_t block) const noexcept {
    if (tokens_.size() < (block + 1) * block_tokens_) return {};
    return std::span<const token_id>(tokens_).subspan(block * block_tokens_, block_tokens_);
  }
  [[nodiscard]] const block_key& key(std::size_t block) const noexcept { return keys_[block]; }
  [[nodiscard]] const block_key& parent(std::size_t block) const noexcept {
    return block == 0 ? root_ : keys_[block - 1];
  }
  [[nodiscard]] std::span<const block_key> keys() const noexcept { return keys_; }
  [[nodiscard]] const block_key& root() const noexcept { return root_; }
  /// Extra bytes of a block, all of them in the order given; empty for most.
  [[nodiscard]] std::vector<std::byte> extra(std::size_t block) const {
    std::vector<std::byte> all;
    for (const auto& [index, bytes] : extras_)
      if (index == block) all.insert(all.end(), bytes.begin(), bytes.end());
    return all;
  }
  /// The extras of the blocks from `first` on, also of the one that is not full yet.
  [[nodiscard]] std::vector<block_extra> extras_from(std::size_t first) const {
    std::vector<block_extra> out;
    for (const auto& [index, bytes] : extras_)
      if (index >= first) out.push_back({index, bytes});
    return out;
  }

  /// What saves of this sequence tell of its blocks. Of a block that is cached already the stronger orders hold, those
  /// it had or these; `cache::hint` takes orders back.
  void set_hints(const hints& wanted) noexcept { hints_ = wanted; }
  [[nodiscard]] const hints& given_hints() const noexcept { return hints_; }

  /// Forgets everything from token `count` on, e.g. rejected speculation.
  void truncate(std::size_t count) {
    // A sequence has tokens, or keys alone.
    if (block_tokens_ == 0 || (count >= tokens_.size() && count / block_tokens_ >= keys_.size())) return;
    if (count < tokens_.size()) tokens_.resize(count);
    keys_.resize(std::min<std::size_t>(keys_.size(), count / block_tokens_));
    std::erase_if(extras_, [&](const auto& extra) { return extra.first * block_tokens_ >= count; });
  }

  /// Appends tokens; `cache::extend` appends their blocks' keys as well.
  void append(std::span<const token_id> tokens) { tokens_.insert(tokens_.end(), tokens.begin(), tokens.end()); }
  /// Appends a full block's key, by an engine that hashes itself. Of a key longer than the hasher's digest only the
  /// first bytes count, as many as the digest has.
  void append_key(const block_key& key) { keys_.push_back(key); }
  void add_extra(std::size_t block, std::span<const std::byte> bytes) {
    extras_.emplace_back(block, std::vector<std::byte>(bytes.begin(), bytes.end()));
  }

 private:
  block_key root_{};
  std::uint32_t block_tokens_ = 0;
  std::uint64_t id_ = 0;
  std::vector<token_id> tokens_;
  std::vector<block_key> keys_;
  std::vector<std::pair<std::size_t, std::vector<std::byte>>> extras_;
  hints hints_;
};

}  // namespace kvx
