// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<openssl/evp.h>)
#error \
    "kvx/hash/sha256.hpp needs OpenSSL's libcrypto: install libssl-dev (Debian, Ubuntu) or openssl-devel (Fedora) and link kvx::openssl, from find_package(kvx COMPONENTS openssl)"
#endif

#include <kvx/concepts/contextual_hasher.hpp>
#include <kvx/concepts/hasher.hpp>
#include <kvx/types.hpp>

#include <openssl/evp.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>

namespace kvx {

/// SHA-256 of OpenSSL's libcrypto: keys that strangers cannot make collide.
///
/// Ends the process when libcrypto offers no SHA-256 at all (a configuration without any provider for it):
/// there is no digest that could be returned instead. A cache hashes its identity when it is constructed,
/// so that this shows at start, not under load.
/// Shape   32 bytes, the order of FIPS 180-4
/// Thread  any, concurrently
/// Cost    hash(): about 320 ns for 100 bytes, mostly OpenSSL looking the algorithm up; context: about 110 ns
/// Source  EVP_DigestInit(3), EVP_MD_fetch(3)
struct sha256 {
  using digest_type = digest<32>;
  static constexpr std::uint32_t id = 2;
  static constexpr bool collision_resistant = true;

  [[nodiscard]] static digest_type hash(std::span<const std::byte> bytes) noexcept {
    digest_type out;
    if (EVP_Digest(bytes.data(), bytes.size(), raw(out), nullptr, EVP_sha256(), nullptr) != 1) std::terminate();
    return out;
  }

  /// Hashes like `sha256::hash`, with the algorithm looked up once; see `contextual_hasher`.
  /// Thread  one caller at a time
  class context {
   public:
    context() noexcept : algorithm_(fetch()), state_(EVP_MD_CTX_new()) {}
    context(const context&) noexcept : context() {}
    context& operator=(const context&) noexcept { return *this; }

    [[nodiscard]] digest_type hash(std::span<const std::byte> bytes) noexcept {
      digest_type out;
      const bool done = algorithm_ && state_ && EVP_DigestInit_ex(state_.get(), algorithm_.get(), nullptr) == 1 &&
                        EVP_DigestUpdate(state_.get(), bytes.data(), bytes.size()) == 1 &&
                        EVP_DigestFinal_ex(state_.get(), raw(out), nullptr) == 1;
      return done ? out : sha256::hash(bytes);
    }

   private:
#if OPENSSL_VERSION_NUMBER >= 0x3000'0000L
    struct free_algorithm {
      void operator()(EVP_MD* algorithm) const noexcept { EVP_MD_free(algorithm); }
    };
    using algorithm_pointer = std::unique_ptr<EVP_MD, free_algorithm>;
    [[nodiscard]] static algorithm_pointer fetch() noexcept {
      return algorithm_pointer(EVP_MD_fetch(nullptr, "SHA256", nullptr));
    }
#else
    struct free_algorithm {
      void operator()(const EVP_MD*) const noexcept {}
    };
    using algorithm_pointer = std::unique_ptr<const EVP_MD, free_algorithm>;
    [[nodiscard]] static algorithm_pointer fetch() noexcept { return algorithm_pointer(EVP_sha256()); }
#endif
    struct free_state {
      void operator()(EVP_MD_CTX* state) const noexcept { EVP_MD_CTX_free(state); }
    };

    algorithm_pointer algorithm_;
    std::unique_ptr<EVP_MD_CTX, free_state> state_;
  };

 private:
  [[nodiscard]] static unsigned char* raw(digest_type& out) noexcept {
    return reinterpret_cast<unsigned char*>(out.bytes.data());
  }
};

static_assert(hasher<sha256>);
static_assert(contextual_hasher<sha256>);

}  // namespace kvx
