// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>

#include "kv_cache.hpp"

namespace mini_engine {

/// What computes.
enum class device_kind { cpu, cuda };

/// The device that was asked for is not to be had: by this build, or on this machine.
struct no_device : std::runtime_error {
  using runtime_error::runtime_error;
};

/// The command line.
struct options {
  std::string checkpoint, model, tokenizer, prompt, prompt_file;
  device_kind device = device_kind::cpu;
  std::size_t prompt_tokens = 0;  // 0: the prompt is a text
  std::size_t tokens = 256;
  float temperature = 0, top_p = 0.9f;
  std::uint64_t seed = 1;
  std::size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::size_t block_tokens = 16;
  std::size_t chunk = 0;  // 0: default_chunk, or what --compare finds fastest

  cache_settings cache;
  bool no_cache = false, always_load = false;
  std::string json;
  bool progress = false;

  bool profile = false, compare = false, compare_child = false, chat = false;
  std::string swap_block;  // I:J
  std::size_t users = 4, turns = 5, system_tokens = 512, message_tokens = 64;
  std::size_t kv_tokens = 0;  // 0: room for all conversations
  std::size_t pairs = 5;
};

/// The fastest of 128 to 2048 that --profile measures, by a few per cent.
inline constexpr std::size_t default_chunk = 1024;

}  // namespace mini_engine
