// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/io.hpp>
#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/io_fault_control.hpp>
#include <kvx/detail/io_thread.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace kvx {

/// Another backend with the faults that its `fault_control` orders; real bytes move below, also for the late ones, so
/// that a buffer given back too early is really overwritten.
///
/// Not for production: each request allocates, and a withheld one waits for as long as the test likes.
/// Thread  as Inner
/// Errors  those of Inner and those ordered
template <io_backend Inner>
class fault {
 public:
  explicit fault(const io_options& options) : fault(options, std::make_shared<fault_control>()) {}
  fault(const io_options& options, std::shared_ptr<fault_control> control)
      : control_(std::move(control)),
        inner_(options),
        clerk_(detail::start_io_thread("kvx-fault", [this] { serve(); })) {}
  fault(const fault&) = delete;
  fault& operator=(const fault&) = delete;
  ~fault() {
    control_->release_all();
    while (!stop(std::chrono::hours{1})) control_->release_all();
  }

  void submit(std::span<const io_request> requests) {
    std::vector<io_request> forwarded;
    for (const io_request& request : requests) {
      auto* const begun = new operation{.owner = this, .request = request, .plan = control_->decide(request.op)};
      {
        const std::lock_guard lock(control_->mutex_);
        ++outstanding_;
      }
      if (begun->plan.rule && begun->plan.rule->kind == fault_kind::never) {
        withhold(*begun);
      } else if (begun->plan.rule && begun->plan.rule->kind == fault_kind::late) {
        control_->count(fault_kind::late);
        begun->next = &fault::begin;
        schedule(*begun, clock::now() + begun->plan.rule->delay);
      } else {
        begin(*begun, forwarded);
      }
    }
    if (!forwarded.empty()) inner_.submit(forwarded);
  }

  status register_arena(std::span<std::byte> arena) { return inner_.register_arena(arena); }
  void attach(int file) { inner_.attach(file); }
  void detach(int file) { inner_.detach(file); }
  /// Of the backend below; what is held back has not been started there.
  [[nodiscard]] std::size_t in_flight_bytes() const noexcept { return inner_.in_flight_bytes(); }
  [[nodiscard]] std::string_view name() const noexcept { return "fault"; }

