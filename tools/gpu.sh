#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2317  # functions are called by name, under a time limit
set -euo pipefail

usage() {
  cat <<'USAGE'
Builds and runs everything that needs a GPU, without a network, and writes one JSON of what came out.

usage: tools/gpu.sh [--only STEPS] [--json FILE] [--build-dir D] [--vendor PREFIX] [--storage DIR] [--memory-fs DIR]
                    [--models DIR] [--jobs N] [--round-trips N]
  --only STEPS      of transfer,planted,roundtrip,bench,sanitizer,engine, with commas (default: all)
  --json FILE       default build/gpu/gpu.json
  --build-dir D     default build/gpu
  --vendor PREFIX   a prefix (include/, lib/cmake/) with what the machine lacks of xxHash, doctest, CLI11 and nlohmann-json
  --storage DIR     a directory on a disk, for blocks on storage (default: the system's temporary directory)
  --memory-fs DIR   one on a RAM file system, standing in for fast storage (default /dev/shm)
  --models DIR      llama2.c checkpoints for the mini engine, if there are any
  --jobs N          compilers at a time (default: the processors)
  --round-trips N   blocks that go the whole way in `roundtrip` (default 1,000,000)

transfer   the conformance suite over cuda_transfer, captures of graphs, errors, checksums, slots from files (cufile)
planted    a build whose copies do not wait for the engine's stream, which the suite must catch
roundtrip  the whole cache, blocks from device memory to storage and back
bench      rates, slowdown of other work; from storage into pages, through memory and straight
sanitizer  compute-sanitizer's memcheck and racecheck over a small run
engine     the mini engine's tests and its comparison

Each step has a time limit. Ends with 0 when no step failed; steps that cannot run here are reported as skipped.
USAGE
}

root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/gpu
json=
only=transfer,planted,roundtrip,bench,sanitizer,engine
vendor=
storage=${TMPDIR:-/tmp}
memory_fs=/dev/shm
models=
jobs=$(nproc)
round_trips=1000000
while [ $# -gt 0 ]; do
  case $1 in
    --only) only=$2; shift 2 ;;
    --json) json=$2; shift 2 ;;
    --build-dir) build=$2; shift 2 ;;
    --vendor) vendor=$(cd "$2" && pwd); shift 2 ;;
    --storage) storage=$2; shift 2 ;;
    --memory-fs) memory_fs=$2; shift 2 ;;
    --models) models=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --round-trips) round_trips=$2; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) echo "gpu.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done
mkdir -p "$build"
build=$(cd "$build" && pwd)
json=${json:-$build/gpu.json}
results=$build/results
rm -rf "$results"
mkdir -p "$results"

has() { [[ ,$only, == *,$1,* ]]; }

# step NAME SECONDS COMMAND...: runs it, shows its output, keeps the outcome for the JSON. 77: skipped.
failed=0
step() {
  local name=$1 limit=$2 code=0 began=$SECONDS
  shift 2
  printf '\n=== %s (%d s)\n' "$name" "$SECONDS"
  timeout "$limit" "$@" 2>&1 | tee "$results/$name.log" || code=${PIPESTATUS[0]}
  local outcome=failed
  case $code in
    0) outcome=passed ;;
    77) outcome=skipped ;;
    124|137) outcome="over the limit of $limit s" ;;
  esac
  [ "$code" -eq 0 ] || [ "$code" -eq 77 ] || failed=1
  printf '%s\n%s\n' "$outcome" "$((SECONDS - began))" >"$results/$name.outcome"
  echo "=== $name: $outcome"
}

configure() {  # DIR [OPTION...]
  local dir=$1
  shift
  cmake -S "$root" -B "$dir" -G Ninja -DCMAKE_BUILD_TYPE=Release ${vendor:+"-DCMAKE_PREFIX_PATH=$vendor"} "$@" \
    >"$dir.log" 2>&1 || { cat "$dir.log"; return 1; }
}

build_all() {
  configure "$build/cmake" "-DKVX_BUILD_EXAMPLES=$(has engine && echo ON || echo OFF)" || return 1
  local targets=(gpu.transfer gpu.capture gpu.errors gpu.checksum gpu.cufile gpu.roundtrip)
  if has bench; then targets+=(cuda_transfer_bench direct_load_bench); fi
  if has engine; then targets+=(mini_engine mini_engine_cuda_kernels_test mini_engine_cuda_engine_test); fi
  cmake --build "$build/cmake" -j "$jobs" --target "${targets[@]}" | tail -3 || return 1
}

# Whether a test is red because of what it checks. A skip is passed on; a program that cannot run, or dies, is no proof.
judge() {  # PROGRAM LOG
  local code=0
  "$1" >"$2" 2>&1 || code=$?
  case $code in
    0)
      echo "the suite is green with copies that do not wait for the engine's stream"
      return 1
      ;;
    77)
      cat "$2"
      return 77
      ;;
  esac
  grep -Eq '^\[doctest\] assertions:.*\| +[1-9][0-9]* failed \|' "$2" && return 0
  echo "the suite ended with code $code and no failed assertion, which proves nothing:"
  tail -n 20 "$2"
  return 1
}

