// SPDX-License-Identifier: Apache-2.0
// The users of --chat, whatever engine answers them.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <random>
#include <utility>
#include <vector>

#include "model.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "serve.hpp"
#include "stopwatch.hpp"

namespace mini_engine {

inline std::vector<token_id> some_text(std::mt19937_64& random, std::size_t tokens, std::size_t vocabulary) {
  std::vector<token_id> text;
  for (std::size_t i = 0; i < tokens; ++i) text.push_back(static_cast<token_id>(random() % vocabulary));
  return text;
}

/// One side of a conversation: what was said so far, and the turn that is being answered.
struct user {
  std::mt19937_64 random;
  std::vector<token_id> history;
  request turn;
  std::size_t turns = 0;
};

/// Tokens of a user's whole conversation.
inline std::size_t longest_chat(const options& o) { return o.system_tokens + o.turns * (o.message_tokens + o.tokens); }

/// Tokens that the KV pool must hold: whole pages of every user, or what the user says.
inline std::size_t chat_pool_tokens(const options& o) {
  return o.kv_tokens != 0 ? o.kv_tokens : o.users * (longest_chat(o) + o.block_tokens);
}

/// Everybody says something, waits for the answer, and says more, until all turns are over.
template <class Server>
chat_report chat_with(const options& o, const model_config& config, Server& all) {
  std::mt19937_64 random(o.seed);
  const std::size_t vocabulary = config.vocabulary;
  const std::vector<token_id> system = some_text(random, o.system_tokens, vocabulary);
  std::vector<user> users(o.users);
  chat_report result;
  result.users = o.users;
  result.turns.resize(o.turns);
  progress_bar progress("chat", o.users * o.turns, o.progress);
  const auto began = std::chrono::steady_clock::now();
  const auto say = [&](user& u) {
    const auto message = some_text(u.random, o.message_tokens, vocabulary);
    u.history.insert(u.history.end(), message.begin(), message.end());
    u.turn = {};
    u.turn.prompt = u.history;
    u.turn.tokens = o.tokens;
    u.turn.choose = sampler(o.temperature, o.top_p, u.random());
    all.submit(u.turn);
  };
  for (user& u : users) {
    u.random.seed(random());
    u.history = system;
    say(u);
  }
  for (bool busy = true; busy;) {
    busy = all.step();
    for (user& u : users) {
      if (!std::exchange(u.turn.done, false)) continue;
      chat_report::turn& to = result.turns[u.turns++];
      to.prompt_tokens += u.turn.prompt.size();
      to.cached_tokens += u.turn.cached_tokens;
      to.ttft_seconds += u.turn.ttft_seconds;
      result.ttfts.push_back(u.turn.ttft_seconds);
      to.worst_ttft_seconds = std::max(to.worst_ttft_seconds, u.turn.ttft_seconds);
      ++to.answers;
      progress.advance();
      u.history.insert(u.history.end(), u.turn.output.begin(), u.turn.output.end());
      if (u.turns == o.turns) continue;
      say(u);
      busy = true;
    }
  }
  progress.finish();
  result.seconds = seconds_since(began);
  result.served = all.figures();
  for (const user& u : users)
    result.answers_digest =
        XXH3_64bits_withSeed(u.history.data(), u.history.size() * sizeof(token_id), result.answers_digest);
  return result;
}

}  // namespace mini_engine
