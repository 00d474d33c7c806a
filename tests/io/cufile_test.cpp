// SPDX-License-Identifier: Apache-2.0
// cufile over a runtime that has no device and a libcufile that has no driver: both ways, with work of the device that
// runs late. tests/gpu/ reads on a device.
#include <kvx/detail/file.hpp>
#include <kvx/detail/page_checksum.hpp>
#include <kvx/io/cufile.hpp>

#include <doctest/doctest.h>
#include <bytes.hpp>
#include <fake_cuda.hpp>
#include <fake_cufile.hpp>
#include <patient_options.hpp>
#include <temporary_directory.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace kvx_test;
using kvx::cufile_way;
using namespace std::chrono_literals;

namespace {

/// What the host reads in three pieces, the last a part of one.
constexpr std::size_t two_and_a_half_pieces = kvx::cuda::slot_reader::piece_bytes / 2 * 5;
constexpr std::size_t page = kvx::page_bytes;
constexpr std::size_t header_bytes = page;
constexpr cufile_way both_ways[] = {cufile_way::host, cufile_way::cufile};

/// A file of slots full of noise.
struct slots {
  std::size_t slot_bytes;
  std::vector<std::byte> image;
  temporary_directory directory;
  kvx::detail::file handle;

  slots(std::size_t bytes_each, std::size_t count, kvx::detail::file_mode mode = kvx::detail::file_mode::direct)
      : slot_bytes(bytes_each),
        image(noise(bytes_each * count, bytes_each * count)),
        handle(make("slots", image, mode)) {}
  kvx::detail::file make(const char* name, const std::vector<std::byte>& bytes,
                         kvx::detail::file_mode mode = kvx::detail::file_mode::direct) const {
    const auto here = kvx::detail::open_root(directory.path().c_str());
    REQUIRE(here.ok());
    {
      const auto made = kvx::detail::create_file(here->fd(), name);
      REQUIRE(made.ok());
      REQUIRE(kvx::detail::pwrite_all(made->handle.fd(), bytes, 0).ok());
    }
    auto opened = kvx::detail::open_file(here->fd(), name, kvx::detail::file_access::read_write, mode);
    REQUIRE(opened.ok());
    return std::move(opened->handle);
  }
  [[nodiscard]] int fd() const { return handle.fd(); }
  [[nodiscard]] const std::byte* slot(std::size_t i) const { return image.data() + i * slot_bytes; }
  void truncate(std::size_t bytes) const { REQUIRE(::ftruncate(fd(), static_cast<::off_t>(bytes)) == 0); }
};

/// A request and what came of it.
class one_read {
 public:
  one_read(int file, std::size_t offset, std::size_t slot_bytes)
      : header_(header_bytes), values_((slot_bytes - header_bytes) / page) {
    request.file = file;
    request.offset = offset;
    request.payload_bytes = slot_bytes - header_bytes;
    request.header = header_;
    request.page_values = values_;
    request.context = this;
    request.done = [](void* context, const kvx::io_result& how, std::byte* where) noexcept {
      auto& self = *static_cast<one_read*>(context);
      const std::lock_guard lock(self.mutex_);
      self.outcome = how;
      self.payload = where;
      self.cufile_reads = fake_cufile::instance().reads();
      ++self.calls_;
      self.called_.notify_all();
    };
  }
  one_read(const slots& file, std::size_t slot) : one_read(file.fd(), slot * file.slot_bytes, file.slot_bytes) {}
  one_read(const one_read&) = delete;
  one_read& operator=(const one_read&) = delete;
  /// A payload that a failed test leaves lent would keep the reader from ending.
  ~one_read() {
    if (reader_ != nullptr && came()) give_back();
  }

  [[nodiscard]] const kvx::direct_request& of(kvx::cufile& reader) {
    reader_ = &reader;
    return request;
  }
  void submit(kvx::cufile& reader) { reader.submit({&of(reader), 1}); }
  void give_back() {
    if (std::byte* const lent = std::exchange(payload, nullptr)) reader_->give_back(lent);
  }

