// SPDX-License-Identifier: Apache-2.0
#include "trace.hpp"

#include <lzma.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <unordered_set>

namespace kvx_replay {

void trace::add(std::uint64_t timestamp_ms, std::uint64_t input_tokens, std::uint64_t output_tokens,
                std::span<const std::uint64_t> ids) {
  heads_.push_back({timestamp_ms, input_tokens, output_tokens, blocks_.size(), ids.size()});
  block_number parent = no_block;
  for (const std::uint64_t id : ids) {
    parent = number(id, parent);
    blocks_.push_back(parent);
  }
  input_tokens_ += input_tokens;
  longest_ = std::max(longest_, ids.size());
}

block_number trace::number(std::uint64_t id, block_number parent) {
  std::vector<block_number>& known = by_id_[id];
  for (const block_number block : known) {
    if (parents_[block] == parent) return block;
  }
  if (!known.empty()) ++split_ids_;
  const auto block = static_cast<block_number>(parents_.size());
  known.push_back(block);
  parents_.push_back(parent);
  ids_.push_back(id);
  return block;
}

std::uint64_t trace::tokens_in(const request& of, std::size_t prefix) const noexcept {
  // Traces count tokens and blocks apart: what is in all blocks is all of the input.
  if (prefix == of.blocks.size()) return of.input_tokens;
  return std::min<std::uint64_t>(prefix * block_tokens_, of.input_tokens);
}

namespace {

std::string read_all(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) throw std::runtime_error(path + ": cannot be read");
  return text;
}

bool is_xz(std::string_view bytes) {
  return bytes.starts_with(
      std::string_view("\xFD"
                       "7zXZ\0",
                       6));
}

std::string decompress(std::string_view bytes, const std::string& name) {
  constexpr std::uint64_t memory_limit = 1ULL << 30U;
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, memory_limit, LZMA_CONCATENATED) != LZMA_OK) {
    throw std::runtime_error(name + ": no memory for liblzma");
  }
  stream.next_in = reinterpret_cast<const std::uint8_t*>(bytes.data());
  stream.avail_in = bytes.size();
  std::string text;
  std::array<char, 1U << 16U> piece{};
  lzma_ret answer = LZMA_OK;
  while (answer == LZMA_OK) {
    stream.next_out = reinterpret_cast<std::uint8_t*>(piece.data());
    stream.avail_out = piece.size();
    answer = lzma_code(&stream, LZMA_FINISH);
    text.append(piece.data(), piece.size() - stream.avail_out);
  }
  lzma_end(&stream);
  if (answer != LZMA_STREAM_END) throw std::runtime_error(name + ": not a whole xz file");
  return text;
}

std::uint64_t number_of(const nlohmann::json& object, const char* field, std::uint64_t otherwise) {
  const auto found = object.find(field);
  if (found == object.end()) return otherwise;
  if (!found->is_number()) throw std::runtime_error("\"" + std::string(field) + "\" is not a number");
  const double value = found->get<double>();
  if (!(value >= 0 && value < 1e18)) throw std::runtime_error("\"" + std::string(field) + "\" is out of range");
  return found->is_number_unsigned() ? found->get<std::uint64_t>() : static_cast<std::uint64_t>(value);
}

void add_line(trace& out, std::string_view line, std::vector<std::uint64_t>& ids) {
  const nlohmann::json object = nlohmann::json::parse(line);
  const auto found = object.find("hash_ids");
  if (found == object.end() || !found->is_array()) throw std::runtime_error("has no \"hash_ids\" array");
  ids.clear();
  for (const nlohmann::json& id : *found) {
    if (!id.is_number_integer()) throw std::runtime_error("\"hash_ids\" is not an array of whole numbers");
    ids.push_back(id.get<std::uint64_t>());
  }
  if (std::unordered_set(ids.begin(), ids.end()).size() != ids.size()) {
    throw std::runtime_error("an id is twice in \"hash_ids\", so it cannot stand for one prefix");
  }
  out.add(number_of(object, "timestamp", out.size() * 1000),
          number_of(object, "input_length", ids.size() * out.block_tokens()), number_of(object, "output_length", 0),
          ids);
}

}  // namespace

trace parse_trace(std::string_view lines, const std::string& name, std::uint32_t block_tokens, std::size_t requests) {
  trace out(block_tokens);
  std::vector<std::uint64_t> ids;
  for (std::size_t number = 1; !lines.empty() && out.size() < requests; ++number) {
    const std::size_t end = std::min(lines.find('\n'), lines.size());
    const std::string_view line = lines.substr(0, end);
    lines.remove_prefix(std::min(end + 1, lines.size()));
    if (line.find_first_not_of(" \r\t") == std::string_view::npos) continue;
    try {
      add_line(out, line, ids);
    } catch (const std::exception& problem) {
      throw std::runtime_error(name + ", line " + std::to_string(number) + ": " + problem.what());
    }
  }
  if (out.blocks() == 0) throw std::runtime_error(name + ": holds no blocks");
  return out;
}

trace read_trace(const std::string& path, std::uint32_t block_tokens, std::size_t requests) {
  std::string bytes = read_all(path);
  if (is_xz(bytes)) bytes = decompress(bytes, path);
  return parse_trace(bytes, path, block_tokens, requests);
}

std::string to_json_lines(const trace& of) {
  std::string out;
  for (std::size_t at = 0; at < of.size(); ++at) {
    const request r = of[at];
    std::vector<std::uint64_t> ids;
    for (const block_number block : r.blocks) ids.push_back(of.id(block));
    const nlohmann::ordered_json line{{"timestamp", r.timestamp_ms},
                                      {"input_length", r.input_tokens},
                                      {"output_length", r.output_tokens},
                                      {"hash_ids", ids}};
    out.append(line.dump()).append("\n");
  }
  return out;
}

}  // namespace kvx_replay
