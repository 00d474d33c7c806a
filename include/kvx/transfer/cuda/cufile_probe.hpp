// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/concepts/direct_reader.hpp>
#include <kvx/detail/aligned_buffer.hpp>
#include <kvx/detail/file.hpp>
#include <kvx/detail/page_checksum.hpp>
#include <kvx/result.hpp>
#include <kvx/types.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace kvx::cuda {

/// A file of slots whose pages are known, removed when this dies: cuFile looks at the names of files, so that one which
/// has none would not do.
class probe_file {
 public:
  /// Shape   slot_bytes: a multiple of page_bytes
  /// Errors  throws io_failed
  probe_file(const std::string& directory, std::size_t slot_bytes, std::size_t slots) : slot_bytes_(slot_bytes) {
    const auto take = [&](auto made) {
      if (!made) refuse(directory, made.status());
      return std::move(*made);
    };
    name_.directory = take(detail::open_root(directory.c_str()));
    std::string name = take(detail::random_name(".kvx-probe-"));
    detail::opened_file made = take(detail::create_file(name_.directory.fd(), name.c_str(), detail::file_mode::direct));
    name_.name = std::move(name);
    handle_ = std::move(made.handle);
    direct_ = made.direct;
    values_.resize(slots * slot_bytes / page_bytes);
    status written = fill();
    // Some file systems take the flag and refuse the transfer.
    if (direct_ && (written.os_error() == EINVAL || written.os_error() == EOPNOTSUPP) &&
        ::fcntl(handle_.fd(), F_SETFL, 0) == 0) {
      direct_ = false;
      written = fill();
    }
    if (written.ok() && ::fdatasync(handle_.fd()) != 0) written = detail::last_error();
    if (!written) refuse(directory, written);
  }

  [[nodiscard]] int fd() const noexcept { return handle_.fd(); }
  [[nodiscard]] bool direct() const noexcept { return direct_; }
  [[nodiscard]] std::size_t slot_bytes() const noexcept { return slot_bytes_; }
  [[nodiscard]] std::size_t slots() const noexcept { return values_.size() / pages_per_slot(); }
  [[nodiscard]] std::size_t bytes() const noexcept { return values_.size() * page_bytes; }
  /// Checksums of a slot's pages, by the processor.
  [[nodiscard]] std::span<const std::uint64_t> values(std::size_t slot) const noexcept {
    return std::span(values_).subspan(slot * pages_per_slot(), pages_per_slot());
  }
  /// So that reads without direct I/O come from storage too, as far as the system is willing.
  void drop_pages() const noexcept {
    if (!direct_) static_cast<void>(::posix_fadvise(handle_.fd(), 0, 0, POSIX_FADV_DONTNEED));
  }

 private:
  struct removed_name {
    detail::file directory;
    std::string name;

    removed_name() = default;
    removed_name(const removed_name&) = delete;
    removed_name& operator=(const removed_name&) = delete;
    ~removed_name() {
      if (!name.empty()) static_cast<void>(::unlinkat(directory.fd(), name.c_str(), 0));
    }
  };

  [[noreturn]] static void refuse(const std::string& directory, const status& failure) {
    throw error(failure.code(), "cannot write a file of slots in '" + directory +
                                    "': " + std::generic_category().message(failure.os_error()) +
                                    "; name a directory of the storage with room for cufile_options::probe_bytes");
  }
  [[nodiscard]] std::size_t pages_per_slot() const noexcept { return slot_bytes_ / page_bytes; }

  // Noise, which nothing on the way compresses or takes for a hole.
  [[nodiscard]] status fill() {
    const detail::aligned_buffer slot(slot_bytes_);
    std::uint64_t state = 0;
    for (std::size_t i = 0; i < slots(); ++i) {
      for (std::size_t at = 0; at < slot_bytes_; at += sizeof state) {
        state += 0x9E37'79B9'7F4A'7C15U;
        std::uint64_t word = (state ^ (state >> 30U)) * 0xBF58'476D'1CE4'E5B9U;
        word ^= word >> 27U;
        std::memcpy(slot.data() + at, &word, sizeof word);
      }
      detail::page_checksums(slot.data(), std::span(values_).subspan(i * pages_per_slot(), pages_per_slot()));
      const status written = detail::pwrite_all(handle_.fd(), slot.span(), i * slot_bytes_);
      if (!written) return written;
    }
    return {};
  }

  std::size_t slot_bytes_;
  removed_name name_;
  detail::file handle_;
  bool direct_ = false;
  std::vector<std::uint64_t> values_;
};

/// Reads all slots of a file through a reader, as a cache would, and looks at what came.
class probe_reads {
 public:
  struct outcome {
    double bytes_per_second = 0;
    int error = 0;  ///< errno of a slot that could not be read
    std::size_t wrong_pages = 0;
  };