  bool stop(std::chrono::milliseconds deadline) {
    const auto patience = std::clamp<std::chrono::milliseconds>(deadline, {}, std::chrono::hours{24 * 365});
    const auto end = clock::now() + patience;
    const auto idle = [this] { return outstanding_ == 0; };
    bool held_back = false;
    {
      std::unique_lock lock(control_->mutex_);
      if (!control_->changed_.wait_until(lock, end - patience / 4, idle)) {
        held_back = !withheld_.empty() || !timers_.empty();
        if (held_back && !control_->changed_.wait_until(lock, end, idle)) return false;
      }
    }
    // Nothing comes from here any more but what the backend below can give up by itself. Its last completion may still
    // be returning.
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - clock::now());
    if (!inner_.stop(std::max(left, std::chrono::milliseconds{100}))) return false;
    {
      std::unique_lock lock(control_->mutex_);
      if (!control_->changed_.wait_until(lock, end, idle)) return false;
      closed_ = true;
      control_->changed_.notify_all();
    }
    if (clerk_.joinable()) clerk_.join();
    return true;
  }

  [[nodiscard]] const std::shared_ptr<fault_control>& control() const noexcept { return control_; }
  [[nodiscard]] Inner& inner() noexcept { return inner_; }

 private:
  using clock = fault_control::clock;
  struct operation;
  // A stage of an operation: what it wants moved next goes to `forwarded`.
  using stage = void (fault::*)(operation&, std::vector<io_request>& forwarded);

  struct operation {
    fault* owner;
    io_request request;
    fault_control::decision plan;
    stage next = nullptr;
    std::size_t open_parts = 0;
    io_result parts{};
    io_result outcome{};
    std::uint64_t release = 0;
    detail::aligned_buffer scratch{};
    io_op part_op = io_op::read;
  };

  [[nodiscard]] static bool is(const operation& one, fault_kind kind) noexcept {
    return one.plan.rule && one.plan.rule->kind == kind;
  }
  [[nodiscard]] static std::size_t prefix_bytes(const operation& one) noexcept {
    const std::size_t pages = one.request.bytes / page_bytes;
    return pages < 2 ? 0 : (1 + one.plan.random % (pages - 1)) * page_bytes;
  }

  // Forwards [at, at + bytes) of the request; `next` runs when all parts have ended.
  void forward(operation& one, std::vector<io_request>& forwarded, std::size_t at, std::size_t bytes) {
    io_request part = one.request;
    part.offset += at;
    part.data += at;
    part.bytes = bytes;
    forward(one, forwarded, part);
  }
  void forward(operation& one, std::vector<io_request>& forwarded, io_request part) {
    part.context = &one;
    part.done = &part_done;
    const std::lock_guard lock(control_->mutex_);
    ++one.open_parts;
    forwarded.push_back(part);
  }
  static void part_done(void* context, const io_result& result) noexcept {
    operation& one = *static_cast<operation*>(context);
    fault& self = *one.owner;
    {
      const std::lock_guard lock(self.control_->mutex_);
      one.parts.bytes += result.bytes;
      if (one.parts.error == 0) one.parts.error = result.error;
      if (--one.open_parts != 0) return;
    }
    self.step(one);
  }
  void step(operation& one) {
    std::vector<io_request> forwarded;
    const stage now = std::exchange(one.next, nullptr);
    (this->*now)(one, forwarded);
    if (!forwarded.empty()) inner_.submit(forwarded);
  }

  void begin(operation& one, std::vector<io_request>& forwarded) {
    if (one.request.op == io_op::write && control_->shadowing()) {
      one.scratch = detail::aligned_buffer(one.request.bytes);
      one.next = &fault::keep_shadow;
      io_request before = one.request;
      before.op = io_op::read;
      before.data = one.scratch.data();
      before.cancelled = nullptr;
      return forward(one, forwarded, before);
    }
    start(one, forwarded);
  }
  // Whatever could not be read was not there: zeros.
  void keep_shadow(operation& one, std::vector<io_request>& forwarded) {
    control_->remember(one.request.file, one.request.offset, one.scratch.span().first(one.request.bytes));
    one.parts = {};
    start(one, forwarded);
  }

  void start(operation& one, std::vector<io_request>& forwarded) {
    one.next = &fault::end;
    if (!one.plan.rule) return forward(one, forwarded, 0, one.request.bytes);
    switch (const fault_kind kind = one.plan.rule->kind; kind) {
      case fault_kind::error:
        control_->count(kind);
        one.outcome.error = one.plan.rule->error;
        return report_later(one);
      case fault_kind::short_transfer:
        control_->count(kind);
        if (prefix_bytes(one) != 0) return forward(one, forwarded, 0, prefix_bytes(one));
        one.outcome.error = short_error(one);
        return report_later(one);
      case fault_kind::short_continued:
        if (prefix_bytes(one) == 0) break;
        control_->count(kind);
        one.next = &fault::go_on;
        return forward(one, forwarded, 0, prefix_bytes(one));
      case fault_kind::torn_write:
        return tear(one, forwarded);
      case fault_kind::misdirected:
        return misdirect(one, forwarded);
      case fault_kind::bit_flip: {
        if (one.request.op == io_op::read || one.request.bytes == 0) break;
        // The caller may go on reading its own memory: flip a copy.
        one.scratch = detail::aligned_buffer(one.request.bytes);
        std::memcpy(one.scratch.data(), one.request.data, one.request.bytes);
        flip(one, one.scratch.data());
        io_request flipped = one.request;
        flipped.data = one.scratch.data();
        return forward(one, forwarded, flipped);
      }
      case fault_kind::stale_read:
      case fault_kind::late:
      case fault_kind::never:
        break;
    }
    forward(one, forwarded, 0, one.request.bytes);
  }

  void go_on(operation& one, std::vector<io_request>& forwarded) {
    one.next = &fault::end;
    if (one.parts.error != 0) return end(one, forwarded);
    forward(one, forwarded, prefix_bytes(one), one.request.bytes - prefix_bytes(one));
  }

  // Some pages go, one at least stays behind, and one at least goes if there are two.
  void tear(operation& one, std::vector<io_request>& forwarded) {
    const std::size_t pages = (one.request.bytes + page_bytes - 1) / page_bytes;
    if (pages == 0) return forward(one, forwarded, 0, 0);
    control_->count(fault_kind::torn_write);
    const std::size_t lost = one.plan.random % pages;
    std::vector<io_request> parts;
    for (std::size_t page = 0; page < pages; ++page) {
      const bool kept = page == (lost + 1) % pages || (fault_control::mix(one.plan.random + page) & 1U) != 0;
      if (page == lost || !kept) continue;
      const std::size_t at = page * page_bytes;
      forward(one, parts, at, std::min(page_bytes, one.request.bytes - at));
    }
    if (parts.empty()) {
      one.outcome.bytes = one.request.bytes;
      return report_later(one);
    }
    forwarded.insert(forwarded.end(), parts.begin(), parts.end());
  }

  void misdirect(operation& one, std::vector<io_request>& forwarded) {
    struct ::stat about {};
    const bool known = ::fstat(one.request.file, &about) == 0;
    const std::uint64_t size_bytes = known ? static_cast<std::uint64_t>(about.st_size) : 0;
    const std::uint64_t places = size_bytes < one.request.bytes ? 0 : (size_bytes - one.request.bytes) / page_bytes + 1;
    io_request elsewhere = one.request;
    if (places > 1) {
      const std::uint64_t here = one.request.offset / page_bytes;
      elsewhere.offset = (here + 1 + one.plan.random % (places - 1)) % places * page_bytes;
    }
    if (elsewhere.offset != one.request.offset) control_->count(fault_kind::misdirected);
    forward(one, forwarded, elsewhere);
  }

  void flip(operation& one, std::byte* data) {
    control_->count(fault_kind::bit_flip);
    data[(one.plan.random >> 3U) % one.request.bytes] ^= std::byte{1} << (one.plan.random & 7U);
  }

  [[nodiscard]] static int short_error(const operation& one) noexcept {
    return one.request.op == io_op::read ? ENODATA : ENOSPC;
  }

  // All parts have ended.
  void end(operation& one, std::vector<io_request>&) {
    one.outcome = one.parts;
    const bool read = one.request.op == io_op::read;
    if (one.outcome.error == 0) {
      if (is(one, fault_kind::short_transfer)) one.outcome.error = short_error(one);
      if (is(one, fault_kind::torn_write)) one.outcome.bytes = one.request.bytes;
      if (is(one, fault_kind::bit_flip) && read && one.request.bytes != 0) flip(one, one.request.data);
      if (is(one, fault_kind::stale_read) &&
          control_->make_stale(one.request.file, one.request.offset, {one.request.data, one.request.bytes})) {
        control_->count(fault_kind::stale_read);
      }
    }
    const auto when = control_->reportable(one.outcome.bytes);
    if (when <= clock::now()) return report(one);
    one.next = &fault::report_now;
    schedule(one, when);
  }

  void report_later(operation& one) {
    one.next = &fault::report_now;
    schedule(one, control_->reportable(0));
  }
  void report_now(operation& one, std::vector<io_request>&) { report(one); }
  void report(operation& one) {
    one.request.done(one.request.context, one.outcome);
    delete &one;
    const std::lock_guard lock(control_->mutex_);
    --outstanding_;
    control_->changed_.notify_all();
  }

  void schedule(operation& one, clock::time_point when) {
    const std::lock_guard lock(control_->mutex_);
    timers_.emplace(when, &one);
    control_->changed_.notify_all();
  }
  void withhold(operation& one) {
    const std::lock_guard lock(control_->mutex_);
    ++control_->injected_[static_cast<std::size_t>(fault_kind::never)];
    ++control_->withheld_;
    one.next = &fault::begin;
    one.release = control_->releases_;
    withheld_.push_back(&one);
  }

  // The clerk's thread: what was held back goes on from here, never from inside submit().
  void serve() {
    std::vector<operation*> ready;
    std::unique_lock lock(control_->mutex_);
    while (!closed_) {
      while (!timers_.empty() && timers_.begin()->first <= clock::now()) {
        ready.push_back(timers_.begin()->second);
        timers_.erase(timers_.begin());
      }
      const auto released = std::stable_partition(withheld_.begin(), withheld_.end(), [this](const operation* one) {
        return one->release == control_->releases_;
      });
      control_->withheld_ -= static_cast<std::size_t>(withheld_.end() - released);
      ready.insert(ready.end(), released, withheld_.end());
      withheld_.erase(released, withheld_.end());
      if (ready.empty()) {
        if (timers_.empty()) {
          control_->changed_.wait(lock);
        } else {
          const auto when = timers_.begin()->first;
          control_->changed_.wait_until(lock, when);
        }
        continue;
      }
      lock.unlock();
      for (operation* const one : ready) step(*one);
      ready.clear();
      lock.lock();
    }
  }

  std::shared_ptr<fault_control> control_;
  Inner inner_;
  std::multimap<clock::time_point, operation*> timers_;  // as all below, guarded by the control's mutex
  std::vector<operation*> withheld_;
  std::size_t outstanding_ = 0;
  bool closed_ = false;
  std::thread clerk_;
};

static_assert(io_backend<fault<archetype::io>>);

}  // namespace kvx
