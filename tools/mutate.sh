#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'USAGE'
Plants each bug of tests/mutations/*.patch in a copy of include/ and requires that the test it names turns red.

usage: tools/mutate.sh [--build-dir D] [--jobs N] [--only REGEX] [--ci] [NAME.patch...]
  --build-dir D   where the copies are built (default build/mutations)
  --jobs N        patches tried at a time (default: the processors)
  --only REGEX    only patches whose file name matches
  --ci            only patches with the line '# ci: yes', one or two for each promise

A patch file is a unified diff against the tree (a/include/kvx/..., -p1) below two comment lines:
  # test: <regex of ctest names>
  # why: <what the bug would do to a user>
and, for those that CI plants each time, a third:
  # ci: yes
Outcomes: caught; SURVIVED (the tests stay green); STALE (does not apply); BROKEN (does not compile, names no test, or
names a test that is red without the bug).
USAGE
}

root=$(cd "$(dirname "$0")/.." && pwd)
build="$root/build/mutations"
jobs=$(nproc)
only=
ci=no
patches=()
while [ $# -gt 0 ]; do
  case $1 in
    --build-dir) build=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --ci) ci=yes; shift ;;
    -h|--help) usage; exit 0 ;;
    -*) echo "mutate.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    *) patches+=("$(realpath "$1")"); shift ;;
  esac
done
mkdir -p "$build"
build=$(cd "$build" && pwd)

if [ ${#patches[@]} -eq 0 ]; then
  for file in "$root"/tests/mutations/*.patch; do
    [ -e "$file" ] || continue
    if [ "$ci" = yes ] && ! grep -qx '# ci: yes' "$file"; then continue; fi
    [[ -z $only || $(basename "$file") =~ $only ]] && patches+=("$file")
  done
fi

# One lane is one copy of include/ and one build tree; lanes work side by side, each on its own patches.
lane_setup() {
  local lane=$build/lane$1
  rm -rf "$lane/include"
  mkdir -p "$lane"
  cp -r "$root/include" "$lane/include"
  cmake -S "$root" -B "$lane/build" -G Ninja -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_CXX_FLAGS_DEBUG=-O0" \
    "-DKVX_INCLUDE_OVERRIDE=$lane/include" -DKVX_BUILD_EXAMPLES=OFF -DKVX_BUILD_BENCHMARKS=OFF \
    -DKVX_TEST_TIMEOUT_SECONDS=300 >"$lane/configure.log" 2>&1 ||
    { cat "$lane/configure.log" >&2; return 1; }
}

# Builds and runs the tests that match. 0: green, 1: red, 2: does not compile, 3: no such test.
lane_run() {
  local lane=$1 regex=$2 log=$3 names name targets=()
  mapfile -t names < <(ctest --test-dir "$lane/build" -N -R "$regex" | sed -n 's/^ *Test *#[0-9]*: //p')
  [ ${#names[@]} -gt 0 ] || return 3
  for name in "${names[@]}"; do
    if grep -qxF -- "$name" "$lane/build/tests/programs.txt"; then targets+=("$name"); fi
  done
  if [ ${#targets[@]} -gt 0 ]; then
    cmake --build "$lane/build" -j1 --target "${targets[@]}" >"$log" 2>&1 || return 2
  fi
  # Skipped is not caught: ctest ends with 0 for it.
  ctest --test-dir "$lane/build" -R "$regex" --output-on-failure >>"$log" 2>&1 || return 1
}

test_of() { sed -n 's/^# test: *//p' "$1" | head -n1; }

try_patch() {
  local lane=$build/lane$1 patch=$2 name regex why log code file
  name=$(basename "$patch" .patch)
  log=$build/$name.log
  regex=$(test_of "$patch")
  why=$(sed -n 's/^# why: *//p' "$patch" | head -n1)
  if [ -z "$regex" ] || [ -z "$why" ]; then
    echo "BROKEN   $name: needs the lines '# test: <regex>' and '# why: <text>'"
    return
  fi
  code=0; [ "$green" = "$regex" ] || lane_run "$lane" "$regex" "$log" || code=$?
  case $code in
    0) green=$regex ;;
    1) echo "BROKEN   $name: '$regex' is red without the bug, see $log"; return ;;
    2) echo "BROKEN   $name: '$regex' does not compile without the bug, see $log"; return ;;
    3) echo "BROKEN   $name: no test matches '$regex'"; return ;;
  esac
  if ! patch -d "$lane" -p1 --fuzz=0 --dry-run --batch <"$patch" >"$log" 2>&1; then
    echo "STALE    $name: does not apply to include/, see $log"
    return
  fi
  patch -d "$lane" -p1 --fuzz=0 --batch --no-backup-if-mismatch <"$patch" >/dev/null
  code=0; lane_run "$lane" "$regex" "$log" || code=$?
  # The copy goes back to what it was, with a new time stamp, so that what was built from the bug is built again.
  sed -n 's|^+++ [^/]*/\([^[:space:]]*\).*|\1|p' "$patch" | while read -r file; do
    cp "$root/$file" "$lane/$file"
  done
  case $code in
    0) echo "SURVIVED $name: '$regex' stays green ($why)" ;;
    1) echo "caught   $name" ;;
    *) echo "BROKEN   $name: does not compile with the bug, see $log" ;;
  esac
}

lane_work() {
  local lane=$1 patch
  local green=  # what was seen green without a bug: the patches of a test follow each other
  shift
  for patch in "$@"; do try_patch "$lane" "$patch"; done
}

self_test=("$root/tests/mutations/self_test/survives.patch" "$root/tests/mutations/self_test/is_caught.patch"
           "$root/tests/mutations/self_test/is_stale.patch" "$root/tests/mutations/self_test/is_broken.patch")
lane_setup 0
answers=$(lane_work 0 "${self_test[@]}")
for answer in "SURVIVED survives" "caught   is_caught" "STALE    is_stale" "BROKEN   is_broken"; do
  if ! grep -q "^$answer" <<<"$answers"; then
    printf 'mutate.sh: the self test wanted "%s" and got:\n%s\n' "$answer" "$answers" >&2
    exit 1
  fi
done

count=${#patches[@]}
[ "$jobs" -le "$count" ] || jobs=$((count > 0 ? count : 1))
results=$build/results.txt
: >"$results"

# The bugs that one test must catch are one lane's, so that it is built and run without a bug once. Lanes take the next
# test when they are done with one.
for patch in ${patches[@]+"${patches[@]}"}; do printf '%s\t%s\n' "$(test_of "$patch")" "$patch"; done |
  sort | awk -F '\t' '{ printf "%s%s", (NR == 1 ? "" : $1 == last ? "\t" : "\n"), $2; last = $1 } END { if (NR) print "" }' \
    >"$build/tests.txt"
taken=$build/taken
rm -rf "$taken"
mkdir "$taken"
lane_queue() {
  local lane=$1 line=0 mine
  while IFS=$'\t' read -r -a mine <&3; do
    mkdir "$taken/$((++line))" 2>/dev/null || continue
    lane_work "$lane" "${mine[@]}"
  done 3<"$build/tests.txt"
}
for ((lane = 0; lane < jobs; ++lane)); do
  { [ "$lane" -eq 0 ] || lane_setup "$lane"; lane_queue "$lane"; } | tee -a "$results" &
done
wait
caught=$(grep -c '^caught' "$results" || true)
echo "mutations: $caught of $count caught"
[ "$caught" -eq "$count" ]
