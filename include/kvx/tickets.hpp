// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/plan.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace kvx {

/// What `cache::poll` tells of a ticket that finished.
struct completion {
  enum class operation : std::uint8_t { prefetch, load, save };
  std::uint64_t ticket = 0;
  operation kind = operation::prefetch;
  status outcome{};  ///< ok: every block; else the first block's that failed
};

namespace detail {

/// Life of one asynchronous operation over many blocks: entries leave `waiting` once, and when the last one
/// has, the operation is finished. Entries change under the cache's lock; anyone may read them.
class ticket_state {
 public:
  using clock = std::chrono::steady_clock;

  ticket_state(std::uint64_t id, std::size_t entries, clock::time_point until)
      : deadline(until), id_(id), outcomes_(entries), waiting_(entries) {
    for (auto& o : outcomes_) o.store(undecided, std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] std::size_t entries() const noexcept { return outcomes_.size(); }
  [[nodiscard]] bool finished() const noexcept { return waiting_.load(std::memory_order_acquire) == 0; }
  [[nodiscard]] bool decided(std::size_t entry) const noexcept {
    return outcomes_[entry].load(std::memory_order_acquire) != undecided;
  }
  /// `ok` for what is decided and well, nothing for what is still under way.
  [[nodiscard]] std::optional<errc> outcome(std::size_t entry) const noexcept {
    const std::uint8_t value = outcomes_[entry].load(std::memory_order_acquire);
    if (value == undecided) return std::nullopt;
    return static_cast<errc>(value);
  }
  /// The first entry's that is not well, in entry order.
  [[nodiscard]] status overall() const noexcept {
    for (std::size_t i = 0; i < entries(); ++i)
      if (const auto at = outcome(i); at && *at != errc::ok) return status{*at};
    return {};
  }

  /// Decides an entry; later decisions are ignored. Returns true for the one that finished the operation.
  bool decide(std::size_t entry, errc code) noexcept {
    std::uint8_t expected = undecided;
    if (!outcomes_[entry].compare_exchange_strong(expected, static_cast<std::uint8_t>(code), std::memory_order_acq_rel))
      return false;
    const bool last = waiting_.fetch_sub(1, std::memory_order_acq_rel) == 1;
    wake();
    return last;
  }

  /// Returns false when `limit` passed first.
  template <class Ready>
  bool wait(std::chrono::nanoseconds limit, Ready&& ready) {
    constexpr std::chrono::hours no_limit{24 * 365};  // so that adding it to now() cannot overflow
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::min<std::chrono::nanoseconds>(limit, no_limit), std::forward<Ready>(ready));
  }
  void wake() noexcept {
    { const std::lock_guard lock(mutex_); }
    changed_.notify_all();
  }

  const clock::time_point deadline;

 private:
  static constexpr std::uint8_t undecided = 0xFF;

  std::uint64_t id_;
  std::vector<std::atomic<std::uint8_t>> outcomes_;
  std::atomic<std::size_t> waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

/// Blocks on their way from storage into memory; ready ones stay pinned until release.
struct prefetch_state : ticket_state {
  struct entry {
    std::uint32_t block = 0;
    std::uint16_t group = 0;
    slot_index pinned = no_slot;  // guarded by the cache's lock
  };

  prefetch_state(std::uint64_t id, std::shared_ptr<const plan> from_plan, std::vector<entry> entries, std::size_t from,
                 clock::time_point now, clock::time_point until)
      : ticket_state(id, entries.size(), until),
        what(std::move(from_plan)),
        wanted(std::move(entries)),
        first(from),
        blocks(what->blocks()),
        started(now) {}

  const std::shared_ptr<const plan> what;
  std::vector<entry> wanted;  // ascending by block; its shape is constant
  const std::size_t first;
  const std::size_t blocks;
  const clock::time_point started;
  // Of blocks that were not in memory when the plan was made.
  std::atomic<std::uint64_t> bytes_wanted{0};
  std::atomic<std::uint64_t> bytes_ready{0};
  std::atomic<bool> given_up{false};
  clock::time_point pins_expire{};  // guarded by the cache's lock
  bool pins_released = false;       // guarded by the cache's lock
};

/// Blocks on their way out of engine memory.
struct save_state : ticket_state {
  using ticket_state::ticket_state;
  std::size_t pieces_copying = 0;  // guarded by the cache's lock
  std::atomic<bool> source_released{false};
};

/// Blocks on their way into engine memory.
template <class Stream>
struct load_state {
  virtual ~load_state() = default;
  virtual status wait_layer(std::size_t group, std::size_t layer, Stream stream) const = 0;
  [[nodiscard]] virtual bool released() const noexcept = 0;
  [[nodiscard]] virtual status outcome() const noexcept = 0;
  virtual void wait() const = 0;

