// SPDX-License-Identifier: Apache-2.0
// How a cache is opened with the I/O backend that the settings name, for whatever moves blocks between it and the
// pages.
#pragma once

#include <kvx/any_cache.hpp>
#include <kvx/cache.hpp>
#include <kvx/eviction/lru.hpp>
#include <kvx/hash/xxh3_128.hpp>
#include <kvx/io/posix.hpp>
#include <kvx/layout.hpp>
#include <kvx/runtime.hpp>
#include <kvx/transfer/host.hpp>
#ifdef MINI_ENGINE_URING
#include <kvx/io/auto_io.hpp>
#include <kvx/io/uring.hpp>
#endif

#include <functional>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "kv_cache.hpp"

namespace mini_engine {

template <class Io, class Transfer>
kvx::any_cache<typename Transfer::stream_type> open_on(const kvx::options& options, kvx::layout pages,
                                                       Transfer transfer,
                                                       const std::function<void()>& memory_is_there) {
  // Memory that nobody pins is given when it is first used: there is nothing to wait for, least of all for storage,
  // which a backend asks what it can do.
  constexpr bool pins = !std::is_same_v<Transfer, kvx::host_transfer>;
  if (!pins) memory_is_there();
  auto runtime = std::make_shared<kvx::runtime<Io>>(options.memory_bytes, options.io, options.root);
  if (pins) {
    // The cache finds it pinned, or says why it is not.
    static_cast<void>(transfer.register_arena(runtime->memory().bytes()));
    memory_is_there();
  }
  using cache = kvx::cache<kvx::layout, kvx::xxh3_128, kvx::lru, Io, Transfer>;
  return kvx::any_cache<typename Transfer::stream_type>(
      cache(options, std::move(pages), std::move(runtime), std::move(transfer)));
}

/// As open_cache().
template <class Transfer>
kvx::any_cache<typename Transfer::stream_type> open_with(io_kind io, const kvx::options& options, kvx::layout pages,
                                                         Transfer transfer,
                                                         const std::function<void()>& memory_is_there) {
#ifdef MINI_ENGINE_URING
  if (io == io_kind::automatic)
    return open_on<kvx::auto_io>(options, std::move(pages), std::move(transfer), memory_is_there);
  if (io == io_kind::uring) return open_on<kvx::uring>(options, std::move(pages), std::move(transfer), memory_is_there);
#else
  if (io == io_kind::uring) {
    throw std::runtime_error(
        "--io uring: this build has no io_uring; install liburing's headers and configure again, or use --io posix");
  }
#endif
  return open_on<kvx::posix>(options, std::move(pages), std::move(transfer), memory_is_there);
}

}  // namespace mini_engine
