// SPDX-License-Identifier: Apache-2.0
#include "chat.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "serve.hpp"

namespace mini_engine {
namespace {

std::vector<token_id> some_text(std::mt19937_64& random, std::size_t tokens, std::size_t vocabulary) {
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

}  // namespace

void chat(const options& o, model m) {
    const std::size_t longest = o.system_tokens + o.turns * (o.message_tokens + o.tokens);
    const std::size_t chunk = o.chunk == 0 ? default_chunk : o.chunk;
    // Whole pages per user.
    const std::size_t pool_tokens = o.users * (longest + o.block_tokens);
    engine e(std::move(m), o.threads, o.block_tokens, pool_tokens, chunk + o.users, chunk);
    const std::size_t vocabulary = e.weights.config.vocabulary;
    std::optional<opening_cache> cache;
    if (!o.no_cache) {
        cache_settings settings = o.cache;
        // Twice the conversations: half of the memory can be kept for requests that wait.
        if (settings.memory_bytes == 0) settings.memory_bytes = 2 * memory_for(pool_tokens, e.weights.config, e.kv);
        cache.emplace(settings, e.weights, e.kv, e.cost);
    }

    std::mt19937_64 random(o.seed);
    const std::vector<token_id> system = some_text(random, o.system_tokens, vocabulary);
    std::vector<user> users(o.users);
    chat_report result;
    result.users = o.users;
    result.turns.resize(o.turns);
    progress_bar progress("chat", o.users * o.turns, o.progress);
    server all(e.compute, e.cost, cache ? &*cache : nullptr, chunk, o.always_load);
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
    for (const user& u : users) result.answers_digest = XXH3_64bits_withSeed(u.history.data(), u.history.size() * sizeof(token_id), result.answers_digest);
    print_table(result);
    if (!o.json.empty()) write_json(result, o.json);
}

}  // namespace mini_engine