  bool came(std::chrono::milliseconds within = patience) {
    std::unique_lock lock(mutex_);
    return called_.wait_for(lock, within, [this] { return calls_ != 0; });
  }
  void expect(const slots& file, std::size_t slot) {
    REQUIRE(came());
    CHECK(calls_ == 1);
    CHECK(outcome.error == 0);
    REQUIRE(payload != nullptr);
    const std::byte* const image = file.slot(slot);
    CHECK(outcome.bytes == file.slot_bytes);
    CHECK(same_bytes(header_, {image, header_.size()}));
    CHECK(same_bytes({payload, request.payload_bytes}, {image + header_bytes, request.payload_bytes}));
    std::size_t equal = 0;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      equal += values_[i] == kvx::detail::page_checksum(image + header_bytes + i * page) ? 1U : 0U;
    }
    CHECK(equal == values_.size());
  }
  void expect_error(int error) {
    REQUIRE(came());
    CHECK(calls_ == 1);
    CHECK(outcome.error == error);
    CHECK(payload == nullptr);
    CHECK(outcome.bytes < header_bytes + request.payload_bytes);
  }

  kvx::direct_request request;
  kvx::io_result outcome;
  std::byte* payload = nullptr;
  std::uint64_t cufile_reads = 0;  // that had begun when it came

 private:
  kvx::cufile* reader_ = nullptr;
  std::vector<std::byte> header_;
  std::vector<std::uint64_t> values_;
  std::mutex mutex_;
  std::condition_variable called_;
  int calls_ = 0;
};

kvx::cufile_options options(cufile_way way, std::size_t block_bytes, std::size_t places, unsigned threads = 2) {
  kvx::cufile_options with;
  with.kernels = fake_kernels();
  with.block_bytes = block_bytes;
  with.staging_bytes = places * block_bytes;
  with.threads = threads;
  with.through = way;
  with.api = fake_cufile::api();
  return with;
}

/// All switches back, and nothing left behind.
struct clean {
  std::size_t allocated = fake_cuda::instance().allocated();
  clean() { fake_cufile::instance().reset(); }
  ~clean() {
    fake_cufile::instance().reset();
    CHECK(fake_cuda::instance().allocated() == allocated);
    CHECK(fake_cufile::instance().live_handles() == 0);
    CHECK(fake_cufile::instance().live_buffers() == 0);
  }
};

/// Reads one slot, looks at it and gives it back.
void read_and_check(kvx::cufile& reader, const slots& file, std::size_t slot) {
  one_read read(file, slot);
  read.submit(reader);
  read.expect(file, slot);
  read.give_back();
}
void read_and_fail(kvx::cufile& reader, const slots& file, std::size_t slot, int error) {
  one_read read(file, slot);
  read.submit(reader);
  read.expect_error(error);
}
/// Every place can be lent at once, so none was lost.
void expect_all_places(kvx::cufile& reader, const slots& file) {
  std::vector<std::unique_ptr<one_read>> reads;
  for (std::size_t i = 0; i < reader.capacity(); ++i) {
    reads.push_back(std::make_unique<one_read>(file, i % (file.image.size() / file.slot_bytes)));
    reads.back()->submit(reader);
  }
  for (const auto& each : reads) REQUIRE(each->came());
}

std::string refusal(const kvx::cufile_options& with, kvx::errc expected) {
  try {
    const kvx::cufile reader(with);
  } catch (const kvx::error& refused) {
    CHECK(refused.code() == expected);
    return refused.what();
  }
  FAIL("it was not refused");
  return {};
}
bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a slot comes whole, with the values of its pages and its header, both ways and whatever its size") {
  for (const cufile_way way : both_ways) {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      fake_cuda::instance().reseed(seed);
      // One page, and pieces of which the last is a part.
      for (const std::size_t slot_bytes : {2 * page, 41 * page, two_and_a_half_pieces + 3 * page}) {
        CAPTURE(way);
        CAPTURE(slot_bytes);
        const clean after;
        const slots file(slot_bytes, 3);
        kvx::cufile reader(options(way, slot_bytes, 2));
        CHECK(reader.capacity() == 2);
        CHECK(reader.block_bytes() == slot_bytes);
        CHECK(reader.staging().size() == 2 * slot_bytes);
        for (const std::size_t slot : {2U, 0U, 1U}) {
          one_read read(file, slot);
          read.submit(reader);
          read.expect(file, slot);
          CHECK(read.payload >= reader.staging().data());
          CHECK(read.payload + read.request.payload_bytes <= reader.staging().data() + reader.staging().size());
          read.give_back();
        }
        reader.detach(file.fd());
      }
    }
  }
}

