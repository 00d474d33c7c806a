// SPDX-License-Identifier: Apache-2.0
#include <kvx/io/fault.hpp>
#include <kvx/io/posix.hpp>

#include "conformance.hpp"

#include <memory>

namespace {

template <class Backend>
struct always {
  using backend = Backend;
  static constexpr bool moves_files = true;
  static std::unique_ptr<Backend> make(const kvx::io_options& options) { return std::make_unique<Backend>(options); }
};

}  // namespace

TYPE_TO_STRING(always<kvx::posix>);
TYPE_TO_STRING(always<kvx::fault<kvx::posix>>);
KVX_IO_CONFORMANCE(always<kvx::posix>, always<kvx::fault<kvx::posix>>);
