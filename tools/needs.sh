# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by tools/*.sh. need_packages <command or file>=<package>...: installs what is missing on Debian and Ubuntu.

need_packages() {
  local item probe missing=()
  for item in "$@"; do
    probe=${item%%=*}
    case $probe in
      /*) compgen -G "$probe" >/dev/null || missing+=("${item#*=}") ;;
      *) command -v "$probe" >/dev/null 2>&1 || missing+=("${item#*=}") ;;
    esac
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "${install:-yes}" = no ]; then
    echo "missing packages: ${missing[*]}; install them or leave out --no-install" >&2
    return 1
  fi
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing: ${missing[*]} (Debian's names). This system has no apt-get: install their equivalents and run again" >&2
    return 1
  fi
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
      echo "missing packages: ${missing[*]}; installing them needs root, and there is no sudo: run as root or install them first" >&2
      return 1
    fi
    as_root=(sudo)
  fi
  echo "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

build_needs=("cmake=cmake" "ninja=ninja-build" "g++=g++" "pkg-config=pkg-config"
  "/usr/include/xxhash.h=libxxhash-dev"
  "/usr/include/liburing.h=liburing-dev"
  "/usr/include/openssl/evp.h=libssl-dev"
  "/usr/include/CLI/CLI.hpp=libcli11-dev"
  "/usr/include/nlohmann/json.hpp=nlohmann-json3-dev"
  "/usr/include/lzma.h=liblzma-dev"
  "/usr/include/httplib.h=libcpp-httplib-dev"
  "/usr/include/*/cblas.h=libopenblas-dev")

# shellcheck disable=SC2034  # read by tools/test.sh
test_needs=("${build_needs[@]}" "clang++=clang" "ccache=ccache" "patch=patch" "python3=python3"
  "/usr/include/doctest/doctest.h=doctest-dev"
  "/usr/include/benchmark/benchmark.h=libbenchmark-dev"
  "/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.tsan*=libclang-rt-dev")
