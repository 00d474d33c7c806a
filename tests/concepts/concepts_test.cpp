// SPDX-License-Identifier: Apache-2.0
// For each requirement of each concept one type that breaks it and nothing else: its archetype, but for one member.
#include <kvx/concepts/admission.hpp>
#include <kvx/concepts/direct_reader.hpp>
#include <kvx/concepts/eviction.hpp>
#include <kvx/concepts/hasher.hpp>
#include <kvx/concepts/io.hpp>
#include <kvx/concepts/layout.hpp>
#include <kvx/concepts/transfer.hpp>

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string_view>

// Named: clang calls what is only asked about unused where a namespace is anonymous.
namespace concepts_test {

using namespace kvx;
namespace model = kvx::archetype;

// hasher

template <class Digest>
struct hasher_of {
  using digest_type = Digest;
  static constexpr std::uint32_t id = 1;
  static constexpr bool collision_resistant = false;
  static digest_type hash(std::span<const std::byte>) noexcept { return {}; }
};
static_assert(hasher<hasher_of<digest<16>>>);
static_assert(hasher<hasher_of<digest<32>>>);

struct without_digest_type {
  static constexpr std::uint32_t id = 1;
  static constexpr bool collision_resistant = false;
  static digest<16> hash(std::span<const std::byte>) noexcept { return {}; }
};
static_assert(!hasher<without_digest_type>);

struct without_id : model::hasher {
 private:
  using model::hasher::id;
};
static_assert(!hasher<without_id>);

struct id_is_text : model::hasher {
  static constexpr std::string_view id = "fnv";
};
static_assert(!hasher<id_is_text>);

struct without_collision_resistant : model::hasher {
 private:
  using model::hasher::collision_resistant;
};
static_assert(!hasher<without_collision_resistant>);

struct collision_resistant_is_text : model::hasher {
  static constexpr std::string_view collision_resistant{};
};
static_assert(!hasher<collision_resistant_is_text>);

struct without_hash : model::hasher {
  static digest_type hash(std::span<const std::byte>) = delete;
};
static_assert(!hasher<without_hash>);

struct hash_throws : model::hasher {
  static digest_type hash(std::span<const std::byte>) { return {}; }
};
static_assert(!hasher<hash_throws>);

struct hash_returns_other : model::hasher {
  static digest<32> hash(std::span<const std::byte>) noexcept { return {}; }
};
static_assert(!hasher<hash_returns_other>);

struct hash_of_an_object : model::hasher {
  digest_type hash(std::span<const std::byte>) noexcept { return {}; }
};
static_assert(!hasher<hash_of_an_object>);

struct own_digest {
  std::array<std::byte, 16> bytes{};
  static constexpr std::size_t size() { return 16; }
  friend bool operator==(const own_digest&, const own_digest&) = default;
};
static_assert(!hasher<hasher_of<own_digest>>);
static_assert(!hasher<hasher_of<digest<8>>>, "64 bits collide by chance");
static_assert(!hasher<hasher_of<digest<40>>>, "slots have 32 bytes for a key");

// admission_policy

struct without_slots : model::admission {
  without_slots() : model::admission(1) {}
};
static_assert(!admission_policy<without_slots>);

struct immovable_admission : model::admission {
  using model::admission::admission;
  immovable_admission(immovable_admission&&) = delete;
};
static_assert(!admission_policy<immovable_admission>);

struct without_admit : model::admission {
  using model::admission::admission;
  bool admit(const admission_candidate&) = delete;
};
static_assert(!admission_policy<without_admit>);

struct admits_keys_only : model::admission {
  using model::admission::admission;
  bool admit(std::uint64_t) { return true; }
};
static_assert(!admission_policy<admits_keys_only>);

struct admit_without_a_verdict : model::admission {
  using model::admission::admission;
  void admit(const admission_candidate&) {}
};
static_assert(!admission_policy<admit_without_a_verdict>);

struct like_the_admission_archetype : model::admission {
  using model::admission::admission;
};
static_assert(admission_policy<like_the_admission_archetype>);

// usage_observer

struct observes : model::admission {
  using model::admission::admission;
  void used(std::span<const std::uint64_t>) {}
};
static_assert(usage_observer<observes>);

struct observes_single_keys : model::admission {
  using model::admission::admission;
  void used(std::uint64_t) {}
};
static_assert(admission_policy<observes_single_keys> && !usage_observer<observes_single_keys>);

// direct_reader

struct submits_one_slot : model::direct_reader {
  using model::direct_reader::direct_reader;
  void submit(const direct_request&) {}
};
static_assert(!direct_reader<submits_one_slot>);

struct keeps_payloads : model::direct_reader {
  using model::direct_reader::direct_reader;
  void give_back(std::byte*) = delete;
};
static_assert(!direct_reader<keeps_payloads>);

struct hears_of_no_file : model::direct_reader {
  using model::direct_reader::direct_reader;
  void detach(int) = delete;
};
static_assert(!direct_reader<hears_of_no_file>);

struct hides_its_staging : model::direct_reader {
  using model::direct_reader::direct_reader;
  [[nodiscard]] std::span<const std::byte> staging() const { return {}; }
};
static_assert(!direct_reader<hides_its_staging>);

struct capacity_changes : model::direct_reader {
  using model::direct_reader::direct_reader;
  std::size_t capacity() { return 1; }
};
static_assert(!direct_reader<capacity_changes>);

struct without_block_bytes : model::direct_reader {
  using model::direct_reader::direct_reader;
  void block_bytes() const = delete;
};
static_assert(!direct_reader<without_block_bytes>);

struct nameless_reader : model::direct_reader {
  using model::direct_reader::direct_reader;
  void name() const = delete;
};
static_assert(!direct_reader<nameless_reader>);

struct reader_stops_without_a_verdict : model::direct_reader {
  using model::direct_reader::direct_reader;
  void stop(std::chrono::milliseconds) {}
};
static_assert(!direct_reader<reader_stops_without_a_verdict>);

struct like_the_reader_archetype : model::direct_reader {
  using model::direct_reader::direct_reader;
};
static_assert(direct_reader<like_the_reader_archetype>);

// eviction_policy

struct without_size_constructor : model::eviction {
  without_size_constructor() : model::eviction(1) {}
};
static_assert(!eviction_policy<without_size_constructor>);

struct immovable : model::eviction {
  using model::eviction::eviction;
  immovable(immovable&&) = delete;
};
static_assert(!eviction_policy<immovable>);

struct without_insert : model::eviction {
  using model::eviction::eviction;
  void insert(std::span<const eviction_entry>) = delete;
};
static_assert(!eviction_policy<without_insert>);

struct without_touch : model::eviction {
  using model::eviction::eviction;
  void touch(std::span<const slot_index>) = delete;
};
static_assert(!eviction_policy<without_touch>);

struct without_erase : model::eviction {
  using model::eviction::eviction;
  void erase(slot_index) = delete;
};
static_assert(!eviction_policy<without_erase>);

struct evicts_without_asking : model::eviction {
  using model::eviction::eviction;
  slot_index evict() { return no_slot; }
};
static_assert(!eviction_policy<evicts_without_asking>);

struct evict_returns_flag : model::eviction {
  using model::eviction::eviction;
  bool evict(bool (*)(slot_index)) { return false; }
};
static_assert(!eviction_policy<evict_returns_flag>);

struct without_size : model::eviction {
  using model::eviction::eviction;
  std::size_t size() const = delete;
};
static_assert(!eviction_policy<without_size>);

struct size_changes : model::eviction {
  using model::eviction::eviction;
  std::size_t size() { return 0; }
};
static_assert(!eviction_policy<size_changes>);

struct like_the_eviction_archetype : model::eviction {
  using model::eviction::eviction;
};
static_assert(eviction_policy<like_the_eviction_archetype>);

// The optional parts: an eviction policy has none, one, or all of them.

struct takes_chains : model::eviction {
  using model::eviction::eviction;
  void insert_behind(const eviction_entry& entry, slot_index) { insert({&entry, 1}); }
};
struct takes_requests : model::eviction {
  using model::eviction::eviction;
  void access(const eviction_request&) {}
  [[nodiscard]] bool admits(std::uint64_t) const { return true; }
};
struct takes_news : model::eviction {
  using model::eviction::eviction;
  void advise(std::span<const std::uint64_t>, const hints&) {}
};
static_assert(chained_eviction<takes_chains> && !request_eviction<takes_chains> && !hint_eviction<takes_chains>);
static_assert(request_eviction<takes_requests> && !chained_eviction<takes_requests> && !hint_eviction<takes_requests>);
static_assert(hint_eviction<takes_news> && !request_eviction<takes_news> && !chained_eviction<takes_news>);

struct admits_returns_weight : takes_requests {
  using takes_requests::takes_requests;
  [[nodiscard]] double admits(std::uint64_t) const { return 0.5; }
};
static_assert(!request_eviction<admits_returns_weight>);

struct admitting_changes_it : takes_requests {
  using takes_requests::takes_requests;
  [[nodiscard]] bool admits(std::uint64_t) { return true; }
};
static_assert(!request_eviction<admitting_changes_it>);

struct admits_without_learning : takes_requests {
  using takes_requests::takes_requests;
  void access(const eviction_request&) = delete;
};
static_assert(!request_eviction<admits_without_learning>);

struct chains_by_key : model::eviction {
  using model::eviction::eviction;
  void insert_behind(const eviction_entry& entry, const std::uint64_t&) { insert({&entry, 1}); }
  void insert_behind(const eviction_entry&, slot_index) = delete;
};
static_assert(!chained_eviction<chains_by_key>);

struct news_without_keys : model::eviction {
  using model::eviction::eviction;
  void advise(const hints&) {}
};
static_assert(!hint_eviction<news_without_keys>);

// io_backend

struct without_options : model::io {
  without_options() : model::io(io_options{}) {}
};
static_assert(!io_backend<without_options>);

struct without_submit : model::io {
  using model::io::io;
  void submit(std::span<const io_request>) = delete;
};
static_assert(!io_backend<without_submit>);

struct submits_one : model::io {
  using model::io::io;
  void submit(const io_request&) {}
};
static_assert(!io_backend<submits_one>);

struct without_register_arena : model::io {
  using model::io::io;
  status register_arena(std::span<std::byte>) = delete;
};
static_assert(!io_backend<without_register_arena>);

struct register_arena_returns_flag : model::io {
  using model::io::io;
  bool register_arena(std::span<std::byte>) { return true; }
};
static_assert(!io_backend<register_arena_returns_flag>);

struct without_attach : model::io {
  using model::io::io;
  void attach(int) = delete;
};
static_assert(!io_backend<without_attach>);

struct without_detach : model::io {
  using model::io::io;
  void detach(int) = delete;
};
static_assert(!io_backend<without_detach>);

struct without_in_flight_bytes : model::io {
  using model::io::io;
  std::size_t in_flight_bytes() const = delete;
};
static_assert(!io_backend<without_in_flight_bytes>);

struct in_flight_bytes_changes : model::io {
  using model::io::io;
  std::size_t in_flight_bytes() { return 0; }
};
static_assert(!io_backend<in_flight_bytes_changes>);

struct without_name : model::io {
  using model::io::io;
  std::string_view name() const = delete;
};
static_assert(!io_backend<without_name>);

struct name_is_a_number : model::io {
  using model::io::io;
  int name() const { return 1; }
};
static_assert(!io_backend<name_is_a_number>);

struct without_stop : model::io {
  using model::io::io;
  bool stop(std::chrono::milliseconds) = delete;
};
static_assert(!io_backend<without_stop>);

struct stops_without_a_verdict : model::io {
  using model::io::io;
  void stop(std::chrono::milliseconds) {}
};
static_assert(!io_backend<stops_without_a_verdict>);

struct like_the_io_archetype : model::io {
  using model::io::io;
};
static_assert(io_backend<like_the_io_archetype>);

// kv_layout

struct layout_copy_deleted : model::layout {
  using model::layout::layout;
  layout_copy_deleted(const layout_copy_deleted&) = delete;
};
static_assert(!kv_layout<layout_copy_deleted>);

struct without_block_tokens : model::layout {
  std::uint32_t block_tokens() const = delete;
};
static_assert(!kv_layout<without_block_tokens>);

struct without_group_count : model::layout {
  std::size_t group_count() const = delete;
};
static_assert(!kv_layout<without_group_count>);

struct without_kind : model::layout {
  attention_kind kind(std::size_t) const = delete;
};
static_assert(!kv_layout<without_kind>);

struct kind_is_a_number : model::layout {
  int kind(std::size_t) const { return 0; }
};
static_assert(!kv_layout<kind_is_a_number>);

struct without_window_tokens : model::layout {
  std::uint32_t window_tokens(std::size_t) const = delete;
};
static_assert(!kv_layout<without_window_tokens>);

struct without_layer_count : model::layout {
  std::size_t layer_count(std::size_t) const = delete;
};
static_assert(!kv_layout<without_layer_count>);

struct without_layer_bytes : model::layout {
  std::size_t layer_bytes(std::size_t, std::size_t) const = delete;
};
static_assert(!kv_layout<without_layer_bytes>);

struct one_size_of_layer : model::layout {
  std::size_t layer_bytes(std::size_t) const { return 0; }
};
static_assert(!kv_layout<one_size_of_layer>);

struct without_pages_per_block : model::layout {
  std::size_t pages_per_block(std::size_t) const = delete;
};
static_assert(!kv_layout<without_pages_per_block>);

struct without_page_count : model::layout {
  std::size_t page_count(std::size_t) const = delete;
};
static_assert(!kv_layout<without_page_count>);

struct without_fingerprint : model::layout {
  std::uint64_t fingerprint(std::size_t) const = delete;
};
static_assert(!kv_layout<without_fingerprint>);

struct narrow_fingerprint : model::layout {
  std::uint32_t fingerprint(std::size_t) const { return 0; }
};
static_assert(!kv_layout<narrow_fingerprint>);

struct without_fragments : model::layout {
  template <class Sink>
  void for_each_fragment(std::size_t, std::size_t, std::span<const block_id>, Sink&&) const = delete;
};
static_assert(!kv_layout<without_fragments>);

struct fragments_change_the_layout : model::layout {
  template <class Sink>
  void for_each_fragment(std::size_t, std::size_t, std::span<const block_id>, Sink&&) {}
};
static_assert(!kv_layout<fragments_change_the_layout>);

struct like_the_layout_archetype : model::layout {};
static_assert(kv_layout<like_the_layout_archetype>);

// transfer_engine

using stream = model::transfer::stream_type;
using op = model::transfer::operation;

template <class Operation>
struct engine_of {
  using stream_type = stream;
  using operation = Operation;

