// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "trace.hpp"

#include <kvx/concepts/hints.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvx_replay {

/// What an engine would have known about the sessions of a trace, and when.
struct session_news {
  struct event {
    std::uint64_t at_ms = 0;
    std::size_t request = 0;  ///< the session's last one at that time
    kvx::session_state state = kvx::session_state::unknown;
  };

  /// Ascending in time.
  std::vector<event> events;
  /// What is said of a session while it makes a request.
  kvx::session_state at_request = kvx::session_state::unknown;
  /// Requests that continue an earlier one.
  std::size_t continued = 0;
  std::size_t sessions = 0;
};

/// What is assumed of engine and clients, since a trace does not tell.
struct session_model {
  /// The engine writes this fast, so a response ends at timestamp + output / rate.
  double output_tokens_per_second = 50;
  /// A next request within this time of the response's end is a tool's answer; one that comes later is a person's.
  std::chrono::milliseconds tool_call{20'000};
  /// A client that got its last response is gone after this time.
  std::chrono::milliseconds linger{60'000};
  /// Percent of the sessions whose client never says that it is gone.
  unsigned silent_percent = 0;
};

/// Which requests continue which, from the blocks alone: request B continues A when the deepest block of B that was
/// seen before belongs to the session of A, A is that session's latest request, and B has all of A's blocks but the
/// last, which is only partly filled and changes as the text goes on. Everything else opens a session.
/// Shape   for each request the one that it continues, or its own number
[[nodiscard]] std::vector<std::size_t> continued_requests(const trace& of);

/// The hints that a real engine has, in the order in which it learns them.
///
/// While a session makes requests it is open: the client is connected. When a response ends in a tool call, the engine
/// has written that call itself and knows that an answer will come: `follow_up`. A client that leaves closes its
/// connection, an agent that is done says so: `closed`, `linger` after the last response. This assumes that every
/// client says goodbye, and only those that never come back: from `linger` on, not to be closed tells as much. With
/// `silent_percent` some never say it.
[[nodiscard]] session_news derive_news(const trace& of, const session_model& model);

}  // namespace kvx_replay
