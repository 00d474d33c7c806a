// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/direct_reader.hpp>
#include <kvx/detail/io_thread.hpp>
#include <kvx/result.hpp>
#include <kvx/transfer/cuda/cufile_api.hpp>
#include <kvx/transfer/cuda/cufile_driver.hpp>
#include <kvx/transfer/cuda/cufile_probe.hpp>
#include <kvx/transfer/cuda/device.hpp>
#include <kvx/transfer/cuda/kernels.hpp>
#include <kvx/transfer/cuda/probe.hpp>
#include <kvx/transfer/cuda/slot_reader.hpp>
#include <kvx/types.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace kvx {

/// How `cufile` brings a slot to the device.
enum class cufile_way : std::uint8_t {
  host,    ///< pread into pinned memory, and a copy: what works everywhere
  cufile,  ///< cuFileRead: past the host's memory, where nvidia-fs or peer-to-peer access to drives is
};

struct cufile_options {
  int device = 0;
  /// From `cuda_kernel_table()`; `page_values` is needed.
  cuda_kernels kernels{};
  /// Largest slot, header included.
  std::size_t block_bytes = 0;
  /// Device memory, which bounds what is read ahead.
  std::size_t staging_bytes = 256U << 20U;
  /// That read; each has pinned memory of two slots.
  unsigned threads = 8;
  /// `cufile::probe` says which is better.
  cufile_way through = cufile_way::host;
  /// Instead of loading libcufile.so.0.
  std::optional<cuda::cufile_api> api{};
  /// What probe() writes, and reads a dozen times.
  std::size_t probe_bytes = 64U << 20U;
};

/// Whether cuFile reads the files of a directory, and whether that pays.
struct cufile_report {
  bool usable = false;              ///< it does, and what it read was right
  bool compatibility_mode = false;  ///< through the host's memory all the same
  double cufile_bytes_per_second = 0;
  double host_bytes_per_second = 0;
  cufile_way better = cufile_way::host;
  std::string text;  ///< the figures, or why it is not usable
};

/// Reads slots into staging memory on a GPU, and computes there what their pages are proved by.
///
/// Each thread reads a slot while the one before is copied and proved; where reading was what took the time, it tells
/// of that first. So a read that stalls may hold back one slot that has come. A file that cuFile refuses is read
/// through the host. Nothing uses the legacy stream or synchronises the device, and once queues have grown nothing is
/// allocated.
/// Thread  submit, give_back, detach: any, concurrently; stop: one, not from a completion
/// Errors  constructor throws kvx::error: bad_argument: an option; device_failed: no device, or no memory there;
///         unsupported: no library, no driver of its, no threads. Requests: errno; ENODATA: the file ends early;
///         EMSGSIZE: larger than block_bytes; EIO: also what the device reports; ECANCELED: cancelled before it began,
///         or waiting in the last quarter of stop()'s deadline
/// Cost    pinned memory of two slots per thread, and staging_bytes of the device's. With `cufile_way::cufile` the
///         constructor opens cuFile's driver, which takes 0.3 to 0.7 s once in a process, and registers the staging
///         memory; the first read of a file registers that
/// Source  cuFileRead, cuFileBufRegister; docs/decisions/0009-cufile.md
class cufile {
 public:
  using options = cufile_options;
  static constexpr bool on_device = true;

  explicit cufile(const cufile_options& with)
      : with_(checked(with)),
        device_(with.device),
        place_bytes_(round_up(with.block_bytes)),
        places_(with.staging_bytes / place_bytes_) {
    const cuda::scope here(device_);
    device_.find_driver();
    try {
      start();
    } catch (...) {
      // As in the destructor, which does not run.
      end();
      release();
      throw;
    }
  }
  cufile(const cufile&) = delete;
  cufile& operator=(const cufile&) = delete;
  /// Waits for requests, and for payloads that are lent.
  ~cufile() {
    static_cast<void>(stop(std::chrono::milliseconds::max()));
    const cuda::scope here(device_);
    release();
  }

  void submit(std::span<const direct_request> requests) {
    {
      const std::lock_guard lock(mutex_);
      waiting_.insert(waiting_.end(), requests.begin(), requests.end());
    }
    work_.notify_all();
  }
  void give_back(std::byte* payload) noexcept {
    const std::lock_guard lock(mutex_);
    free_.push_back(staging().data() +
                    static_cast<std::size_t>(payload - staging().data()) / place_bytes_ * place_bytes_);
    // Under the lock: stop() may let somebody destroy this as soon as that is free.
    notify();
  }
  void detach(int file) noexcept {
    if (!driver_) return;
    const cuda::scope here(device_);
    driver_->forget(file);
  }

  [[nodiscard]] std::span<std::byte> staging() const noexcept {
    return {static_cast<std::byte*>(memory_.get()), places_ * place_bytes_};
  }
  [[nodiscard]] std::size_t capacity() const noexcept { return places_; }
  [[nodiscard]] std::size_t block_bytes() const noexcept { return place_bytes_; }
  [[nodiscard]] std::string_view name() const noexcept { return driver_ ? "cufile" : "cufile_host"; }

