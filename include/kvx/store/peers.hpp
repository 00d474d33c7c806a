// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/result.hpp>
#include <kvx/store/directory.hpp>
#include <kvx/store/extents.hpp>
#include <kvx/store/heartbeat.hpp>
#include <kvx/store/names.hpp>
#include <kvx/types.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace kvx::store {

/// Who else uses a root, which extents are claimed, and who among them is dead.
///
/// Dead means: said so itself, or its heartbeat stood still for `dead_after` of this observer's monotonic clock. An
/// extent whose maker never came as far as its slab is abandoned when it stood empty that long.
/// Thread  one caller
class peers {
 public:
  explicit peers(std::chrono::milliseconds dead_after) : dead_after_(dead_after) {}

  /// Looks at every extent and every writer's directory.
  /// Cost    one listing per claimed extent
  status scan(int extents, int writers, steady_time now) {
    auto sights = see_extents(extents);
    if (!sights) return sights.status();
    const auto names = list_names(writers);
    if (!names) return names.status();
    sights_ = std::move(*sights);
    std::set<writer_id> present;
    std::set<std::uint64_t> empty;
    for (const extent_sight& sight : sights_) {
      present.insert(sight.slabs.begin(), sight.slabs.end());
      if (!sight.slabs.empty() || sight.foreign_names) continue;
      empty.insert(sight.number);
      empty_[sight.number].look(1, now, dead_after_);
    }
    for (const std::string& name : *names) {
      if (const auto writer = parse_writer(name)) present.insert(*writer);
    }
    keep_only(writers_, present);
    keep_only(empty_, empty);
    for (const writer_id& writer : present) writers_.try_emplace(writer);
    return {};
  }

  /// Looks at the heartbeat of every writer seen by scan(), `self` left out.
  /// Cost    one small file read per writer
  void look(int writers, const writer_id& self, steady_time now) {
    for (auto& [writer, known] : writers_) {
      if (writer != self) (void)look_at(writers, writer, known, now);
    }
  }

  /// Looks once more, right before something irreversible.
  [[nodiscard]] bool still_dead(int writers, const writer_id& writer) {
    const auto known = writers_.find(writer);
    if (known == writers_.end() || !dead(known->second)) return false;
    const auto sight = see_heartbeat(writers, writer);
    return sight && (sight->closed || sight->fingerprint == known->second.still.fingerprint());
  }

  [[nodiscard]] bool is_dead(const writer_id& writer) const {
    const auto known = writers_.find(writer);
    return known != writers_.end() && dead(known->second);
  }
  [[nodiscard]] bool is_abandoned(std::uint64_t extent) const {
    const auto known = empty_.find(extent);
    return known != empty_.end() && known->second.lasts(dead_after_);
  }

  /// The claimed extents as of the last scan, in the order of their numbers.
  [[nodiscard]] const std::vector<extent_sight>& extents() const noexcept { return sights_; }
  [[nodiscard]] const extent_sight* find(std::uint64_t number) const noexcept {
    const auto at = std::lower_bound(sights_.begin(), sights_.end(), number,
                                     [](const extent_sight& sight, std::uint64_t n) { return sight.number < n; });
    return at != sights_.end() && at->number == number ? &*at : nullptr;
  }
  void forget_extent(std::uint64_t number) {
    std::erase_if(sights_, [number](const extent_sight& sight) { return sight.number == number; });
    empty_.erase(number);
  }

  /// Dead writers that have no extent any more: only their directory is left.
  [[nodiscard]] std::vector<writer_id> leftovers() const {
    std::set<writer_id> holders;
    for (const extent_sight& sight : sights_) holders.insert(sight.slabs.begin(), sight.slabs.end());
    std::vector<writer_id> out;
    for (const auto& [writer, known] : writers_) {
      if (dead(known) && holders.count(writer) == 0) out.push_back(writer);
    }
    return out;
  }
  void forget_writer(const writer_id& writer) { writers_.erase(writer); }

 private:
  struct peer {
    stillness still;
    bool closed = false;
  };

  [[nodiscard]] bool dead(const peer& known) const noexcept { return known.closed || known.still.lasts(dead_after_); }

  status look_at(int writers, const writer_id& writer, peer& known, steady_time now) const {
    const auto sight = see_heartbeat(writers, writer);
    if (!sight) return sight.status();
    known.still.look(sight->fingerprint, now, dead_after_);
    known.closed = sight->closed;
    return {};
  }

  template <class Map, class Set>
  static void keep_only(Map& map, const Set& keys) {
    for (auto it = map.begin(); it != map.end();) it = keys.count(it->first) != 0 ? std::next(it) : map.erase(it);
  }

  std::chrono::milliseconds dead_after_;
  std::vector<extent_sight> sights_;
  std::map<writer_id, peer> writers_;
  std::map<std::uint64_t, stillness> empty_;
};

/// Removes what a dead writer left in `writers/`: only names that writers give.
inline status remove_writer(int writers, const writer_id& writer) {
  const std::string name = to_name(writer);
  const auto directory = detail::open_directory(writers, name.c_str());
  if (!directory) return is_gone(directory.status()) ? status{} : directory.status();
  const auto names = list_names(directory->fd());
  if (!names) return names.status();
  // The heartbeat last: a writer that lives after all misses it and starts anew.
  for (const std::string& each : *names) {
    if (!parse_segment_name(each) && !parse_checkpoint_name(each)) continue;
    if (const status failure = remove_file(directory->fd(), each.c_str()); !failure) return failure;
  }
  if (const status failure = remove_file(directory->fd(), heartbeat_name); !failure) return failure;
  return remove_directory(writers, name.c_str());
}

}  // namespace kvx::store
