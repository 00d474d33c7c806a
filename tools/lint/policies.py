#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that every policy has its static_assert, a test, a bench line and a row in docs/policies.md."""

import re

import tree

# Directory of a policy kind: the concept that its policies model.
KINDS = {
    "eviction": "eviction_policy",
    "admission": "admission_policy",
    "hash": "hasher",
    "io": "io_backend",
    "transfer": "transfer_engine",
}
# Policies that model another kind than their directory's.
OTHER_KINDS = {"io/cufile.hpp": "direct_reader"}
# Headers there that are no policy.
NOT_POLICIES = {"hash/key_chain.hpp", "transfer/cuda_kernels.cuh"}
# Policies that exist for tests: nobody runs them for speed.
NO_BENCH = {"io/memory.hpp", "io/fault.hpp", "transfer/deferred.hpp"}


def check(root):
    errors = []
    headers = tree.headers(root)
    tests = "\n".join(tree.texts(root, "tests").values())
    benches = "\n".join(tree.texts(root, "bench").values())
    page = root / "docs" / "policies.md"
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")] if page.exists() else []
    for name, text in headers.items():
        kind, _, file = name.rpartition("/")
        if kind not in KINDS or name in NOT_POLICIES:
            continue
        stem = file.rsplit(".", 1)[0]
        concept = OTHER_KINDS.get(name, KINDS[kind])
        where = f"include/kvx/{name}"
        asserted = re.search(rf"static_assert\(\s*{concept}<\s*(?:kvx::)?(\w+)", tree.without_comments(text))
        if not asserted:
            errors.append(f"{where}: no static_assert({concept}<...>) under the policy")
        names = {stem} | ({asserted.group(1)} if asserted else set())
        any_name = "|".join(sorted(re.escape(n) for n in names))
        used = re.compile(rf"<kvx/{re.escape(name)}>|\bkvx::({any_name})\b")
        if not used.search(tests):
            errors.append(f"{where}: no test includes it; a policy is run through its kind's conformance suite in tests/")
        if name not in NO_BENCH and not used.search(benches):
            errors.append(f"{where}: no program in bench/ includes it; add its line to the bench of its kind")
        if not any(re.search(rf"`(kvx::)?({any_name})\b[^`]*`", row) for row in rows):
            errors.append(f"{where}: no row in docs/policies.md names `{stem}`")
    return errors, []


GOOD = {
    "include/kvx/eviction/lru.hpp": "class lru {};\nstatic_assert(eviction_policy<lru>);\n",
    "tests/eviction/lru_test.cpp": "#include <kvx/eviction/lru.hpp>\n",
    "bench/trace_replay/policies.cpp": "#include <kvx/eviction/lru.hpp>\n",
    "docs/policies.md": "| policy | for |\n|---|---|\n| `lru` | most |\n",
}


def without(name):
    return {k: v for k, v in GOOD.items() if k != name}


CASES = [
    (GOOD, None),
    ({**GOOD, "include/kvx/eviction/lru.hpp": "class lru {};\n// static_assert(eviction_policy<lru>);\n"}, "static_assert"),
    ({"include/kvx/io/cufile.hpp": "class cufile {};\nstatic_assert(io_backend<cufile>);\n"}, "direct_reader"),
    (without("tests/eviction/lru_test.cpp"), "no test"),
    (without("bench/trace_replay/policies.cpp"), "no program in bench/"),
    (without("docs/policies.md"), "docs/policies.md"),
    ({**GOOD, "docs/policies.md": "| `lru_k` | most |\n"}, "docs/policies.md"),
    ({"include/kvx/hash/key_chain.hpp": "class key_chain {};\n"}, None),
]

if __name__ == "__main__":
    tree.main(check, CASES, __doc__)
