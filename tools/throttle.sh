#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail

usage() {
  cat <<'USAGE'
Runs a command whose reads from the device below a directory are limited, by a control group (v1 blkio or v2 io) of its own.

usage: tools/throttle.sh [--group-file FILE] BYTES_PER_SECOND DIRECTORY COMMAND...
  --group-file FILE   write "<control group> <device>" there, for who wants to change the limit while the command runs
Needs root. Ends with the command's exit code, or with 77 where there is no such controller or device.
USAGE
}

group_file=
case ${1:-} in
  -h|--help) usage; exit 0 ;;
  --group-file) group_file=${2:?--group-file needs a file}; shift 2 ;;
esac
[ $# -ge 3 ] || { usage >&2; exit 2; }
rate=$1
directory=$2
shift 2
[[ $rate =~ ^[1-9][0-9]*$ ]] || { echo "throttle.sh: '$rate' is not a number of bytes per second above 0" >&2; exit 2; }
[ -d "$directory" ] || { echo "throttle.sh: '$directory' is no directory" >&2; exit 2; }
skip() { echo "KVX-SKIPPED: throttle.sh: $1" >&2; exit 77; }

[ "$(id -u)" -eq 0 ] || skip "limiting reads needs root"
number=$((16#$(stat -c %D "$directory")))
device=$((number >> 8 & 0xfff)):$(((number & 0xff) | (number >> 12 & 0xfff00)))
# The limits are the whole disk's, not a partition's.
disk=$(readlink -f "/sys/dev/block/$device" 2>/dev/null) || skip "'$directory' is on no block device"
[ -d "$disk" ] || skip "'$directory' is on no block device ($device)"
if [ -e "$disk/partition" ]; then device=$(cat "$disk/../dev"); fi

group=
# shellcheck disable=SC2317  # the trap calls it
leave() {
  local try
  [ -n "$group" ] || return 0
  # The kernel needs a moment to see that the last process is gone.
  for try in 1 2 3 4 5; do rmdir "$group" 2>/dev/null && return 0; sleep 0.1; done
  echo "throttle.sh: left $group behind (try $try)" >&2
}
trap leave EXIT
if [ -d /sys/fs/cgroup/blkio ]; then
  group=$(mktemp -d /sys/fs/cgroup/blkio/kvx-throttle.XXXXXX) || skip "no control group can be made in /sys/fs/cgroup/blkio"
  echo "$device $rate" >"$group/blkio.throttle.read_bps_device" || skip "the kernel does not limit device $device"
elif grep -qw io /sys/fs/cgroup/cgroup.controllers 2>/dev/null; then
  grep -qw io /sys/fs/cgroup/cgroup.subtree_control || echo +io >/sys/fs/cgroup/cgroup.subtree_control ||
    skip "the io controller cannot be switched on"
  group=$(mktemp -d /sys/fs/cgroup/kvx-throttle.XXXXXX) || skip "no control group can be made in /sys/fs/cgroup"
  echo "$device rbps=$rate" >"$group/io.max" || skip "the kernel does not limit device $device"
else
  skip "neither the blkio nor the io controller is mounted below /sys/fs/cgroup"
fi

[ -z "$group_file" ] || printf '%s %s\n' "$group" "$device" >"$group_file"

# The shell that becomes the command goes into the group first; this one stays outside and can remove it.
code=0
bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" "$@" || code=$?
exit $code
