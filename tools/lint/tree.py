# SPDX-License-Identifier: Apache-2.0
"""What the lints share: the tree's files, their includes, the command line and the self test."""

import argparse
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"]', re.M)


def headers(root):
    """Public headers as {path relative to include/kvx: text}."""
    base = root / "include" / "kvx"
    found = sorted(p for p in base.rglob("*") if p.suffix in (".hpp", ".cuh"))
    return {p.relative_to(base).as_posix(): p.read_text() for p in found}


def texts(root, folder, suffixes=(".hpp", ".cpp", ".cuh", ".cu")):
    """Source files below a folder as {path relative to root: text}."""
    found = sorted(p for p in (root / folder).rglob("*") if p.is_file() and p.suffix in suffixes)
    return {p.relative_to(root).as_posix(): p.read_text() for p in found}


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)


def main(check, cases, doc):
    """Runs check(root) -> (errors, warnings). A case is (files, expected): with these files in an otherwise empty tree an
    error must match the regex; None expects no error."""
    arguments = argparse.ArgumentParser(description=doc)
    arguments.add_argument("--root", type=pathlib.Path, default=ROOT, help="the tree to look at")
    arguments.add_argument("--self-test", action="store_true", help="check that planted mistakes are found")
    options = arguments.parse_args()
    if options.self_test:
        sys.exit(self_test(check, cases))
    errors, warnings = check(options.root)
    for line in warnings:
        print(f"warning: {line}")
    for line in errors:
        print(f"error: {line}")
    print(f"{pathlib.Path(sys.argv[0]).name}: {len(errors)} error(s), {len(warnings)} warning(s)")
    sys.exit(1 if errors else 0)


def self_test(check, cases):
    failures = 0
    for files, expected in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            errors, _ = check(root)
        good = not errors if expected is None else any(re.search(expected, e) for e in errors)
        if not good:
            failures += 1
            print(f"self test: wanted {expected!r}, got {errors} for {sorted(files)}")
    print(f"self test: {len(cases)} case(s), {failures} failure(s)")
    return 1 if failures else 0
