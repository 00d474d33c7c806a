#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that headers include only what is below them, and third-party headers only where they belong."""

import re

import tree

# Bottom up. An entry is a header or a directory; a header may include its own layer and all layers below. A header of
# detail/ that includes more than that belongs to the layer of what it includes: it is the private part of something there.
LAYERS = [
    ["version.hpp"],
    ["types.hpp", "result.hpp"],
    ["concepts/"],
    ["layout.hpp", "layout/"],
    ["detail/"],
    ["hash/", "eviction/", "io/", "transfer/", "admission/"],
    ["store/", "tier/", "metrics/", "index.hpp", "sequence.hpp", "plan.hpp", "options.hpp"],
    ["runtime.hpp", "tickets.hpp", "direct_ticket.hpp", "load_race.hpp", "cache.hpp", "any_cache.hpp"],
    ["presets.hpp", "presets/", "kvx.hpp"],
]
DETAIL = 4
POLICIES = 5
# A policy never includes another policy, but for these.
POLICY_EDGES = {
    ("io/auto_io.hpp", "io/uring.hpp"),
    ("io/auto_io.hpp", "io/posix.hpp"),
}
# In the policies' directories without being a policy, so that policies may include them.
NOT_POLICIES = re.compile(r"hash/key_chain\.hpp$|transfer/cuda/")
# Where headers of an optional component may be included: policies, and what is made for one tool.
COMPONENT_PLACES = re.compile(r"(hash|eviction|io|transfer|admission)/|metrics/nvtx\.hpp$")
# xxHash is the one dependency of the core.
CORE_THIRD_PARTY = {"xxhash.h"}
SYSTEM = re.compile(
    r"[a-z_0-9]+$|(sys|linux|asm|bits|netinet|arpa)/.*\.h$|"
    r"(fcntl|unistd|pthread|sched|dirent|errno|poll|time|signal|dlfcn|limits|immintrin|arm_neon|semaphore|stdint)\.h$")
# The umbrella and everything it reaches must compile without any component.
CORE = ["kvx.hpp"]


def layer_of(name):
    for rank, entries in enumerate(LAYERS):
        for entry in entries:
            if name == entry or (entry.endswith("/") and name.startswith(entry)):
                return rank
    return None


def effective_layer(name, edges, seen=()):
    """layer_of, but a header of detail/ is lifted to the highest layer that it includes."""
    rank = layer_of(name)
    if rank != DETAIL or name in seen:
        return rank
    below = [effective_layer(target, edges, (*seen, name)) for target in edges.get(name, [])]
    return max([rank] + [r for r in below if r is not None])


def component_includes(root):
    path = root / "cmake" / "kvxComponents.cmake"
    text = path.read_text() if path.exists() else ""
    rows = re.findall(r"^kvx_component\(NAME (\w+)(.*?)^\s*HINT", text, re.M | re.S)
    found = {}
    for name, row in rows:
        pattern = re.search(r'INCLUDE "([^"]+)"', row)
        if pattern:
            found[name] = re.compile("(" + pattern.group(1).replace("\\\\", "\\") + ")$")
    return found


