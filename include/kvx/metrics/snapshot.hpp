// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/metrics/histogram.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvx {

/// Everything a cache counts, over the type of one cell: atomics while it runs, plain values in a snapshot.
///
/// Counters only grow; gauges go both ways. Blocks are counted per shard, so a prompt's block of two groups
/// counts twice.
template <class Counter, class Gauge, class Histogram>
struct basic_metrics {
  /// What one tier did.
  struct alignas(64) tier_metrics {
    Counter hits;     ///< blocks that match found here and planned to take from here
    Counter misses;   ///< blocks that match looked for here in vain
    Counter pending;  ///< blocks that somebody was bringing here when match asked
    Counter read_bytes;
    Counter written_bytes;
    Counter stored;    ///< blocks that became visible here
    Counter evicted;   ///< blocks given up for room
    Counter dropped;   ///< blocks whose saving was given up to protect loads
    Counter refused;   ///< blocks that a policy did not want in the tier
    Counter damaged;   ///< blocks read whose header or payload did not prove itself
    Counter timeouts;  ///< blocks whose deadline passed
    Counter errors;    ///< requests that ended with an error of the operating system or the device
    Gauge in_flight_read_bytes;
    Gauge in_flight_write_bytes;
    Gauge blocks;    ///< cached now
    Gauge capacity;  ///< blocks that fit; 0 where slots of several sizes share the room
  };

  /// What became of one kind of call.
  struct alignas(64) operation_metrics {
    Counter calls;
    Counter blocks;         ///< asked for, over all calls
    Counter failed_blocks;  ///< for any reason that is not one of the next four
    Counter timed_out_blocks;
    Counter cancelled_blocks;
    Counter dropped_blocks;
    Counter refused_blocks;
  };

  /// The circuit breaker of one direction.
  struct alignas(64) breaker_metrics {
    Gauge state;     ///< 0 closed (all is well), 1 half open (a probe is under way), 2 open
    Counter opened;  ///< transitions into each state
    Counter half_opened;
    Counter closed;
  };

  /// How long things take.
  struct alignas(64) latency_metrics {
    Histogram match;           ///< one call
    Histogram prefetch;        ///< one call, from its submission until every block is ready or given up
    Histogram prefetch_block;  ///< one block, from its submission to verified in memory
    Histogram load;            ///< one call, from its submission to the last copy's end
    Histogram save_copy;       ///< one call, from its submission to the source released
    Histogram store_write;     ///< one block, arena to storage
    Histogram verify;          ///< one block
  };

  tier_metrics memory;
  tier_metrics storage;
  operation_metrics match;
  operation_metrics prefetch;
  operation_metrics load;
  operation_metrics save;
  breaker_metrics breaker_load;  ///< of the storage root
  breaker_metrics breaker_save;
  latency_metrics latency;
  Counter asked_tokens;    ///< in the prompts that match was given
  Counter matched_tokens;  ///< whose prefill could be skipped, according to match
  Counter leaked_buffers;  ///< slots given up at shutdown because the kernel or a device may still write them
  Counter leaked_bytes;
  Gauge storage_read_bytes_per_second;  ///< bytes per second while storage was read, recent work weighing more; 0: not
                                        ///< known yet
};

/// What a cache had counted at one moment; `metrics::snapshot()` makes it.
using metrics_snapshot = basic_metrics<std::uint64_t, std::uint64_t, histogram_snapshot>;

enum class metric_kind : std::uint8_t { counter, gauge, histogram };

/// Name and meaning of one metric, as exporters show it.
struct metric_description {
  struct label_pair {
    std::string_view name;
    std::string_view value;
  };

  std::string_view name;  ///< ends in _total for counters, in the unit where there is one
  std::string_view help;
  metric_kind kind = metric_kind::counter;
  std::array<label_pair, 1> labels{};  ///< unused pairs have an empty name
};

