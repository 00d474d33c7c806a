// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "sessions.hpp"
#include "tier.hpp"
#include "trace.hpp"

namespace kvx_replay {

/// Replays a trace through one tier: each request hits its longest prefix of present blocks, then all are accessed.
/// Shape   news: what the engine tells about sessions, empty without hints
void replay(const trace& work, const session_news& news, tier& only);

/// The same with a memory tier in front of a storage tier; `hit_blocks` of each is what was found there.
///
/// A request hits its longest prefix of blocks that are in either. What was only on storage is read into memory; what
/// was in neither is computed, kept in memory and written to storage; both tiers may refuse. Both are told of every
/// access, as in the cache.
void replay(const trace& work, const session_news& news, tier& memory, tier& storage);

}  // namespace kvx_replay
