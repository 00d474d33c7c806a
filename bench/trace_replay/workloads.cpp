// SPDX-License-Identifier: Apache-2.0
#include "workloads.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <numbers>
#include <queue>
#include <stdexcept>
#include <utility>

namespace kvx_replay {

namespace {

/// splitmix64 and what is drawn from it. The standard's distributions differ between libraries.
class dice {
 public:
  explicit dice(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    std::uint64_t x = (state_ += 0x9e37'79b9'7f4a'7c15U);
    x = (x ^ (x >> 30U)) * 0xbf58'476d'1ce4'e5b9U;
    x = (x ^ (x >> 27U)) * 0x94d0'49bb'1331'11ebU;
    return x ^ (x >> 31U);
  }
  /// In [0, 1).
  double unit() { return static_cast<double>(bits() >> 11U) * 0x1.0p-53; }
  std::size_t below(std::size_t end) { return static_cast<std::size_t>(unit() * static_cast<double>(end)); }
  std::size_t between(std::size_t first, std::size_t last) { return first + below(last - first + 1); }
  bool chance(double probability) { return unit() < probability; }
  double exponential(double mean) { return -mean * std::log1p(-unit()); }
  /// Half of the values are below the median; two thirds are within a factor of e^spread of it.
  double lognormal(double median, double spread) {
    const double radius = std::sqrt(-2 * std::log1p(-unit()));
    return median * std::exp(spread * radius * std::cos(2 * std::numbers::pi * unit()));
  }
  template <class T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

 private:
  std::uint64_t state_;
};

/// Numbers from 0 to count - 1, of which the n-th is drawn in proportion to 1 / (n + 1)^exponent.
class zipf {
 public:
  zipf(std::size_t count, double exponent) {
    double sum = 0;
    for (std::size_t n = 0; n < count; ++n) {
      sum += std::pow(static_cast<double>(n + 1), -exponent);
      up_to_.push_back(sum);
    }
  }
  std::size_t operator()(dice& random) const {
    const double at = random.unit() * up_to_.back();
    const auto found = std::upper_bound(up_to_.begin(), up_to_.end(), at);
    return std::min(static_cast<std::size_t>(found - up_to_.begin()), up_to_.size() - 1);
  }

 private:
  std::vector<double> up_to_;
};

using prefix = std::vector<std::uint64_t>;

/// A trace under construction: hands out ids and puts requests in order.
class maker {
 public:
  maker(std::uint64_t seed, std::uint32_t block_tokens) : random(seed), out_(block_tokens) {}

  void grow(prefix& of, std::size_t blocks) {
    for (; blocks != 0; --blocks) of.push_back(next_id_++);
  }
  prefix fresh(std::size_t blocks) {
    prefix made;
    grow(made, blocks);
    return made;
  }

  /// The last block is partly filled, as it is nearly always.
  void ask(const prefix& blocks, double at_ms, std::size_t output_tokens) {
    now_ms = std::max(now_ms, at_ms);
    const std::uint64_t missing = random.below(out_.block_tokens());
    out_.add(static_cast<std::uint64_t>(now_ms), blocks.size() * out_.block_tokens() - missing, output_tokens, blocks);
  }
  /// A question about a document: its own block behind it, which nobody asks for again.
  void ask_about(const prefix& document) {
    prefix blocks = document;
    grow(blocks, 1);
    now_ms += random.exponential(500);
    ask(blocks, now_ms, random.between(50, 300));
  }

  [[nodiscard]] std::size_t size() const { return out_.size(); }
  [[nodiscard]] trace finish() { return std::move(out_); }

  dice random;
  double now_ms = 0;

 private:
  trace out_;
  std::uint64_t next_id_ = 0;
};

std::vector<prefix> documents(maker& make, std::size_t count, std::size_t shortest, std::size_t longest) {
  std::vector<prefix> made;
  for (; count != 0; --count) made.push_back(make.fresh(make.random.between(shortest, longest)));
  return made;
}

// --- long documents, several questions about each

constexpr std::size_t questions_per_document = 8;

enum class question_order : std::uint8_t { random, tiled, interleaved };

void ask_documents(maker& make, std::size_t requests, question_order order) {
  const std::size_t count = std::max<std::size_t>(4, requests / questions_per_document);
  const std::vector<prefix> all = documents(make, count, 8, 64);
  std::vector<std::size_t> sequence;
  for (std::size_t i = 0; i < count * questions_per_document; ++i) {
    sequence.push_back(order == question_order::tiled ? i / questions_per_document : i % count);
  }
  if (order == question_order::random) make.random.shuffle(sequence);
  for (const std::size_t document : sequence) make.ask_about(all[document]);
}

// --- sessions that go on over time

/// One client of a service: what it sends next and when.
struct client {
  prefix context;
  std::size_t turns_left = 0;
  bool agent = false;
  bool waits_for_tool = false;
};

struct session_shape {
  double arrivals_per_second;
  double agents;  ///< share of the sessions
  std::size_t system_prompts;
  double single_turns;  ///< share of the chats that ask once and leave
};

class service {
 public:
  service(maker& make, const session_shape& shape)
      : make_(make), shape_(shape), popularity_(shape.system_prompts, 1.0) {
    for (std::size_t i = 0; i < shape.system_prompts; ++i) {
      chat_prompts_.push_back(make.fresh(make.random.between(1, 4)));
      agent_prompts_.push_back(make.fresh(make.random.between(6, 24)));
    }
  }