TEST_CASE("smaller slots than the largest, payloads of no page, and files without direct I/O") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(4 * page, 4, kvx::detail::file_mode::buffered);
    kvx::cufile reader(options(way, 64 * page, 3));
    for (std::size_t slot = 0; slot < 4; ++slot) read_and_check(reader, file, slot);
    one_read no_payload(file.fd(), 0, header_bytes);
    no_payload.submit(reader);
    REQUIRE(no_payload.came());
    CHECK(no_payload.outcome.error == 0);
    CHECK(same_bytes(no_payload.request.header, {file.slot(0), header_bytes}));
    no_payload.give_back();
    expect_all_places(reader, file);
  }
}

TEST_CASE("nothing is told before the kernel has ended, and its values are there") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(8 * page, 1);
    kvx::cufile reader(options(way, file.slot_bytes, 1));
    fake_cuda::instance().core().hold();
    one_read read(file, 0);
    read.submit(reader);
    CHECK_FALSE(read.came(50ms));
    fake_cuda::instance().core().release();
    read.expect(file, 0);
    read.give_back();
  }
}

TEST_CASE("short reads go on where they stopped, aligned or not") {
  const clean after;
  const slots file(64 * page, 2);
  kvx::cufile reader(options(cufile_way::cufile, file.slot_bytes, 2));
  for (const std::size_t most : {std::size_t{1000}, page, 3 * page + 17}) {
    CAPTURE(most);
    fake_cufile::instance().most_bytes = most;
    for (std::size_t slot = 0; slot < 2; ++slot) read_and_check(reader, file, slot);
  }
}

TEST_CASE("a file that ends early is no success, wherever it ends") {
  for (const cufile_way way : both_ways) {
    for (const auto mode : {kvx::detail::file_mode::direct, kvx::detail::file_mode::buffered}) {
      const clean after;
      const slots file(8 * page, 3, mode);
      kvx::cufile reader(options(way, file.slot_bytes, 2));
      for (const std::size_t end : {23 * page, 21 * page + 100, 17 * page, 16 * page + 5, 16 * page}) {
        CAPTURE(way);
        CAPTURE(end);
        file.truncate(end);
        one_read read(file, 2);
        read.submit(reader);
        read.expect_error(ENODATA);
        read_and_check(reader, file, 1);
      }
      expect_all_places(reader, file);
    }
  }
}

TEST_CASE("what the system or cuFile says is what a request ends with") {
  const clean after;
  const slots file(8 * page, 3);
  kvx::cufile host(options(cufile_way::host, file.slot_bytes, 1));
  one_read closed(-1, 0, file.slot_bytes);
  closed.submit(host);
  closed.expect_error(EBADF);
  read_and_check(host, file, 0);

  kvx::cufile reader(options(cufile_way::cufile, file.slot_bytes, 1));
  read_and_check(reader, file, 0);
  struct {
    ::ssize_t answer;
    int error_number;
    int expected;
  } const cases[] = {{-1, ENXIO, ENXIO}, {-1, 0, EIO},         {-ENOSPC, 0, ENOSPC},
                     {-5011, 0, EIO},    {-5030, EAGAIN, EIO}, {0, 0, ENODATA}};
  for (const auto& each : cases) {
    CAPTURE(each.answer);
    fake_cufile::instance().answer_in(1, each.answer, each.error_number);
    read_and_fail(reader, file, 1, each.expected);
    // In the middle of a slot as well.
    fake_cufile::instance().most_bytes = 2 * page;
    fake_cufile::instance().answer_in(3, each.answer, each.error_number);
    read_and_fail(reader, file, 1, each.expected);
    fake_cufile::instance().most_bytes = 0;
    read_and_check(reader, file, 1);
  }
  fake_cufile::instance().answer_in(1, -1, EINTR);
  read_and_check(reader, file, 2);
}

