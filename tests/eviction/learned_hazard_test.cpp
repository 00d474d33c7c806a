// SPDX-License-Identifier: Apache-2.0
#include "conformance.hpp"

#include <kvx/eviction/learned_hazard.hpp>

TEST_CASE_TEMPLATE_INVOKE(eviction_conformance, kvx::learned_hazard);
