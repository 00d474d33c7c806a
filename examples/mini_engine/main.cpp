// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "model.hpp"
#include "paged_kv.hpp"
#include "profile.hpp"
#include "sampler.hpp"
#include "thread_pool.hpp"
#include "tokenizer.hpp"
#include "transformer.hpp"

namespace {

using namespace mini_engine;

struct options {
    std::string checkpoint, model, tokenizer, prompt, prompt_file;
    std::size_t tokens = 256;
    float temperature = 0, top_p = 0.9f;
    std::uint64_t seed = 1;
    std::size_t threads = std::max(1u, std::thread::hardware_concurrency());
    std::size_t block_tokens = 16;
    std::size_t chunk = 1024;  // the fastest of 128 to 2048 that --profile measures, by a few per cent
    bool profile = false;
};

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

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void generate(const options& o, const tokenizer& words, paged_kv& kv, transformer& engine, const std::vector<token_id>& prompt) {
    sequence request;
    if (!kv.reserve(request.pages, prompt.size() + o.tokens)) throw std::runtime_error("the KV pool has too few pages");
    sampler choose(o.temperature, o.top_p, o.seed);

    const auto begin = std::chrono::steady_clock::now();
    std::span<const float> logits;
    for (std::size_t start = 0; start < prompt.size(); start += o.chunk) {
        logits = engine.prefill_chunk(request, {prompt.data() + start, std::min(o.chunk, prompt.size() - start)}, start);
    }
    const double prefill_seconds = seconds_since(begin);

    print(o.prompt_file.empty() ? o.prompt : "");
    const auto decode_begin = std::chrono::steady_clock::now();
    token_id previous = prompt.back();
    std::size_t generated = 0;
    while (generated < o.tokens) {
        const token_id next = choose.sample(logits);
        if (words.ends(next)) break;
        print(words.decode(previous, next));
        previous = next;
        if (++generated < o.tokens) logits = engine.prefill_chunk(request, {&previous, 1}, prompt.size() + generated - 1);
    }
    const double decode_seconds = seconds_since(decode_begin);
    std::printf("\n");
    std::fprintf(stderr, "prompt: %zu tokens in %.1f ms (%.0f/s); generated: %zu tokens in %.1f ms (%.0f/s)\n", prompt.size(),
                 prefill_seconds * 1e3, static_cast<double>(prompt.size()) / prefill_seconds, generated, decode_seconds * 1e3,
                 static_cast<double>(generated) / decode_seconds);
    kv.release(request.pages);
}

void run(const options& o) {
    const model m = load_model(o);
    const tokenizer words = o.tokenizer.empty() ? tokenizer{} : tokenizer(o.tokenizer, m.config.vocabulary);
    thread_pool pool(o.threads);

    if (o.profile) {
        const std::size_t prompt_tokens = std::min<std::size_t>(2048, m.config.context_tokens);
        paged_kv kv(m.config, o.block_tokens, (prompt_tokens + o.block_tokens - 1) / o.block_tokens);
        print_profile(m, kv, pool, prompt_tokens, o.chunk);
        return;
    }
    const std::vector<token_id> prompt = words.encode(read_prompt(o));
    if (prompt.empty()) throw std::runtime_error("the prompt is empty; give one with --prompt or --prompt-file");
    if (prompt.size() + o.tokens > m.config.context_tokens) {
        throw std::runtime_error("a prompt of " + std::to_string(prompt.size()) + " tokens and --tokens " + std::to_string(o.tokens) +
                                 " exceed the model's context of " + std::to_string(m.config.context_tokens) + "; shorten one");
    }
    paged_kv kv(m.config, o.block_tokens, (prompt.size() + o.tokens + o.block_tokens - 1) / o.block_tokens);
    transformer engine(m, kv, pool, o.chunk);
    generate(o, words, kv, engine, prompt);
}

}  // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app{"mini_engine: a small LLM inference engine for Llama-architecture models on the CPU, with a paged KV cache"};
    auto* source = app.add_option_group("model");
    source->add_option("--checkpoint", o.checkpoint, "a llama2.c checkpoint")->check(CLI::ExistingFile);
    source->add_option("--model", o.model, "random weights of a shape: random:tiny, random:100m, random:1b");
    source->require_option(1);
    app.add_option("--tokenizer", o.tokenizer, "a llama2.c tokenizer; without one a token is a byte")->check(CLI::ExistingFile);
    auto* prompt = app.add_option("--prompt", o.prompt, "the text to continue");
    app.add_option("--prompt-file", o.prompt_file, "a file with the text to continue")->excludes(prompt);
    app.add_option("--tokens", o.tokens, "tokens to generate")->capture_default_str();
    app.add_option("--temperature", o.temperature, "0 chooses the best token")->check(CLI::NonNegativeNumber)->capture_default_str();
    app.add_option("--top-p", o.top_p, "probability mass to sample from")->check(CLI::Range(0.0f, 1.0f))->capture_default_str();
    app.add_option("--seed", o.seed, "of sampling, and of random weights")->capture_default_str();
    app.add_option("--threads", o.threads, "threads that compute")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_option("--block-tokens", o.block_tokens, "tokens per KV page")->check(CLI::Range(1, 4096))->capture_default_str();
    app.add_option("--chunk", o.chunk, "tokens per prefill step")->check(CLI::Range(1, 65536))->capture_default_str();
    app.add_flag("--profile", o.profile, "measure this machine instead of generating");
    CLI11_PARSE(app, argc, argv);
    try {
        run(o);
        return 0;
    } catch (const std::exception& e) {
        std::fprintf(stderr, "mini_engine: %s\n", e.what());
        return 1;
    }
}