TEST_CASE("requests that do not fit are refused, and cost no place") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(8 * page, 2);
    kvx::cufile reader(options(way, file.slot_bytes, 1));
    one_read larger(file.fd(), 0, file.slot_bytes + page);
    one_read huge(file.fd(), 0, file.slot_bytes);
    huge.request.payload_bytes = ~std::size_t{0} - page + 1;
    one_read values(file.fd(), 0, file.slot_bytes);
    values.request.payload_bytes -= page;
    for (one_read* each : {&larger, &huge, &values}) each->submit(reader);
    larger.expect_error(EMSGSIZE);
    REQUIRE(huge.came());
    CHECK(huge.outcome.error == EMSGSIZE);
    values.expect_error(EINVAL);
    read_and_check(reader, file, 1);
  }
}

TEST_CASE("what is cancelled before it was started is not read") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(2 * page, 2);
    kvx::cufile reader(options(way, file.slot_bytes, 1, 4));
    one_read first(file, 0);
    std::atomic<bool> cancelled{false};
    one_read second(file, 1);
    second.request.cancelled = &cancelled;
    one_read third(file, 1);
    std::atomic<bool> kept{false};
    third.request.cancelled = &kept;
    const kvx::direct_request all[] = {first.of(reader), second.of(reader), third.of(reader)};
    reader.submit(all);
    first.expect(file, 0);
    cancelled = true;
    first.give_back();
    second.expect_error(ECANCELED);
    third.expect(file, 1);
    third.give_back();
  }
}

TEST_CASE("requests wait for places in their order, and no place is lent twice") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(4 * page, 12);
    kvx::cufile reader(options(way, file.slot_bytes, 3, 1));
    std::vector<std::unique_ptr<one_read>> reads;
    std::vector<kvx::direct_request> requests;
    for (std::size_t slot = 0; slot < 12; ++slot) {
      reads.push_back(std::make_unique<one_read>(file, slot));
      requests.push_back(reads.back()->of(reader));
    }
    reader.submit(requests);
    std::set<std::byte*> lent;
    std::vector<std::size_t> held;
    std::mt19937_64 random(3);
    std::size_t next = 0;
    for (std::size_t slot = 0; slot < 12; ++slot) {
      while (held.size() < 3 && next < 12) {
        REQUIRE(reads[next]->came());
        CHECK(lent.insert(reads[next]->payload).second);
        held.push_back(next++);
      }
      // Nothing more comes while all places are lent, and what is lent stays as it is.
      if (next < 12) CHECK_FALSE(reads[next]->came(5ms));
      for (const std::size_t each : held) reads[each]->expect(file, each);
      const std::size_t which = random() % held.size();
      lent.erase(reads[held[which]]->payload);
      reads[held[which]]->give_back();
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
    }
    CHECK(held.empty());
  }
}

TEST_CASE("many threads read and give back at once, also from completions") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(4 * page, 16);
    struct gives_back {
      kvx::cufile* reader = nullptr;
      std::atomic<bool> came{false};
    };
    std::array<std::array<gives_back, 40>, 4> given_back;
    kvx::cufile reader(options(way, file.slot_bytes, 5, 4));
    std::vector<std::thread> threads;
    std::atomic<int> good{0};
    for (std::size_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (std::size_t i = 0; i < 40; ++i) {
          const std::size_t slot = (t * 7 + i) % 16;
          one_read read(file, slot);
          if (i % 3 == 0) {
            read.request.context = &given_back[t][i];
            read.request.done = [](void* context, const kvx::io_result& outcome, std::byte* payload) noexcept {
              auto& self = *static_cast<gives_back*>(context);
              if (outcome.error == 0) self.reader->give_back(payload);
              self.came = true;
              self.came.notify_all();
            };
            given_back[t][i].reader = &reader;
            reader.submit({&read.request, 1});
            given_back[t][i].came.wait(false);
            ++good;
            continue;
          }
          read.submit(reader);
          if (!read.came() || read.outcome.error != 0) continue;
          if (same_bytes({read.payload, read.request.payload_bytes},
                         {file.slot(slot) + header_bytes, read.request.payload_bytes}))
            ++good;
          read.give_back();
        }
      });
    }
    for (std::thread& each : threads) each.join();
    CHECK(good == 160);
    CHECK(reader.stop(patience));
  }
}

