#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'USAGE'
The checks that need no build: the lints of tools/lint and the syntax of the shell scripts.

usage: tools/check.sh [--format] [--tidy BUILD_DIR]
  --format           also require clang-format's layout of every source file
  --tidy BUILD_DIR   also run clang-tidy over the tests, with that build's compile_commands.json
USAGE
}

cd "$(dirname "$0")/.."
format=no
tidy=
while [ $# -gt 0 ]; do
  case $1 in
    --format) format=yes; shift ;;
    --tidy) tidy=${2:?--tidy needs a build directory}; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) echo "check.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done

failed=0
for lint in dashboards layers policies readme sources; do
  python3 "tools/lint/$lint.py" --self-test || failed=1
  python3 "tools/lint/$lint.py" || failed=1
done
scripts=(tools/*.sh examples/*/*.sh .ci/run)
for script in "${scripts[@]}"; do
  bash -n "$script" || failed=1
done
if command -v shellcheck >/dev/null 2>&1; then
  shellcheck -x "${scripts[@]}" || failed=1
fi
if [ "$format" = yes ]; then
  find include tests bench examples \( -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh' \) -print0 | xargs -0 clang-format --dry-run -Werror || failed=1
fi
if [ -n "$tidy" ]; then
  [ -f "$tidy/compile_commands.json" ] || { echo "check.sh: no compile_commands.json in $tidy: configure it first" >&2; exit 2; }
  find tests -name '*_test.cpp' -print0 | xargs -0 -n1 -P"$(nproc)" clang-tidy --quiet -p "$tidy" || failed=1
fi
exit $failed
