// SPDX-License-Identifier: Apache-2.0
#include "trace.hpp"
#include "sessions.hpp"
#include "workloads.hpp"

#include <doctest/doctest.h>
#include <lzma.h>
#include <temporary_directory.hpp>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

using namespace kvx_replay;

namespace {

const std::string two_lines =
    R"({"timestamp": 7, "input_length": 40, "output_length": 3, "hash_ids": [10, 11, 12]})"
    "\n"
    R"({"timestamp": 9, "input_length": 50, "output_length": 4, "hash_ids": [10, 11, 13, 14]})"
    "\n";

trace parse(const std::string& lines) { return parse_trace(lines, "trace", 16); }

std::vector<std::uint64_t> ids_of(const trace& work, std::size_t at) {
  std::vector<std::uint64_t> out;
  for (const block_number b : work[at].blocks) out.push_back(work.id(b));
  return out;
}

std::vector<session_news::event> of_request(const session_news& news, std::size_t at) {
  std::vector<session_news::event> out;
  for (const auto& e : news.events) {
    if (e.request == at) out.push_back(e);
  }
  return out;
}

}  // namespace

TEST_CASE("a trace is what its lines say") {
  const trace work = parse(two_lines);
  REQUIRE(work.size() == 2);
  CHECK(work.blocks() == 7);
  CHECK(work.distinct() == 5);
  CHECK(work.longest_request() == 4);
  CHECK(work.input_tokens() == 90);
  CHECK(work[1].timestamp_ms == 9);
  CHECK(work[1].output_tokens == 4);
  CHECK(ids_of(work, 1) == std::vector<std::uint64_t>{10, 11, 13, 14});
  CHECK(work[0].blocks[1] == work[1].blocks[1]);
  CHECK(work.parent(work[1].blocks[2]) == work[0].blocks[1]);
  CHECK(work.parent(work[1].blocks[0]) == no_block);
  CHECK(work.split_ids() == 0);
}

TEST_CASE("tokens of a prefix stop at the end of the input") {
  const trace work = parse(two_lines);
  CHECK(work.tokens_in(work[0], 0) == 0);
  CHECK(work.tokens_in(work[0], 2) == 32);
  CHECK(work.tokens_in(work[0], 3) == 40);
  CHECK(work.tokens_in(work[1], 3) == 48);
  CHECK(work.tokens_in(work[1], 4) == 50);
}

TEST_CASE("what a trace may leave out") {
  const trace work = parse("{\"hash_ids\":[1,2]}\r\n\n{\"hash_ids\":[], \"input_length\": 3.0}");
  REQUIRE(work.size() == 2);
  CHECK(work[0].input_tokens == 32);
  CHECK(work[1].timestamp_ms == 1000);
  CHECK(work[1].input_tokens == 3);
  CHECK(work[1].blocks.empty());
}

TEST_CASE("an id under two parents is two blocks") {
  const trace work = parse("{\"hash_ids\":[1,3]}\n{\"hash_ids\":[2,3]}\n");
  CHECK(work.distinct() == 4);
  CHECK(work.split_ids() == 1);
}

TEST_CASE("a line that is wrong is named") {
  const auto fails_with = [](const std::string& line, const std::string& reason) {
    CAPTURE(line);
    try {
      (void)parse(two_lines + line);
      FAIL("accepted");
    } catch (const std::runtime_error& problem) {
      const std::string what = problem.what();
      CHECK_MESSAGE(what.find("trace, line 3: ") == 0, what);
      CHECK_MESSAGE(what.find(reason) != std::string::npos, what);
    }
  };
  fails_with("{", "parse error");
  fails_with("[]", "hash_ids");
  fails_with(R"({"hash_ids": 3})", "hash_ids");
  fails_with(R"({"hash_ids": [1.5]})", "whole numbers");
  fails_with(R"({"hash_ids": ["1"]})", "whole numbers");
  fails_with(R"({"hash_ids": [1, 2, 1]})", "twice");
  fails_with(R"({"hash_ids": [1], "timestamp": -1})", "timestamp");
  fails_with(R"({"hash_ids": [1], "input_length": "a"})", "input_length");
  CHECK_THROWS_AS((void)parse("\n"), std::runtime_error);
}