TEST_CASE("stop waits for payloads that are lent, and gives up what waits behind them") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(4 * page, 3);
    kvx::cufile reader(options(way, file.slot_bytes, 1, 3));
    one_read lent(file, 0);
    one_read behind(file, 1);
    const kvx::direct_request all[] = {lent.of(reader), behind.of(reader)};
    reader.submit(all);
    lent.expect(file, 0);
    CHECK_FALSE(reader.stop(20ms));
    behind.expect_error(ECANCELED);
    lent.expect(file, 0);
    CHECK_FALSE(reader.stop(0ms));
    lent.give_back();
    CHECK(reader.stop(patience));
    CHECK(reader.stop(0ms));
  }
}

TEST_CASE("the destructor waits for what is under way and for what is lent") {
  const clean after;
  const slots file(4 * page, 2);
  auto reader = std::make_unique<kvx::cufile>(options(cufile_way::cufile, file.slot_bytes, 2));
  one_read read(file, 0);
  read.submit(*reader);
  read.expect(file, 0);
  std::atomic<bool> gone{false};
  std::thread destroys([&] {
    reader.reset();
    gone = true;
  });
  std::this_thread::sleep_for(20ms);
  const bool waited = !gone;
  CHECK(waited);
  if (waited) read.give_back();
  read.payload = nullptr;
  destroys.join();
}

TEST_CASE("a file is registered once, until it is detached, and its number may then be another file's") {
  const clean after;
  const slots file(4 * page, 2);
  std::vector<std::byte> other_bytes(file.image.rbegin(), file.image.rend());
  kvx::cufile reader(options(cufile_way::cufile, file.slot_bytes, 2));
  auto& library = fake_cufile::instance();
  const std::uint64_t before = library.registrations();
  CHECK(library.live_buffers() == 1);
  int number = -1;
  {
    const kvx::detail::file first = file.make("first", file.image);
    number = first.fd();
    for (int i = 0; i < 3; ++i) {
      one_read read(number, 0, file.slot_bytes);
      read.submit(reader);
      read.expect(file, 0);
      read.give_back();
    }
    CHECK(library.registrations() == before + 1);
    CHECK(library.live_handles() == 1);
    reader.detach(number);
    CHECK(library.live_handles() == 0);
    reader.detach(number);
  }
  const kvx::detail::file second = file.make("second", other_bytes);
  REQUIRE(second.fd() == number);
  one_read read(number, 0, file.slot_bytes);
  read.submit(reader);
  REQUIRE(read.came());
  REQUIRE(read.outcome.error == 0);
  CHECK(same_bytes({read.payload, read.request.payload_bytes},
                   {other_bytes.data() + header_bytes, read.request.payload_bytes}));
  CHECK(library.registrations() == before + 2);
  read.give_back();
}

TEST_CASE("a file that cuFile refuses is read through the host, which is asked once") {
  const clean after;
  const slots file(4 * page, 2);
  kvx::cufile reader(options(cufile_way::cufile, file.slot_bytes, 2));
  auto& library = fake_cufile::instance();
  library.refused_files = 5027;
  const std::uint64_t asked = library.registrations();
  const std::uint64_t reads = library.reads();
  for (int i = 0; i < 3; ++i) read_and_check(reader, file, 1);
  CHECK(library.registrations() == asked + 1);
  CHECK(library.reads() == reads);
  library.refused_files = 0;
  read_and_check(reader, file, 0);
  CHECK(library.reads() == reads);
  reader.detach(file.fd());
  read_and_check(reader, file, 0);
  CHECK(library.reads() == reads + 1);
}

TEST_CASE("staging memory that cuFile does not register is read into all the same") {
  const clean after;
  const slots file(4 * page, 2);
  fake_cufile::instance().refused_buffers = 5036;
  kvx::cufile reader(options(cufile_way::cufile, file.slot_bytes, 2));
  CHECK(fake_cufile::instance().live_buffers() == 0);
  read_and_check(reader, file, 1);
}

