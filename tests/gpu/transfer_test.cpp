// SPDX-License-Identifier: Apache-2.0
#include <kvx/transfer/cuda.hpp>

#include "../transfer/conformance.hpp"

#include <doctest/doctest.h>

#include "fixture.hpp"

using namespace kvx_test;
using kvx::cuda_technique;
using kvx_gpu::cuda_fixture;

namespace {

using chosen = cuda_fixture<-1, false>;
using chosen_in_one_range = cuda_fixture<-1, true>;
using strided = cuda_fixture<static_cast<int>(cuda_technique::strided), true>;
using strided_refused = cuda_fixture<static_cast<int>(cuda_technique::strided), false>;
using batched = cuda_fixture<static_cast<int>(cuda_technique::batched), false>;
using staged = cuda_fixture<static_cast<int>(cuda_technique::staged), false>;
using direct = cuda_fixture<static_cast<int>(cuda_technique::direct), false>;

}  // namespace

TYPE_TO_STRING(chosen);
TYPE_TO_STRING(chosen_in_one_range);
TYPE_TO_STRING(strided);
TYPE_TO_STRING(strided_refused);
TYPE_TO_STRING(batched);
TYPE_TO_STRING(staged);
TYPE_TO_STRING(direct);

TEST_CASE_TEMPLATE_INVOKE(transfer_conformance, chosen, chosen_in_one_range, strided, strided_refused, batched, staged,
                          direct);