  template <class Layout>
  result<operation> load(const Layout&, const transfer_batch&, stream_type) {
    return errc::unsupported;
  }
  template <class Layout>
  result<operation> save(const Layout&, const transfer_batch&, stream_type) {
    return errc::unsupported;
  }
  status register_arena(std::span<std::byte>) { return {}; }
};

template <class Engine>
constexpr bool is_engine = transfer_engine<Engine, model::layout>;

static_assert(is_engine<engine_of<op>>);
static_assert(!transfer_engine<model::transfer, without_kind>, "the layout must be one");

struct without_stream_type : engine_of<op> {
 private:
  using stream_type = stream;
};
static_assert(!is_engine<without_stream_type>);

struct without_operation : engine_of<op> {
 private:
  using operation = op;
};
static_assert(!is_engine<without_operation>);

struct no_empty_operation : op {
  explicit no_empty_operation(int) {}
};
static_assert(!is_engine<engine_of<no_empty_operation>>);

struct move_only_operation : op {
  move_only_operation() = default;
  move_only_operation(move_only_operation&&) = default;
  move_only_operation& operator=(move_only_operation&&) = default;
};
static_assert(!is_engine<engine_of<move_only_operation>>);

struct without_load : engine_of<op> {
  template <class Layout>
  result<op> load(const Layout&, const transfer_batch&, stream) = delete;
};
static_assert(!is_engine<without_load>);

struct load_returns_status : engine_of<op> {
  template <class Layout>
  status load(const Layout&, const transfer_batch&, stream) {
    return {};
  }
};
static_assert(!is_engine<load_returns_status>);

struct without_save : engine_of<op> {
  template <class Layout>
  result<op> save(const Layout&, const transfer_batch&, stream) = delete;
};
static_assert(!is_engine<without_save>);

struct save_returns_operation : engine_of<op> {
  template <class Layout>
  op save(const Layout&, const transfer_batch&, stream) {
    return {};
  }
};
static_assert(!is_engine<save_returns_operation>);

struct engine_without_register_arena : engine_of<op> {
  status register_arena(std::span<std::byte>) = delete;
};
static_assert(!is_engine<engine_without_register_arena>);

struct engine_register_arena_returns_nothing : engine_of<op> {
  void register_arena(std::span<std::byte>) {}
};
static_assert(!is_engine<engine_register_arena_returns_nothing>);

struct without_wait_layer : op {
  status wait_layer(std::size_t, stream) const = delete;
};
static_assert(!is_engine<engine_of<without_wait_layer>>);

struct wait_layer_returns_nothing : op {
  void wait_layer(std::size_t, stream) const {}
};
static_assert(!is_engine<engine_of<wait_layer_returns_nothing>>);

struct wait_layer_changes : op {
  status wait_layer(std::size_t, stream) { return {}; }
};
static_assert(!is_engine<engine_of<wait_layer_changes>>);

struct without_done : op {
  bool done() const noexcept = delete;
};
static_assert(!is_engine<engine_of<without_done>>);

struct done_throws : op {
  bool done() const { return true; }
};
static_assert(!is_engine<engine_of<done_throws>>);

struct done_is_a_number : op {
  int done() const noexcept { return 1; }
};
static_assert(!is_engine<engine_of<done_is_a_number>>);

struct without_outcome : op {
  status outcome() const noexcept = delete;
};
static_assert(!is_engine<engine_of<without_outcome>>);

struct outcome_throws : op {
  status outcome() const { return {}; }
};
static_assert(!is_engine<engine_of<outcome_throws>>);

struct outcome_is_a_code : op {
  errc outcome() const noexcept { return errc::ok; }
};
static_assert(!is_engine<engine_of<outcome_is_a_code>>);

struct without_wait : op {
  void wait() const = delete;
};
static_assert(!is_engine<engine_of<without_wait>>);

struct like_the_operation_archetype : op {};
static_assert(is_engine<engine_of<like_the_operation_archetype>>);

TEST_CASE("the transfer and layout archetypes move the bytes of the named page") {
  std::array<std::byte, 4 * 64> memory{};
  memory.fill(std::byte{1});
  const model::layout layout{memory.data(), 64, 4, 16};
  std::array<std::byte, 64> slot{};
  slot.fill(std::byte{2});
  const std::array<block_id, 1> page{2};
  const std::array<std::size_t, 1> offsets{0};
  const block_copy block{slot.data(), page};
  const transfer_batch batch{0, offsets, {&block, 1}};
  model::transfer engine;
  REQUIRE(engine.load(layout, batch, {}).ok());
  for (std::size_t i = 0; i < memory.size(); ++i) CHECK(memory[i] == (i / 64 == 2 ? std::byte{2} : std::byte{1}));
  memory.fill(std::byte{3});
  REQUIRE(engine.save(layout, batch, {}).ok());
  for (const std::byte b : slot) CHECK(b == std::byte{3});
}

TEST_CASE("the hasher archetype tells bytes apart and the empty from nothing") {
  const std::array<std::byte, 3> a{std::byte{1}, std::byte{2}, std::byte{3}};
  std::array<std::byte, 3> b = a;
  CHECK(model::hasher::hash(a) == model::hasher::hash(b));
  b[2] = std::byte{4};
  CHECK(model::hasher::hash(a) != model::hasher::hash(b));
  CHECK(model::hasher::hash({}) != digest<16>{});
}

TEST_CASE("the admission archetype refuses every other block") {
  model::admission policy{4};
  for (int block = 0; block < 6; ++block) CHECK(policy.admit({}) == (block % 2 == 0));
}

TEST_CASE("the eviction archetype gives up the lowest slot that is not pinned") {
  model::eviction policy{4};
  const std::array<eviction_entry, 3> entries{{{3, 0}, {1, 0}, {2, 0}}};
  policy.insert(entries);
  CHECK(policy.size() == 3);
  CHECK(policy.evict([](slot_index slot) { return slot == 1; }) == 2);
  policy.erase(1);
  CHECK(policy.size() == 1);
  CHECK(policy.evict([](slot_index) { return true; }) == no_slot);
  CHECK(policy.evict([](slot_index) { return false; }) == 3);
  CHECK(policy.size() == 0);
}

TEST_CASE("the io archetype writes, reads, ends short files as ENODATA and starts nothing that was cancelled") {
  std::FILE* const temporary = std::tmpfile();
  REQUIRE(temporary != nullptr);
  struct ending {
    std::atomic<int> calls{0};
    io_result outcome;
  };
  std::array<ending, 4> endings;
  std::array<std::byte, 64> out{};
  std::array<std::byte, 64> in{};
  std::array<std::byte, 64> beyond{};
  out.fill(std::byte{9});
  const std::atomic<bool> cancelled{true};
  {
    model::io backend{io_options{}};
    const auto ended = [](void* context, const io_result& outcome) noexcept {
      static_cast<ending*>(context)->outcome = outcome;
      ++static_cast<ending*>(context)->calls;
    };
    const int file = ::fileno(temporary);
    const auto save = io_class::save;
    const auto load = io_class::load;
    const std::array<io_request, 4> requests{{
        {io_op::write, save, file, 0, out.data(), out.size(), nullptr, &endings[0], ended},
        {io_op::read, load, file, 0, in.data(), in.size(), nullptr, &endings[1], ended},
        {io_op::read, load, file, 32, beyond.data(), beyond.size(), nullptr, &endings[2], ended},
        {io_op::read, load, file, 0, beyond.data(), beyond.size(), &cancelled, &endings[3], ended},
    }};
    backend.submit(requests);
    CHECK(backend.stop(std::chrono::seconds{10}));
    CHECK(backend.in_flight_bytes() == 0);
  }
  std::fclose(temporary);
  for (const ending& e : endings) CHECK(e.calls == 1);
  CHECK((endings[0].outcome.error == 0 && endings[0].outcome.bytes == 64));
  CHECK((endings[1].outcome.error == 0 && endings[1].outcome.bytes == 64));
  CHECK(in == out);
  CHECK((endings[2].outcome.error == ENODATA && endings[2].outcome.bytes == 32));
  CHECK(endings[3].outcome.error == ECANCELED);
}

}  // namespace concepts_test
