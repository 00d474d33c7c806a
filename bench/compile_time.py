#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What including kvx costs a compiler, in user seconds: medians of interleaved runs, beside the standard headers alone.

The standard headers that <kvx/kvx.hpp> reaches, with xxHash, are the floor: no header-only library compiles faster. The unit of a
preset instantiates match, prefetch, load and save; a unit behind kvx::any_cache is what the rest of an engine pays.
"""

import argparse
import json
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile

INCLUDE = pathlib.Path(__file__).resolve().parent.parent / "include"

USE = """
void serve({cache}& cache, std::span<const kvx::token_id> prompt, std::span<const kvx::block_id> ids) {{
  const kvx::sequence chain = cache.make_sequence(prompt);
  const auto plan = cache.match(chain);
  const auto arriving = cache.prefetch(plan);
  const auto load = cache.load(plan, ids.first(arriving.ready_blocks()));
  const auto save = cache.save(chain, load.loaded_blocks(), ids.subspan(load.loaded_blocks()));
  static_cast<void>(save.stored());
}}
"""
UNITS = {
    "kvx.hpp": "#include <kvx/kvx.hpp>\n",
    "a preset's match, prefetch, load, save": "#include <kvx/kvx.hpp>\n" + USE.format(cache="kvx::host_cache<>"),
    "the same behind any_cache":
        "#include <kvx/any_cache.hpp>\n#include <kvx/transfer/host.hpp>\n" + USE.format(cache="kvx::any_cache<kvx::host_stream>"),
}
GOALS = {"kvx.hpp": 1.0, "a preset's match, prefetch, load, save": 5.0}


def standard_headers(compiler):
    """The standard and third-party headers below kvx.hpp, each included by its own name."""
    command = [compiler, "-std=c++20", f"-I{INCLUDE}", "-E", "-x", "c++", "-"]
    text = subprocess.run(command, input=UNITS["kvx.hpp"], capture_output=True, text=True, check=True).stdout
    ours = {line.split('"')[1] for line in text.splitlines() if line.startswith("# ") and str(INCLUDE) in line}
    names = set()
    for path in ours:
        for line in pathlib.Path(path).read_text().splitlines():
            if line.startswith("#include <") and not line.startswith("#include <kvx/"):
                names.add(line)
    return "#define XXH_INLINE_ALL\n" + "\n".join(sorted(names)) + "\n"


def seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"compile_time: {' '.join(map(str, command))} failed:\n{done.stderr}")
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compilers", default="g++,clang++", help="separated by commas; those not installed are left out")
    parser.add_argument("--levels", default="-O0,-O2", help="separated by commas, as --levels=-O0,-O2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures to a file")
    options = parser.parse_args()
    compilers = [c for c in options.compilers.split(",") if shutil.which(c)]
    if not compilers:
        sys.exit(f"compile_time: none of {options.compilers} is installed; name others with --compilers")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        floor = "standard headers and xxHash"
        sources = {}
        for number, (name, text) in enumerate([(floor, standard_headers(compilers[0])), *UNITS.items()]):
            sources[name] = pathlib.Path(folder) / f"unit{number}.cpp"
            sources[name].write_text(text)
        for _ in range(options.rounds):
            for compiler in compilers:
                for level in options.levels.split(","):
                    for name, source in sources.items():
                        command = [compiler, "-std=c++20", level, f"-I{INCLUDE}", "-c", source, "-o", f"{folder}/unit.o"]
                        rows.setdefault((name, f"{compiler} {level}"), []).append(seconds(command))
    columns = [f"{c} {level}" for c in compilers for level in options.levels.split(",")]
    print(f"{'user seconds, median of ' + str(options.rounds):42}" + "".join(f"{column:>14}" for column in columns) + "   goal")
    medians = {}
    for name in sources:
        medians[name] = {column: statistics.median(rows[name, column]) for column in columns}
        goal = f"   < {GOALS[name]:g}" if name in GOALS else ""
        print(f"{name:42}" + "".join(f"{medians[name][column]:14.2f}" for column in columns) + goal)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
