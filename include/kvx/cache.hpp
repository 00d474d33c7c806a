// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/admission/always.hpp>
#include <kvx/concepts/admission.hpp>
#include <kvx/concepts/direct_reader.hpp>
#include <kvx/detail/cache_core.hpp>
#include <kvx/detail/leak.hpp>
#include <kvx/detail/staging_source.hpp>
#include <kvx/direct_ticket.hpp>
#include <kvx/hash/key_chain.hpp>
#include <kvx/options.hpp>
#include <kvx/plan.hpp>
#include <kvx/runtime.hpp>
#include <kvx/sequence.hpp>
#include <kvx/tickets.hpp>

#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace kvx {

/// An external KV cache over an engine's own memory: match, prefetch, load, save.
///
/// `match` and `available` take no lock; the others hold one for microseconds, and no call waits for storage.
/// A block is only ever served after it proved itself; everything else is a miss.
/// Thread  any, concurrently, for different requests; construct after fork()
/// Stream  load and save take the engine's; nothing synchronises with the host
/// Errors  the constructor throws kvx::error; after it no call throws but for lack of host memory
/// Cost    two threads, the I/O backend's threads, options::memory_bytes; for each block that fits into memory and
///         storage about 64 bytes, what Eviction takes per slot (learned_hazard 470 bytes, lru 8) and up to 9 more
///
/// Admission decides per tier which saved blocks are worth a slot; with `always` nobody is asked.
template <kv_layout Layout, hasher Hasher, eviction_policy Eviction, io_backend Io, class Transfer,
          admission_policy MemoryAdmission = always, admission_policy StorageAdmission = always>
requires transfer_engine<Transfer, Layout>
class cache {
 public:
  using layout_type = Layout;
  using hasher_type = Hasher;
  using eviction_type = Eviction;
  using io_type = Io;
  using transfer_type = Transfer;
  using memory_admission_type = MemoryAdmission;
  using storage_admission_type = StorageAdmission;
  using stream_type = typename Transfer::stream_type;
  using runtime_type = kvx::runtime<Io>;
  using group_block_ids = std::span<const std::span<const block_id>>;

  /// Builds a runtime of its own from options::memory_bytes and options::io.
  cache(const options& configured, Layout layout, Transfer transfer = Transfer{})
      : cache(configured, std::move(layout),
              std::make_shared<runtime_type>(configured.memory_bytes, configured.io, configured.root),
              std::move(transfer)) {}

  /// Shares a runtime, of whose arena it takes options::memory_bytes.
  cache(const options& configured, Layout layout, std::shared_ptr<runtime_type> shared, Transfer transfer = Transfer{})
      : core_(std::make_shared<core>(configured, std::move(layout), std::move(shared), std::move(transfer))) {
    core_->threads.start();
  }

  /// Drains until options::drain_deadline, then leaks what the kernel or a device may still write.
  ~cache() {
    if (!core_) return;
    if (core_->shut_down()) return;
    detail::leak_deliberately(std::make_unique<std::shared_ptr<core>>(std::move(core_)));
  }
  cache(cache&&) noexcept = default;
  cache(const cache&) = delete;
  cache& operator=(const cache&) = delete;
  cache& operator=(cache&&) = delete;

  /// The key before the first block of a scope; hash it once and match with it as often as you like.
  /// Errors  bad_argument: a tenant salt needs a collision-resistant hasher, or options::prompts_trusted
  [[nodiscard]] result<block_key> root(const scope& where) const {
    if (!where.tenant_salt.empty() && !Hasher::collision_resistant && !core_->state.opts.prompts_trusted)
      return errc::bad_argument;
    return to_block_key(key_chain<Hasher>::root(core_->state.opts.identity, core_->state.block_tokens, where));
  }

  /// Which prefix of a prompt need not be computed; at most tokens.size() - 1 tokens, in whole blocks. Only
  /// the part that loads faster than it computes, where both rates are known.
  /// A sequence that is saved for the same request takes the plan's id (`sequence::set_id`), or is matched itself.
  /// Cost    tens of nanoseconds per block, no I/O
  [[nodiscard]] plan match(std::span<const token_id> tokens, const scope& where = {},
                           std::span<const block_extra> extras = {}) const {
    plan found;
    if (const auto from = root(where)) match(tokens, *from, extras, found);
    return found;
  }
  /// The same into a plan that is reused: no allocation once it is large enough.
  void match(std::span<const token_id> tokens, const block_key& from, std::span<const block_extra> extras,
             plan& found) const {
    const auto started = clock::now();
    key_chain<Hasher> chain;
    core_->match.match(tokens, detail::from_block_key<digest_type>(from), extras, chain, found);
    core_->state.metrics.latency.match.record(clock::now() - started);
  }
  /// The same for a sequence, whose keys are known already. An engine that hashes itself makes one from its keys
  /// alone (`sequence::append_key`) and leaves out the last token's block.
  [[nodiscard]] plan match(const sequence& prompt) const {
    plan found;
    const auto started = clock::now();
    const bool has_tokens = !prompt.tokens().empty();
    const std::size_t tokens = has_tokens ? prompt.tokens().size() : prompt.blocks() * prompt.block_tokens() + 1;
    core_->match.match(prompt.keys(), prompt.root(), tokens, found);
    if (prompt.id() != 0) found.lease.id = prompt.id();
    if (has_tokens)
      found.tokens.assign(prompt.tokens().begin(),
                          prompt.tokens().begin() + static_cast<std::ptrdiff_t>(found.matched_tokens()));
    for (std::size_t b = 0; b < found.blocks(); ++b)
      if (const auto extra = prompt.extra(b); !extra.empty()) found.add_extra(b, extra);
    core_->state.metrics.latency.match.record(clock::now() - started);
    return found;
  }
  /// How many of these chained keys this process can serve without a gap: what a rank answers its scheduler,
  /// which takes the least of all ranks and truncates the plan.
  [[nodiscard]] std::size_t available(std::span<const block_key> keys) const {
    plan found;
    core_->match.match(keys, {}, keys.size() * core_->state.block_tokens + 1, found, detail::matching::available);
    return found.blocks();
  }

