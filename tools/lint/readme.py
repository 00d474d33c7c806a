#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that the pages' C++ is what the examples compile, and that their links lead somewhere.

A block of C++ under the comment `<!-- FILE [NAME] -->` must equal the lines of FILE between `// [NAME]` and `// [/NAME]`,
without their common indentation. In README.md every block of C++ has such a comment. --write puts the lines there.
"""

import pathlib
import re
import sys
import textwrap

import tree

BLOCK = re.compile(r"(?:^<!-- (\S+) \[(\w+)\] -->\n)?^```cpp\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^ *```.*?^ *```$", re.M | re.S)


def pages(root):
    found = sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "examples").rglob("*.md")])
    return {p.relative_to(root).as_posix(): p.read_text() for p in found}


def region(root, file, name):
    """The named lines of a file, or None."""
    path = root / file
    text = path.read_text() if path.is_file() else ""
    found = re.search(rf"^[ \t]*// \[{name}\]\n(.*?)^[ \t]*// \[/{name}\]$", text, re.M | re.S)
    return textwrap.dedent(found.group(1)) if found else None


def anchors(text):
    """What the headings of a page are called in links."""
    heads = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def check(root):
    errors = []
    for page, text in pages(root).items():
        for file, name, code in BLOCK.findall(text):
            if not file:
                if page == "README.md":
                    errors.append(f"{page}: C++ without the comment <!-- FILE [NAME] -->, so nothing compiles it")
                continue
            wanted = region(root, file, name)
            if wanted is None:
                errors.append(f"{page}: {file} has no lines between // [{name}] and // [/{name}]")
            elif code != wanted:
                errors.append(f"{page}: the C++ is not that of {file} [{name}]; tools/lint/readme.py --write puts it there")
        for link in LINK.findall(FENCED.sub("", text)):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            path = (root / page).parent / target if target else root / page
            if not path.exists():
                errors.append(f"{page}: the link {link} leads nowhere")
            elif anchor and anchor not in anchors(path.read_text()):
                errors.append(f"{page}: {target or page} has no heading '{anchor}'")
    return errors, []


def write(root):
    def fill(match):
        lines = region(root, match.group(1), match.group(2)) if match.group(1) else None
        return match.group(0) if lines is None else f"<!-- {match.group(1)} [{match.group(2)}] -->\n```cpp\n{lines}```"

    for page, text in pages(root).items():
        filled = BLOCK.sub(fill, text)
        if filled != text:
            (root / page).write_text(filled)
            print(f"{page}: written")


EXAMPLE = {"examples/01_a.cpp": "int main() {\n  // [use]\n  int a;\n    int b;\n  // [/use]\n}\n"}
USE = "<!-- examples/01_a.cpp [use] -->\n```cpp\n"
CASES = [
    ({**EXAMPLE, "README.md": f"# A\n\n{USE}int a;\n  int b;\n```\n"}, None),
    ({**EXAMPLE, "README.md": f"{USE}int a;\nint b;\n```\n"}, "is not that of"),
    ({**EXAMPLE, "docs/a.md": f"{USE}int c;\n```\n"}, "is not that of"),
    ({**EXAMPLE, "README.md": "<!-- examples/01_a.cpp [gone] -->\n```cpp\n```\n"}, "no lines between"),
    ({"README.md": "```cpp\nint a;\n```\n"}, "without the comment"),
    ({"docs/a.md": "```cpp\nint a;\n```\n"}, None),
    ({"README.md": "[a](docs/a.md) [b](docs/a.md#the-b-s) [c](https://a.b/c)\n", "docs/a.md": "# The `b`, s\n"}, None),
    ({"README.md": "[a](docs/a.md)\n"}, "leads nowhere"),
    ({"docs/a.md": "[a](b.md)\n", "b.md": "# B\n"}, "leads nowhere"),
    ({"examples/a/README.md": "[a](b.md)\n"}, "leads nowhere"),
    ({"docs/a.md": "# A\n[b](#b)\n"}, "no heading"),
    ({"docs/a.md": "```\n# B\n```\n[b](#b)\n"}, "no heading"),
]

if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write(pathlib.Path(tree.ROOT))
    else:
        tree.main(check, CASES, __doc__)
