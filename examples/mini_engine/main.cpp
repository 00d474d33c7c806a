// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "chat.hpp"
#include "compare.hpp"
#include "engine.hpp"
#include "generate.hpp"
#include "inputs.hpp"
#include "model.hpp"
#include "options.hpp"
#include "profile.hpp"
#include "tokenizer.hpp"
#ifdef MINI_ENGINE_CUDA
#include "cuda/run.hpp"
#endif

namespace {

using namespace mini_engine;

/// The exit code.
int run_on_cpu(const options& o, const std::vector<std::string>& arguments) {
  model m = load_model(o);
  const tokenizer words = load_tokenizer(o, m.config);
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
  const std::vector<token_id> prompt = load_prompt(o, words, m.config);
  if (o.compare_child) {
    compare_child(o, std::move(m), words, prompt);
  } else if (o.compare) {
    return compare(o, std::move(m), words, prompt, arguments) ? 0 : 1;
  } else {
    const std::size_t chunk = o.chunk == 0 ? default_chunk : o.chunk;
    engine e(std::move(m), o.threads, o.block_tokens, prompt.size() + o.tokens, std::min(chunk, prompt.size()), chunk);
    generate<opening_cache>(o, e, chunk, words, prompt);
  }
  return 0;
}

/// The exit code.
int run(const options& o, const std::vector<std::string>& arguments) {
  if (o.device == device_kind::cpu) return run_on_cpu(o, arguments);
#ifdef MINI_ENGINE_CUDA
  return cuda::run(o, arguments);
#else
  throw no_device("this build has no CUDA; install the CUDA Toolkit, configure again and build");
#endif
}

}  // namespace

int main(int argc, char** argv) {
  options o;
  CLI::App app{
      "mini_engine: a small LLM inference engine for Llama-architecture models, with a paged KV cache that kvx extends "
      "over memory and storage"};
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  auto* source = app.add_option_group("model");
  source->add_option("--checkpoint", o.checkpoint, "a llama2.c checkpoint")->check(CLI::ExistingFile);
  source->add_option("--model", o.model,
                     "random weights of a shape: random:tiny, random:100m, random:1b; on a GPU also random:llama-8b, "
                     "random:llama-70b-tp8");
  source->require_option(1);
  app.add_option("--tokenizer", o.tokenizer, "a llama2.c tokenizer; without one a token is a byte")
      ->check(CLI::ExistingFile);
  auto* prompt = app.add_option("--prompt", o.prompt, "the text to continue");
  app.add_option("--prompt-file", o.prompt_file, "a file with the text to continue")->excludes(prompt);
  app.add_option("--prompt-tokens", o.prompt_tokens, "make up a prompt of so many tokens, from the seed")
      ->excludes(prompt)
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--tokens", o.tokens, "tokens to generate")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  app.add_option("--temperature", o.temperature, "0 chooses the best token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--top-p", o.top_p, "probability mass to sample from")
      ->check(CLI::Range(0.0f, 1.0f))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "of sampling, of random weights and of --chat")->capture_default_str();
  app.add_option("--device", o.device, "what computes: cpu, cuda")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, device_kind>{{"cpu", device_kind::cpu}, {"cuda", device_kind::cuda}}));
  app.add_option("--threads", o.threads, "threads that compute")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--block-tokens", o.block_tokens, "tokens per KV page")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--chunk", o.chunk,
                 "tokens per prefill step (default: 1024, on a GPU 4096; with --compare on the CPU, the fastest)")
      ->check(CLI::Range(1, 65536));

  const std::string cache = "cache";
  app.add_option("--cache-dir", o.cache.directory, "where the cache keeps blocks; made if it is not there")
      ->group(cache);
  app.add_option("--memory-bytes", o.cache.memory_bytes,
                 "memory of the cache, such as 512MiB (default: what the requests need)")
      ->transform(CLI::AsSizeValue(false))
      ->group(cache);
  app.add_option("--storage-bytes", o.cache.storage_bytes, "most that --cache-dir may take, such as 16GiB")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str()
      ->group(cache);
  app.add_option("--io", o.cache.io, "who reads and writes: auto, uring, posix")
      ->transform(CLI::CheckedTransformer(std::map<std::string, io_kind>{
          {"auto", io_kind::automatic}, {"uring", io_kind::uring}, {"posix", io_kind::posix}}))
      ->group(cache);
  app.add_option("--io-threads", o.cache.io_threads,
                 "threads, or rings, that read, write and verify (default: 2; with a GPU and no local drive, one per "
                 "processor)")
      ->check(CLI::Range(1, 256))
      ->group(cache);
  app.add_option("--straight", o.cache.straight,
                 "with a GPU: from storage straight into the pages, past the cache's memory: auto (a process with one "
                 "prompt to serve, where storage is no local drive), never, host, cufile")
      ->transform(CLI::CheckedTransformer(std::map<std::string, straight_kind>{{"auto", straight_kind::automatic},
                                                                               {"never", straight_kind::never},
                                                                               {"host", straight_kind::host},
                                                                               {"cufile", straight_kind::cufile}}))
      ->group(cache);
  app.add_flag("--no-cache", o.no_cache, "compute everything")->group(cache);
  app.add_flag("--always-load", o.always_load, "wait for cached blocks even where computing is expected to be faster")
      ->group(cache);

  auto* modes = app.add_option_group("modes");
  modes->add_flag("--compare", o.compare,
                  "serve the prompt without the cache, from memory and, in a new process, from storage");
  modes->add_flag("--chat", o.chat, "simulate users who share a system prompt");
  modes->add_flag("--profile", o.profile, "measure this machine");
  modes->require_option(0, 1);
  app.add_option("--pairs", o.pairs,
                 "with --compare on a GPU: how often to serve without the cache and from memory in turn")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--kv-tokens", o.kv_tokens, "with --chat: tokens that the KV pool holds (default: all conversations)")
      ->check(CLI::Range(1, 1 << 26));
  app.add_option("--users", o.users, "with --chat")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--turns", o.turns, "with --chat, per user")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--system-tokens", o.system_tokens, "with --chat: length of the system prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--message-tokens", o.message_tokens, "with --chat: length of a user's message")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--json", o.json, "write the figures to a file");
  app.add_flag("--progress", o.progress, "show progress even where standard error is no terminal");
  app.add_flag("--compare-child", o.compare_child)->group("");
  app.add_option("--swap-block", o.swap_block)
      ->group("")
      ->needs("--always-load");  // I:J, with --compare: a wrong block, which must be noticed
  CLI11_PARSE(app, argc, argv);
  try {
    if (o.cache.io == io_kind::automatic && !o.cache.directory.empty() && !o.no_cache && !o.compare_child &&
        !has_uring()) {
      std::fputs("mini_engine: built without liburing, so threads do the I/O (--io posix)\n", stderr);
    }
    return run(o, {argv, argv + argc});
  } catch (const no_device& e) {
    std::fprintf(stderr, "mini_engine: --device cuda: %s\n", e.what());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "mini_engine: %s\n", e.what());
    return 1;
  }
}