  /// Brings a plan's blocks into memory and verifies them there; call it when the request is queued.
  /// Shape   first: blocks before it are of no interest
  [[nodiscard]] prefetch_ticket prefetch(plan what, std::size_t first = 0) {
    return core_->prefetch(std::move(what), first, core_);
  }

  /// Copies blocks that are in memory and verified into the engine's pages; see load_ticket::loaded_blocks().
  /// Shape   ids: pages_per_block ids for each of the plan's blocks from `first` on; fewer blocks may be given
  /// Stream  starts after what was submitted to `stream` before
  [[nodiscard]] load_ticket<stream_type> load(const plan& what, std::span<const block_id> ids, stream_type stream = {},
                                              std::size_t first = 0) {
    return core_->load.load(what, first, {&ids, 1}, stream);
  }
  /// The same for a layout of several groups; null_block where a group keeps no page.
  [[nodiscard]] load_ticket<stream_type> load(const plan& what, group_block_ids ids, stream_type stream = {},
                                              std::size_t first = 0) {
    return core_->load.load(what, first, ids, stream);
  }

  /// Brings a plan's blocks from storage into the engine's pages through a reader's staging memory, on a GPU as a rule
  /// (`cufile`), past the host's memory; blocks that are in memory are copied from there. Each is proved before it is
  /// copied. Where storage outruns what the host can check, this is the faster way, and no prefetch goes before it; but
  /// the blocks are not in memory for the next request. Until the ticket is done() the pages are the operation's, and
  /// the request may not run.
  /// Shape   as load; through: kept for as long as the cache; it has room for block_bytes()
  /// Stream  each copy starts after what was submitted to `stream` when its block had been proved; not one that is
  ///         being captured
  /// Errors  bad_argument: the plan or the ids do not fit, the reader's blocks are too small or its memory is not the
  ///         transfer engine's device's; unsupported: a transfer engine that needs kernels for it and has none; the
  ///         rest per block, like a load's and a prefetch's
  template <direct_reader Reader>
  [[nodiscard]] direct_load_ticket load_direct(const plan& what, std::span<const block_id> ids,
                                               const std::shared_ptr<Reader>& through, stream_type stream = {},
                                               std::size_t first = 0) {
    return load_direct(what, group_block_ids(&ids, 1), through, stream, first);
  }
  template <direct_reader Reader>
  [[nodiscard]] direct_load_ticket load_direct(const plan& what, group_block_ids ids,
                                               const std::shared_ptr<Reader>& through, stream_type stream = {},
                                               std::size_t first = 0) {
    static_assert(detail::takes_staging<Transfer> || !detail::staged_on_device<Reader>,
                  "this transfer engine cannot read the reader's memory; cuda_transfer can");
    if (through == nullptr) return direct_load_ticket(errc::bad_argument);
    return load_direct(what, ids, std::make_shared<detail::staging_source_of<Reader>>(through), stream, first);
  }
  /// The same for any_cache, which does not know the reader's type.
  [[nodiscard]] direct_load_ticket load_direct(const plan& what, group_block_ids ids,
                                               const std::shared_ptr<detail::staging_source>& through,
                                               stream_type stream, std::size_t first) {
    auto begun = core_->direct.load(what, first, ids, through, stream);
    return begun ? direct_load_ticket(std::move(*begun), core_) : direct_load_ticket(begun.status());
  }

  /// Takes full blocks of committed tokens out of the engine's pages, into memory and then to storage.
  /// Blocks that are cached already are neither copied nor written again, so naming them costs little; once a tier is
  /// full, blocks are only taken whose front is there.
  /// Shape   ids: pages_per_block ids for each of the sequence's blocks from `first` on
  /// Stream  starts after what was submitted to `stream` before
  [[nodiscard]] save_ticket save(const sequence& from, std::size_t first, std::span<const block_id> ids,
                                 stream_type stream = {}) {
    return core_->save_blocks(from, first, {&ids, 1}, stream);
  }
  [[nodiscard]] save_ticket save(const sequence& from, std::size_t first, group_block_ids ids,
                                 stream_type stream = {}) {
    return core_->save_blocks(from, first, ids, stream);
  }