TEST_CASE("an error of the device ends a request as EIO, and its place is good afterwards") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(two_and_a_half_pieces, 2);
    kvx::cufile reader(options(way, file.slot_bytes, 1));
    read_and_check(reader, file, 0);
    const std::uint64_t steps = way == cufile_way::host ? 4 : 2;
    for (std::uint64_t n = 1; n <= steps; ++n) {
      CAPTURE(way);
      CAPTURE(n);
      fake_cuda::instance().refuse_submission(n);
      read_and_fail(reader, file, 1, EIO);
      fake_cuda::instance().refuse_submission(0);
      read_and_check(reader, file, 1);
    }
    fake_cuda::instance().core().hold();
    one_read read(file, 1);
    read.submit(reader);
    CHECK_FALSE(read.came(20ms));
    fake_cuda::instance().break_device();
    fake_cuda::instance().core().release();
    read.expect_error(EIO);
    read_and_fail(reader, file, 0, EIO);
    fake_cuda::instance().repair_device();
    read_and_check(reader, file, 1);
    expect_all_places(reader, file);
  }
}

TEST_CASE("a request that failed is told when no copy to its place is under way any more") {
  const clean after;
  const slots file(two_and_a_half_pieces, 1);
  kvx::cufile reader(options(cufile_way::host, file.slot_bytes, 1));
  fake_cuda::instance().core().hold();
  fake_cuda::instance().refuse_submission(2);
  one_read refused(file, 0);
  refused.submit(reader);
  CHECK_FALSE(refused.came(50ms));
  fake_cuda::instance().core().release();
  refused.expect_error(EIO);
  // The same where the file ends behind the first piece.
  file.truncate(two_and_a_half_pieces / 5 * 3);
  fake_cuda::instance().core().hold();
  one_read cut(file, 0);
  cut.submit(reader);
  CHECK_FALSE(cut.came(50ms));
  fake_cuda::instance().core().release();
  cut.expect_error(ENODATA);
}

TEST_CASE("the next slot is read while the one before is copied and proved") {
  const clean after;
  const slots file(1024 * page, 2);
  kvx::cufile reader(options(cufile_way::cufile, file.slot_bytes, 2, 1));
  const std::uint64_t before = fake_cufile::instance().reads();
  // The first takes no time, on whatever machine.
  fake_cufile::instance().answer_in(1, static_cast<::ssize_t>(file.slot_bytes));
  fake_cuda::instance().core().hold();
  one_read first(file, 0);
  one_read second(file, 1);
  const std::array both = {first.of(reader), second.of(reader)};
  reader.submit(both);
  const auto until = std::chrono::steady_clock::now() + patience;
  while (fake_cufile::instance().reads() != before + 2 && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(1ms);
  }
  CHECK(fake_cufile::instance().reads() == before + 2);
  CHECK_FALSE(first.came(0ms));
  fake_cuda::instance().core().release();
  REQUIRE(first.came());
  CHECK(first.outcome.error == 0);
  second.expect(file, 1);
}

TEST_CASE("where reading takes the time, nobody waits for the next slot to hear of the last") {
  const clean after;
  const slots file(4 * page, 3);
  kvx::cufile reader(options(cufile_way::cufile, file.slot_bytes, 3, 1));
  const std::uint64_t before = fake_cufile::instance().reads();
  fake_cufile::instance().delay_us = 5000;
  one_read first(file, 0);
  one_read second(file, 1);
  one_read third(file, 2);
  const std::array all = {first.of(reader), second.of(reader), third.of(reader)};
  reader.submit(all);
  third.expect(file, 2);
  second.expect(file, 1);
  first.expect(file, 0);
  CHECK(first.cufile_reads == before + 1);
  CHECK(second.cufile_reads == before + 2);
}

TEST_CASE("once it runs nothing of the device is allocated, and nothing is registered") {
  for (const cufile_way way : both_ways) {
    const clean after;
    const slots file(4 * page, 4);
    kvx::cufile reader(options(way, file.slot_bytes, 2));
    read_and_check(reader, file, 0);
    const std::size_t allocations = fake_cuda::instance().allocations();
    const std::uint64_t registrations = fake_cufile::instance().registrations();
    for (std::size_t i = 0; i < 200; ++i) read_and_check(reader, file, i % 4);
    CHECK(fake_cuda::instance().allocations() == allocations);
    CHECK(fake_cufile::instance().registrations() == registrations);
  }
}

