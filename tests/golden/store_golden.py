#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Computes the golden bytes of tests/golden/store_test.cpp from docs/format.md. Needs the Python package xxhash."""

import struct
import xxhash

PAGE = 4096


def checksum(data):
    return xxhash.xxh3_64_intdigest(bytes(data))


def pages(n):
    return (n + PAGE - 1) // PAGE * PAGE


def sealed(data, length=PAGE):
    data = bytes(data).ljust(length - 8, b"\0")
    return data + struct.pack("<Q", checksum(data))


def seq(first, count, step=1):
    return bytes((first + i * step) % 256 for i in range(count))


IDENTITY = seq(1, 32)
KEY = seq(40, 32)
PARENT = seq(80, 32)
WRITER = seq(0xA0, 16)
ROOT_ID = seq(0x10, 16)
SHARD = struct.pack("<5H6xQ", 1, 2, 8, 3, 4, 0x1122334455667788)
HASH_ID = 7
TOKENS = [1000 + 3 * i for i in range(5)]
EXTRA = seq(200, 11)
BLOCK_TOKENS, EXTRA_CAPACITY = 5, 21
LAYERS = [pages(5000), pages(130 * PAGE), pages(1)]
GENERATION, SLOT_NUMBER = 0x0102030405060708, 99

digests_at = (((256 + 4 * BLOCK_TOKENS + 7) // 8 * 8) + EXTRA_CAPACITY + 7) // 8 * 8
HEADER = pages(digests_at + 8 * len(LAYERS) + 8)
PAYLOAD = sum(LAYERS)
STRIDE = HEADER + PAYLOAD
payload = bytes((i * 31 + i // PAGE) % 256 for i in range(PAYLOAD))


def layer_digests():
    low_high = xxhash.xxh3_128_intdigest(KEY + SHARD + struct.pack("<QQ", GENERATION, SLOT_NUMBER) + WRITER)
    bound = low_high.to_bytes(16, "little")
    out, at = b"", 0
    for number, length in enumerate(LAYERS):
        values = [checksum(payload[at + p:at + p + PAGE]) for p in range(0, length, PAGE)]
        folded = 0
        for first in range(0, len(values), 128):
            run = values[first:first + 128]
            folded = checksum(bound + struct.pack("<QQQ", number, first, folded) + struct.pack(f"<{len(run)}Q", *run))
        out += struct.pack("<Q", folded)
        at += length
    return out


header = b"\x89kvxslot" + struct.pack("<6I", 1, HEADER, HASH_ID, 1, len(TOKENS), len(EXTRA))
header += IDENTITY + KEY + PARENT + SHARD + struct.pack("<QQQ", PAYLOAD, GENERATION, SLOT_NUMBER) + WRITER + bytes(32)
header += struct.pack("<3I", len(LAYERS), BLOCK_TOKENS, EXTRA_CAPACITY)
header = header.ljust(256, b"\0") + struct.pack(f"<{len(TOKENS)}I", *TOKENS)
header = header.ljust((len(header) + 7) // 8 * 8, b"\0") + EXTRA
header = header.ljust(digests_at, b"\0") + layer_digests()

EXTENT_BYTES = 8 << 20
description = IDENTITY + struct.pack("<II", HASH_ID, BLOCK_TOKENS) + SHARD + struct.pack("<QQQ", HEADER, PAYLOAD, STRIDE)
description += struct.pack("<II", EXTRA_CAPACITY, len(LAYERS))
description += struct.pack("<QQQ", checksum(struct.pack(f"<{len(LAYERS)}Q", *LAYERS)), EXTENT_BYTES,
                           (EXTENT_BYTES - PAGE) // STRIDE) + ROOT_ID
assert len(description) == 136

root = b"\x89kvxroot" + struct.pack("<IIQ", 1, PAGE, EXTENT_BYTES) + ROOT_ID
superblock = b"\x89kvxslab" + struct.pack("<II", 1, PAGE) + description + WRITER + struct.pack("<QQ", 6, 12)
heartbeat = b"\x89kvxbeat" + struct.pack("<II", 1, 1) + WRITER + struct.pack("<QQ", 77, 1234567890123)


def frame(kind, number, sequence, count, used):
    return b"\x89kvj" + struct.pack("<HHQQII", 1, kind, number, sequence, count, len(used)) + WRITER + used


def head(base, records, frames, digest_bytes):
    return description + struct.pack("<QQQQI", 12, base, records, frames, digest_bytes)


def insert(slot, generation, digest_bytes):
    return struct.pack("<IIQ", 1, slot, generation) + KEY[:digest_bytes] + PARENT[:digest_bytes]


def evict(slot):
    return struct.pack("<II", 2, slot)


golden = {
    "slot_header": (header, HEADER),
    "root_page": (root, PAGE),
    "superblock": (superblock, PAGE),
    "heartbeat_page": (heartbeat, PAGE),
    "segment_head": (frame(1, 5, 33, 0, head(3, 0, 0, 16)), PAGE),
    "records_16": (frame(2, 5, 33, 3, insert(4, 9, 16) + evict(4) + insert(5, 10, 16)), PAGE),
    "records_32": (frame(2, 5, 34, 1, insert(4, 9, 32)), PAGE),
    "checkpoint_head": (frame(3, 3, 21, 0, head(0, 2, 1, 32)), PAGE),
}
for name, (prefix, length) in golden.items():
    whole = sealed(prefix, length)
    text = prefix.hex()
    print(f"constexpr std::string_view {name} =")
    lines = [text[i:i + 96] for i in range(0, len(text), 96)]
    print("\n".join(f'    "{line}"' for line in lines) + ";")
    print(f'constexpr std::string_view {name}_seal = "{whole[-8:].hex()}";')
