#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what every source file keeps to: licence line, include guard, no leftovers, no conditional members."""

import re

import tree

FOLDERS = ["include", "tests", "bench", "examples"]
LEFTOVERS = re.compile(r"\b(TODO|FIXME|XXX)\b")
PUBLIC_HEADER_LINES = 400


def check(root):
    errors, warnings = [], []
    for folder in FOLDERS:
        for name, text in tree.texts(root, folder).items():
            lines = text.splitlines()
            if not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:2]):
                errors.append(f"{name}: starts without // SPDX-License-Identifier: Apache-2.0")
            if name.endswith((".hpp", ".cuh")) and not re.search(r"^#pragma once$", text, re.M):
                errors.append(f"{name}: no #pragma once")
            for number, line in enumerate(lines, 1):
                if LEFTOVERS.search(line):
                    errors.append(f"{name}:{number}: a leftover: {line.strip()}")
                if line != line.rstrip() or "\t" in line:
                    errors.append(f"{name}:{number}: a tab or trailing white space")
            if folder == "include":
                errors.extend(public_header(name, text))
                if len(lines) > PUBLIC_HEADER_LINES and "/detail/" not in name:
                    warnings.append(f"{name}: {len(lines)} lines; past {PUBLIC_HEADER_LINES} a header holds two ideas")
    return errors, warnings


def public_header(name, text):
    code = tree.without_comments(text)
    if re.search(r"^[ \t]*#[ \t]*(el)?if.*\bKVX_HAS", code, re.M):
        yield f"{name}: a KVX_HAS conditional; an optional dependency is a leaf header and a CMake component"
    if re.search(r"\b(secure_)?getenv\b", code):
        yield f"{name}: reads the environment; the library is configured by its options alone"
    if re.search(r"\b(std::)?(cout|cerr|clog)\b|\bf?printf\s*\(", code):
        yield f"{name}: prints; the library has no logger"
    if re.search(r"^using namespace\b", code, re.M):
        yield f"{name}: a using-directive, which every includer would inherit"


HEAD = "// SPDX-License-Identifier: Apache-2.0\n#pragma once\n"
CASES = [
    ({"include/kvx/a.hpp": HEAD + "// getenv in a comment\n"}, None),
    ({"tests/compile_fail/a.cpp": "// expect: x\n// SPDX-License-Identifier: Apache-2.0\n"}, None),
    ({"tests/a_test.cpp": "int main() {}\n"}, "SPDX"),
    ({"include/kvx/a.hpp": "// SPDX-License-Identifier: Apache-2.0\n"}, "pragma once"),
    ({"bench/a_bench.cpp": HEAD + "// TODO\n"}, "leftover"),
    ({"bench/a_bench.cpp": HEAD + "int a; \n"}, "white space"),
    ({"include/kvx/a.hpp": HEAD + "#ifdef KVX_HAS_CUDA\n#endif\n"}, "KVX_HAS"),
    ({"include/kvx/a.hpp": HEAD + "#if defined(KVX_HAS_CUDA)\n#endif\n"}, "KVX_HAS"),
    ({"include/kvx/a.hpp": HEAD + 'auto a = std::getenv("A");\n'}, "environment"),
    ({"include/kvx/a.hpp": HEAD + 'void a() { std::fprintf(stderr, "a"); }\n'}, "prints"),
    ({"include/kvx/a.hpp": HEAD + "using namespace std;\n"}, "using-directive"),
]

if __name__ == "__main__":
    tree.main(check, CASES, __doc__)
