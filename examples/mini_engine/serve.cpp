// SPDX-License-Identifier: Apache-2.0
#include "serve_definitions.hpp"

namespace mini_engine {

template class basic_server<transformer, kvx::host_stream>;

}  // namespace mini_engine
