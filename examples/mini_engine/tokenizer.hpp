// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model.hpp"

namespace mini_engine {

/// Text to tokens and back: byte-pair encoding by score with a vocabulary in llama2.c's format, or bytes.
class tokenizer {
 public:
  /// Every byte is a token. No beginning-of-sequence token.
  tokenizer() = default;

  /// Reads a llama2.c tokenizer. Throws std::runtime_error if the file doesn't hold `vocabulary` pieces.
  tokenizer(const std::string& path, std::size_t vocabulary);

  /// A beginning-of-sequence token, then the text.
  std::vector<token_id> encode(std::string_view text) const;

  /// The bytes a token adds to the text when it follows `previous`.
  std::string decode(token_id previous, token_id token) const;

  /// Whether the token ends a text.
  bool ends(token_id token) const { return !pieces_.empty() && (token == begin_token || token == end_token); }

 private:
  static constexpr token_id begin_token = 1, end_token = 2;
  static constexpr token_id first_byte_token = 3;  // token 3 + b stands for the byte b where no piece fits

  std::vector<std::string> pieces_;
  std::vector<float> scores_;
  std::unordered_map<std::string, token_id> ids_;
};

}  // namespace mini_engine
