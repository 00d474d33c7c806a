#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'USAGE'
Builds mini_engine and shows what the cache saves: the time to the first token of a prompt of 5,674 tokens, cold, from
memory and from storage after a restart. The model is generated (100 million parameters); nothing is downloaded but
missing packages.

usage: tools/demo.sh [--model M] [--cache-dir D] [--jobs N] [--no-install] [-- OPTIONS OF mini_engine]
  --model M       mini_engine's --model (default random:100m)
  --cache-dir D   where the cache lives (default: a temporary directory, removed at the end)
  --jobs N        compile processes at a time (default: the processors)
  --no-install    fail where a package is missing, rather than install it
USAGE
}

root=$(cd "$(dirname "$0")/.." && pwd)
model=random:100m
cache=
jobs=$(nproc)
install=yes
while [ $# -gt 0 ]; do
  case $1 in
    --model) model=${2:?--model needs a value}; shift 2 ;;
    --cache-dir) cache=${2:?--cache-dir needs a directory}; shift 2 ;;
    --jobs) jobs=${2:?--jobs needs a number}; shift 2 ;;
    --no-install) install=no; shift ;;
    --) shift; break ;;
    -h|--help) usage; exit 0 ;;
    *) echo "demo.sh: unknown option $1 (options of mini_engine come after --)" >&2; usage >&2; exit 2 ;;
  esac
done

# shellcheck source=tools/needs.sh
. "$root/tools/needs.sh"
need_packages "${build_needs[@]}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "$cache" ]; then cache=$work/cache; fi
mkdir -p "$cache"

build=$root/build/demo
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DKVX_BUILD_TESTS=OFF -DKVX_BUILD_BENCHMARKS=OFF >"$work/log" 2>&1 ||
  { cat "$work/log" >&2; exit 1; }
cmake --build "$build" -j "$jobs" --target mini_engine >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
engine=$(find "$build/examples" -type f -name mini_engine -perm -u+x | head -n1)

# A log of numbered findings: the same text every time, no two lines alike. A byte is a token to a generated model, so
# this is 5,674 tokens.
awk 'BEGIN {
  split("pump valve sensor motor filter gauge relay burner", part, " ");
  split("north south east west upper lower", place, " ");
  split("was inspected and found sound;was cleaned;was replaced;ran warm and needs another look;showed no change", verdict, ";");
  print "Below is the maintenance log of a plant. Answer the question at its end.\n";
  for (i = 1; i <= 64; ++i)
    printf "Entry %d: the %s in the %s hall, number %d, %s after %d hours.\n",
           i, part[i * 5 % 8 + 1], place[i * 7 % 6 + 1], i * 37 % 211, verdict[i * 3 % 5 + 1], i * 13 % 97 + 3;
  print "\nQuestion: which parts need another look?";
}' >"$work/prompt.txt"

"$engine" --model "$model" --prompt-file "$work/prompt.txt" --compare --cache-dir "$cache" "$@"
