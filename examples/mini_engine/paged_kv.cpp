// SPDX-License-Identifier: Apache-2.0
#include "paged_kv.hpp"

namespace mini_engine {

page_list::page_list(std::size_t block_tokens, std::size_t pages) : block_tokens_(block_tokens), pages_(pages) {
  for (std::size_t page = pages; page-- > 0;) free_.push_back(static_cast<page_id>(page));
}

paged_kv::paged_kv(const model_config& config, std::size_t block_tokens, std::size_t pages)
    : page_list(block_tokens, pages),
      token_floats_(config.kv_dim()),
      memory_(2 * config.layers * pages * block_tokens * config.kv_dim()) {}

bool page_list::reserve(std::vector<page_id>& table, std::size_t tokens) {
  const std::size_t needed = (tokens + block_tokens_ - 1) / block_tokens_;
  if (needed > table.size() + free_.size()) return false;
  for (; table.size() < needed; free_.pop_back()) table.push_back(free_.back());
  return true;
}

void page_list::release(std::vector<page_id>& table) {
  free_.insert(free_.end(), table.rbegin(), table.rend());
  table.clear();
}

}  // namespace mini_engine