  void run(std::size_t requests) {
    const std::size_t until = make_.size() + requests;
    double next_arrival = make_.now_ms;
    while (make_.size() < until) {
      if (waiting_.empty() || next_arrival <= waiting_.top().at_ms) {
        make_.now_ms = next_arrival;
        turn(arrive(), next_arrival);
        next_arrival += make_.random.exponential(1000 / shape_.arrivals_per_second);
        continue;
      }
      const appointment due = waiting_.top();
      waiting_.pop();
      client back = std::move(clients_[due.client]);
      free_.push_back(due.client);
      turn(std::move(back), due.at_ms);
    }
  }

 private:
  struct appointment {
    double at_ms;
    std::size_t client;
    [[nodiscard]] friend bool operator<(const appointment& a, const appointment& b) { return a.at_ms > b.at_ms; }
  };

  client arrive() {
    dice& random = make_.random;
    client made;
    made.agent = random.chance(shape_.agents);
    const std::size_t prompt = popularity_(random);
    made.context = made.agent ? agent_prompts_[prompt] : chat_prompts_[prompt];
    if (made.agent) {
      made.turns_left = static_cast<std::size_t>(random.lognormal(30, 0.8)) + 1;
      make_.grow(made.context, random.between(1, 8));
    } else if (random.chance(shape_.single_turns)) {
      made.turns_left = 1;
    } else {
      made.turns_left = 1 + static_cast<std::size_t>(random.exponential(4));
    }
    return made;
  }

  void turn(client who, double at_ms) {
    dice& random = make_.random;
    // The message; in a chat now and then a pasted document.
    const std::size_t message = who.agent ? 0 : random.chance(0.15) ? random.between(8, 40) : random.between(0, 2);
    make_.grow(who.context, message);
    prefix sent = who.context;
    make_.grow(sent, 1);
    const std::size_t written = random.between(20, who.agent ? 300 : 800);
    make_.ask(sent, at_ms, written);
    if (--who.turns_left == 0) return;
    // The answer and what a tool brought become part of the context.
    make_.grow(who.context, who.agent ? random.between(0, 4) : 1 + written / 512);
    const double writing_ms = static_cast<double>(written) * 20;
    const bool tool = who.agent && random.chance(0.9);
    const double pause_ms = tool ? random.lognormal(3'000, 1.2) : random.lognormal(45'000, 1.0);
    std::size_t place = clients_.size();
    if (free_.empty()) {
      clients_.emplace_back();
    } else {
      place = free_.back();
      free_.pop_back();
    }
    clients_[place] = std::move(who);
    waiting_.push({at_ms + writing_ms + pause_ms, place});
  }

