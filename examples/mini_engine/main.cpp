// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chat.hpp"
#include "compare.hpp"
#include "engine.hpp"
#include "model.hpp"
#include "options.hpp"
#include "profile.hpp"
#include "report.hpp"
#include "sampler.hpp"
#include "single_run.hpp"
#include "stopwatch.hpp"
#include "tokenizer.hpp"

namespace {

using namespace mini_engine;

std::string model_name(const options& o) { return o.checkpoint.empty() ? o.model : o.checkpoint; }

model load_model(const options& o) {
    if (!o.checkpoint.empty()) return model::load(o.checkpoint);
    constexpr std::string_view prefix = "random:";
    if (!o.model.starts_with(prefix)) {
        throw std::runtime_error("--model " + o.model + ": only random:tiny, random:100m and random:1b have names; a file is a --checkpoint");
    }
    return model::random(o.model.substr(prefix.size()), o.seed);
}

std::string read_prompt(const options& o) {
    if (o.prompt_file.empty()) return o.prompt;
    std::ifstream file(o.prompt_file, std::ios::binary);
    if (!file) throw std::runtime_error("--prompt-file '" + o.prompt_file + "' cannot be opened");
    return {std::istreambuf_iterator<char>(file), {}};
}

void print(const std::string& text) {
    for (const char c : text) {
        // A random model would otherwise write control sequences to the terminal.
        if (static_cast<unsigned char>(c) >= ' ' || c == '\n' || c == '\t') std::putchar(c);
    }
    std::fflush(stdout);
}

/// Continues the prompt, and says on standard error how long it took.
void generate(const options& o, model m, const tokenizer& words, const std::vector<token_id>& prompt) {
    const std::size_t chunk = o.chunk == 0 ? default_chunk : o.chunk, tokens = prompt.size() + o.tokens;
    engine e(std::move(m), o.threads, o.block_tokens, tokens, std::min(chunk, prompt.size()), chunk);
    cache_settings settings = o.cache;
    if (settings.memory_bytes == 0) settings.memory_bytes = memory_for(tokens, e.weights.config, e.kv);

    request from;
    from.prompt = prompt;
    from.tokens = o.tokens;
    from.choose = sampler(o.temperature, o.top_p, o.seed);
    from.ends = [&](token_id token) { return words.ends(token); };
    token_id previous = prompt.back();
    bool first = true;
    from.on_token = [&](token_id token) {
        if (std::exchange(first, false) && o.prompt_file.empty()) print(o.prompt);
        print(words.decode(previous, token));
        previous = token;
    };
    // A cache that forgets with the process is of no use to a single request.
    const bool use_cache = !o.no_cache && !settings.directory.empty();
    std::optional<opening_cache> cache;
    const auto begin = std::chrono::steady_clock::now();
    report result = {.model = model_name(o),
                     .threads = o.threads,
                     .chunk_tokens = chunk,
                     .block_tokens = o.block_tokens,
                     .kv_bytes_per_token = e.weights.config.layers * 2 * e.kv.token_floats() * sizeof(float),
                     .runs = {run_alone("generate", e, from, cache, use_cache ? &settings : nullptr, {chunk, o.always_load, std::nullopt})}};
    const double seconds = seconds_since(begin);
    std::printf("\n");
    const single_run& run = result.first();
    result.prefill_flops = prefill_flops(e.weights.config, e.weights.matmul_parameters(), run.cached_tokens, prompt.size() - run.cached_tokens) /
                           (run.ttft_seconds - run.load_seconds);
    std::fprintf(stderr, "prompt: %zu tokens, %zu of them cached, first token after %.1f ms; generated: %zu tokens in %.1f ms more\n",
                 prompt.size(), run.cached_tokens, run.ttft_seconds * 1e3, run.result.logits.size(), (seconds - run.ttft_seconds) * 1e3);
    if (!o.json.empty()) write_json(result, o.json);
    constexpr std::chrono::seconds patience{10};
    if (cache && (cache->wait_for(patience) == nullptr || !cache->get()->drain(patience))) std::fputs("mini_engine: storage did not take all blocks in ten seconds\n", stderr);
}

/// The exit code.
int run(const options& o, const std::vector<std::string>& arguments) {
    model m = load_model(o);
    const tokenizer words = o.tokenizer.empty() ? tokenizer{} : tokenizer(o.tokenizer, m.config.vocabulary);
    if (o.profile) {
        const std::size_t prompt_tokens = std::min<std::size_t>(2048, m.config.context_tokens);
        thread_pool pool(o.threads);
        paged_kv kv(m.config, o.block_tokens, (prompt_tokens + o.block_tokens - 1) / o.block_tokens);
        print_profile(m, kv, pool, prompt_tokens, o.chunk == 0 ? default_chunk : o.chunk);
        return 0;
    }
    if (o.chat) {
        chat(o, std::move(m));
        return 0;
    }
    const std::vector<token_id> prompt = words.encode(read_prompt(o));
    if (prompt.empty()) throw std::runtime_error("the prompt is empty; give one with --prompt or --prompt-file");
    if (prompt.size() + o.tokens > m.config.context_tokens) {
        throw std::runtime_error("a prompt of " + std::to_string(prompt.size()) + " tokens and --tokens " + std::to_string(o.tokens) +
                                 " exceed the model's context of " + std::to_string(m.config.context_tokens) + "; shorten one");
    }
    if (o.compare_child) compare_child(o, std::move(m), words, prompt);
    else if (o.compare) return compare(o, std::move(m), words, prompt, arguments) ? 0 : 1;
    else generate(o, std::move(m), words, prompt);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"mini_engine: a small LLM inference engine for Llama-architecture models on the CPU, with a paged KV cache that kvx extends "
                 "over memory and storage"};
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    auto* source = app.add_option_group("model");
    source->add_option("--checkpoint", o.checkpoint, "a llama2.c checkpoint")->check(CLI::ExistingFile);
    source->add_option("--model", o.model, "random weights of a shape: random:tiny, random:100m, random:1b");
    source->require_option(1);
    app.add_option("--tokenizer", o.tokenizer, "a llama2.c tokenizer; without one a token is a byte")->check(CLI::ExistingFile);
    auto* prompt = app.add_option("--prompt", o.prompt, "the text to continue");
    app.add_option("--prompt-file", o.prompt_file, "a file with the text to continue")->excludes(prompt);
    app.add_option("--tokens", o.tokens, "tokens to generate")->check(CLI::Range(1, 1 << 20))->capture_default_str();
    app.add_option("--temperature", o.temperature, "0 chooses the best token")->check(CLI::NonNegativeNumber)->capture_default_str();
    app.add_option("--top-p", o.top_p, "probability mass to sample from")->check(CLI::Range(0.0f, 1.0f))->capture_default_str();
    app.add_option("--seed", o.seed, "of sampling, of random weights and of --chat")->capture_default_str();
    app.add_option("--threads", o.threads, "threads that compute")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_option("--block-tokens", o.block_tokens, "tokens per KV page")->check(CLI::Range(1, 4096))->capture_default_str();
    app.add_option("--chunk", o.chunk, "tokens per prefill step (default: 1024; with --compare, the fastest)")->check(CLI::Range(1, 65536));

