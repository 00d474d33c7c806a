// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace kvx_replay {

/// A prefix block of a trace, numbered from 0 in order of appearance.
using block_number = std::uint32_t;
inline constexpr block_number no_block = std::numeric_limits<block_number>::max();

struct request {
  std::uint64_t timestamp_ms = 0;
  std::uint64_t input_tokens = 0;
  std::uint64_t output_tokens = 0;
  std::span<const block_number> blocks;  ///< front first
};

/// Requests in order of arrival; all blocks in one array.
///
/// A block is its id under its parent: equal numbers are equal prefixes even where a trace breaks its own rule and
/// uses an id under two parents, which `split_ids` counts.
class trace {
 public:
  explicit trace(std::uint32_t block_tokens = 512) : block_tokens_(block_tokens) {}

  /// Shape   ids: front first, no id twice
  void add(std::uint64_t timestamp_ms, std::uint64_t input_tokens, std::uint64_t output_tokens,
           std::span<const std::uint64_t> ids);

  [[nodiscard]] std::size_t size() const noexcept { return heads_.size(); }
  [[nodiscard]] request operator[](std::size_t at) const noexcept {
    const head& h = heads_[at];
    return {h.timestamp_ms, h.input_tokens, h.output_tokens, std::span(blocks_).subspan(h.first, h.count)};
  }
  [[nodiscard]] std::size_t blocks() const noexcept { return blocks_.size(); }
  [[nodiscard]] std::size_t distinct() const noexcept { return parents_.size(); }
  [[nodiscard]] std::uint64_t input_tokens() const noexcept { return input_tokens_; }
  [[nodiscard]] std::uint32_t block_tokens() const noexcept { return block_tokens_; }
  [[nodiscard]] std::size_t longest_request() const noexcept { return longest_; }
  [[nodiscard]] std::size_t split_ids() const noexcept { return split_ids_; }

  /// `no_block` for a first block.
  [[nodiscard]] block_number parent(block_number block) const noexcept { return parents_[block]; }
  /// The id that the trace gave it.
  [[nodiscard]] std::uint64_t id(block_number block) const noexcept { return ids_[block]; }
  /// Tokens of a request that its first `prefix` blocks hold; the last block may be partly filled.
  [[nodiscard]] std::uint64_t tokens_in(const request& of, std::size_t prefix) const noexcept;

 private:
  struct head {
    std::uint64_t timestamp_ms;
    std::uint64_t input_tokens;
    std::uint64_t output_tokens;
    std::size_t first;
    std::size_t count;
  };

  [[nodiscard]] block_number number(std::uint64_t id, block_number parent);

  std::uint32_t block_tokens_;
  std::vector<head> heads_;
  std::vector<block_number> blocks_;
  std::vector<block_number> parents_;
  std::vector<std::uint64_t> ids_;
  std::unordered_map<std::uint64_t, std::vector<block_number>> by_id_;
  std::uint64_t input_tokens_ = 0;
  std::size_t longest_ = 0;
  std::size_t split_ids_ = 0;
};

/// Reads JSON lines with `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids`, plain or in xz.
///
/// `output_length` may be missing; `timestamp` and `input_length` too, and then count up by a second and by full
/// blocks. Shape   path: a file, or "-" for the standard input; requests: at most that many are read Errors  throws
/// std::runtime_error that names the line
[[nodiscard]] trace read_trace(const std::string& path, std::uint32_t block_tokens,
                               std::size_t requests = std::numeric_limits<std::size_t>::max());

/// The same from the lines themselves.
[[nodiscard]] trace parse_trace(std::string_view lines, const std::string& name, std::uint32_t block_tokens,
                                std::size_t requests = std::numeric_limits<std::size_t>::max());

/// The trace in the same schema, its own ids kept.
[[nodiscard]] std::string to_json_lines(const trace& of);

}  // namespace kvx_replay