TEST_CASE("it starts nothing on device 0, and leaves others' captures alone") {
  const slots file(4 * page, 2);
  for (const cufile_way way : both_ways) {
    fake_cuda::instance().forget_contexts();
    const clean after;
    fake_cuda::instance().begin_capture();
    std::thread([&] {
      kvx::cufile_options with = options(way, file.slot_bytes, 2);
      with.device = 1;
      kvx::cufile reader(with);
      for (std::size_t slot = 0; slot < 2; ++slot) read_and_check(reader, file, slot);
      reader.detach(file.fd());
      read_and_check(reader, file, 1);
    }).join();
    CHECK(fake_cuda::instance().end_capture());
    CHECK(fake_cuda::instance().has_context(1));
    CHECK_FALSE(fake_cuda::instance().has_context(0));
  }
}

TEST_CASE("one that finds no memory gives back what it has") {
  for (const cufile_way way : both_ways) {
    // Staging memory, and the host's.
    for (std::uint64_t n = 1; n <= 2; ++n) {
      CAPTURE(n);
      const clean after;
      fake_cuda::instance().refuse_allocation(n);
      const std::string text = refusal(options(way, 4 * page, 2), kvx::errc::device_failed);
      fake_cuda::instance().refuse_allocation(0);
      CHECK(has(text, "memory"));
    }
  }
}

TEST_CASE("options that cannot work are named, with a remedy") {
  const clean after;
  kvx::cufile_options with = options(cufile_way::host, 4 * page, 2);
  with.kernels.page_values = nullptr;
  std::string text = refusal(with, kvx::errc::bad_argument);
  CHECK(has(text, "cufile_options::kernels"));
  CHECK(has(text, "cuda_kernel_table()"));
  text = refusal(options(cufile_way::host, 0, 2), kvx::errc::bad_argument);
  CHECK(has(text, "cufile_options::block_bytes"));
  with = options(cufile_way::host, 4 * page, 1);
  with.staging_bytes -= 1;
  text = refusal(with, kvx::errc::bad_argument);
  CHECK(has(text, "cufile_options::staging_bytes"));
  with.block_bytes = ~std::size_t{0};
  CHECK(has(refusal(with, kvx::errc::bad_argument), "cufile_options::staging_bytes"));
  text = refusal(options(cufile_way::host, 4 * page, 2, 0), kvx::errc::bad_argument);
  CHECK(has(text, "cufile_options::threads"));
  with = options(cufile_way::host, 4 * page, 2);
  with.device = 7;
  text = refusal(with, kvx::errc::device_failed);
  CHECK(has(text, "cufile_options::device"));
  CHECK(has(text, "no device 7"));
  fake_cufile::instance().refused_driver = 5001;
  text = refusal(options(cufile_way::cufile, 4 * page, 2), kvx::errc::unsupported);
  CHECK(has(text, "5001"));
  CHECK(has(text, "through the host"));
  // That the process opened it already is no refusal.
  fake_cufile::instance().refused_driver = 5026;
  const kvx::cufile opened(options(cufile_way::cufile, 4 * page, 2));
  CHECK(opened.name() == "cufile");
}

TEST_CASE("a library that is not there, or lacks a function, is named") {
  kvx::cuda::cufile_library found = kvx::cuda::cufile_api::load("libkvx-is-nowhere.so.0");
  CHECK_FALSE(found.api.has_value());
  CHECK(has(found.text, "libkvx-is-nowhere.so.0"));
  CHECK(has(found.text, "install"));
  found = kvx::cuda::cufile_api::load("libc.so.6");
  CHECK_FALSE(found.api.has_value());
  CHECK(has(found.text, "libc.so.6 has no cuFileDriverOpen"));
}

namespace {

struct probed {
  temporary_directory directory;
  kvx::cufile_options with = options(cufile_way::host, 64 * page, 16, 4);
  clean after;

  probed() { with.probe_bytes = 16 * with.block_bytes; }
  ~probed() { CHECK(std::filesystem::is_empty(directory.path())); }
  kvx::cufile_report run() const { return kvx::cufile::probe(directory.path(), with); }
};

}  // namespace

