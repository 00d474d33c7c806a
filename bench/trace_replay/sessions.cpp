// SPDX-License-Identifier: Apache-2.0
#include "sessions.hpp"

#include <algorithm>
#include <limits>

namespace kvx_replay {

namespace {

constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

}  // namespace

std::vector<std::size_t> continued_requests(const trace& of) {
  std::vector<std::size_t> continues(of.size());
  std::vector<std::size_t> session_of(of.distinct(), none);  // who brought the block
  std::vector<std::size_t> last_request;                     // of each session
  for (std::size_t at = 0; at < of.size(); ++at) {
    const request now = of[at];
    std::size_t known = 0;
    while (known < now.blocks.size() && session_of[now.blocks[known]] != none) ++known;
    std::size_t session = none;
    continues[at] = at;
    if (known != 0) {
      const std::size_t candidate = session_of[now.blocks[known - 1]];
      const std::size_t earlier = last_request[candidate];
      const std::size_t length = of[earlier].blocks.size();
      const auto shared = static_cast<std::ptrdiff_t>(length - 1);
      const bool extends = known >= length - 1 &&
                           std::equal(now.blocks.begin(), now.blocks.begin() + shared, of[earlier].blocks.begin());
      if (extends) {
        session = candidate;
        continues[at] = earlier;
      }
    }
    if (session == none) {
      session = last_request.size();
      last_request.push_back(at);
    }
    last_request[session] = at;
    for (std::size_t i = known; i < now.blocks.size(); ++i) session_of[now.blocks[i]] = session;
  }
  return continues;
}

session_news derive_news(const trace& of, const session_model& model) {
  session_news out;
  out.at_request = kvx::session_state::open;
  const std::vector<std::size_t> continues = continued_requests(of);
  std::vector<std::size_t> next(of.size(), none);
  std::vector<std::size_t> opened(of.size());
  for (std::size_t at = 0; at < of.size(); ++at) {
    opened[at] = continues[at] == at ? at : opened[continues[at]];
    if (continues[at] == at) {
      ++out.sessions;
    } else {
      ++out.continued;
      next[continues[at]] = at;
    }
  }
  const auto tool_call = static_cast<std::uint64_t>(model.tool_call.count());
  for (std::size_t at = 0; at < of.size(); ++at) {
    const request r = of[at];
    const double writing_ms = 1000.0 * static_cast<double>(r.output_tokens) / model.output_tokens_per_second;
    const std::uint64_t ended = r.timestamp_ms + static_cast<std::uint64_t>(writing_ms);
    if (next[at] != none) {
      const std::uint64_t answered = of[next[at]].timestamp_ms;
      if (answered < ended + tool_call) {
        out.events.push_back({std::min(ended, answered), at, kvx::session_state::follow_up});
      }
      continue;
    }
    // A fixed hash of the session's first request, so that the choice is the same in every replay.
    if (opened[at] * 0x9e37'79b9'7f4a'7c15U >> 32U < std::uint64_t{model.silent_percent} * 0xFFFF'FFFFU / 100) continue;
    out.events.push_back({ended + static_cast<std::uint64_t>(model.linger.count()), at, kvx::session_state::closed});
  }
  std::stable_sort(out.events.begin(), out.events.end(),
                   [](const auto& a, const auto& b) { return a.at_ms < b.at_ms; });
  return out;
}

}  // namespace kvx_replay
