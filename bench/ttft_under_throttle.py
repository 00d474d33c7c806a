#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the example engine to its promise: with the cache it is never noticeably slower than without.

A prompt is saved once. Then, for each limit of the storage's bandwidth, fresh processes serve it in interleaved pairs,
without the cache and with it, opening the cache included. Required of the medians: the cache costs at most 1.02 times
the plain prefill; at most half of it where storage is four times faster than break-even; and storage that stalls in the
middle of a load costs at most the plain prefill plus the load deadline.

Needs root and the blkio (v1) or io (v2) controller, see tools/throttle.sh; ends with 77, loudly, where there is none.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

TOOLS = pathlib.Path(__file__).resolve().parent.parent / "tools"
SKIPPED = 77
LOAD_DEADLINE_MS = 2000  # cache_settings::load_deadline


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", help="the program mini_engine")
    parser.add_argument("--model", default="random:100m")
    parser.add_argument("--prompt-tokens", type=int, default=1600)
    parser.add_argument("--pairs", type=int, default=20, help="per limit")
    parser.add_argument("--stalls", type=int, default=5, help="runs with a stall")
    parser.add_argument("--limits", default="1,10,100,1000,none", help="MB/s, separated by commas")
    parser.add_argument("--directory", help="on the device to be limited (default: the temporary directory)")
    parser.add_argument("--json", help="write the figures to a file")
    parser.add_argument("engine_options", nargs="*", help="after --: more options of mini_engine, such as --io posix")
    return parser.parse_args()


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, pathlib.Path(folder)
        self.cache, self.report = self.folder / "cache", self.folder / "report.json"
        prompt = self.folder / "prompt.txt"
        text = "".join(f"Entry {i}: pump {i * 37 % 211} ran for {i * 13 % 97} hours. " for i in range(options.prompt_tokens))
        prompt.write_text(text[: options.prompt_tokens])  # a byte is a token
        self.command = [options.engine, "--model", options.model, "--prompt-file", prompt, "--tokens", "1",
                        "--cache-dir", self.cache, "--storage-bytes", "2GiB", "--json", self.report, *options.engine_options]

    def drop_page_cache(self):
        for path in self.cache.rglob("*"):
            if not path.is_file():
                continue
            file = os.open(path, os.O_RDONLY)
            os.fdatasync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)

    def limited(self, limit, group_file=None):
        if limit is None:
            return []
        return [TOOLS / "throttle.sh", *(["--group-file", group_file] if group_file else []), str(limit), self.folder]

    def result(self, process):
        errors = process.communicate()[1]
        if process.returncode == SKIPPED:
            sys.stderr.write(errors)
            sys.exit(SKIPPED)
        if process.returncode != 0:
            sys.exit(f"ttft_under_throttle: mini_engine ended with {process.returncode}: {errors}")
        found = json.loads(self.report.read_text())
        return {**found["runs"][0], "kv_bytes_per_token": found["kv_bytes_per_token"]}

    def start(self, *more, limit=None, group_file=None):
        self.report.unlink(missing_ok=True)
        self.drop_page_cache()
        return subprocess.Popen([*map(str, self.limited(limit, group_file)), *map(str, self.command), *more],
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self, *more, limit=None):
        return self.result(self.start(*more, limit=limit))

    def run_with_stall(self, limit, after_bytes):
        """Lets storage stand still once so many bytes have come, until the answer is there."""
        group_file = self.folder / "group"
        group_file.unlink(missing_ok=True)
        process = self.start(limit=limit, group_file=group_file)
        stalled = False
        while process.poll() is None and not self.report.exists():
            time.sleep(0.001)
            if not stalled and group_file.exists() and (words := group_file.read_text().split()):
                group, device = pathlib.Path(words[0]), words[1]
                if bytes_read(group) >= after_bytes:
                    set_limit(group, device, 1)
                    stalled = True
        if stalled:
            set_limit(group, device, None)
        return {**self.result(process), "stalled": stalled}


def bytes_read(group):
    try:
        v1 = group / "blkio.throttle.io_service_bytes"
        if v1.exists():
            return sum(int(line.split()[2]) for line in v1.read_text().splitlines() if " Read " in line)
        words = (group / "io.stat").read_text().split()
        return sum(int(word[7:]) for word in words if word.startswith("rbytes="))
    except OSError:
        return 0