  bool stop(std::chrono::milliseconds deadline) {
    // Beyond a year the clock's arithmetic could overflow.
    const std::chrono::milliseconds patience =
        std::clamp<std::chrono::milliseconds>(deadline, std::chrono::milliseconds{0}, std::chrono::hours{24 * 365});
    const auto begin = std::chrono::steady_clock::now();
    {
      std::unique_lock lock(mutex_);
      const auto idle = [this] { return quiet(); };
      if (!idle_.wait_until(lock, begin + patience * 3 / 4, idle)) {
        giving_up_ = true;
        work_.notify_all();
        if (!idle_.wait_until(lock, begin + patience, idle)) return false;
      }
    }
    end();
    return true;
  }

  /// Reads slots of a file of its own in `directory` both ways by turns, proves them, and says which way is better:
  /// cuFile only where its slowest round beats the host's fastest.
  /// Errors  none: what is missing is in the text. Throws std::bad_alloc
  /// Cost    opens cuFile's driver; writes probe_bytes and reads them six times each way: seconds
  [[nodiscard]] static cufile_report probe(const std::string& directory, const cufile_options& with) {
    cufile_report report;
    try {
      measure(directory, with, report);
    } catch (const error& missing) {
      report.text = missing.what();
    }
    return report;
  }

 private:
  // On a thread where the device is current.
  void start() {
    cudaFuncAttributes attributes{};
    // A kernel that is loaded when first launched waits for whatever runs then.
    cuda::require(::cudaFuncGetAttributes(&attributes, with_.kernels.page_values),
                  "cufile_options::kernels.page_values");
    int lowest = 0;
    int highest = 0;
    cuda::require(::cudaDeviceGetStreamPriorityRange(&lowest, &highest), "priorities of streams");
    memory_ = cuda::make_device_memory(places_ * place_bytes_);
    for (std::size_t i = places_; i != 0; --i) free_.push_back(staging().data() + (i - 1) * place_bytes_);
    if (with_.through == cufile_way::cufile) driver_.emplace(api(with_), staging());
    const std::size_t threads = std::min<std::size_t>(with_.threads, places_);
    // In one piece: to pin many takes longer than to pin much.
    const std::size_t each = cuda::slot_reader::host_bytes(place_bytes_);
    host_ = cuda::make_pinned_memory(2 * threads * each);
    if (host_ == nullptr) {
      cuda::require(cudaErrorMemoryAllocation,
                    std::to_string(2 * threads * each) + " bytes of pinned memory; lower cufile_options::threads");
    }
    readers_.reserve(2 * threads);
    for (std::size_t i = 0; i < 2 * threads; ++i) {
      readers_.emplace_back(with_.kernels, place_bytes_, static_cast<std::byte*>(host_.get()) + i * each, highest);
    }
    threads_.reserve(threads);
    for (std::size_t i = 0; i < threads; ++i) {
      cuda::slot_reader* const two = &readers_[2 * i];
      threads_.push_back(detail::start_io_thread("kvx-cufile", [this, two] { run(two, two + 1); }));
    }
  }
  // What they give back may be given back while others capture: on a thread where the device is current.
  void release() noexcept {
    driver_.reset();
    readers_.clear();
    host_.reset();
    memory_.reset();
  }

  // Nothing is under way.
  void end() noexcept {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    work_.notify_all();
    for (std::thread& each : threads_) {
      if (each.joinable()) each.join();
    }
  }

  static cuda::cufile_api api(const cufile_options& with) {
    if (with.api) return *with.api;
    const cuda::cufile_library found = cuda::cufile_api::load();
    if (!found.api) throw error(errc::unsupported, "cufile_options::through: " + found.text);
    return *found.api;
  }

  static cufile_options checked(const cufile_options& with) {
    const auto refuse = [](const std::string& why) { throw error(errc::bad_argument, "cufile_options::" + why); };
    if (with.block_bytes == 0) refuse("block_bytes is 0; give the size of the largest slot, header included");
    if (with.staging_bytes < with.block_bytes || with.staging_bytes < round_up(with.block_bytes)) {
      refuse("staging_bytes is " + std::to_string(with.staging_bytes) + ", less than a block of " +
             std::to_string(with.block_bytes) + "; give room for all that is read ahead");
    }
    if (with.threads == 0) refuse("threads is 0; give 8, or what the storage needs");
    if (with.kernels.page_values == nullptr) {
      refuse("kernels has no page_values; give cuda_kernel_table() of kvx/transfer/cuda_kernels.cuh");
    }
    if (const cuda_probe found = cuda::probe(with.device); !found.usable) {
      throw error(errc::device_failed, "cufile_options::device: " + found.text);
    }
    return with;
  }