  /// Starts the running chain of a request.
  /// Errors  a scope that root() refuses gives a sequence with no block size, which save() refuses in turn
  [[nodiscard]] sequence make_sequence(std::span<const token_id> tokens = {}, const scope& where = {},
                                       std::span<const block_extra> extras = {}) const {
    const auto from = root(where);
    if (!from) return {};
    sequence made(*from, core_->state.block_tokens, core_->state.next_request.fetch_add(1, std::memory_order_relaxed));
    static_cast<void>(extend(made, tokens, extras));  // nothing is hashed yet, so that nothing can come too late
    return made;
  }
  /// Appends committed tokens; only the new blocks are hashed.
  /// Shape   extras: by block of the whole sequence, ascending, those that were not given before
  /// Errors  bad_argument, and nothing is appended: an extra for a block that is hashed already, which would be stored
  ///         under the key of another; a sequence that was not made by make_sequence()
  status extend(sequence& chain, std::span<const token_id> tokens, std::span<const block_extra> extras = {}) const {
    const std::uint32_t size = chain.block_tokens();
    if (size == 0) return errc::bad_argument;
    const std::size_t known = chain.blocks();
    for (const block_extra& e : extras)
      if (e.block < known) return errc::bad_argument;
    chain.append(tokens);
    // The last block may be filled by a later call, and its extras count then as well.
    for (const block_extra& e : extras) chain.add_extra(e.block, e.bytes);
    const std::size_t blocks = chain.tokens().size() / size;
    if (blocks == known) return {};
    digest_type parent = detail::from_block_key<digest_type>(chain.parent(known));
    std::vector<digest_type> keys(blocks - known);
    key_chain<Hasher> hashing;
    const std::vector<block_extra> all = chain.extras_from(known);
    hashing.extend(chain.tokens().subspan(known * size, keys.size() * size), size, all, parent, keys, known);
    for (const digest_type& key : keys) chain.append_key(to_block_key(key));
    return {};
  }

  /// Tells what becomes of a request's blocks that are cached: its session was closed, a tool was called, they are to
  /// be kept, to go first, to live no longer than. Takes the place of what was hinted for them before. What a save
  /// shall start with is set in its sequence.
  /// Cost    about 200 ns per block
  void hint(const sequence& request, const hints& news) { core_->hint(request.keys(), news); }
  void hint(std::span<const block_key> keys, const hints& news) { core_->hint(keys, news); }

  /// Forgets blocks in every tier, other writers' in this process only. Blocks in use are left alone.
  /// Returns how many were forgotten.
  std::size_t erase(std::span<const block_key> keys) { return core_->erase(keys); }

  /// Finished tickets since the last call, oldest first; at most 4096 are kept.
  [[nodiscard]] std::size_t poll(std::span<completion> out) {
    const std::lock_guard lock(core_->state.mutex);
    std::size_t count = 0;
    for (; count < out.size() && !core_->state.completions.empty(); ++count) {
      out[count] = core_->state.completions.front();
      core_->state.completions.pop_front();
    }
    return count;
  }

  /// Waits until every save is stored or given up and nothing is under way. Returns false on the deadline.
  bool drain(std::chrono::milliseconds limit) { return core_->drain(clock::now() + limit); }

  /// Teaches the cost of prefill, where options::prefill does not give it.
  void report_prefill(std::size_t tokens, std::chrono::duration<double> took) {
    if (tokens == 0) return;
    std::atomic<double>& learned = core_->state.learned_seconds_per_token;
    const double now = took.count() / static_cast<double>(tokens);
    const double before = learned.load(std::memory_order_relaxed);
    learned.store(before <= 0 ? now : 0.8 * before + 0.2 * now, std::memory_order_relaxed);
  }

  [[nodiscard]] metrics_snapshot stats() const { return core_->stats(); }
  [[nodiscard]] const Layout& layout() const noexcept { return core_->layout; }
  [[nodiscard]] std::uint32_t block_tokens() const noexcept { return core_->state.block_tokens; }
  /// Blocks that fit into memory, of one group.
  [[nodiscard]] std::size_t memory_blocks(std::size_t group = 0) const noexcept {
    return core_->state.groups[group]->memory.capacity();
  }
  /// Bytes of one block as it is stored, header included.
  [[nodiscard]] std::size_t block_bytes(std::size_t group = 0) const noexcept {
    return core_->state.groups[group]->geometry.stride;
  }
  /// Bytes of the index of all groups.
  [[nodiscard]] std::size_t index_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& g : core_->state.groups)
      bytes += g->index.memory_bytes() + (g->storage ? g->storage->memory_bytes() : 0);
    return bytes;
  }

 private:
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;
  using policies = detail::tier_policies<Eviction, MemoryAdmission, StorageAdmission>;
  using core = detail::cache_core<Layout, Hasher, policies, Io, Transfer>;

  std::shared_ptr<core> core_;
};

}  // namespace kvx