# The mutation's build must turn the suite red, and that for the reason that it names.
planted() {
  local copy=$build/planted bug=$root/tests/mutations/transfer_cuda_ignores_the_engines_stream.patch
  rm -rf "$copy/include"
  mkdir -p "$copy"
  cp -r "$root/include" "$copy/include"
  (cd "$copy" && git apply -p1 "$bug" 2>/dev/null || patch -s -p1 -d "$copy" <"$bug") || return 1
  configure "$copy/cmake" -DKVX_BUILD_EXAMPLES=OFF -DKVX_BUILD_BENCHMARKS=OFF "-DKVX_INCLUDE_OVERRIDE=$copy/include" || return 1
  cmake --build "$copy/cmake" -j "$jobs" --target gpu.transfer | tail -1 || return 1
  judge "$copy/cmake/tests/gpu.transfer" "$copy/test.log" || return
  grep -E "ERROR|test cases:|assertions:" "$copy/test.log" | sort | uniq -c | sort -rn | head -5 || true
  echo "caught: copies that do not wait for the engine's stream"
}

sanitize() {  # TOOL PROGRAM [ARGUMENT...]
  local tool=$1
  shift
  local program
  program=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  [ -x "$program" ] || { echo "compute-sanitizer is not installed"; return 77; }
  # Errors that the runtime returns are part of the library's life: it tries matrices, and asks events that are not ready.
  local quiet=()
  if [ "$tool" = memcheck ]; then quiet=(--report-api-errors no); fi
  "$program" --tool "$tool" ${quiet[@]+"${quiet[@]}"} --error-exitcode 9 "$@"
}

engine() {
  local program=$build/cmake/examples/mini_engine/mini_engine
  if [ ! -x "$program" ] || ! "$program" --help 2>&1 | grep -q -- --device; then
    echo "the mini engine is not built for a GPU"
    return 77
  fi
  "$root/examples/mini_engine/gpu.sh" "$program" "$storage" "$memory_fs" "$results" ${models:+"$models"}
}
export -f planted judge configure sanitize engine
export root build jobs vendor results storage memory_fs models

step build 600 bash -o pipefail -c "$(declare -f has build_all); only=$only; build_all"
tests=$build/cmake/tests
if has transfer; then
  for test in transfer capture errors checksum; do step "$test" 120 "$tests/gpu.$test"; done
  step cufile 120 env KVX_TEST_STORAGE="$storage" "$tests/gpu.cufile"
fi
if has planted; then step planted 300 bash -o pipefail -c planted; fi
if has roundtrip; then
  step roundtrip 240 env KVX_TEST_ROUND_TRIPS="$round_trips" KVX_TEST_STORAGE="$memory_fs" "$tests/gpu.roundtrip"
fi
if has bench; then
  step bench 300 "$build/cmake/bench/cuda_transfer_bench" --json "$results/bench.json"
  direct=$build/cmake/bench/direct_load_bench
  step direct_memory_fs 150 "$direct" --root "$memory_fs/kvx-direct-load"
  step direct_storage 300 "$direct" --root "$storage/kvx-direct-load"
fi
if has sanitizer; then
  one="a block comes back*"
  step memcheck_transfer 180 bash -c "sanitize memcheck '$tests/gpu.transfer' -sc='$one'"
  step memcheck_roundtrip 120 env KVX_TEST_ROUND_TRIPS=300 bash -c "sanitize memcheck '$tests/gpu.roundtrip'"
  step memcheck_checksum 120 bash -c "sanitize memcheck '$tests/gpu.checksum' -tce='checksums run*'"
  step racecheck_transfer 180 bash -c "sanitize racecheck '$tests/gpu.transfer' -sc='$one'"
  step racecheck_checksum 120 bash -c "sanitize racecheck '$tests/gpu.checksum' -tce='checksums run*'"
fi
if has engine; then step engine 900 bash -o pipefail -c engine; fi

python3 - "$results" "$json" "$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)" <<'PYTHON'
import json
import pathlib
import subprocess
import sys

results, out, commit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
try:
    device = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
except (OSError, subprocess.CalledProcessError):
    device = "none"
report = {"device": device, "commit": commit, "steps": {}}
for outcome in sorted(results.glob("*.outcome")):
    text, seconds = outcome.read_text().splitlines()
    log = (results / f"{outcome.stem}.log").read_text(errors="replace").splitlines()
    report["steps"][outcome.stem] = {"outcome": text, "seconds": int(seconds), "output": log[-12:]}
for found in sorted(results.glob("*.json")):
    try:
        report[found.stem] = json.loads(found.read_text())
    except json.JSONDecodeError as wrong:
        report[found.stem] = {"unreadable": str(wrong)}
out.write_text(json.dumps(report, indent=1) + "\n")
print(f"\n{out}: " + ", ".join(f"{name} {step['outcome']}" for name, step in report["steps"].items()))
PYTHON
exit $failed
