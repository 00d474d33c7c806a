#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that dashboards and pages name only metrics, tiers and operations that kvx exposes.

What there is comes from include/kvx/metrics/snapshot.hpp. A histogram has the samples _bucket, _sum and _count.
"""

import json
import re

import tree

SOURCE = "include/kvx/metrics/snapshot.hpp"
NAME = re.compile(r"\bkvx_[a-z_]+\b")
# A name with its label matchers, as PromQL and Prometheus' text write them.
SAMPLE = re.compile(r"\b(kvx_[a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'\b(tier|operation)\s*(=~?|!=|!~)\s*\\?"([^"\\]*)\\?"')
# In pages: words that look like metrics and are none.
IN_PAGES = re.compile(r"`(kvx_[a-z_]+)(?:\{[^}`]*\})?`")


def exposed(text):
    """{name: kind} of what the list in the source visits, and the values of the labels."""
    code = tree.without_comments(text)
    kinds = {}
    for name in NAME.findall(" ".join(re.findall(r'"(kvx_[a-z_]+)"', code))):
        kinds[name] = "histogram" if name.endswith("_seconds") else "counter" if name.endswith("_total") else "gauge"
    operations = set(re.findall(r'\b(?:one|latency)\("(\w+)"', code)) | set(re.findall(r'"operation", "(\w+)"', code))
    return kinds, {"tier": set(re.findall(r'"tier", "(\w+)"', code)), "operation": operations}


def known(name, kinds):
    if kinds.get(name) in ("counter", "gauge"):
        return True
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base != name and kinds.get(base) == "histogram"


def expressions(value, key=""):
    """Every string of a dashboard that holds PromQL."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield from expressions(v, k)
    elif isinstance(value, list):
        for v in value:
            yield from expressions(v, key)
    elif isinstance(value, str) and key in ("expr", "query", "definition"):
        yield value


def wrong_labels(text, values):
    for name, labels in SAMPLE.findall(text):
        for label, _, wanted in MATCHER.findall(labels):
            for one in wanted.split("|"):
                if re.fullmatch(r"\w+", one) and one not in values[label]:
                    yield f'{name} has no {label}="{one}"'


def check(root):
    source = root / SOURCE
    if not source.exists():
        return [f"{SOURCE}: missing"], []
    kinds, values = exposed(source.read_text())
    errors = []
    for path in sorted((root / "docs").rglob("*.json")):
        where = path.relative_to(root).as_posix()
        try:
            dashboard = json.loads(path.read_text())
        except ValueError as problem:
            errors.append(f"{where}: not JSON: {problem}")
            continue
        found = list(expressions(dashboard))
        if not any(NAME.search(e) for e in found):
            errors.append(f"{where}: no expression names a metric of kvx")
        for expression in found:
            for name in NAME.findall(expression):
                if not known(name, kinds):
                    errors.append(f"{where}: {name} is not exposed, in: {expression}")
            errors.extend(f"{where}: {problem}" for problem in wrong_labels(expression, values))
        numbers = [p.get("id") for p in dashboard.get("panels", [])]
        if len(set(numbers)) != len(numbers):
            errors.append(f"{where}: two panels have the same id")
    for path in sorted((root / "docs").rglob("*.md")):
        text = path.read_text()
        where = path.relative_to(root).as_posix()
        for name in IN_PAGES.findall(text):
            if not known(name, kinds) and kinds.get(name) != "histogram":
                errors.append(f"{where}: {name} is not exposed")
        errors.extend(f"{where}: {problem}" for problem in wrong_labels(text, values))
    return errors, []


LIST = (
    'per_tier("kvx_hits_total", "", counter); visit({"", {{{"tier", "memory"}}}});\n'
    'one("match", a); latency("load", b); visit({"kvx_latency_seconds"}); visit({"kvx_blocks"});\n'
)


def with_expression(expression, page=""):
    return {
        SOURCE: LIST,
        "docs/m/d.json": json.dumps({"panels": [{"id": 1, "targets": [{"expr": expression}]}]}),
        "docs/m.md": page,
    }


CASES = [
    (with_expression('rate(kvx_hits_total{tier="memory"}[5m]) / kvx_blocks'), None),
    (with_expression('kvx_latency_seconds_bucket{operation=~"load|match"}'), None),
    (with_expression("kvx_hits_total", '`kvx_latency_seconds{operation="load"}` `kvx_blocks`'), None),
    (with_expression("kvx_hit_total"), "kvx_hit_total is not exposed"),
    (with_expression("kvx_latency_seconds"), "kvx_latency_seconds is not exposed"),
    (with_expression("kvx_blocks_sum"), "kvx_blocks_sum is not exposed"),
    (with_expression('kvx_hits_total{a="b",tier="disk"}'), 'no tier="disk"'),
    (with_expression('kvx_latency_seconds_sum{operation="loads"}'), 'no operation="loads"'),
    (with_expression("kvx_hits_total", "`kvx_hit_total`"), "docs/m.md: kvx_hit_total is not exposed"),
    (with_expression("kvx_hits_total", '`kvx_hits_total{tier="disk"}`'), 'docs/m.md: .*no tier="disk"'),
    (with_expression("up"), "no expression names a metric"),
    ({SOURCE: LIST, "docs/d.json": "{"}, "not JSON"),
    ({SOURCE: LIST, "docs/d.json": '{"panels": [{"id": 1, "expr": "kvx_blocks"}, {"id": 1}]}'}, "same id"),
]

if __name__ == "__main__":
    tree.main(check, CASES, __doc__)