/// Calls `visit(description, cell_of_first, cell_of_second, ...)` for every cell, of all structs in step.
///
/// The one list of what there is: snapshots and exporters follow it. Cells of one name follow each other.
/// Shape   all: instances of `basic_metrics`
template <class Visit, class... Metrics>
constexpr void for_each_metric(Visit&& visit, Metrics&... all) {
  using std::string_view;
  const auto per_tier = [&](string_view name, string_view help, metric_kind kind, auto cell) {
    visit(metric_description{name, help, kind, {{{"tier", "memory"}}}}, cell(all.memory)...);
    visit(metric_description{name, help, kind, {{{"tier", "storage"}}}}, cell(all.storage)...);
  };
  const auto per_operation = [&](string_view name, string_view help, auto cell) {
    const auto one = [&](string_view operation, auto&... cells) {
      visit(metric_description{name, help, metric_kind::counter, {{{"operation", operation}}}}, cells...);
    };
    one("match", cell(all.match)...);
    one("prefetch", cell(all.prefetch)...);
    one("load", cell(all.load)...);
    one("save", cell(all.save)...);
  };
  const auto per_breaker = [&](string_view name, string_view help, metric_kind kind, auto cell) {
    visit(metric_description{name, help, kind, {{{"operation", "load"}}}}, cell(all.breaker_load)...);
    visit(metric_description{name, help, kind, {{{"operation", "save"}}}}, cell(all.breaker_save)...);
  };
  const auto latency = [&](string_view operation, auto&... cells) {
    visit(metric_description{"kvx_latency_seconds",
                             "Time that an operation took.",
                             metric_kind::histogram,
                             {{{"operation", operation}}}},
          cells...);
  };
  const auto single = [&](string_view name, string_view help, auto&... cells) {
    visit(metric_description{name, help, metric_kind::counter, {}}, cells...);
  };
  constexpr auto counter = metric_kind::counter;
  constexpr auto gauge = metric_kind::gauge;

  per_tier(
      "kvx_hit_blocks_total", "Blocks that match planned to take from the tier.", counter,
      [](auto& t) -> auto& { return t.hits; });
  per_tier(
      "kvx_missed_blocks_total", "Blocks that match looked for in the tier in vain.", counter,
      [](auto& t) -> auto& { return t.misses; });
  per_tier(
      "kvx_pending_blocks_total", "Blocks that were on their way into the tier when match asked.", counter,
      [](auto& t) -> auto& { return t.pending; });
  per_tier(
      "kvx_read_bytes_total", "Bytes read from the tier.", counter, [](auto& t) -> auto& { return t.read_bytes; });
  per_tier(
      "kvx_written_bytes_total", "Bytes written to the tier.", counter,
      [](auto& t) -> auto& { return t.written_bytes; });
  per_tier(
      "kvx_stored_blocks_total", "Blocks that became visible in the tier.", counter,
      [](auto& t) -> auto& { return t.stored; });
  per_tier(
      "kvx_evicted_blocks_total", "Blocks that the tier gave up for room.", counter,
      [](auto& t) -> auto& { return t.evicted; });
  per_tier(
      "kvx_dropped_blocks_total", "Blocks not saved to the tier, to protect loads.", counter,
      [](auto& t) -> auto& { return t.dropped; });
  per_tier(
      "kvx_refused_blocks_total",
      "Blocks not saved to the tier, since its admission or its eviction policy did not want them.", counter,
      [](auto& t) -> auto& { return t.refused; });
  per_tier(
      "kvx_damaged_blocks_total", "Blocks read that did not prove themselves.", counter,
      [](auto& t) -> auto& { return t.damaged; });
  per_tier(
      "kvx_timed_out_blocks_total", "Blocks of the tier whose deadline passed.", counter,
      [](auto& t) -> auto& { return t.timeouts; });
  per_tier(
      "kvx_errors_total", "Requests to the tier that ended with an error.", counter,
      [](auto& t) -> auto& { return t.errors; });
  per_tier(
      "kvx_in_flight_read_bytes", "Bytes being read from the tier.", gauge,
      [](auto& t) -> auto& { return t.in_flight_read_bytes; });
  per_tier(
      "kvx_in_flight_write_bytes", "Bytes being written to the tier.", gauge,
      [](auto& t) -> auto& { return t.in_flight_write_bytes; });
  per_tier(
      "kvx_cached_blocks", "Blocks in the tier.", gauge, [](auto& t) -> auto& { return t.blocks; });
  per_tier(
      "kvx_capacity_blocks", "Blocks that fit in the tier.", gauge, [](auto& t) -> auto& { return t.capacity; });

  per_operation(
      "kvx_calls_total", "Calls of the operation.", [](auto& o) -> auto& { return o.calls; });
  per_operation(
      "kvx_asked_blocks_total", "Blocks that the operation was asked for.", [](auto& o) -> auto& { return o.blocks; });
  per_operation(
      "kvx_operation_failed_blocks_total", "Blocks of the operation that failed.",
      [](auto& o) -> auto& { return o.failed_blocks; });
  per_operation(
      "kvx_operation_timed_out_blocks_total", "Blocks of the operation whose deadline passed.",
      [](auto& o) -> auto& { return o.timed_out_blocks; });
  per_operation(
      "kvx_operation_cancelled_blocks_total", "Blocks of the operation that the engine gave up.",
      [](auto& o) -> auto& { return o.cancelled_blocks; });
  per_operation(
      "kvx_operation_dropped_blocks_total", "Blocks of the operation that kvx gave up to protect loads.",
      [](auto& o) -> auto& { return o.dropped_blocks; });
  per_operation(
      "kvx_operation_refused_blocks_total",
      "Blocks of the operation that an admission or eviction policy did not want.",
      [](auto& o) -> auto& { return o.refused_blocks; });

  per_breaker(
      "kvx_breaker_state", "Storage breaker: 0 closed, 1 half open, 2 open.", gauge,
      [](auto& b) -> auto& { return b.state; });
  per_breaker(
      "kvx_breaker_opened_total", "Times that the storage breaker opened.", counter,
      [](auto& b) -> auto& { return b.opened; });
  per_breaker(
      "kvx_breaker_half_opened_total", "Times that the storage breaker sent a probe.", counter,
      [](auto& b) -> auto& { return b.half_opened; });
  per_breaker(
      "kvx_breaker_closed_total", "Times that the storage breaker closed.", counter,
      [](auto& b) -> auto& { return b.closed; });

  single("kvx_asked_tokens_total", "Tokens of the prompts that match was given.", all.asked_tokens...);
  single("kvx_matched_tokens_total", "Tokens whose prefill could be skipped.", all.matched_tokens...);
  single("kvx_leaked_buffers_total", "Slots given up because something may still write them.", all.leaked_buffers...);
  single("kvx_leaked_bytes_total", "Bytes given up because something may still write them.", all.leaked_bytes...);
  visit(
      metric_description{
          "kvx_storage_read_bytes_per_second", "How fast storage is read while it is read, 0 if unknown.", gauge, {}},
      all.storage_read_bytes_per_second...);

  latency("match", all.latency.match...);
  latency("prefetch", all.latency.prefetch...);
  latency("prefetch_block", all.latency.prefetch_block...);
  latency("load", all.latency.load...);
  latency("save_copy", all.latency.save_copy...);
  latency("store_write", all.latency.store_write...);
  latency("verify", all.latency.verify...);
}

}  // namespace kvx
