// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/core_state.hpp>
#include <kvx/hash/key_chain.hpp>

#include <array>
#include <limits>

namespace kvx::detail {

/// What a lookup is for: planning a load, or telling a scheduler what is here at all.
enum class matching : std::uint8_t { worth_loading, available };

/// Finds which prefix of a prompt is cached, and how much of it is worth loading. Takes no lock.
template <class Hasher, class Policies, class Io, class Layout>
class matcher {
 public:
  using state_type = core_state<Hasher, Policies, Io>;
  using digest_type = typename Hasher::digest_type;
  using clock = std::chrono::steady_clock;

  matcher(state_type& state, const Layout& layout) noexcept : state_(state), layout_(layout) {}

  /// Extends a plan by the blocks that are cached, hashing them on the way.
  /// Shape   at most tokens.size() - 1 tokens, in whole blocks: the engine needs one token to compute
  void match(std::span<const token_id> tokens, const digest_type& root, std::span<const block_extra> extras,
             key_chain<Hasher>& chain, plan& out) const {
    begin(to_block_key(root), out);
    const std::size_t usable = usable_blocks(tokens.size());
    std::array<digest_type, window> keys;
    digest_type parent = root;
    scan seen;
    for (std::size_t first = 0; first < usable; first += window) {
      const std::size_t count = std::min(window, usable - first);
      chain.extend(tokens.subspan(first * state_.block_tokens, count * state_.block_tokens), state_.block_tokens,
                   extras, parent, keys, first);
      if (!look_up(std::span(keys).first(count), seen, out)) break;
    }
    finish(tokens.size(), seen, out);
    if (!out.empty())
      out.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(out.matched_tokens()));
    for (const block_extra& e : extras)
      if (e.block < out.blocks()) out.add_extra(e.block, e.bytes);
  }

  /// The same over keys that are known already.
  void match(std::span<const block_key> known, const block_key& root, std::size_t prompt_tokens, plan& out,
             matching why = matching::worth_loading) const {
    begin(to_block_key(from_block_key<digest_type>(root)), out);
    const std::size_t usable = std::min(usable_blocks(prompt_tokens), known.size());
    std::array<digest_type, window> keys;
    scan seen;
    for (std::size_t first = 0; first < usable; first += window) {
      const std::size_t count = std::min(window, usable - first);
      for (std::size_t i = 0; i < count; ++i) keys[i] = from_block_key<digest_type>(known[first + i]);
      if (!look_up(std::span(keys).first(count), seen, out)) break;
    }
    finish(prompt_tokens, seen, out, why);
  }

 private:
  // Enough keys at a time to overlap their cache misses.
  static constexpr std::size_t window = 128;

  /// What every group's blocks so far say about where a resume is possible.
  struct scan {
    std::array<std::size_t, most_groups> run{};  // blocks in a row, up to here, that the group has
    std::size_t best = 0;
    std::uint32_t lease = 0;
  };

  [[nodiscard]] std::size_t usable_blocks(std::size_t tokens) const noexcept {
    return tokens == 0 ? 0 : (tokens - 1) / state_.block_tokens;
  }

  void begin(const block_key& root, plan& out) const {
    out.clear();
    out.block_tokens = state_.block_tokens;
    out.groups = static_cast<std::uint32_t>(state_.groups.size());
    out.root = root;
  }

