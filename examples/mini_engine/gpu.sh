#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the engine on a GPU: its tests, prompts with and without kvx, and many requests with and without it.
# Usage: gpu.sh PROGRAM STORAGE_DIR MEMORY_FS_DIR RESULTS_DIR [MODELS_DIR]
#
# The programs of the tests are looked for beside PROGRAM. Writes engine_*.json to RESULTS_DIR. KVX_GPU_LONG=1 adds a prompt of
# 131,072 tokens. Ends with 77 where there is no GPU, with 1 when a test failed or a run computed something else.
set -u

[ $# -ge 4 ] || { sed -n '3,8s/^# //p' "$0" >&2; exit 2; }
program=$1 storage=$2/mini_engine_kv memory=$3/mini_engine_kv results=$4 models=${5:-}
failed=0
"$program" --device cuda --model random:tiny --prompt x --tokens 1 --no-cache >/dev/null 2>"$results/engine_probe.log"
probed=$?
if [ $probed -eq 2 ]; then
  cat "$results/engine_probe.log"
  exit 77
fi

run() {  # NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  echo "== $name"
  timeout "$seconds" "$@" || { echo "FAILED: $name ended with $?"; failed=1; }
}

for test in kernels engine; do
  found=$(dirname "$program")/mini_engine_cuda_${test}_test
  if [ -x "$found" ]; then run "$test" 200 env ${models:+KVX_TEST_MODELS="$models"} "$found"; fi
done

compare() {  # MODEL TOKENS PAIRS DIRECTORY NAME
  rm -rf "$4"
  run "compare $1, $2 tokens, $5" 300 "$program" --device cuda --model "random:$1" --prompt-tokens "$2" --tokens 2 --compare --pairs "$3" \
    --cache-dir "$4" --storage-bytes 24GiB --json "$results/engine_${1//-/_}_$2_$5.json"
  rm -rf "$4"
}
for tokens in 2048 8192 32768; do
  compare llama-8b $tokens 5 "$storage" disk
  compare llama-8b $tokens 5 "$memory" memory_fs
done
compare llama-70b-tp8 32768 5 "$memory" memory_fs
if [ "${KVX_GPU_LONG:-0}" = 1 ]; then compare llama-8b 131072 3 "$memory" memory_fs; fi

# Conversations that share a system prompt, several times as long together as the KV pool.
for cache in with without; do
  more=()
  if [ $cache = without ]; then more=(--no-cache); fi
  run "chat $cache kvx" 200 "$program" --device cuda --model random:llama-8b --chat --users 32 --turns 4 --system-tokens 4096 \
    --message-tokens 512 --tokens 64 --kv-tokens 49152 --json "$results/engine_chat_$cache.json" ${more[@]+"${more[@]}"}
done
exit $failed
