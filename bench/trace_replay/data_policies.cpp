// SPDX-License-Identifier: Apache-2.0
// The caches of the data mode: a policy here is an include and a line.
#include "data_mode.hpp"

#include <kvx/cache.hpp>
#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/eviction/s3fifo.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/posix.hpp>

#include <utility>

namespace kvx_replay {

namespace {

template <kvx::eviction_policy Policy>
cache_entry cache_with(std::string name) {
  return {std::move(name), [](const kvx::options& options, const kvx::layout& layout) {
            return erased_cache(
                kvx::cache<kvx::layout, kvx::xxh3_128, Policy, kvx::posix, kvx::host_transfer>(options, layout));
          }};
}

}  // namespace

const std::vector<cache_entry>& all_caches() {
  static const std::vector<cache_entry> all{
      cache_with<kvx::lru>("lru"),
      cache_with<kvx::fifo>("fifo"),
      cache_with<kvx::s3fifo>("s3fifo"),
  };
  return all;
}

}  // namespace kvx_replay
