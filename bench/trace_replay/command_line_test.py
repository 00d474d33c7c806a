#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs trace_replay as a user would: command_line_test.py PROGRAM CASE"""

import json
import lzma
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

PROGRAM = sys.argv[1]
# A little before ctest's own limit, so that no program is left behind.
END = time.monotonic() + float(os.environ.get("KVX_TEST_TIMEOUT_SECONDS", "120")) - 10


def run(*arguments, code=0, stdin=None):
    done = subprocess.run([PROGRAM, *map(str, arguments)], input=stdin, capture_output=True, text=True,
                          timeout=max(1, END - time.monotonic()))
    assert done.returncode == code, f"{arguments}: ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def report(folder):
    """A generated trace read back from a file, from xz and from the standard input gives the same numbers in JSON."""
    plain, packed = folder / "t.jsonl", folder / "t.jsonl.xz"
    run("--generate", "mixed", "--requests", 300, "--seed", 4, "--write-trace", plain)
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    results = []
    for source in (plain, packed, "-"):
        out, svg = folder / "out.json", folder / "out.svg"
        run(source, "--capacity", "5,25", "--policies", "lru,optimum", "--cost", 2, "--json", out, "--svg", svg,
            stdin=plain.read_text() if source == "-" else None)
        (sheet,) = json.loads(out.read_text())
        assert sheet["requests"] == 300
        assert [(r["policy"], r["capacity_percent"]) for r in sheet["results"]] == [
            ("lru", 5), ("lru", 25), ("optimum", 5), ("optimum", 25)]
        for r in sheet["results"]:
            assert r["prefix_hit_ratio"] == r["hit_blocks"] / sheet["blocks"]
            assert r["token_hit_ratio"] == r["hit_tokens"] / sheet["input_tokens"]
            assert r["written_bytes"] == r["inserted_blocks"] * sheet["bytes_per_block"]
            assert r["calls"]["longest_ns"] >= r["calls"]["p99_ns"] >= r["calls"]["p50_ns"]
        results.append([(r["hit_blocks"], r["evicted_blocks"]) for r in sheet["results"]])
        lines = [e for e in xml.etree.ElementTree.parse(svg).iter() if e.tag.endswith("polyline")]
        assert len(lines) == 2 and lines[-1].get("stroke") == "#000000", "the optimum is drawn last, on top"
    assert results[0] == results[1] == results[2]


def check(folder):
    """FIFO trails LRU on agents, and the check says so; LRU does not trail itself."""
    small = ("--generate", "agents", "--requests", 600, "--capacity", "10,25")
    assert "held" in run(*small, "--policies", "lru", "--check", "0")
    assert "NOT HELD" in run(*small, "--policies", "lru,fifo", "--check", "0.6", code=1)
    run(*small, "--policies", "lru,fifo", "--check", "50")


def two_tiers(folder):
    table = run("--generate", "chat", "--requests", 400, "--two-tier", "lru:2,lru:30", "--two-tier", "s3fifo:2,fifo:30")
    rows = [line.split() for line in table.splitlines() if ":2," in line]
    assert len(rows) == 2
    for row in rows:
        memory, storage, together = map(float, row[1:4])
        assert memory > 0 and storage > 0 and abs(memory + storage - together) < 1e-3


def data(folder):
    """The real cache gives back what was saved, from memory and from storage."""
    out = folder / "out.json"
    run("--generate", "mixed", "--requests", 150, "--data", "--root", folder, "--memory", 5, "--storage", 200,
        "--bytes-per-block", 16384, "--clients", 3, "--open-loop", "--time-scale", "0.005", "--policies", "lru,s3fifo",
        "--json", out)
    (sheet,) = json.loads(out.read_text())
    assert [r["policy"] for r in sheet["results"]] == ["lru", "s3fifo"]
    for r in sheet["results"]:
        assert r["wrong_blocks"] == 0 and 0 < r["prefix_hit_ratio"] < 1
        assert r["memory"]["hit_blocks"] > 0 and r["storage"]["hit_blocks"] > 0
        assert r["load_ms"]["p50"] <= r["load_ms"]["p99"] <= r["load_ms"]["max"]
    assert [p for p in folder.iterdir() if p.is_dir()] == [], "the storage tier's directory is gone"


def refusals(folder):
    def refused(reason, *arguments):
        assert reason in run(*arguments, code=1), arguments

    bad = folder / "bad.jsonl"
    bad.write_text('{"hash_ids": [1]}\n{"hash_ids": "x"}\n')
    refused("line 2", bad)
    refused("cannot be opened", folder / "absent.jsonl")
    refused("nothing to replay")
    refused("is no policy: there are lru", "--generate", "chat", "--requests", 10, "--policies", "lur")
    refused("is no workload: there are qa_random", "--generate", "chats")
    refused("--two-tier", "--generate", "chat", "--requests", 10, "--two-tier", "lru:1")
    refused("--bytes-per-block", "--generate", "chat", "--requests", 10, "--data", "--bytes-per-block", 100)


CASES = {f.__name__: f for f in (report, check, two_tiers, data, refusals)}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        CASES[sys.argv[2]](pathlib.Path(name))
