// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace connector {

/// What the scheduler asks, and what ranks answer. All ranks get the same steps; only lookups differ.
enum class verb : std::uint32_t {
  match,      ///< scope, tokens                        -> rank 0: a serialised plan
  available,  ///< keys                                 -> the other ranks: number of blocks
  erase,      ///< keys; no answer
  step,       ///< commands, until `end`                -> step_done
  step_done,  ///< prefetched, loaded, released requests, and wrong bytes so far
  stop,       ///< -> step_done, and the rank ends
};

/// What a step has a rank do, in this order of arrival.
enum class command : std::uint32_t {
  end,
  start,     ///< request, scope, prompt, pages: it was admitted to the queue; pages are empty
  prefetch,  ///< request, plan: storage to memory, while it waits
  place,     ///< request, pages: where its tokens go
  load,      ///< request, blocks: memory to its pages, as many as every rank has
  compute,   ///< request, committed, tokens: drafts beyond `committed` were rejected, then these follow
  save,      ///< request, first block, blocks
  retire,    ///< request, tokens: attend to so many once more, give up the rest, say when the pages are free
};

/// Bytes that go from one process to the other: numbers, and lists of plain values.
class message {
 public:
  explicit message(verb what) { number(static_cast<std::uint64_t>(what)); }
  explicit message(std::vector<std::byte> received) : bytes_(std::move(received)) {}

  message& number(std::uint64_t value) { return raw(&value, sizeof value); }
  message& add(command what, std::uint64_t request) { return number(static_cast<std::uint64_t>(what)).number(request); }
  template <class T>
  message& list(std::span<const T> values) {
    return number(values.size()).raw(values.data(), values.size_bytes());
  }
  message& text(const std::string& value) { return list(std::span<const char>(value)); }

  [[nodiscard]] std::uint64_t number() {
    std::uint64_t value = 0;
    take(&value, sizeof value);
    return value;
  }
  template <class T>
  [[nodiscard]] std::vector<T> list() {
    const std::uint64_t count = number();
    if (count > (bytes_.size() - at_) / sizeof(T))
      throw std::runtime_error("connector: a list is longer than its message");
    std::vector<T> values(static_cast<std::size_t>(count));
    take(values.data(), values.size() * sizeof(T));
    return values;
  }
  [[nodiscard]] std::string text() {
    const std::vector<char> value = list<char>();
    return {value.begin(), value.end()};
  }
  [[nodiscard]] bool at_end() const noexcept { return at_ == bytes_.size(); }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  message& raw(const void* from, std::size_t size) {
    const std::size_t end = bytes_.size();
    bytes_.resize(end + size);
    if (size != 0) std::memcpy(bytes_.data() + end, from, size);
    return *this;
  }
  void take(void* to, std::size_t size) {
    if (size > bytes_.size() - at_) throw std::runtime_error("connector: a message is shorter than it says");
    if (size != 0) std::memcpy(to, bytes_.data() + at_, size);
    at_ += size;
  }

  std::vector<std::byte> bytes_;
  std::size_t at_ = 0;
};

/// One end of a stream socket: messages, each after its length.
class channel {
 public:
  explicit channel(int socket) noexcept : socket_(socket) {}
  channel(channel&& other) noexcept : socket_(std::exchange(other.socket_, -1)) {}
  channel(const channel&) = delete;
  channel& operator=(const channel&) = delete;
  channel& operator=(channel&&) = delete;
  ~channel() {
    if (socket_ >= 0) ::close(socket_);
  }

  /// Two ends that are connected.
  [[nodiscard]] static std::pair<channel, channel> make_pair() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
      throw std::system_error(errno, std::generic_category(), "connector: cannot make a pair of sockets");
    return {channel(ends[0]), channel(ends[1])};
  }

  void send(const message& what) const {
    const std::uint64_t length = what.bytes().size();
    write(&length, sizeof length);
    write(what.bytes().data(), what.bytes().size());
  }
  [[nodiscard]] message receive() const {
    std::uint64_t length = 0;
    read(&length, sizeof length);
    std::vector<std::byte> bytes(static_cast<std::size_t>(length));
    read(bytes.data(), bytes.size());
    return message(std::move(bytes));
  }

 private:
  void write(const void* from, std::size_t size) const {
    const auto* at = static_cast<const std::byte*>(from);
    while (size != 0) {
      const ::ssize_t moved = ::send(socket_, at, size, MSG_NOSIGNAL);
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0) throw std::system_error(errno, std::generic_category(), "connector: the other process is gone");
      at += moved;
      size -= static_cast<std::size_t>(moved);
    }
  }
  void read(void* to, std::size_t size) const {
    auto* at = static_cast<std::byte*>(to);
    while (size != 0) {
      const ::ssize_t moved = ::recv(socket_, at, size, 0);
      if (moved < 0 && errno == EINTR) continue;
      if (moved <= 0) throw std::runtime_error("connector: the other process is gone");
      at += moved;
      size -= static_cast<std::size_t>(moved);
    }
  }

  int socket_;
};

}  // namespace connector
