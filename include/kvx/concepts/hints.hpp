// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>

namespace kvx {

/// What becomes of the session that a request belongs to.
enum class session_state : std::uint8_t {
  unknown,    ///< the engine cannot tell
  open,       ///< the client is connected, and may ask again
  follow_up,  ///< a tool call is outstanding: the next request will come
  closed,     ///< the client is gone, or the agent has finished
};

/// How much a block is worth to the operator, beside what traffic says.
enum class retention : std::uint8_t {
  low,     ///< goes before everything else, e.g. batch work
  normal,  ///< the policy decides
  high,    ///< goes only when nothing of lower priority may, e.g. a system prompt
};

/// What an engine knows about the blocks of a request that the cache cannot see. All of it is optional.
///
/// `session` and `returns_in` are advice, for policies that learn what they are worth; `priority`, `time_to_live`
/// and `pinned` are orders, and hold with every policy.
/// Units   durations are counted from the call that gives them
struct hints {
  session_state session = session_state::unknown;
  /// When the session's next request is expected; zero: unknown.
  std::chrono::milliseconds returns_in{0};
  retention priority = retention::normal;
  /// After it the blocks go before everything else; zero: no limit.
  std::chrono::milliseconds time_to_live{0};
  /// Not given up until a later hint takes that back. At most half of a tier is kept so.
  bool pinned = false;

  friend bool operator==(const hints&, const hints&) = default;
};

}  // namespace kvx
