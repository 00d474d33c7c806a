#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the mini_engine program as a user does, and checks what it prints, writes and returns.

usage: command_line_test.py PROGRAM {compare|swap|chat|generate|refusals}
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

# A little before ctest's own limit, so that no program is left behind.
END = time.monotonic() + float(os.environ.get("KVX_TEST_TIMEOUT_SECONDS", "120")) - 10
PROMPT = "".join(f"Entry {i}: pump {i * 37 % 211} ran for {i * 13 % 97} hours.\n" for i in range(40))
RUN_FIELDS = {
    "run": str, "prompt_tokens": int, "cached_tokens": int, "generated_tokens": int, "ttft_ms": float, "open_ms": float,
    "load_ms": float, "loaded_bytes": int, "bytes_per_second": float, "reduction": float, "identical": bool, "digest": str,
}
FIELDS = {
    "model": str, "threads": int, "chunk_tokens": int, "block_tokens": int, "kv_bytes_per_token": int,
    "plain_product_gflops": float, "prefill_gflops": float, "prefill_share": float, "prompt_tokens": int,
    "cached_tokens": int, "ttft_ms": float, "reduction": float, "identical": bool, "runs": list,
}
TURN_FIELDS = {
    "answers": int, "prompt_tokens": int, "cached_tokens": int, "hit_rate": float, "ttft_ms": float, "worst_ttft_ms": float,
}

CHAT_FIELDS = {
    "users": int, **TURN_FIELDS, "seconds": float, "requests_per_second": float, "ttft_p50_ms": float, "ttft_p99_ms": float,
    "prefilled_tokens": int, "largest_batch": int, "mean_batch": float, "digest": str, "turns": list,
}


def run(*arguments, code=0):
    done = subprocess.run([PROGRAM, "--model", "random:tiny", "--storage-bytes", "64MiB", *map(str, arguments)],
                          capture_output=True, text=True, timeout=max(1, END - time.monotonic()))
    assert done.returncode == code, f"exit code {done.returncode}, not {code}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def check_fields(found, fields):
    assert list(found) == list(fields), f"fields {list(found)}, expected {list(fields)}"
    for name, kind in fields.items():
        assert type(found[name]) is kind, f"{name} is {found[name]!r}, no {kind.__name__}"


def report(path, fields):
    found = json.loads(path.read_text())
    check_fields(found, fields)
    return found


def compare(folder):
    out = folder / "report.json"
    text = run("--prompt", PROMPT, "--tokens", 8, "--compare", "--always-load", "--json", out, "--memory-bytes", "32MiB")
    assert "identical: true" in text, text
    found = report(out, FIELDS)
    assert found["identical"] is True
    assert [each["run"] for each in found["runs"]] == ["cold", "save", "memory", "storage"]
    for each in found["runs"]:
        check_fields(each, RUN_FIELDS)
        assert each["identical"] is True and each["generated_tokens"] == 8
        assert each["prompt_tokens"] == len(PROMPT)
        assert each["digest"] == found["runs"][0]["digest"]
    expected = (len(PROMPT) - 1) // 16 * 16
    assert [each["cached_tokens"] for each in found["runs"]] == [0, 0, expected, expected]
    for each in found["runs"][2:]:
        assert each["loaded_bytes"] == expected * found["kv_bytes_per_token"] and each["bytes_per_second"] > 0
    for name in ("cached_tokens", "ttft_ms", "reduction"):
        assert found[name] == found["runs"][-1][name]
    for backend in ("posix", "auto"):
        run("--prompt", PROMPT, "--tokens", 2, "--compare", "--always-load", "--io", backend, "--chunk", 64)


def swap(folder):
    out = folder / "report.json"
    text = run("--prompt", PROMPT, "--tokens", 8, "--compare", "--always-load", "--json", out, "--swap-block", "1:3", code=1)
    assert "identical: false" in text, text
    found = report(out, FIELDS)
    assert found["identical"] is False
    assert [each["identical"] for each in found["runs"]] == [True, True, False, False]


def chat(folder):
    digests = []
    for more in (["--always-load"], ["--no-cache"], ["--cache-dir", folder / "cache"], ["--cache-dir", folder / "cache"]):
        out = folder / "report.json"
        run("--chat", "--users", 3, "--turns", 3, "--system-tokens", 100, "--tokens", 20, "--progress", "--json", out, *more)
        found = report(out, CHAT_FIELDS)
        assert found["users"] == 3 and found["answers"] == 9 and len(found["turns"]) == 3
        assert found["requests_per_second"] > 0 and 1 <= found["mean_batch"] <= found["largest_batch"] <= 3
        assert found["ttft_p50_ms"] <= found["ttft_p99_ms"] <= found["worst_ttft_ms"]
        assert found["prefilled_tokens"] == found["prompt_tokens"] - found["cached_tokens"]
        for turn in found["turns"]:
            check_fields(turn, TURN_FIELDS)
            assert turn["answers"] == 3
        if "--no-cache" in more:
            assert found["hit_rate"] == 0
        elif "--always-load" in more:
            assert all(turn["hit_rate"] > 0.5 for turn in found["turns"][1:]), found
        digests.append(found["digest"])
    assert len(set(digests)) == 1, digests


def generate(folder):
    digests = []
    for more in (["--no-cache"], [], []):
        out = folder / "report.json"
        run("--prompt", PROMPT, "--tokens", 8, "--always-load", "--cache-dir", folder / "cache", "--json", out, *more)
        found = report(out, FIELDS)
        digests.append(found["runs"][0]["digest"])
    assert found["cached_tokens"] > 0
    assert len(set(digests)) == 1, digests


def refusals(folder):
    assert "--cache-dir" in run("--prompt", "x", "--cache-dir", code=114)
    assert "memory_bytes" in run("--prompt", PROMPT, "--cache-dir", folder / "c", "--memory-bytes", "4KiB", "--always-load", code=1)
    assert "empty" in run("--prompt", "", code=1)
    assert "/dev/null" in run("--prompt", PROMPT, "--cache-dir", "/dev/null/c", "--always-load", code=1)
    if not pathlib.Path("/dev/nvidia0").exists():
        text = run("--prompt", "x", "--device", "cuda", code=2)
        assert "--device cuda: " in text and text.count("\n") == 1, text
    assert "I:J" in run("--prompt", PROMPT, "--compare", "--always-load", "--swap-block", "1", code=1)


if __name__ == "__main__":
    PROGRAM = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        {"compare": compare, "swap": swap, "chat": chat, "generate": generate, "refusals": refusals}[sys.argv[2]](pathlib.Path(name))
