// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/core_state.hpp>

namespace kvx::detail {

/// Copies verified blocks from memory into the engine's pages, and keeps them there until the copies ended.
template <class Hasher, class Policies, class Io, class Layout, class Transfer>
class loader {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using group_type = typename state_type::group_type;
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;
  using stream_type = typename Transfer::stream_type;
  using operation = typename Transfer::operation;
  using ids_of_groups = std::span<const std::span<const block_id>>;

  loader(state_type& state, const Layout& layout, Transfer& transfer) noexcept
      : state_(state), layout_(layout), transfer_(transfer) {}

  /// Submits every copy and event before it returns.
  /// Shape   ids: per group, for the plan's blocks from `first` on, pages_per_block(group) each
  [[nodiscard]] load_ticket<stream_type> load(const plan& what, std::size_t first, ids_of_groups ids,
                                              stream_type stream) {
    auto job = std::make_shared<load_job>(state_.groups.size());
    job->id = state_.next_ticket.fetch_add(1, std::memory_order_relaxed);
    job->first = first;
    job->started = clock::now();
    state_.metrics.load.calls.add();
    const std::optional<std::size_t> asked = state_.blocks_asked(layout_, what, first, ids);
    if (!asked) {
      job->refused = errc::bad_argument;
      const std::lock_guard lock(state_.mutex);
      state_.complete(job->id, completion::operation::load, job->refused);
      return load_ticket<stream_type>(job);
    }
    job->asked = *asked;
    std::vector<std::vector<block_copy>> copies(state_.groups.size());
    pin(what, ids, *job, copies);
    state_.metrics.load.blocks.add(job->asked);
    state_.metrics.load.failed_blocks.add(job->asked - job->loaded);
    status submitted;
    for (std::size_t g = 0; g < copies.size() && submitted.ok(); ++g) {
      if (copies[g].empty()) continue;
      const auto op = transfer_.load(layout_, {g, state_.groups[g]->geometry.layer_offsets, copies[g]}, stream);
      if (op)
        job->operations[g] = *op;
      else
        submitted = op.status();
      state_.metrics.memory.read_bytes.add(copies[g].size() * state_.groups[g]->geometry.payload_bytes);
    }
    if (!submitted.ok()) {
      job->refused = submitted;
      job->loaded = 0;
      state_.metrics.memory.errors.add();
    }
    const std::lock_guard lock(state_.mutex);
    copying_.push_back(job);
    if (poll(clock::now())) state_.wake_pump();
    return load_ticket<stream_type>(job);
  }

  /// Lets go of blocks whose copies ended. Returns whether some are under way. Caller holds the lock.
  bool poll(clock::time_point now) {
    std::erase_if(copying_, [&](const std::shared_ptr<load_job>& job) {
      if (!job->released()) return false;
      for (const auto& [group, slot] : job->pinned) state_.groups[group]->memory.unpin(slot);
      job->pinned.clear();
      --state_.loads_under_way;
      state_.metrics.latency.load.record(now - job->started);
      if (!job->outcome().ok()) state_.metrics.memory.errors.add();
      state_.complete(job->id, completion::operation::load, job->refused.ok() ? job->outcome() : job->refused);
      return true;
    });
    return !copying_.empty();
  }

 private:
  struct load_job final : load_state<stream_type> {
    explicit load_job(std::size_t groups) : operations(groups) {}

    status wait_layer(std::size_t group, std::size_t layer, stream_type stream) const override {
      if (group >= operations.size()) return errc::bad_argument;
      return operations[group].wait_layer(layer, stream);
    }
    [[nodiscard]] bool released() const noexcept override {
      return std::all_of(operations.begin(), operations.end(), [](const operation& op) { return op.done(); });
    }
    [[nodiscard]] status outcome() const noexcept override {
      for (const operation& op : operations)
        if (const status s = op.outcome(); !s.ok()) return s;
      return {};
    }
    void wait() const override {
      for (const operation& op : operations) op.wait();
    }

    std::vector<operation> operations;
    std::vector<std::pair<std::size_t, slot_index>> pinned;
    clock::time_point started{};
  };

  // With one group of full attention a shorter prefix is of use; with several, all that a resume needs or nothing.
  void pin(const plan& what, ids_of_groups ids, load_job& job, std::vector<std::vector<block_copy>>& copies) {
    const std::lock_guard lock(state_.mutex);
    ++state_.loads_under_way;
    const std::size_t boundary = job.first + job.asked;
    const bool partial = state_.groups.size() == 1 && layout_.kind(0) == attention_kind::full;
    bool whole = true;
    std::size_t loaded = job.asked;
    for (std::size_t g = 0; g < state_.groups.size() && whole; ++g) {
      group_type& group = *state_.groups[g];
      const std::size_t pages = layout_.pages_per_block(g);
      const std::size_t needed = std::max(job.first, state_type::first_needed(layout_, g, boundary));
      std::vector<slot_index> touched;
      for (std::size_t b = needed; b < boundary; ++b) {
        const node_id node = group.index.find(from_block_key<digest_type>(what.keys[b]));
        const slot_index slot = node == no_node ? no_slot : group.index.memory_slot(node);
        if (slot == no_slot || group.index.memory_busy(node) || !group.holds_tokens(slot, what.block(b))) {
          whole = partial;
          loaded = partial ? b - job.first : 0;
          break;
        }
        group.memory.pin(slot);
        job.pinned.emplace_back(g, slot);
        touched.push_back(slot);
        copies[g].push_back({group.payload(slot), ids[g].subspan((b - job.first) * pages, pages)});
      }
      use(group, touched, what, needed);
    }
    job.loaded = loaded;
    if (whole) return;
    for (const auto& [g, slot] : job.pinned) state_.groups[g]->memory.unpin(slot);
    job.pinned.clear();
    for (auto& c : copies) c.clear();
  }

  // Tells each tier's policies of the blocks from `first` on that a request uses.
  static void use(group_type& group, std::vector<slot_index>& slots, const plan& what, std::size_t first) {
    std::reverse(slots.begin(), slots.end());
    tell_admission(group, slots);
    std::vector<eviction_entry> blocks;
    blocks.reserve(slots.size());
    for (const slot_index slot : slots) blocks.push_back({slot, key_bits(group, slot)});
    eviction_request request;
    request.blocks = blocks;
    request.before = first;
    if (first != 0) request.parent = group_type::bits_of(what.keys[first - 1]);
    request.id = what.lease.id;
    group.memory.access(request);
    if (!group.storage) return;
    for (eviction_entry& block : blocks) {
      const slot_index place = group.index.storage_slot(group.memory.node_of(block.slot));
      block.slot = place != no_slot && group.storage->published(place) ? place : no_slot;
    }
    group.storage->access(request);
  }
  [[nodiscard]] static std::uint64_t key_bits(const group_type& group, slot_index slot) noexcept {
    return group_type::bits_of(group.index.key(group.memory.node_of(slot)));
  }

  static void tell_admission(group_type& group, std::span<const slot_index> slots) {
    if constexpr (decltype(group.memory_admission)::asks || decltype(group.storage_admission)::asks) {
      std::vector<std::uint64_t> keys;
      for (const slot_index slot : slots) keys.push_back(key_bits(group, slot));
      group.memory_admission.used(keys);
      group.storage_admission.used(keys);
    }
  }

  state_type& state_;
  const Layout& layout_;
  Transfer& transfer_;
  std::vector<std::shared_ptr<load_job>> copying_;
};

}  // namespace kvx::detail
