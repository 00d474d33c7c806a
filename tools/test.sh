#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'USAGE'
Builds and runs every test of kvx: lint; clang++ with AddressSanitizer and UBSan, with ThreadSanitizer where there are
threads, and without what those leave out; one or two planted bugs for each promise (tools/prove.sh plants them all); and
last the main run, g++ release, whose ctest summary ends the output. Stops at the first part that fails.

usage: tools/test.sh [--quick] [--preset P] [--jobs N] [--data DIR] [--no-install]
  --quick        the main run alone
  --preset P     that preset of CMakePresets.json alone (release, debug, gcc, clang, asan, tsan)
  --jobs N       processes at a time (default: the processors)
  --data DIR     directory with models/ and traces/ for the tests that read real data; without it they are skipped
  --no-install   fail where a package is missing, rather than install it
USAGE
}

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
# Paths below the tree count as relative, so that clones share what was compiled.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=true
jobs=$(nproc)
quick=no
only=
data=
install=yes
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes; shift ;;
    --preset) only=${2:?--preset needs a name}; shift 2 ;;
    --jobs) jobs=${2:?--jobs needs a number}; shift 2 ;;
    --data) data=${2:?--data needs a directory}; shift 2 ;;
    --no-install) install=no; shift ;;
    -h|--help) usage; exit 0 ;;
    *) echo "test.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done

if [ -n "$data" ]; then
  [ -d "$data" ] || { echo "test.sh: --data $data is no directory" >&2; exit 2; }
  data=$(cd "$data" && pwd)
  if [ -d "$data/models" ]; then export KVX_TEST_MODELS=$data/models; fi
  if [ -d "$data/traces" ]; then export KVX_TEST_TRACES=$data/traces; fi
fi

# shellcheck source=tools/needs.sh
. tools/needs.sh
need_packages "${test_needs[@]}"

part() { printf '\n=== %s (%d s) ===\n' "$*" "$SECONDS"; }

# Tests whose build fails count as failed in ctest's summary; a bench or an example fails the part all the same.
# usage: run PRESET [CMAKE_OPTION...]
run() {
  local preset=$1 built=yes
  shift
  part "$preset: build"
  cmake --preset "$preset" "$@"
  cmake --build --preset "$preset" -j "$jobs" -- -k 0 | sed -u '/^\[[0-9]*\/[0-9]*\] /d' || built=no
  if [ "$built" = no ]; then echo "$preset: not everything compiles, see above" >&2; fi
  part "$preset: test"
  ctest --preset "$preset" -j "$jobs"
  [ "$built" = yes ]
}

if [ -n "$only" ]; then
  run "$only"
  exit
fi

if [ "$quick" = no ]; then
  part lint
  tools/check.sh
  run asan
  run tsan -DKVX_BUILD_EXAMPLES=OFF
  # The sanitized builds leave out the benches and what compilers may see differently.
  run clang "-DKVX_TEST_TOPICS=compile_fail;consumer;version" -DKVX_BUILD_EXAMPLES=OFF
  part "planted bugs"
  tools/mutate.sh --ci --jobs "$jobs"
fi
run gcc
