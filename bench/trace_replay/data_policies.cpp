// SPDX-License-Identifier: Apache-2.0
// The caches of the data mode: a policy here is an include, a line and ten seconds of compiling, so only those are
// here whose bytes somebody wants to see.
#include "data_mode.hpp"

#include <kvx/admission/always.hpp>
#include <kvx/admission/prefix_aware.hpp>
#include <kvx/cache.hpp>
#include <kvx/concepts/admission.hpp>
#include <kvx/eviction/learned_hazard.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/eviction/s3fifo.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/posix.hpp>

#include <utility>

namespace kvx_replay {

namespace {

/// The admission policy stands before storage alone: memory takes everything.
template <kvx::eviction_policy Policy, kvx::admission_policy StorageAdmission = kvx::always>
cache_entry cache_with(std::string name) {
  return {std::move(name), [](const kvx::options& options, const kvx::layout& layout) {
            using chosen = kvx::cache<kvx::layout, kvx::xxh3_128, Policy, kvx::posix, kvx::host_transfer, kvx::always,
                                      StorageAdmission>;
            return erased_cache(chosen(options, layout));
          }};
}

}  // namespace

const std::vector<cache_entry>& all_caches() {
  static const std::vector<cache_entry> all{
      cache_with<kvx::lru>("lru"),
      cache_with<kvx::s3fifo>("s3fifo"),
      cache_with<kvx::learned_hazard>("learned_hazard"),
      cache_with<kvx::lru, kvx::prefix_aware>("lru+prefix_aware"),
  };
  return all;
}

}  // namespace kvx_replay