  explicit probe_reads(const probe_file& file) : file_(file), slots_(file.slots()) {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].owner = this;
      slots_[i].header = detail::aligned_buffer(page_bytes);
      slots_[i].values.resize(file.values(i).size() - 1);
    }
  }
  probe_reads(const probe_reads&) = delete;
  probe_reads& operator=(const probe_reads&) = delete;

  template <direct_reader Reader>
  [[nodiscard]] outcome run(Reader& reader) {
    std::vector<direct_request> requests;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      slot& one = slots_[i];
      one.reader = &reader;
      one.values.assign(one.values.size(), 0);
      requests.push_back({file_.fd(), i * file_.slot_bytes(), file_.slot_bytes() - page_bytes, one.header.span(),
                          one.values, nullptr, &one, &came<Reader>});
    }
    file_.drop_pages();
    left_ = slots_.size();
    const auto began = std::chrono::steady_clock::now();
    reader.submit(requests);
    {
      std::unique_lock lock(mutex_);
      all_came_.wait(lock, [this] { return left_ == 0; });
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    outcome seen{static_cast<double>(file_.bytes()) / std::max(took.count(), 1e-9), 0, 0};
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].error != 0) seen.error = slots_[i].error;
      const std::span<const std::uint64_t> expected = file_.values(i);
      seen.wrong_pages += detail::page_checksum(slots_[i].header.data()) != expected[0] ? 1U : 0U;
      for (std::size_t page = 1; page < expected.size(); ++page) {
        seen.wrong_pages += slots_[i].values[page - 1] != expected[page] ? 1U : 0U;
      }
    }
    return seen;
  }

 private:
  struct slot {
    probe_reads* owner = nullptr;
    void* reader = nullptr;
    detail::aligned_buffer header;
    std::vector<std::uint64_t> values;
    int error = 0;
  };

  template <class Reader>
  static void came(void* context, const io_result& result, std::byte* payload) noexcept {
    slot& one = *static_cast<slot*>(context);
    one.error = result.error;
    if (payload != nullptr) static_cast<Reader*>(one.reader)->give_back(payload);
    const std::lock_guard lock(one.owner->mutex_);
    if (--one.owner->left_ == 0) one.owner->all_came_.notify_one();
  }

  const probe_file& file_;
  std::vector<slot> slots_;
  std::mutex mutex_;
  std::condition_variable all_came_;
  std::size_t left_ = 0;
};

/// Rates of one way, a round each.
struct probe_rates {
  std::vector<double> rounds;

  [[nodiscard]] double slowest() const { return *std::min_element(rounds.begin(), rounds.end()); }
  [[nodiscard]] double fastest() const { return *std::max_element(rounds.begin(), rounds.end()); }
  [[nodiscard]] double median() const {
    std::vector<double> sorted = rounds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  /// By more than the spread: a tie goes to the other.
  [[nodiscard]] bool beats(const probe_rates& other) const { return slowest() > other.fastest(); }
  [[nodiscard]] std::string text() const {
    return gb(median()) + " GB/s (" + gb(slowest()) + " to " + gb(fastest()) + ")";
  }

 private:
  static std::string gb(double rate) {
    const auto hundredths = static_cast<unsigned long long>(rate / 1e7 + 0.5);
    const std::string digits = std::to_string(hundredths % 100);
    return std::to_string(hundredths / 100) + (digits.size() == 1 ? ".0" : ".") + digits;
  }
};

/// Five rounds of both ways by turns, after one for what has to warm up.
/// Errors  throws io_failed, device_failed: a way read nothing, or something else than what was written
template <direct_reader Reader>
void race(const probe_file& file, Reader& cufile, probe_rates& by_cufile, Reader& host, probe_rates& by_host) {
  constexpr std::size_t rounds = 5;
  probe_reads reads(file);
  const auto read = [&](Reader& through, const std::string& way) {
    const probe_reads::outcome seen = reads.run(through);
    if (seen.error != 0) {
      throw error(errc::io_failed, way + " failed to read: " + std::generic_category().message(seen.error) +
                                       "; see the system's log, or cuFile's");
    }
    if (seen.wrong_pages != 0) {
      throw error(errc::device_failed, way + " brought " + std::to_string(seen.wrong_pages) +
                                           " pages that are not what was written, or page_values is of another "
                                           "version of kvx; do not use it");
    }
    return seen.bytes_per_second;
  };
  for (std::size_t round = 0; round <= rounds; ++round) {
    for (const bool first : {true, false}) {
      const bool cufiles_turn = first == (round % 2 == 0);
      const double rate = cufiles_turn ? read(cufile, "cuFile") : read(host, "the host's way");
      if (round != 0) (cufiles_turn ? by_cufile : by_host).rounds.push_back(rate);
    }
  }
}

}  // namespace kvx::cuda