TEST_CASE("probe: cuFile is better where it wins by more than the spread") {
  const probed t;
  // The host's copies are made slower until that is more than whatever else the machine does meanwhile.
  kvx::cufile_report report;
  for (auto delay = 2ms; delay < 1s && report.better != cufile_way::cufile; delay *= 4) {
    fake_cuda::instance().slow_copies_in(delay);
    report = t.run();
    REQUIRE(report.usable);
  }
  fake_cuda::instance().slow_copies_in(0us);
  CHECK(report.better == cufile_way::cufile);
  CHECK_FALSE(report.compatibility_mode);
  CHECK(report.cufile_bytes_per_second > report.host_bytes_per_second);
  CHECK(report.host_bytes_per_second > 0);
  CHECK(has(report.text, "cuFile is better"));
}

TEST_CASE("probe: the host's way is better where cuFile is slower") {
  const probed t;
  fake_cufile::instance().delay_us = 5000;
  const kvx::cufile_report report = t.run();
  CHECK(report.usable);
  CHECK(report.better == cufile_way::host);
  CHECK(report.cufile_bytes_per_second > 0);
  CHECK(has(report.text, "does not win"));
}

TEST_CASE("probe: a round more or less is no win") {
  kvx::cuda::probe_rates fast{{5e9, 4e9, 6e9}};
  kvx::cuda::probe_rates slow{{3e9, 3.9e9, 2e9}};
  CHECK(fast.beats(slow));
  CHECK_FALSE(slow.beats(fast));
  slow.rounds.push_back(4e9);
  CHECK_FALSE(fast.beats(slow));
  CHECK(fast.median() == 5e9);
  CHECK(fast.text() == "5.00 GB/s (4.00 to 6.00)");
  CHECK(kvx::cuda::probe_rates{{1.05e9}}.text() == "1.05 GB/s (1.05 to 1.05)");
}

TEST_CASE("probe: compatibility mode is recognised and said") {
  const probed t;
  fake_cufile::instance().compatibility_mode = true;
  fake_cufile::instance().delay_us = 2000;
  const kvx::cufile_report report = t.run();
  CHECK(report.usable);
  CHECK(report.compatibility_mode);
  CHECK(report.better == cufile_way::host);
  CHECK(has(report.text, "compatibility mode"));
}

TEST_CASE("probe: bytes that are not what was written are noticed") {
  const probed t;
  fake_cufile::instance().corrupt = true;
  const kvx::cufile_report report = t.run();
  CHECK_FALSE(report.usable);
  CHECK(report.better == cufile_way::host);
  CHECK(has(report.text, "cuFile brought 16 pages"));
}

TEST_CASE("probe: what is missing is in the text") {
  probed t;
  fake_cufile::instance().refused_files = 5027;
  kvx::cufile_report report = t.run();
  CHECK_FALSE(report.usable);
  CHECK(has(report.text, "5027"));
  CHECK(has(report.text, t.directory.path().c_str()));
  fake_cufile::instance().reset();

  fake_cufile::instance().answer_in(3, -1, ENXIO);
  report = t.run();
  CHECK_FALSE(report.usable);
  CHECK(has(report.text, "cuFile failed to read"));
  fake_cufile::instance().reset();

  fake_cufile::instance().refused_driver = 5033;
  report = t.run();
  CHECK_FALSE(report.usable);
  CHECK(has(report.text, "5033"));
  fake_cufile::instance().reset();

  report = kvx::cufile::probe(t.directory.path() + "/nowhere", t.with);
  CHECK_FALSE(report.usable);
  CHECK(has(report.text, "/nowhere"));

  t.with.kernels = {};
  report = t.run();
  CHECK_FALSE(report.usable);
  CHECK(has(report.text, "cufile_options::kernels"));
  t.with.kernels = fake_kernels();

  // Where the library is installed it has no driver to open under this runtime.
  t.with.api.reset();
  if (!kvx::cuda::cufile_api::load().api) {
    report = t.run();
    CHECK_FALSE(report.usable);
    CHECK(has(report.text, "libcufile.so.0"));
  }
}