  maker& make_;
  session_shape shape_;
  zipf popularity_;
  std::vector<prefix> chat_prompts_;
  std::vector<prefix> agent_prompts_;
  std::vector<client> clients_;
  std::vector<std::size_t> free_;
  std::priority_queue<appointment> waiting_;
};

constexpr session_shape chat_shape{.arrivals_per_second = 1.0, .agents = 0, .system_prompts = 4, .single_turns = 0.4};
constexpr session_shape agent_shape{.arrivals_per_second = 0.05, .agents = 1, .system_prompts = 6, .single_turns = 0};
constexpr session_shape mixed_shape{
    .arrivals_per_second = 0.7, .agents = 0.08, .system_prompts = 5, .single_turns = 0.4};

// --- the rest

void shared_prompts(maker& make, std::size_t requests) {
  const std::vector<prefix> prompts = documents(make, 200, 2, 32);
  const zipf popularity(prompts.size(), 1.1);
  while (make.size() < requests) {
    prefix blocks = prompts[popularity(make.random)];
    make.grow(blocks, make.random.between(1, 12));
    make.now_ms += make.random.exponential(300);
    make.ask(blocks, make.now_ms, make.random.between(20, 400));
  }
}

/// Documents that are asked for all the time, and runs through long ones that nobody asks for again.
void scans(maker& make, std::size_t requests) {
  const std::vector<prefix> often = documents(make, 60, 4, 24);
  while (make.size() < requests) {
    for (std::size_t i = 0; i < 120 && make.size() < requests; ++i)
      make.ask_about(often[make.random.below(often.size())]);
    for (std::size_t i = 0; i < 60 && make.size() < requests; ++i)
      make.ask_about(make.fresh(make.random.between(16, 64)));
  }
}

void loop(maker& make, std::size_t requests) {
  const std::vector<prefix> all = documents(make, std::max<std::size_t>(8, requests / 12), 4, 24);
  for (std::size_t i = 0; make.size() < requests; ++i) make.ask_about(all[i % all.size()]);
}

void zipf_documents(maker& make, std::size_t requests) {
  const std::vector<prefix> all = documents(make, std::max<std::size_t>(16, requests / 4), 4, 32);
  const zipf popularity(all.size(), 0.9);
  std::vector<std::size_t> rank(all.size());
  for (std::size_t i = 0; i < rank.size(); ++i) rank[i] = i;
  make.random.shuffle(rank);
  while (make.size() < requests) make.ask_about(all[rank[popularity(make.random)]]);
}

/// The chance that a document is asked for again falls with the time since it was asked for, and with nothing else.
void recency(maker& make, std::size_t requests) {
  std::deque<prefix> latest_first;
  while (make.size() < requests) {
    const auto place = static_cast<std::size_t>(make.random.exponential(120));
    prefix document;
    if (place < latest_first.size()) {
      document = std::move(latest_first[place]);
      latest_first.erase(latest_first.begin() + static_cast<std::ptrdiff_t>(place));
    } else {
      document = make.fresh(make.random.between(4, 32));
    }
    make.ask_about(document);
    latest_first.push_front(std::move(document));
    if (latest_first.size() > 2000) latest_first.pop_back();
  }
}

/// Traffic that turns into another kind every so often.
void phases(maker& make, std::size_t requests) {
  const std::size_t each = std::max<std::size_t>(1, requests / 8);
  for (std::size_t phase = 0; make.size() < requests; ++phase) {
    switch (phase % 4) {
      case 0:
        service(make, chat_shape).run(each);
        break;
      case 1: {
        const std::vector<prefix> all = documents(make, std::max<std::size_t>(4, each / 6), 8, 48);
        for (std::size_t i = 0; i < each; ++i) make.ask_about(all[i % all.size()]);
        break;
      }
      case 2:
        service(make, agent_shape).run(each);
        break;
      default: {
        const std::vector<prefix> all = documents(make, std::max<std::size_t>(16, each / 3), 4, 24);
        const zipf popularity(all.size(), 1.0);
        for (std::size_t i = 0; i < each; ++i) make.ask_about(all[popularity(make.random)]);
      }
    }
  }
}

struct workload {
  workload_description description;
  std::function<void(maker&, std::size_t)> make;
};

const std::vector<workload>& workloads() {
  static const std::vector<workload> all{
      {{"qa_random", "long documents, eight questions about each, in random order"},
       [](maker& m, std::size_t n) { ask_documents(m, n, question_order::random); }},
      {{"qa_tiled", "the same, all questions about a document in a row"},
       [](maker& m, std::size_t n) { ask_documents(m, n, question_order::tiled); }},
      {{"qa_interleaved", "the same, the first question about every document, then the second"},
       [](maker& m, std::size_t n) { ask_documents(m, n, question_order::interleaved); }},
      {{"chat", "people in multi-turn chats, who think between turns; many ask once"},
       [](maker& m, std::size_t n) { service(m, chat_shape).run(n); }},
      {{"agents", "agents with long system prompts and many tool calls"},
       [](maker& m, std::size_t n) { service(m, agent_shape).run(n); }},
      {{"mixed", "chats and agents together"}, [](maker& m, std::size_t n) { service(m, mixed_shape).run(n); }},
      {{"shared_prompts", "system prompts of uneven popularity, a new question behind each"}, shared_prompts},
      {{"scans", "a set of documents in use, and runs through documents that are read once"}, scans},
      {{"phases", "chat, a loop, agents and Zipf documents in turn, each time with new contents"}, phases},
      {{"loop", "documents in rotation"}, loop},
      {{"zipf", "documents of Zipf popularity, which never changes"}, zipf_documents},
      {{"recency", "reuse that depends on the time since the last use alone"}, recency},
  };
  return all;
}

}  // namespace

const std::vector<workload_description>& all_workloads() {
  static const std::vector<workload_description> all = [] {
    std::vector<workload_description> out;
    for (const workload& w : workloads()) out.push_back(w.description);
    return out;
  }();
  return all;
}

trace generate(const std::string& name, std::size_t requests, std::uint64_t seed, std::uint32_t block_tokens) {
  for (const workload& w : workloads()) {
    if (w.description.name != name) continue;
    maker make(seed, block_tokens);
    w.make(make, requests);
    return make.finish();
  }
  std::string known;
  for (const workload& w : workloads()) known.append(known.empty() ? "" : ", ").append(w.description.name);
  throw std::runtime_error(name + " is no workload: there are " + known);
}

}  // namespace kvx_replay
