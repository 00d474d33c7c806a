// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <kvx/options.hpp>
#include <kvx/result.hpp>

#include <chrono>
#include <string>

namespace kvx::detail {

/// The options as they are, where a cache can be made of them; what depends on the layout is checked with it.
/// Errors  throws bad_argument, which names the option, the reason and the remedy
inline const options& checked_options(const options& o, bool collision_resistant) {
  const auto refuse = [](const std::string& text) { throw error(errc::bad_argument, text); };
  if (o.identity.model.empty()) refuse("identity.model is empty; name the model, or every model shares one cache");
  if (!o.root.empty() && !collision_resistant && !o.prompts_trusted)
    refuse("root '" + o.root +
           "' is shared storage and this hasher is not collision resistant: a crafted prompt could be served another "
           "prompt's blocks; use kvx::sha256, or set prompts_trusted if nobody who chooses prompts is hostile");
  if (o.tensor_rank >= o.tensor_size) refuse("tensor_rank must be below tensor_size");
  if (o.pipeline_rank >= o.pipeline_size) refuse("pipeline_rank must be below pipeline_size");
  if (o.load_deadline.count() <= 0 || o.save_deadline.count() <= 0)
    refuse("load_deadline and save_deadline must be positive; raise them rather than switch them off");
  constexpr std::chrono::hours most_patience{24 * 365};  // sums with the clock must not overflow
  for (const std::chrono::milliseconds given :
       {o.lease, o.load_deadline, o.save_deadline, o.drain_deadline, o.breaker_pause})
    if (given < std::chrono::milliseconds{0} || given > most_patience)
      refuse("lease, load_deadline, save_deadline, drain_deadline and breaker_pause must be from 0 to a year");
  if (o.writer_dead_after < std::chrono::milliseconds{20} || o.writer_dead_after > most_patience)
    refuse("writer_dead_after must be from 20 ms to a year; on a network file system give minutes");
  if (o.breaker_failures == 0) refuse("breaker_failures is 0; give the number of failures in a row that open it");
  return o;
}

}  // namespace kvx::detail