TEST_CASE("a file may be compressed, and half of one is refused") {
  const kvx_test::temporary_directory folder;
  std::string packed(4096, '\0');
  std::size_t size = 0;
  REQUIRE(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, nullptr, reinterpret_cast<const std::uint8_t*>(two_lines.data()),
                                  two_lines.size(), reinterpret_cast<std::uint8_t*>(packed.data()), &size,
                                  packed.size()) == LZMA_OK);
  packed.resize(size);
  const auto write = [&](const std::string& name, const std::string& bytes) {
    const std::string path = folder.path() + "/" + name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  };
  CHECK(to_json_lines(read_trace(write("a.xz", packed), 16)) == to_json_lines(parse(two_lines)));
  CHECK_THROWS_AS((void)read_trace(write("b.xz", packed.substr(0, size / 2)), 16), std::runtime_error);
  CHECK(read_trace(write("c", two_lines), 16, 1).size() == 1);
  CHECK_THROWS_AS((void)read_trace(folder.path() + "/absent", 16), std::runtime_error);
}

TEST_CASE("written lines read back the same") {
  const trace work = generate("mixed", 200, 5);
  const trace again = parse_trace(to_json_lines(work), "again", 512);
  CHECK(to_json_lines(again) == to_json_lines(work));
  CHECK(again.distinct() == work.distinct());
}

TEST_CASE("workloads keep the schema's rules, and a seed fixes them") {
  for (const workload_description& w : all_workloads()) {
    CAPTURE(w.name);
    const trace work = generate(w.name, 400, 1);
    CHECK(work.size() >= 300);
    CHECK(work.split_ids() == 0);
    CHECK(work.distinct() < work.blocks());
    for (std::size_t at = 1; at < work.size(); ++at) REQUIRE(work[at].timestamp_ms >= work[at - 1].timestamp_ms);
    CHECK(to_json_lines(work) == to_json_lines(generate(w.name, 400, 1)));
    CHECK(to_json_lines(work) != to_json_lines(generate(w.name, 400, 2)));
  }
  CHECK_THROWS_AS((void)generate("none", 10, 1), std::runtime_error);
}

TEST_CASE("a request continues the one whose blocks it has, all but the last") {
  //                         0          1        2 grows 0     3 another  4 goes on with 2     5 forks from 2's middle
  const trace work = parse(
      "{\"hash_ids\":[1,2,3]}\n{\"hash_ids\":[1,7,8]}\n{\"hash_ids\":[1,2,4,5]}\n{\"hash_ids\":[9]}\n"
      "{\"hash_ids\":[1,2,4,6,10]}\n{\"hash_ids\":[1,2,11]}\n");
  CHECK(continued_requests(work) == std::vector<std::size_t>{0, 1, 0, 3, 2, 5});
}

TEST_CASE("an engine knows of a tool call when it has written it, and that a client is gone when it goes") {
  const auto line = [](std::uint64_t at, const std::string& ids) {
    return "{\"timestamp\":" + std::to_string(at) + ",\"output_length\":50,\"hash_ids\":[" + ids + "]}\n";
  };
  // A tool's answer after 3 s, a person's 5 minutes later, and a client that asks once.
  const trace work = parse(line(0, "1,2,3") + line(3000, "1,2,3,4,5") + line(4000, "20,21") +
                           line(303'000, "1,2,3,4,5,6,7") + line(900'000, "30"));
  session_model model;
  const session_news news = derive_news(work, model);
  CHECK(news.at_request == kvx::session_state::open);
  CHECK(news.sessions == 3);
  CHECK(news.continued == 2);

  const auto first = of_request(news, 0);
  REQUIRE(first.size() == 1);
  CHECK(first[0].state == kvx::session_state::follow_up);
  CHECK_MESSAGE(first[0].at_ms == 1000, "50 tokens at 50 a second, and not before");
  CHECK_MESSAGE(of_request(news, 1).empty(), "nobody can tell that a person will come back after minutes");
  const auto once = of_request(news, 2);
  REQUIRE(once.size() == 1);
  CHECK(once[0].state == kvx::session_state::closed);
  CHECK(once[0].at_ms == 4000 + 1000 + 60'000);
  const auto last = of_request(news, 3);
  REQUIRE(last.size() == 1);
  CHECK(last[0].state == kvx::session_state::closed);
  for (std::size_t i = 1; i < news.events.size(); ++i) CHECK(news.events[i - 1].at_ms <= news.events[i].at_ms);

  model.silent_percent = 100;
  CHECK(derive_news(work, model).events.size() == 1);
}
