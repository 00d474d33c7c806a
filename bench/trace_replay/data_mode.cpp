// SPDX-License-Identifier: Apache-2.0
#include "data_mode.hpp"

#include "report.hpp"
#include "residents.hpp"
#include "settings.hpp"

#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <span>
#include <stdexcept>
#include <thread>
#include <utility>

namespace kvx_replay {

namespace {

using clock = std::chrono::steady_clock;
using seconds = std::chrono::duration<double>;

constexpr std::uint32_t page_tokens = 16;  // a block's tokens only say which block it is
constexpr std::size_t layers = 2;
constexpr std::size_t page_floor = page_tokens * layers * 2;  // bytes of a block whose head is one byte wide

/// The engine's pages: two layers of keys and values, a page for a block.
class engine_memory {
 public:
  engine_memory(std::size_t pages, std::uint64_t bytes_per_block)
      : pages_(pages), page_bytes_(bytes_per_block / layers / 2) {
    for (auto* side : {&keys_, &values_}) {
      for (auto& layer : *side) {
        layer.resize(pages * page_bytes_);
        // Something that no drive or file system finds a shortcut for.
        std::uint64_t state = page_bytes_;
        for (std::size_t at = 0; at + sizeof state <= layer.size(); at += sizeof state) {
          state = state * 0x9e37'79b9'7f4a'7c15U + 1;
          std::memcpy(layer.data() + at, &state, sizeof state);
        }
      }
    }
  }

  [[nodiscard]] kvx::layout layout() {
    std::array<std::byte*, layers> key_tensors{};
    std::array<std::byte*, layers> value_tensors{};
    for (std::size_t l = 0; l < layers; ++l) {
      key_tensors[l] = keys_[l].data();
      value_tensors[l] = values_[l].data();
    }
    kvx::separate_kv tensors;
    tensors.shape = {.block_tokens = page_tokens,
                     .page_tokens = page_tokens,
                     .layers = layers,
                     .heads = 1,
                     .head_dim = page_bytes_ / page_tokens,
                     .element = kvx::element_type::u8};
    tensors.page_count = pages_;
    tensors.keys = key_tensors;
    tensors.values = value_tensors;
    tensors.tensor_bytes = keys_[0].size();
    return kvx::layout(page_tokens, {tensors});
  }

  /// Computes a block: its number at both ends of every part.
  void compute(std::size_t page, block_number block) {
    each_part(page, [&](std::byte* part, std::uint64_t salt) {
      const std::uint64_t stamp = key_of(block) ^ salt;
      std::memcpy(part, &stamp, sizeof stamp);
      std::memcpy(part + page_bytes_ - sizeof stamp, &stamp, sizeof stamp);
      return true;
    });
  }
  [[nodiscard]] bool holds(std::size_t page, block_number block) {
    return each_part(page, [&](const std::byte* part, std::uint64_t salt) {
      const std::uint64_t stamp = key_of(block) ^ salt;
      return std::memcmp(part, &stamp, sizeof stamp) == 0 &&
             std::memcmp(part + page_bytes_ - sizeof stamp, &stamp, sizeof stamp) == 0;
    });
  }

 private:
  template <class Visit>
  bool each_part(std::size_t page, Visit&& visit) {
    bool all = true;
    for (std::size_t l = 0; l < layers; ++l) {
      all = visit(keys_[l].data() + page * page_bytes_, 2 * l) && all;
      all = visit(values_[l].data() + page * page_bytes_, 2 * l + 1) && all;
    }
    return all;
  }

