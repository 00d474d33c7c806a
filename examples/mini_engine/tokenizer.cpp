// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.hpp"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>

namespace mini_engine {

tokenizer::tokenizer(const std::string& path, std::size_t vocabulary) {
  const auto refuse = [&](const std::string& reason) {
    return std::runtime_error("tokenizer '" + path + "': " + reason + "; expected a llama2.c tokenizer of " +
                              std::to_string(vocabulary) + " pieces, the vocabulary of the model");
  };
  std::ifstream file(path, std::ios::binary);
  if (!file) throw refuse("cannot be opened");
  const auto read = [&](void* to, std::size_t bytes) {
    if (!file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes))) throw refuse("is too short");
  };
  std::int32_t longest = 0;
  read(&longest, sizeof(longest));
  pieces_.resize(vocabulary);
  scores_.resize(vocabulary);
  for (std::size_t i = 0; i < vocabulary; ++i) {
    std::int32_t bytes = 0;
    read(&scores_[i], sizeof(float));
    read(&bytes, sizeof(bytes));
    if (bytes < 0 || bytes > longest) throw refuse("piece " + std::to_string(i) + " is longer than the longest");
    pieces_[i].resize(static_cast<std::size_t>(bytes));
    read(pieces_[i].data(), pieces_[i].size());
    ids_.emplace(pieces_[i], static_cast<token_id>(i));
  }
  if (file.peek() != std::ifstream::traits_type::eof()) throw refuse("has more pieces");
}

std::vector<token_id> tokenizer::encode(std::string_view text) const {
  std::vector<token_id> tokens;
  if (pieces_.empty()) {
    for (const char c : text) tokens.push_back(static_cast<std::uint8_t>(c));
    return tokens;
  }
  tokens.push_back(begin_token);
  if (text.empty()) return tokens;
  // SentencePiece puts a space before the text.
  if (const auto space = ids_.find(" "); space != ids_.end()) tokens.push_back(space->second);

  for (std::size_t i = 0; i < text.size();) {
    std::size_t end = i + 1;
    while (end < text.size() && end - i < 4 && (static_cast<std::uint8_t>(text[end]) & 0xC0) == 0x80) ++end;
    const std::string character(text.substr(i, end - i));
    if (const auto whole = ids_.find(character); whole != ids_.end()) {
      tokens.push_back(whole->second);
    } else {
      for (const char c : character) tokens.push_back(first_byte_token + static_cast<std::uint8_t>(c));
    }
    i = end;
  }

  // Merge the neighbours whose union has the best score, until no union is a piece.
  for (;;) {
    float best_score = -1e10f;
    std::size_t best = tokens.size();
    token_id merged = 0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      const auto both = ids_.find(pieces_[tokens[i]] + pieces_[tokens[i + 1]]);
      if (both != ids_.end() && scores_[both->second] > best_score) {
        best_score = scores_[both->second];
        best = i;
        merged = both->second;
      }
    }
    if (best == tokens.size()) return tokens;
    tokens[best] = merged;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

std::string tokenizer::decode(token_id previous, token_id token) const {
  if (pieces_.empty()) {
    if (token < 256) return std::string(1, static_cast<char>(token));
    return '<' + std::to_string(token) + '>';
  }
  const std::string& piece = pieces_[token];
  unsigned byte = 0;
  if (piece.size() == 6 && std::sscanf(piece.c_str(), "<0x%02X>", &byte) == 1)
    return std::string(1, static_cast<char>(byte));
  if (previous == begin_token && piece.starts_with(' ')) return piece.substr(1);
  return piece;
}

}  // namespace mini_engine