  std::uint64_t id = 0;
  std::size_t first = 0;
  std::size_t loaded = 0;
  std::size_t asked = 0;
  status refused{};
};

/// What tickets may ask of the cache that made them; gone once that is destroyed.
struct ticket_owner {
  virtual ~ticket_owner() = default;
  virtual void cancel(const std::shared_ptr<prefetch_state>& which) noexcept = 0;
  virtual void release(const std::shared_ptr<prefetch_state>& which) noexcept = 0;
};

}  // namespace detail

/// Follows blocks that are read from storage into memory and verified there.
///
/// While it lives, blocks that became ready stay in memory (until `options::lease` after the last one, and
/// for at most half of the memory). Dropping it detaches: reads under way go on and fill the cache.
/// Thread  one at a time; the reads happen on the cache's threads
class prefetch_ticket {
 public:
  prefetch_ticket() = default;
  prefetch_ticket(std::shared_ptr<detail::prefetch_state> state, std::weak_ptr<detail::ticket_owner> owner) noexcept
      : state_(std::move(state)), owner_(std::move(owner)) {}
  prefetch_ticket(prefetch_ticket&&) noexcept = default;
  prefetch_ticket& operator=(prefetch_ticket&& other) noexcept {
    if (this != &other) {
      release();
      state_ = std::move(other.state_);
      owner_ = std::move(other.owner_);
      prefix_ = other.prefix_;
    }
    return *this;
  }
  ~prefetch_ticket() { release(); }

  [[nodiscard]] std::uint64_t id() const noexcept { return state_ ? state_->id() : 0; }
  /// Every block is ready, or known not to become so.
  [[nodiscard]] bool done() const noexcept { return !state_ || state_->finished(); }
  /// Blocks of the plan, counted from its start, that can be loaded now without a gap.
  /// Cost    linear in the blocks that became ready since the last call
  [[nodiscard]] std::size_t ready_blocks() const noexcept {
    if (!state_) return 0;
    while (prefix_ < state_->entries() && state_->outcome(prefix_) == errc::ok) ++prefix_;
    if (prefix_ == state_->entries()) return state_->blocks;
    // Other groups were fetched for the whole plan's boundary only: a shorter one is of no use to them.
    return state_->what->groups > 1 ? 0 : state_->wanted[prefix_].block;
  }
  /// Blocks of the plan.
  [[nodiscard]] std::size_t planned_blocks() const noexcept { return state_ ? state_->blocks : 0; }
  /// `ok` when ready, the reason when it will not be, nothing while it is under way.
  [[nodiscard]] std::optional<errc> outcome(std::size_t block, std::size_t group = 0) const noexcept {
    if (!state_ || block < state_->first) return errc::ok;
    std::optional<errc> found = errc::ok;
    for (std::size_t i = 0; i < state_->entries(); ++i)
      if (state_->wanted[i].block == block && state_->wanted[i].group == group) found = state_->outcome(i);
    return found;
  }
  /// ok: all are ready; else the first block's reason. Meaningful once done().
  [[nodiscard]] status outcome() const noexcept { return state_ ? state_->overall() : status{}; }

  /// When the rest will be here if storage goes on as it did for this prefetch; nothing before a first block came.
  [[nodiscard]] std::optional<std::chrono::duration<double>> projected_remaining() const noexcept {
    using seconds = std::chrono::duration<double>;
    if (done()) return seconds{0};
    const auto came = static_cast<double>(state_->bytes_ready.load(std::memory_order_relaxed));
    const auto all = static_cast<double>(state_->bytes_wanted.load(std::memory_order_relaxed));
    if (came <= 0) return std::nullopt;
    return seconds(detail::ticket_state::clock::now() - state_->started) * (all > came ? (all - came) / came : 0.0);
  }

  /// Waits until done, at most for `limit`. Returns done().
  bool wait_for(std::chrono::nanoseconds limit) const { return wait(limit, state_ ? state_->blocks : 0); }
  /// Waits until `blocks` can be loaded, or the rest is decided, at most for `limit`. Returns whether it is so.
  bool wait_ready(std::size_t blocks, std::chrono::nanoseconds limit) const { return wait(limit, blocks); }

  /// Gives up what was not read yet. Buffers that the kernel holds stay the cache's until it lets go.
  void cancel() noexcept {
    if (!state_) return;
    if (const auto owner = owner_.lock()) owner->cancel(state_);
  }

