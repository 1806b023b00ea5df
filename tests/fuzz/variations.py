"""Inputs made of other inputs, quickly: hypothesis draws one, a seeded generator changes it in nine ways more."""

from __future__ import annotations

import copy
import re
import struct
from random import Random
from typing import Any

from fuzz.strategies import places, within

_TOKENS = [
    b"0",
    b"-1",
    b"1e308",
    b"1" + b"0" * 400,
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b"1.5",
]
_TOKENS += [
    b'"\\ud800"',
    b'"\\u0000"',
    b"65536",
    b"4294967296",
    b"9" * 30,
    b"1e-320",
    b'"' + b"x" * 3_000 + b'"',
]
_LITERAL = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?')
_WORDS = [0, 1, 2, 3, 8, 0x7F, 0xFF, 0xFFFE, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF]


def vary_bytes(data: bytes, random: Random) -> bytes:
    """One to three bytes, words, JSON values or stretches of it changed; mostly near the beginning, where headers are."""
    changed = bytearray(data[:4_000])
    for _ in range(random.randint(1, 3)):
        at = random.randrange(min(len(changed), random.choice([16, 64, 4_000])) + 1)
        kind = random.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] = random.randrange(256)
        elif kind == 1 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 2:
            del changed[at : at + random.choice([1, 2, 4, 9, 4_000])]
        elif kind == 3:
            changed[at:at] = changed[at : at + random.randint(1, 60)]
        elif kind == 4:
            changed[at : at + 4] = struct.pack("<I", random.choice(_WORDS))
        elif kind == 5:
            changed[at:at] = random.choice([b"\n", b"\0", b"\xff", b"{", b"[", b'"', random.choice(_TOKENS)])
        elif literals := list(_LITERAL.finditer(bytes(changed))):
            start, stop = random.choice(literals).span()
            changed[start:stop] = random.choice(_TOKENS)
    return bytes(changed) + data[4_000:]


def vary_text(text: str, random: Random) -> str:
    """A few stretches of it moved, doubled, cut, or replaced by a character that means something."""
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(text) + 1)
        stop = start + random.choice([0, 1, 2, 5, 20])
        middle = random.choice(["", text[start:stop] * 2, random.choice('()[]{}|:=# \n\t"')])
        if random.random() < 0.2:
            middle = random.choice(
                ["{digit}", "{number:n}", "{room}", "{room} = a | b\n", "\ud800", "\0", "a: "]
            )
        text = text[:start] + middle + text[stop:]
    return text


def vary_conversation(messages: list[str | bytes], random: Random) -> list[str | bytes]:
    """A message said twice, left out, cut, moved, or changed."""
    varied = list(messages)
    at = random.randrange(len(varied)) if varied else 0
    kind = random.randrange(5)
    if not varied:
        return ['{"type": "stop"}']
    if kind == 0:
        varied.insert(at, random.choice(varied))
    elif kind == 1 and at:
        varied.pop(at)
    elif kind == 2 and at:
        varied.insert(random.randrange(1, len(varied)), varied.pop(at))
    elif isinstance(message := varied[at], bytes):
        varied[at] = vary_bytes(message, random)
    else:
        data = vary_bytes(message.encode("utf-8", "surrogatepass"), random)
        varied[at] = data.decode("utf-8", "replace")
    return varied


def vary_json(body: dict[str, Any], random: Random) -> dict[str, Any]:
    """One or two values, at any depth, replaced, removed, or moved to another key."""
    body = copy.deepcopy(body)
    for _ in range(random.randint(1, 2)):
        holder: Any = body
        key: Any = random.choice([*holder]) if holder else "x"
        while (inner := within(holder, key)) and random.random() < 0.8:
            holder = inner
            key = random.choice(places(holder))
        kind = random.randrange(8)
        if kind == 0:
            if key in places(holder):
                del holder[key]
        elif kind == 1:
            other = [*places(holder), *(["unknown"] if isinstance(holder, dict) else [])]
            holder[random.choice(other)] = holder[key] if key in places(holder) else None
        else:
            holder[key] = copy.deepcopy(random.choice(_VALUES))
    return body


_VALUES: list[Any] = [
    0,
    -1,
    1,
    2,
    300,
    2**31,
    2**64,
    10**400,
    0.5,
    -0.0,
    1e308,
    1e-320,
    True,
    None,
    "",
    "onnx",
    "gguf",
]
_VALUES += [float("nan"), float("inf"), "\ud800", "\0", "a\nb", "x" * 3_000, "lower", "\u2028", "../x", "é"]
_VALUES += [
    [],
    [0],
    [1, 2, 3],
    [[]],
    [""],
    ["onnx"],
    ["gguf", "onnx"],
    [2**70],
    [None],
    {},
    {"a": 1},
    {"": None},
]
_VALUES += [
    {"sha256": "0" * 64, "bytes": 3},
    [{"name": "CPUExecutionProvider", "options": {"a": 1}}],
    {"a": {"b": [1]}},
]