    const std::string cache = "cache";
    app.add_option("--cache-dir", o.cache.directory, "where the cache keeps blocks; made if it is not there")->group(cache);
    app.add_option("--memory-bytes", o.cache.memory_bytes, "memory of the cache, such as 512MiB (default: what the requests need)")
        ->transform(CLI::AsSizeValue(false))->group(cache);
    app.add_option("--storage-bytes", o.cache.storage_bytes, "most that --cache-dir may take, such as 16GiB")
        ->transform(CLI::AsSizeValue(false))->capture_default_str()->group(cache);
    app.add_option("--io", o.cache.io, "who reads and writes: auto, uring, posix")
        ->transform(CLI::CheckedTransformer(std::map<std::string, io_kind>{
            {"auto", io_kind::automatic}, {"uring", io_kind::uring}, {"posix", io_kind::posix}}))->group(cache);
    app.add_flag("--no-cache", o.no_cache, "compute everything")->group(cache);
    app.add_flag("--always-load", o.always_load, "wait for cached blocks even where computing is expected to be faster")->group(cache);

    auto* modes = app.add_option_group("modes");
    modes->add_flag("--compare", o.compare, "serve the prompt without the cache, from memory and, in a new process, from storage");
    modes->add_flag("--chat", o.chat, "simulate users who share a system prompt");
    modes->add_flag("--profile", o.profile, "measure this machine");
    modes->require_option(0, 1);
    app.add_option("--users", o.users, "with --chat")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_option("--turns", o.turns, "with --chat, per user")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_option("--system-tokens", o.system_tokens, "with --chat: length of the system prompt")->check(CLI::Range(1, 1 << 20))->capture_default_str();
    app.add_option("--message-tokens", o.message_tokens, "with --chat: length of a user's message")->check(CLI::Range(1, 1 << 20))->capture_default_str();
    app.add_option("--json", o.json, "write the figures to a file");
    app.add_flag("--progress", o.progress, "show progress even where standard error is no terminal");
    app.add_flag("--compare-child", o.compare_child)->group("");
    app.add_option("--swap-block", o.swap_block)->group("");  // I:J, with --compare: a wrong block, which must be noticed
    CLI11_PARSE(app, argc, argv);
    try {
        if (o.cache.io == io_kind::automatic && !o.cache.directory.empty() && !o.no_cache && !o.compare_child && !has_uring()) {
            std::fputs("mini_engine: built without liburing, so threads do the I/O (--io posix)\n", stderr);
        }
        return run(o, {argv, argv + argc});
    } catch (const std::exception& e) {
        std::fprintf(stderr, "mini_engine: %s\n", e.what());
        return 1;
    }
}
