// SPDX-License-Identifier: Apache-2.0
#include "compare.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <utility>

#include "engine.hpp"
#include "plain_product.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "single_run.hpp"

namespace mini_engine {
namespace {

/// A directory of one's own, removed at the end, unless the user named one.
class cache_directory {
public:
    explicit cache_directory(const std::string& given) : path_(given), temporary_(given.empty()) {
        if (!temporary_) return;
        path_ = (std::filesystem::temp_directory_path() / "mini_engine-XXXXXX").string();
        if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("cannot make " + path_ + "; name a directory with --cache-dir");
    }
    cache_directory(const cache_directory&) = delete;
    cache_directory& operator=(const cache_directory&) = delete;
    ~cache_directory() {
        std::error_code ignored;
        if (temporary_) std::filesystem::remove_all(path_, ignored);
    }
    const std::string& path() const { return path_; }

private:
    std::string path_;
    bool temporary_;
};

/// Storage shall answer, not what the kernel happens to remember.
void drop_page_cache(const std::string& directory) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory, ignored)) {
        if (!entry.is_regular_file(ignored)) continue;
        const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0) continue;
        ::fdatasync(file);
        ::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        ::close(file);
    }
}

/// Runs this program once more, with more arguments, and returns what it prints.
std::string output_of_another(std::vector<std::string> arguments) {
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    const auto require = [](int error) {
        if (error != 0) throw std::runtime_error(std::string("cannot start another process: ") + std::strerror(error));
    };
    int ends[2];
    require(::pipe2(ends, O_CLOEXEC) == 0 ? 0 : errno);
    posix_spawn_file_actions_t actions;
    require(::posix_spawn_file_actions_init(&actions));
    require(::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO));
    pid_t child = 0;
    const int spawned = ::posix_spawn(&child, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    std::string text;
    char buffer[4096];
    for (ssize_t n = 1; spawned == 0 && n != 0;) {
        n = ::read(ends[0], buffer, sizeof buffer);
        if (n > 0) text.append(buffer, static_cast<std::size_t>(n));
        else if (n < 0 && errno != EINTR) break;
    }
    ::close(ends[0]);
    require(spawned);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) throw std::runtime_error("the process that loads from storage failed, see above");
    return text;
}

std::optional<std::pair<std::size_t, std::size_t>> swapped_blocks(const std::string& text) {
    if (text.empty()) return std::nullopt;
    std::size_t i = 0, j = 0;
    int end = 0;
    if (std::sscanf(text.c_str(), "%zu:%zu%n", &i, &j, &end) != 2 || text[static_cast<std::size_t>(end)] != '\0') {
        throw std::runtime_error("--swap-block '" + text + "' is not two numbers of blocks, I:J");
    }
    return std::pair(i, j);
}

request request_for(const options& o, const tokenizer& words, const std::vector<token_id>& prompt) {
    request made;
    made.prompt = prompt;
    made.tokens = o.tokens;
    made.choose = sampler(o.temperature, o.top_p, o.seed);
    made.ends = [&words](token_id token) { return words.ends(token); };
    return made;
}

cache_settings settings_for(const options& o, engine& e, std::size_t tokens, std::string directory) {
    cache_settings settings = o.cache;
    settings.directory = std::move(directory);
    if (settings.memory_bytes == 0) settings.memory_bytes = memory_for(tokens, e.weights.config, e.kv);
    return settings;
}

}  // namespace

bool compare(const options& o, model m, const tokenizer& words, const std::vector<token_id>& prompt, const std::vector<std::string>& arguments) {
    const cache_directory directory(o.cache.directory);
    const std::vector<std::size_t> chunks = o.chunk != 0 ? std::vector{o.chunk} : std::vector<std::size_t>{512, 1024, 2048};
    engine e(std::move(m), o.threads, o.block_tokens, prompt.size() + o.tokens, std::min(chunks.back(), prompt.size()), chunks.back());
    const cache_settings settings = settings_for(o, e, prompt.size() + o.tokens, directory.path());
    progress_bar progress("compare", chunks.size() + 4, o.progress);
    std::optional<opening_cache> cache;
    const auto run = [&](const char* name, std::size_t chunk, const cache_settings* to_open, bool swap) {
        request from = request_for(o, words, prompt);
        single_run done = run_alone(name, e, from, cache, to_open, {chunk, o.always_load, swap ? swapped_blocks(o.swap_block) : std::nullopt});
        progress.advance();
        return done;
    };

    report result;
    result.model = o.checkpoint.empty() ? o.model : o.checkpoint;
    result.threads = o.threads;
    result.block_tokens = o.block_tokens;
    result.kv_bytes_per_token = e.weights.config.layers * 2 * e.kv.token_floats() * sizeof(float);

    // The baseline is the fastest of several, measured beside the plain product, so that what the cache saves is no straw man.
    plain_product plain(e.pool);
    run("warm-up", chunks.front(), nullptr, false);
    std::vector<single_run> cold;
    for (const std::size_t chunk : chunks) {
        plain.measure();
        cold.push_back(run("cold", chunk, nullptr, false));
        if (cold.back().result != cold.front().result) throw std::logic_error("the engine's own results depend on the chunk size");
    }
    plain.measure();
    const auto best = std::min_element(cold.begin(), cold.end(), [](const auto& a, const auto& b) { return a.ttft_seconds < b.ttft_seconds; });
    result.chunk_tokens = chunks[static_cast<std::size_t>(best - cold.begin())];
    result.plain_product_flops = plain.best();
    result.prefill_flops = prefill_flops(e.weights.config, e.weights.matmul_parameters(), 0, prompt.size()) / best->ttft_seconds;
    result.runs.push_back(*best);

    constexpr std::chrono::minutes patience{5};
    result.runs.push_back(run("save", result.chunk_tokens, &settings, false));
    if (!cache->wait_for(patience)->drain(patience)) throw std::runtime_error("storage in '" + directory.path() + "' did not take the blocks in five minutes");
    result.runs.push_back(run("memory", result.chunk_tokens, nullptr, true));
    cache.reset();

    drop_page_cache(directory.path());
    std::vector<std::string> again = arguments;
    again.insert(again.end(), {"--compare-child", "--cache-dir", directory.path(), "--chunk", std::to_string(result.chunk_tokens)});
    result.runs.push_back(deserialize(output_of_another(std::move(again))));
    progress.finish();

    print_table(result);
    if (!o.json.empty()) write_json(result, o.json);
    return result.identical();
}

void compare_child(const options& o, model m, const tokenizer& words, const std::vector<token_id>& prompt) {
    engine e(std::move(m), o.threads, o.block_tokens, prompt.size() + o.tokens, std::min(o.chunk, prompt.size()), o.chunk);
    const cache_settings settings = settings_for(o, e, prompt.size() + o.tokens, o.cache.directory);
    request from = request_for(o, words, prompt);
    std::optional<opening_cache> cache;
    const single_run done = run_alone("storage", e, from, cache, &settings, {o.chunk, o.always_load, swapped_blocks(o.swap_block)});
    std::puts(serialize(done).c_str());
}

}  // namespace mini_engine