  // The caller holds the mutex for these.
  [[nodiscard]] bool any_waiting() const noexcept { return next_ != waiting_.size(); }
  [[nodiscard]] bool quiet() const noexcept { return !any_waiting() && running_ == 0 && free_.size() == places_; }
  void notify() noexcept {
    if (any_waiting()) work_.notify_one();
    if (quiet()) idle_.notify_all();
  }
  [[nodiscard]] direct_request take() noexcept {
    const direct_request first = waiting_[next_++];
    // Keeps its room, so that nothing is allocated however long the queue is never empty.
    if (next_ == waiting_.size() || (next_ >= 64 && 2 * next_ >= waiting_.size())) {
      waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(next_));
      next_ = 0;
    }
    return first;
  }

  // While one slot is copied and proved, the next is read into the other's memory.
  void run(cuda::slot_reader* mine, cuda::slot_reader* other) {
    const cuda::scope here(device_);
    std::byte* begun = nullptr;  // the place of what `other` has begun
    bool fast = true;
    std::unique_lock lock(mutex_);
    for (;;) {
      const auto can_take = [this] { return any_waiting() && (giving_up_ || !free_.empty()); };
      work_.wait(lock, [&] { return ending_ || begun != nullptr || can_take(); });
      if (begun != nullptr && !(fast && can_take())) {
        lock.unlock();
        finish(*other, std::exchange(begun, nullptr));
        lock.lock();
        --running_;
        notify();
        continue;
      }
      if (!can_take()) return;  // it ends
      const direct_request request = take();
      ++running_;
      if (giving_up_ || (request.cancelled != nullptr && *request.cancelled)) {
        lock.unlock();
        request.done(request.context, {ECANCELED, 0}, nullptr);
        lock.lock();
        --running_;
        notify();
        continue;
      }
      std::byte* const place = free_.back();
      free_.pop_back();
      lock.unlock();
      const auto before = std::chrono::steady_clock::now();
      mine->begin(request, place, driver_ ? &*driver_ : nullptr);
      const std::chrono::nanoseconds took = std::chrono::steady_clock::now() - before;
      // Where reads take longer than what follows, nobody shall wait for the next one to hear of the last.
      fast = static_cast<std::size_t>(took.count()) < request.header.size() + request.payload_bytes;
      std::byte* const last = std::exchange(begun, place);
      if (last != nullptr) finish(*other, last);
      std::swap(mine, other);
      lock.lock();
      if (last != nullptr) {
        --running_;
        notify();
      }
    }
  }
  void finish(cuda::slot_reader& reader, std::byte* place) {
    std::byte* payload = nullptr;
    const io_result outcome = reader.end(payload);
    if (outcome.error != 0) give_back(place);
    reader.request().done(reader.request().context, outcome, payload);
  }

  static void measure(const std::string& directory, const cufile_options& with, cufile_report& report) {
    cufile_options both = checked(with);
    both.through = cufile_way::cufile;
    both.api = api(with);
    const std::size_t slot_bytes = std::max(round_up(with.block_bytes), 2 * page_bytes);
    const cuda::probe_file file(directory, slot_bytes, std::max<std::size_t>(2, with.probe_bytes / slot_bytes));
    both.block_bytes = slot_bytes;
    both.staging_bytes = std::max(slot_bytes, std::min(with.staging_bytes, file.bytes()));
    cufile direct(both);
    both.through = cufile_way::host;
    cufile host(both);
    report.compatibility_mode = direct.driver_->properties().compatibility_mode();
    std::string remarks;
    if (report.compatibility_mode) {
      remarks +=
          "; cuFile is in compatibility mode (nvidia-fs 0.0, no peer-to-peer access), which is what the host's way "
          "is, through a buffer of its own: load nvidia-fs for more";
    }
    if (!file.direct()) remarks += "; the file system has no direct I/O, so that both may have read cached pages";
    {
      const cuda::scope here(direct.device_);
      if (const cuda::cufile_driver::file known = direct.driver_->find(file.fd()); known.handle == nullptr) {
        throw error(errc::unsupported, "cuFile refuses files in '" + directory + "' (" +
                                           cuda::cufile_text(known.refused) + "); read through the host" + remarks);
      }
    }
    cuda::probe_rates by_cufile;
    cuda::probe_rates by_host;
    cuda::race(file, direct, by_cufile, host, by_host);
    report.usable = true;
    report.cufile_bytes_per_second = by_cufile.median();
    report.host_bytes_per_second = by_host.median();
    const bool wins = by_cufile.beats(by_host);
    report.better = wins ? cufile_way::cufile : cufile_way::host;
    report.text = "cuFile " + by_cufile.text() + ", through the host " + by_host.text() +
                  (wins ? ": cuFile is better" : ": cuFile does not win by more than the spread") + remarks;
  }

  cufile_options with_;
  cuda::used_device device_;
  std::size_t place_bytes_;
  std::size_t places_;
  cuda::device_memory memory_;
  std::optional<cuda::cufile_driver> driver_;
  cuda::pinned_memory host_;
  std::vector<cuda::slot_reader> readers_;

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable idle_;
  std::vector<direct_request> waiting_;
  std::size_t next_ = 0;
  std::vector<std::byte*> free_;
  std::size_t running_ = 0;
  bool giving_up_ = false;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

static_assert(direct_reader<cufile>);

}  // namespace kvx
