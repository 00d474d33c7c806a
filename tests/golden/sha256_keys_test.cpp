// SPDX-License-Identifier: Apache-2.0
#include "keys.hpp"

#include <kvx/hash/sha256.hpp>

TEST_CASE("keys of sha256") {
  kvx_test::check_golden_keys<kvx::sha256>({
      .hash_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
      .hash_of_0_to_255 = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880",
      .empty_identity = "9fddfa4b57dcaeb4f475aeb3704630235e084867f1c015b4f99e675f87776e8b",
      .identity = "f7b0642ce220c5e96e53abd434f4c86a1a89af0aa3e9931fa546e87990024b98",
      .empty_root = "7c16528e486c3503698be572dea58fb2bb1e1a9528d53d9cbdd2e3b86786dd44",
      .root = "b8c5932cd372ae5152472805fa6bbf6a28993f549d1a10448f12f56ad9576d15",
      .scoped_root = "6821990b1f6aae03b37ed016a2be4f41adfc4b3ae8b9a2a2fc668a3b3b7e4ba6",
      .keys = {"a4774d12a7ce35006935843b1e5cd8677528386bfefe9a9431aeaaf8b9a9ffcf",
               "aa73541a3be0d6195bd384fd413debad2f5fcb34c1466cd14b560f9798e20999",
               "d881b857be190d0ae27345048fa868e400ded5acb4c155066944eb4b38932386",
               "84397e4f7becfa44cdb668acfab158166f7e0f2d028164cebc639188dfc978de"},
      .keys_of_1024 = {"a3174c2a24ee6e93c8cb6d8216095688d8301713202bd3272dc83050de54ba4f",
                       "443f0f5a485a1feea73bce0cb38624bd9ee7e7a6e327c7bd8adcf91f77535f07"},
      .keys_of_1 = {"7ce59a261a72bf78c47a8b4b4c689907c90b643c40b28c098c80977373312f7b",
                    "6c818c478a84056c67addcdc8bf222992983e26db8304db214f9b44c8f484227"},
  });
}
