// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/detail/file.hpp>
#include <kvx/result.hpp>
#include <kvx/store/directory.hpp>
#include <kvx/store/names.hpp>
#include <kvx/store/slab.hpp>
#include <kvx/types.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvx::store {

/// What a look into one numbered extent found.
struct extent_sight {
  std::uint64_t number = 0;
  std::vector<writer_id> slabs;  ///< whose; none: claimed and not yet, or never, filled
  bool foreign_names = false;    ///< something in it is not ours to touch
};

/// Looks into one extent.
/// Errors  io_failed: ENOENT: nobody has claimed it; errno of the system
inline result<extent_sight> see_extent(int extents, std::uint64_t number) {
  const auto directory = detail::open_directory(extents, std::to_string(number).c_str());
  if (!directory) return directory.status();
  const auto names = list_names(directory->fd());
  if (!names) return names.status();
  extent_sight sight{number, {}, false};
  for (const std::string& name : *names) {
    if (const auto writer = parse_slab_name(name)) {
      sight.slabs.push_back(*writer);
    } else if (!name.starts_with(".nfs")) {  // NFS's name for what is unlinked and still open
      sight.foreign_names = true;
    }
  }
  return sight;
}

/// Looks into every claimed extent, in the order of their numbers.
/// Errors  io_failed: the extents could not be listed; one that cannot be looked into counts as not ours to touch
/// Cost    one listing, and one open and listing per extent
inline result<std::vector<extent_sight>> see_extents(int extents) {
  const auto names = list_names(extents);
  if (!names) return names.status();
  std::vector<extent_sight> sights;
  for (const std::string& name : *names) {
    const auto number = parse_number(name);
    if (!number) continue;
    auto sight = see_extent(extents, *number);
    if (sight) {
      sights.push_back(std::move(*sight));
    } else if (!is_gone(sight.status())) {
      sights.push_back({*number, {}, true});
    }
  }
  std::sort(sights.begin(), sights.end(), [](const auto& a, const auto& b) { return a.number < b.number; });
  return sights;
}

/// Takes one writer's slab out of an extent, and gives the extent back when nothing else is in it.
///
/// Only that exact name is unlinked: whoever has claimed the extent since keeps it.
/// Errors  io_failed: ENOTEMPTY: somebody else's slab is there; errno of the system
inline status give_back_extent(int extents, std::uint64_t number, const writer_id& writer) {
  const std::string name = std::to_string(number);
  if (const auto directory = detail::open_directory(extents, name.c_str())) {
    if (const status failure = remove_file(directory->fd(), slab_name(writer).c_str()); !failure) return failure;
  } else if (!is_gone(directory.status())) {
    return directory.status();
  }
  return remove_directory(extents, name.c_str());
}

/// Whether `writer`'s slab is still where it was made.
/// Errors  io_failed: not known
inline result<bool> slab_is_there(int extents, std::uint64_t number, const writer_id& writer) {
  const std::string path = std::to_string(number) + "/" + slab_name(writer);
  struct ::stat about {};
  if (::fstatat(extents, path.c_str(), &about, AT_SYMLINK_NOFOLLOW) == 0) return true;
  const status failure = detail::last_error();
  if (is_gone(failure)) return false;
  return failure;
}

/// What a claim needs to know.
struct extent_claim {
  std::uint64_t bytes = 0;  ///< length of the slab
  bool direct = true;
  bool preallocate = true;
  slab_facts facts;
};

namespace extents_impl {

// Fills a directory that we made, or believe we did.
inline result<detail::opened_file> make_slab(int directory, const extent_claim& claim,
                                             const store_description& description) {
  const std::string name = slab_name(claim.facts.writer);
  auto slab = detail::create_file(directory, name.c_str(),
                                  claim.direct ? detail::file_mode::direct : detail::file_mode::buffered);
  if (!slab) return slab;
  // Between mkdir and open somebody may have taken our empty directory for a dead writer's and another one may have
  // made it again. Of two slabs in one extent at least the later one sees both, and withdraws.
  const auto names = list_names(directory);
  if (!names) return names.status();
  if (names->size() != 1 || names->front() != name) return errc::miss;
  const int fd = slab->handle.fd();
  if (claim.preallocate) {
    if (const auto reserved = detail::preallocate(fd, claim.bytes); !reserved) return reserved.status();
  } else if (::ftruncate(fd, static_cast<off_t>(claim.bytes)) != 0) {
    return detail::last_error();
  }
  slab->size_bytes = claim.bytes;
  if (const status failure = write_superblock(*slab, description, claim.facts); !failure) return failure;
  return slab;
}

}  // namespace extents_impl

/// Claims a numbered extent and makes its slab. mkdir is the claim: of all that try, on all machines, one succeeds.
/// Errors  miss: it is somebody else's; no_space: the file system is full; io_failed: errno of the system
/// Cost    a mkdir, a create, a listing, the reservation, one page written
inline result<detail::opened_file> claim_extent(int extents, const extent_claim& claim,
                                                const store_description& description) {
  const std::string name = std::to_string(claim.facts.extent);
  const auto directory = detail::make_directory(extents, name.c_str());
  if (!directory) {
    const int failed = directory.status().os_error();
    if (failed == EEXIST || failed == ENOENT) return errc::miss;
    if (failed == ENOSPC || failed == EDQUOT) return errc::no_space;
    return directory.status();
  }
  auto slab = extents_impl::make_slab(directory->fd(), claim, description);
  if (slab) return slab;
  (void)give_back_extent(extents, claim.facts.extent, claim.facts.writer);
  const int failed = slab.status().os_error();
  if (failed == ENOENT || failed == ESTALE) return errc::miss;
  if (failed == ENOSPC || failed == EDQUOT) return errc::no_space;
  return slab.status();
}

}  // namespace kvx::store