 private:
  bool wait(std::chrono::nanoseconds limit, std::size_t blocks) const {
    if (!state_) return true;
    const auto ready = [&] { return state_->finished() || ready_blocks() >= blocks; };
    return ready() || state_->wait(limit, ready);
  }
  void release() noexcept {
    if (!state_) return;
    if (const auto owner = owner_.lock()) owner->release(state_);
    state_.reset();
  }

  std::shared_ptr<detail::prefetch_state> state_;
  std::weak_ptr<detail::ticket_owner> owner_;
  mutable std::size_t prefix_ = 0;
};

/// Follows blocks on their way from memory into the engine's pages.
///
/// Dropping it detaches; the copies go on. The pages stay the operation's until destination_released().
/// Thread  wait_layer: as the stream; the rest: any
template <class Stream>
class load_ticket {
 public:
  load_ticket() = default;
  explicit load_ticket(std::shared_ptr<const detail::load_state<Stream>> state) noexcept : state_(std::move(state)) {}

  [[nodiscard]] std::uint64_t id() const noexcept { return state_ ? state_->id : 0; }
  /// Blocks of the plan, counted from its start, whose keys and values are or will be in the pages. Known at
  /// once: what is not in memory and verified when load() is called is not loaded.
  [[nodiscard]] std::size_t loaded_blocks() const noexcept { return state_ ? state_->first + state_->loaded : 0; }
  /// What is submitted to `stream` from now on sees layer `layer` of every block.
  /// Errors  device_failed; the engine then discards the step for this request
  status wait_layer(std::size_t layer, Stream stream, std::size_t group = 0) const {
    return state_ ? state_->wait_layer(group, layer, stream) : status{};
  }
  /// Nothing writes the pages any more.
  [[nodiscard]] bool destination_released() const noexcept { return !state_ || state_->released(); }
  /// ok: copied; bad_argument or device_failed: the pages hold nothing of use. After destination_released().
  [[nodiscard]] status outcome() const noexcept {
    if (!state_) return {};
    return state_->refused.ok() ? state_->outcome() : state_->refused;
  }
  /// Per block of the plan: ok, or why it is not in the pages.
  [[nodiscard]] status outcome(std::size_t block) const noexcept {
    if (!state_ || !state_->refused.ok()) return outcome();
    return block < loaded_blocks() ? state_->outcome() : status{errc::miss};
  }
  /// Blocks the calling thread until destination_released(); engines on a GPU wait per layer instead.
  void wait() const {
    if (state_) state_->wait();
  }
  /// Asks for nothing more. Copies that were submitted cannot be called back: the pages stay the operation's until
  /// destination_released(), as without it.
  void cancel() noexcept {}

 private:
  std::shared_ptr<const detail::load_state<Stream>> state_;
};

/// Follows blocks on their way out of engine memory. Dropping it detaches; the save goes on.
/// Thread  any
class save_ticket {
 public:
  save_ticket() = default;
  save_ticket(std::shared_ptr<detail::save_state> state, status refused) noexcept
      : state_(std::move(state)), refused_(refused) {}

  [[nodiscard]] std::uint64_t id() const noexcept { return state_ ? state_->id() : 0; }
  /// Nothing reads the engine's pages any more: they may be reused.
  [[nodiscard]] bool source_released() const noexcept {
    return !state_ || state_->source_released.load(std::memory_order_acquire);
  }
  /// Every block is in the lowest tier there is, was there before or on its way there by another save, or was given up.
  [[nodiscard]] bool stored() const noexcept { return !state_ || state_->finished(); }
  /// ok: all are stored; else the first reason. Meaningful once stored().
  [[nodiscard]] status outcome() const noexcept {
    if (!refused_.ok()) return refused_;
    return state_ ? state_->overall() : status{};
  }
  /// By position in the save; nothing while it is under way.
  /// Shape   position: the block in the save, times the layout's groups, plus the group
  /// Errors  bad_argument: the save has no such position
  [[nodiscard]] std::optional<errc> outcome(std::size_t position) const noexcept {
    if (!refused_.ok()) return refused_.code();
    if (!state_ || position >= state_->entries()) return errc::bad_argument;
    return state_->outcome(position);
  }
  bool wait_source_released(std::chrono::nanoseconds limit) const {
    return wait(limit, [this] { return source_released(); });
  }
  bool wait_stored(std::chrono::nanoseconds limit) const {
    return wait(limit, [this] { return stored(); });
  }

 private:
  template <class Ready>
  bool wait(std::chrono::nanoseconds limit, Ready&& ready) const {
    return ready() || state_->wait(limit, ready);
  }

  std::shared_ptr<detail::save_state> state_;
  status refused_{};
};

}  // namespace kvx