def set_limit(group, device, limit):
    v1 = group / "blkio.throttle.read_bps_device"
    try:
        if v1.exists():
            v1.write_text(f"{device} {limit or 0}\n")
        else:
            (group / "io.max").write_text(f"{device} rbps={limit or 'max'}\n")
    except OSError:
        pass  # the command has ended and its group with it


def interval(pairs):
    """95 % of the ratio of medians, over pairs drawn again and again."""
    draw = random.Random(1)
    ratios = []
    for _ in range(2000):
        sample = draw.choices(pairs, k=len(pairs))
        ratios.append(statistics.median(w for _, w in sample) / statistics.median(c for c, _ in sample))
    ratios.sort()
    return ratios[50], ratios[-51]


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="ttft_under_throttle.") as folder:
        bench = Bench(options, folder)
        saved = bench.run()
        cold = bench.run("--no-cache")
        kv_bytes = saved["kv_bytes_per_token"] * saved["prompt_tokens"]
        warm_up = [bench.run("--no-cache")["ttft_ms"] for _ in range(3)]
        break_even = kv_bytes / (statistics.median(warm_up) * 1e-3)
        print(f"{options.model}, {saved['prompt_tokens']} tokens, {kv_bytes * 1e-6:.1f} MB of KV; "
              f"break-even {break_even * 1e-6:.0f} MB/s; {options.pairs} pairs each")
        print(f"{'limit':>10} {'cold ms':>9} {'cache ms':>9} {'open ms':>8} {'cached':>7} {'ratio':>7} {'95 %':>15}  at most")
        rows, good = [], True
        for name in options.limits.split(","):
            limit = None if name == "none" else int(float(name) * 1e6)
            pairs, runs = [], []
            for i in range(options.pairs):
                order = [("--no-cache",), ()] if i % 2 == 0 else [(), ("--no-cache",)]
                pair = {more: bench.run(*more, limit=limit) for more in order}
                if pair[()]["digest"] != pair[("--no-cache",)]["digest"]:
                    sys.exit("ttft_under_throttle: the cache changed the result")
                pairs.append((pair[("--no-cache",)]["ttft_ms"], pair[()]["ttft_ms"]))
                runs.append(pair[()])
            cold_ms, cache_ms = (statistics.median(each) for each in zip(*pairs))
            fast = limit is not None and limit >= 4 * break_even
            most = 0.5 if fast else 1.02
            low, high = interval(pairs)
            row = {"limit_bytes_per_second": limit, "cold_ms": cold_ms, "cache_ms": cache_ms, "ratio": cache_ms / cold_ms,
                   "low": low, "high": high, "open_ms": statistics.median(r["open_ms"] for r in runs),
                   "cached_tokens": statistics.median(r["cached_tokens"] for r in runs), "at_most": most, "pairs": pairs}
            verdict = "holds" if row["ratio"] <= most else "BROKEN" if low > most else "inconclusive"
            good &= row["ratio"] <= most
            rows.append(row)
            shown = name if limit is None else f"{limit * 1e-6:g} MB/s"
            print(f"{shown:>10} {cold_ms:9.1f} {cache_ms:9.1f} {row['open_ms']:8.1f} {row['cached_tokens']:7.0f} "
                  f"{row['ratio']:7.3f} {low:7.3f}-{high:<7.3f}  {most} {verdict}", flush=True)

        stalls = []
        for _ in range(options.stalls):
            before = bench.run("--no-cache")["ttft_ms"]
            run = bench.run_with_stall(int(4 * break_even), kv_bytes / 2)
            if not run["stalled"] or run["digest"] != cold["digest"]:
                sys.exit("ttft_under_throttle: no stall came about, or the result changed")
            stalls.append((before, run["ttft_ms"]))
        if stalls:
            cold_ms, cache_ms = (statistics.median(each) for each in zip(*stalls))
            most_ms = cold_ms + LOAD_DEADLINE_MS
            good &= cache_ms <= most_ms
            print(f"stall after half of the load: {cache_ms:.1f} ms, cold {cold_ms:.1f} ms, at most {most_ms:.1f} ms "
                  f"{'holds' if cache_ms <= most_ms else 'BROKEN'}")
        if options.json:
            pathlib.Path(options.json).write_text(json.dumps({"break_even_bytes_per_second": break_even, "limits": rows, "stalls": stalls}, indent=2))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