def check(root):
    errors = []
    headers = tree.headers(root)
    components = component_includes(root)
    edges = {}
    for name, text in headers.items():
        found = [i.removeprefix("kvx/") for i in tree.INCLUDE.findall(text) if i.startswith("kvx/")]
        edges[name] = found
    third_party = {}
    for name, text in headers.items():
        rank = effective_layer(name, edges)
        if rank is None:
            errors.append(f"include/kvx/{name} is in no layer: add it to LAYERS in tools/lint/layers.py")
            continue
        for target in edges[name]:
            other = effective_layer(target, edges)
            if target not in headers:
                errors.append(f"include/kvx/{name} includes <kvx/{target}>, which does not exist")
            elif other is not None and other > rank:
                errors.append(f"include/kvx/{name} includes <kvx/{target}>, which is a layer above it")
            elif (layer_of(name) == other == POLICIES and (name, target) not in POLICY_EDGES
                  and not NOT_POLICIES.match(target)):
                errors.append(f"include/kvx/{name} includes <kvx/{target}>: a policy never includes another policy; "
                              "what both need goes to detail/")
        third_party[name] = []
        for include in tree.INCLUDE.findall(text):
            if include.startswith("kvx/") or include in CORE_THIRD_PARTY or SYSTEM.match(include):
                continue
            if not any(p.match(include) for p in components.values()):
                errors.append(f"include/kvx/{name} includes <{include}>, which no component in "
                              "cmake/kvxComponents.cmake brings")
                continue
            third_party[name].append(include)
            if not COMPONENT_PLACES.match(name):
                errors.append(f"include/kvx/{name} includes <{include}>: a component's headers belong in a leaf "
                              "header of the policies")

    for name in edges:
        cycle = find_cycle(edges, name)
        if cycle:
            errors.append("include/kvx: headers include each other: " + " -> ".join(cycle))
            break
    for start in CORE:
        for name in reachable(edges, start):
            for include in third_party.get(name, []):
                errors.append(f"include/kvx/{start} reaches <{include}> through include/kvx/{name}: the core must "
                              "compile without components")
    return errors, []


def reachable(edges, start):
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in edges and name not in seen:
            seen.add(name)
            todo.extend(edges[name])
    return sorted(seen)


def find_cycle(edges, start):
    """A path from start back to start, or None."""
    todo, seen = [(start, [start])], set()
    while todo:
        name, path = todo.pop()
        for target in edges.get(name, []):
            if target == start:
                return path + [start]
            if target not in seen:
                seen.add(target)
                todo.append((target, path + [target]))
    return None


COMPONENTS = {"cmake/kvxComponents.cmake": 'kvx_component(NAME uring\n    INCLUDE "liburing\\\\.h"\n    HINT "x")\n'}
CASES = [
    ({"include/kvx/types.hpp": "#include <cstdint>\n", "include/kvx/io/posix.hpp":
      "#include <kvx/types.hpp>\n#include <sys/stat.h>\n#include <xxhash.h>\n"}, None),
    ({**COMPONENTS, "include/kvx/io/uring.hpp": "#include <liburing.h>\n"}, None),
    ({"include/kvx/io/auto_io.hpp": "#include <kvx/io/posix.hpp>\n", "include/kvx/io/posix.hpp": ""}, None),
    ({"include/kvx/types.hpp": "#include <kvx/cache.hpp>\n", "include/kvx/cache.hpp": ""}, "a layer above"),
    ({"include/kvx/eviction/a.hpp": "#include <kvx/eviction/b.hpp>\n", "include/kvx/eviction/b.hpp": ""},
     "never includes another policy"),
    ({"include/kvx/tier/arena.hpp": "", "include/kvx/detail/saver.hpp": "#include <kvx/tier/arena.hpp>\n",
      "include/kvx/cache.hpp": "#include <kvx/detail/saver.hpp>\n"}, None),
    ({"include/kvx/tier/arena.hpp": "", "include/kvx/detail/saver.hpp": "#include <kvx/tier/arena.hpp>\n",
      "include/kvx/io/posix.hpp": "#include <kvx/detail/saver.hpp>\n"}, "a layer above"),
    ({"include/kvx/io/uring.hpp": "#include <liburing.h>\n"}, "no component"),
    ({**COMPONENTS, "include/kvx/tier/arena.hpp": "#include <liburing.h>\n"}, "leaf header"),
    ({**COMPONENTS, "include/kvx/io/uring.hpp": "#include <liburing.h>\n",
      "include/kvx/kvx.hpp": "#include <kvx/io/uring.hpp>\n"}, "without components"),
    ({"include/kvx/utils.hpp": ""}, "in no layer"),
    ({"include/kvx/types.hpp": "#include <kvx/result.hpp>\n", "include/kvx/result.hpp": "#include <kvx/types.hpp>\n"},
     "include each other"),
    ({"include/kvx/types.hpp": "#include <kvx/gone.hpp>\n"}, "does not exist"),
]

if __name__ == "__main__":
    tree.main(check, CASES, __doc__)