  // Returns false when no longer boundary is possible.
  bool look_up(std::span<const digest_type> keys, scan& seen, plan& out) const {
    if (seen.lease == 0) {
      const clock::time_point now = clock::now();
      out.lease.expires_at = now + state_.opts.lease;
      seen.lease = state_.lease_clock(out.lease.expires_at) + 1;
    }
    const std::size_t groups = state_.groups.size();
    std::array<tier, window> where{};
    const std::size_t at = out.keys.size();
    // Tiers are kept block-major while scanning; finish() turns them round.
    out.tiers.resize((at + keys.size()) * groups, tier::miss);
    for (std::size_t g = 0; g < groups; ++g) {
      state_.groups[g]->index.lookup(keys, seen.lease, where);
      for (std::size_t i = 0; i < keys.size(); ++i) out.tiers[(at + i) * groups + g] = usable(where[i]);
    }
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const std::size_t block = at + i;
      bool resume = true;
      for (std::size_t g = 0; g < groups; ++g) {
        const bool here = out.tiers[block * groups + g] != tier::miss;
        seen.run[g] = here ? seen.run[g] + 1 : 0;
        if (!here && layout_.kind(g) == attention_kind::full) return false;
        resume &= block + 1 - state_type::first_needed(layout_, g, block + 1) <= seen.run[g];
      }
      out.keys.push_back(to_block_key(keys[i]));
      if (resume) seen.best = block + 1;
    }
    return true;
  }

  [[nodiscard]] tier usable(tier where) const noexcept {
    return where == tier::storage && !state_.loads_breaker.closed() ? tier::miss : where;
  }

  void finish(std::size_t prompt_tokens, const scan& seen, plan& out, matching why = matching::worth_loading) const {
    const std::size_t groups = state_.groups.size();
    const std::size_t blocks =
        why == matching::worth_loading ? worth_loading(prompt_tokens, seen.best, out) : seen.best;
    out.keys.resize(blocks);
    out.tiers.resize(blocks * groups);
    if (groups > 1) {
      std::vector<tier> by_group(blocks * groups);
      for (std::size_t g = 0; g < groups; ++g)
        for (std::size_t b = 0; b < blocks; ++b) by_group[g * blocks + b] = out.tiers[b * groups + g];
      out.tiers = std::move(by_group);
    }
    out.lease.id = state_.next_request.fetch_add(1, std::memory_order_relaxed);
    if (why == matching::worth_loading) count(prompt_tokens, out);
  }

  // The prefix with the least of load time and prefill of the rest; longer is better at a tie.
  [[nodiscard]] std::size_t worth_loading(std::size_t prompt_tokens, std::size_t best, const plan& scanned) const {
    const std::optional<prefill_cost> cost = state_.prefill();
    const std::optional<double> rate = state_.storage_rate();
    if (!cost || !rate || layout_.group_count() != 1 || layout_.kind(0) != attention_kind::full) return best;
    const double block_seconds = static_cast<double>(state_.groups[0]->geometry.stride) / *rate;
    std::size_t useful = 0;
    double least = cost->seconds(0, prompt_tokens);
    double loading = 0;
    for (std::size_t b = 1; b <= best; ++b) {
      if (scanned.tiers[b - 1] == tier::storage) loading += block_seconds;
      const std::size_t past = b * state_.block_tokens;
      const double total = loading + cost->seconds(past, prompt_tokens - past);
      if (total > least) continue;
      least = total;
      useful = b;
    }
    return useful;
  }

  void count(std::size_t prompt_tokens, const plan& found) const {
    kvx::metrics& m = state_.metrics;
    std::uint64_t memory = 0;
    std::uint64_t storage = 0;
    std::uint64_t pending = 0;
    for (const tier t : found.tiers) {
      memory += t == tier::memory ? 1U : 0U;
      storage += t == tier::storage ? 1U : 0U;
      pending += t == tier::pending ? 1U : 0U;
    }
    const std::uint64_t asked = usable_blocks(prompt_tokens) * state_.groups.size();
    m.memory.hits.add(memory);
    m.memory.misses.add(asked - memory);
    m.memory.pending.add(pending);
    m.storage.hits.add(storage);
    m.storage.misses.add(asked - memory - storage - pending);
    m.match.calls.add();
    m.match.blocks.add(asked);
    m.asked_tokens.add(prompt_tokens);
    m.matched_tokens.add(found.matched_tokens());
  }

  state_type& state_;
  const Layout& layout_;
};

}  // namespace kvx::detail
