// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

namespace kvx::store {

/// Where everything is in a slot; computed from the configuration only, never from a file.
///
/// A slot is a header and a payload; the payload is the layers one after the other, each starting on a page.
/// Units   bytes; header_bytes, payload_bytes, stride and every layer: multiples of page_bytes
struct slot_geometry {
  /// Bytes of the header before the tokens.
  static constexpr std::size_t fixed_header_bytes = 256;
  /// Bytes of the header after everything else: its checksum.
  static constexpr std::size_t header_trailer_bytes = 8;
  /// Per layer, in the header.
  static constexpr std::size_t layer_digest_bytes = 8;

  std::size_t token_capacity = 0;
  std::size_t extra_capacity = 0;
  std::vector<std::size_t> layer_bytes;
  std::vector<std::size_t> layer_offsets;  ///< from the start of the payload
  std::size_t header_bytes = 0;
  std::size_t payload_bytes = 0;
  std::size_t stride = 0;

  /// Offsets inside the header.
  [[nodiscard]] std::size_t tokens_offset() const noexcept { return fixed_header_bytes; }
  [[nodiscard]] std::size_t extra_offset() const noexcept {
    return round_up(tokens_offset() + token_capacity * sizeof(token_id), 8);
  }
  [[nodiscard]] std::size_t digests_offset() const noexcept { return round_up(extra_offset() + extra_capacity, 8); }

  /// Shape   layer_bytes_unpadded: one entry per layer, none of them 0
  /// Errors  throws bad_argument: no layers, an empty layer, or sizes beyond 4 GiB of header or 2^48 of payload
  [[nodiscard]] static slot_geometry make(std::size_t block_tokens, std::size_t extra_capacity,
                                          std::span<const std::size_t> layer_bytes_unpadded) {
    constexpr std::size_t most_header = std::size_t{1} << 30U;
    constexpr std::size_t most_payload = std::size_t{1} << 48U;
    const auto refuse = [](const std::string& why) { throw error(errc::bad_argument, "slot geometry: " + why); };
    if (block_tokens == 0 || block_tokens > most_header / 16) {
      refuse("block_tokens is " + std::to_string(block_tokens) + "; give 1 to " + std::to_string(most_header / 16));
    }
    if (extra_capacity > most_header / 4) {
      refuse("room for " + std::to_string(extra_capacity) + " bytes of extra per block; give at most " +
             std::to_string(most_header / 4));
    }
    if (layer_bytes_unpadded.empty() || layer_bytes_unpadded.size() > most_header / 16) {
      refuse(std::to_string(layer_bytes_unpadded.size()) + " layers; give 1 to " + std::to_string(most_header / 16));
    }
    slot_geometry made;
    made.token_capacity = block_tokens;
    made.extra_capacity = extra_capacity;
    made.layer_bytes.reserve(layer_bytes_unpadded.size());
    made.layer_offsets.reserve(layer_bytes_unpadded.size());
    for (const std::size_t bytes : layer_bytes_unpadded) {
      if (bytes == 0 || bytes > most_payload || made.payload_bytes > most_payload - bytes) {
        refuse("layer " + std::to_string(made.layer_bytes.size()) + " of " + std::to_string(bytes) +
               " bytes is empty, or brings the block above 2^48 bytes; check the layout's layer_bytes");
      }
      made.layer_offsets.push_back(made.payload_bytes);
      made.layer_bytes.push_back(round_up(bytes));
      made.payload_bytes += made.layer_bytes.back();
    }
    made.header_bytes =
        round_up(made.digests_offset() + made.layer_bytes.size() * layer_digest_bytes + header_trailer_bytes);
    made.stride = made.header_bytes + made.payload_bytes;
    return made;
  }

  friend bool operator==(const slot_geometry&, const slot_geometry&) = default;
};

}  // namespace kvx::store
