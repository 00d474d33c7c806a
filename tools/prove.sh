#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'USAGE'
The long proofs, of which tools/test.sh runs a part: every planted bug, 1,000 kills, a million operations against late and
lost I/O, 100,000 requests through the example connector, everything built by clang++ at -O0 and by g++ at -O0 without a
warning, and the examples under ThreadSanitizer. About an hour on two cores; before a release.

usage: tools/prove.sh [--build-dir D] [--jobs N]
  --build-dir D   default build/prove
  --jobs N        processes at a time (default: the processors)
USAGE
}

root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/prove
jobs=$(nproc)
while [ $# -gt 0 ]; do
  case $1 in
    --build-dir) build=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) echo "prove.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done

cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DKVX_BUILD_BENCHMARKS=OFF >/dev/null
cmake --build "$build" -j "$jobs" --target kill.kill ownership.ownership 06_connector
echo "=== kill -9, 1,000 cycles"
KVX_TEST_KILL_CYCLES=1000 "$build/tests/kill.kill"
echo "=== a million operations"
KVX_TEST_SCALE=10 "$build/tests/ownership.ownership"
echo "=== 100,000 requests"
"$build/examples/06_connector/06_connector" --requests 100000
echo "=== no warnings at -O0"
cmake -S "$root" -B "$build/clang" --preset clang >/dev/null
cmake --build "$build/clang" -j "$jobs"
cmake -S "$root" -B "$build/gcc" --preset gcc -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0 >/dev/null
cmake --build "$build/gcc" -j "$jobs"
echo "=== the examples under ThreadSanitizer"
cmake -S "$root" -B "$build/tsan" --preset tsan -DKVX_BUILD_TESTS=OFF >/dev/null
cmake --build "$build/tsan" -j "$jobs"
TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 ctest --test-dir "$build/tsan" -j "$jobs" --output-on-failure
echo "=== every planted bug"
"$root/tools/mutate.sh" --build-dir "$build/mutations" --jobs "$jobs"