  std::size_t pages_;
  std::size_t page_bytes_;
  std::array<std::vector<std::byte>, layers> keys_;
  std::array<std::vector<std::byte>, layers> values_;
};

/// A directory of this run alone, gone afterwards.
class run_directory {
 public:
  explicit run_directory(const std::string& parent) {
    if (parent.empty()) return;
    std::string name = (std::filesystem::path(parent) / "trace_replay-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr)
      throw std::runtime_error("--root " + parent + ": no directory can be made in it");
    path_ = name;
  }
  ~run_directory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  run_directory(const run_directory&) = delete;
  run_directory& operator=(const run_directory&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class player {
 public:
  player(const trace& work, const cache_entry& with, const data_settings& how)
      : work_(work),
        how_(how),
        directory_(how.root),
        engine_(how.clients * work.longest_request(), how.bytes_per_block),
        cache_(open(with)) {}

  data_result play(const std::string& policy) {
    data_result out;
    out.policy = policy;
    began_ = clock::now();
    std::vector<std::thread> clients;
    for (std::size_t c = 0; c < how_.clients; ++c) clients.emplace_back([this, c, &out] { serve(c, out); });
    for (std::thread& c : clients) c.join();
    out.seconds = seconds(clock::now() - began_).count();
    cache_.drain(std::chrono::seconds(60));
    out.stats = cache_.stats();
    out.memory_blocks = slots_for(work_, how_.memory_percent);
    out.storage_blocks = how_.root.empty() ? 0 : slots_for(work_, how_.storage_percent);
    std::sort(load_ms_.begin(), load_ms_.end());
    const auto at = [this](double share) {
      return load_ms_[static_cast<std::size_t>(share * static_cast<double>(load_ms_.size() - 1))];
    };
    out.load_p50_ms = at(0.5);
    out.load_p90_ms = at(0.9);
    out.load_p99_ms = at(0.99);
    out.load_longest_ms = load_ms_.back();
    return out;
  }

 private:
  erased_cache open(const cache_entry& with) {
    kvx::options options;
    options.identity = {"trace_replay", with.policy, "u8"};
    options.prompts_trusted = true;
    // The load follows its match at once. A lease still takes half a second to end, so at full speed saves find less
    // room than they would in traffic of the trace's own pace.
    options.lease = std::chrono::milliseconds(0);
    // What a block takes with its header, as a small cache tells.
    options.memory_bytes = 8 * (how_.bytes_per_block + (64U << 10U));
    const kvx::layout layout = engine_.layout();
    const std::uint64_t slot = with.make(options, layout).block_bytes();
    options.memory_bytes = std::max<std::uint64_t>(4, slots_for(work_, how_.memory_percent)) * slot;
    if (!how_.root.empty()) {
      options.root = directory_.path();
      options.storage_bytes = std::max<std::uint64_t>(16, slots_for(work_, how_.storage_percent)) * slot;
    }
    return with.make(options, layout);
  }

  void serve(std::size_t client, data_result& out) {
    std::uint64_t hit_blocks = 0;
    std::uint64_t hit_tokens = 0;
    std::uint64_t wrong = 0;
    std::vector<double> load_ms;
    for (std::size_t at = next_.fetch_add(1); at < work_.size(); at = next_.fetch_add(1)) {
      const request now = work_[at];
      auto arrived = clock::now();
      if (how_.open_loop) {
        const double due = static_cast<double>(now.timestamp_ms - work_[0].timestamp_ms) * 1e-3 * how_.time_scale;
        arrived = began_ + std::chrono::duration_cast<clock::duration>(seconds(due));
        std::this_thread::sleep_until(arrived);
      }
      const std::size_t loaded = answer(client, now, arrived, load_ms, wrong);
      hit_blocks += loaded;
      hit_tokens += work_.tokens_in(now, loaded);
    }
    const std::lock_guard lock(mutex_);
    out.hit_blocks += hit_blocks;
    out.hit_tokens += hit_tokens;
    out.wrong_blocks += wrong;
    load_ms_.insert(load_ms_.end(), load_ms.begin(), load_ms.end());
  }

  /// One request as an engine would serve it; how many of its blocks came from the cache.
  std::size_t answer(std::size_t client, const request& now, clock::time_point arrived, std::vector<double>& load_ms,
                     std::uint64_t& wrong) {
    const std::size_t blocks = now.blocks.size();
    std::vector<kvx::token_id> tokens(blocks * page_tokens + 1);  // one more: a prompt's last token is always computed
    for (std::size_t i = 0; i < blocks; ++i) tokens[i * page_tokens] = static_cast<kvx::token_id>(now.blocks[i]);
    const std::size_t first_page = client * work_.longest_request();
    std::vector<kvx::block_id> table(blocks);
    for (std::size_t i = 0; i < blocks; ++i) table[i] = static_cast<kvx::block_id>(first_page + i);
    const std::span<const kvx::block_id> ids(table);

    const kvx::sequence chain = cache_.make_sequence(tokens);
    const kvx::plan plan = cache_.match(chain);
    std::size_t loaded = 0;
    {
      const kvx::prefetch_ticket arriving = cache_.prefetch(plan);
      arriving.wait_for(std::chrono::seconds(10));
      const auto load = cache_.load(plan, ids.first(arriving.ready_blocks()));
      load.wait();
      if (load.outcome()) loaded = load.loaded_blocks();
    }
    load_ms.push_back(std::chrono::duration<double, std::milli>(clock::now() - arrived).count());

    for (std::size_t i = 0; i < loaded; ++i) {
      if (!engine_.holds(first_page + i, now.blocks[i])) ++wrong;
    }
    if (how_.prefill_tokens_per_second > 0) {
      const auto computed =
          static_cast<double>(now.input_tokens - std::min(now.input_tokens, work_.tokens_in(now, loaded)));
      std::this_thread::sleep_for(seconds(computed / how_.prefill_tokens_per_second * how_.time_scale));
    }
    for (std::size_t i = loaded; i < blocks; ++i) engine_.compute(first_page + i, now.blocks[i]);
    const auto save = cache_.save(chain, loaded, ids.subspan(loaded));
    while (!save.wait_source_released(std::chrono::seconds(1))) {
    }
    // Decoding and reading the answer take longer than saving. A client that asks at once would outrun storage, and
    // nearly every save would be dropped to protect loads.
    if (!how_.open_loop) save.wait_stored(std::chrono::seconds(60));
    return loaded;
  }

  const trace& work_;
  data_settings how_;
  run_directory directory_;
  engine_memory engine_;
  erased_cache cache_;
  clock::time_point began_{};
  std::atomic<std::size_t> next_{0};
  std::mutex mutex_;
  std::vector<double> load_ms_;
};

}  // namespace

data_result replay_data(const trace& work, const cache_entry& with, const data_settings& how) {
  if (how.bytes_per_block % page_floor != 0 || how.bytes_per_block < 16 * page_floor) {
    throw std::runtime_error("--bytes-per-block " + std::to_string(how.bytes_per_block) +
                             ": with --data a multiple of " + std::to_string(page_floor) + ", and at least " +
                             std::to_string(16 * page_floor));
  }
  return player(work, with, how).play(with.policy);
}

void print(const trace& work, const std::vector<data_result>& results, const data_settings& how) {
  const auto blocks = static_cast<double>(work.blocks());
  const auto gigabytes = [](std::uint64_t bytes) { return static_cast<double>(bytes) * 1e-9; };
  std::printf("%-12s %8s %8s %8s %8s  %7s %7s %7s %7s  %8s %8s %8s %8s  %8s %8s %8s %7s %6s\n", "real cache", "prefix",
              "token", "memory", "storage", "p50 ms", "p90 ms", "p99 ms", "max ms", "GB from", "GB to", "GB from",
              "GB to", "evicted", "evicted", "blocks", "request", "wrong");
  std::printf("%-12s %8s %8s %8s %8s  %7s %7s %7s %7s  %8s %8s %8s %8s  %8s %8s %8s %7s %6s\n", "", "hits", "hits",
              "hits", "hits", "", "", "", "", "memory", "memory", "storage", "storage", "memory", "storage", "dropped",
              "per s", "blocks");
  for (const data_result& r : results) {
    const auto& memory = r.stats.memory;
    const auto& storage = r.stats.storage;
    std::printf(
        "%-12s %8.4f %8.4f %8.4f %8.4f  %7.2f %7.2f %7.2f %7.2f  %8.2f %8.2f %8.2f %8.2f  %8llu %8llu %8llu %7.0f "
        "%6llu\n",
        r.policy.c_str(), ratio(static_cast<double>(r.hit_blocks), blocks),
        ratio(static_cast<double>(r.hit_tokens), static_cast<double>(work.input_tokens())),
        ratio(static_cast<double>(memory.hits), blocks), ratio(static_cast<double>(storage.hits), blocks),
        r.load_p50_ms, r.load_p90_ms, r.load_p99_ms, r.load_longest_ms, gigabytes(memory.read_bytes),
        gigabytes(memory.written_bytes), gigabytes(storage.read_bytes), gigabytes(storage.written_bytes),
        static_cast<unsigned long long>(memory.evicted), static_cast<unsigned long long>(storage.evicted),
        static_cast<unsigned long long>(memory.dropped + storage.dropped),
        ratio(static_cast<double>(work.size()), r.seconds), static_cast<unsigned long long>(r.wrong_blocks));
  }
  std::printf("(%zu blocks in memory, %zu on storage, %llu bytes each, %zu clients, %s)\n\n",
              results.front().memory_blocks, results.front().storage_blocks,
              static_cast<unsigned long long>(how.bytes_per_block), how.clients,
              how.open_loop ? "open loop" : "closed loop");
}

std::string to_json(const std::string& name, const trace& work, const std::vector<data_result>& results,
                    const data_settings& how) {
  using json = nlohmann::ordered_json;
  json rows = json::array();
  for (const data_result& r : results) {
    json one{{"policy", r.policy},
             {"prefix_hit_ratio", ratio(static_cast<double>(r.hit_blocks), static_cast<double>(work.blocks()))},
             {"token_hit_ratio", ratio(static_cast<double>(r.hit_tokens), static_cast<double>(work.input_tokens()))},
             {"wrong_blocks", r.wrong_blocks},
             {"storage_read_bytes_per_second", r.stats.storage_read_bytes_per_second},
             {"seconds", r.seconds},
             {"load_ms",
              {{"p50", r.load_p50_ms}, {"p90", r.load_p90_ms}, {"p99", r.load_p99_ms}, {"max", r.load_longest_ms}}}};
    for (const auto& [tier_name, counts] :
         {std::pair{"memory", &r.stats.memory}, std::pair{"storage", &r.stats.storage}}) {
      one[tier_name] = {{"hit_blocks", counts->hits},
                        {"read_bytes", counts->read_bytes},
                        {"written_bytes", counts->written_bytes},
                        {"stored_blocks", counts->stored},
                        {"evicted_blocks", counts->evicted},
                        {"dropped_blocks", counts->dropped}};
    }
    rows.push_back(std::move(one));
  }
  const json out{{"trace", name},
                 {"requests", work.size()},
                 {"blocks", work.blocks()},
                 {"memory_blocks", results.front().memory_blocks},
                 {"storage_blocks", results.front().storage_blocks},
                 {"bytes_per_block", how.bytes_per_block},
                 {"clients", how.clients},
                 {"open_loop", how.open_loop},
                 {"time_scale", how.time_scale},
                 {"results", std::move(rows)}};
  return out.dump(2) + "\n";
}

}  // namespace kvx_replay
