// SPDX-License-Identifier: Apache-2.0
#include "keys.hpp"

#include <kvx/hash/xxh3_128.hpp>

TEST_CASE("keys of xxh3_128") {
  kvx_test::check_golden_keys<kvx::xxh3_128>({
      .hash_of_nothing = "99aa06d3014798d86001c324468d497f",
      .hash_of_0_to_255 = "f1f8a93f50849ac39408a4433b952d71",
      .empty_identity = "804e6e2db7ec245dff68edca7b2854cb",
      .identity = "5cdabd5259dcda305b6b32f4587cc1d2",
      .empty_root = "cd2de785240fc754f5e713eba37047bb",
      .root = "a319277499f63b63983dcb1a7c116bcd",
      .scoped_root = "b4f3545ee232555c38a3ed8593084063",
      .keys = {"68b7da1f59daedd1c77c99a878701eba", "308cf41c22dd0ff9515162c1aba43390",
               "b4c0601ac647d49a3901fde8ffd976a0", "969c9edce1366fe6afe01c22eb847e49"},
      .keys_of_1024 = {"7be19248aeb182da348e4afdb6ff6a38", "9321d276cf3fde68f295e3a8da696b6d"},
      .keys_of_1 = {"b8a801862eaa27b3b554283e023d75bc", "d7c4e8d8671832e0de39b571f6e97457"},
  });
}
