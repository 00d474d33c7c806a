// SPDX-License-Identifier: Apache-2.0
#pragma once

// Everything that needs nothing but the standard library and xxHash. What needs more is included by name:
// kvx/io/uring.hpp, kvx/io/auto_io.hpp, kvx/hash/sha256.hpp, kvx/presets/*.hpp.

#include <kvx/admission/always.hpp>
#include <kvx/admission/frequency_sketch.hpp>
#include <kvx/admission/prefix_aware.hpp>
#include <kvx/admission/second_touch.hpp>
#include <kvx/any_cache.hpp>
#include <kvx/cache.hpp>
#include <kvx/eviction/arc.hpp>
#include <kvx/eviction/clock.hpp>
#include <kvx/eviction/fifo.hpp>
#include <kvx/eviction/gdsf.hpp>
#include <kvx/eviction/learned_hazard.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/eviction/s3fifo.hpp>
#include <kvx/eviction/sieve.hpp>
#include <kvx/eviction/w_tinylfu.hpp>
#include <kvx/hash/key_chain.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/fault.hpp>
#include <kvx/io/memory.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/layout.hpp>
#include <kvx/load_race.hpp>
#include <kvx/metrics/counters.hpp>
#include <kvx/metrics/prometheus.hpp>
#include <kvx/options.hpp>
#include <kvx/plan.hpp>
#include <kvx/presets.hpp>
#include <kvx/result.hpp>
#include <kvx/runtime.hpp>
#include <kvx/sequence.hpp>
#include <kvx/tickets.hpp>
#include <kvx/transfer/deferred.hpp>
#include <kvx/transfer/host.hpp>
#include <kvx/types.hpp>
#include <kvx/version.hpp>
