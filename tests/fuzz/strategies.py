"""Inputs of all kinds of readers: valid ones, valid ones that were changed in a few places, and any bytes at all."""

from __future__ import annotations

import copy
import io
import json
import re
import struct
from typing import Any

import numpy as np
import soundfile
from hypothesis import strategies as st

_ODD_NUMBERS = st.sampled_from(
    [
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**64),
        10**40,
        10**400,
        0.5,
        -0.0,
        1e-320,
        1e308,
        1.7e308,
        float("nan"),
        float("inf"),
        float("-inf"),
    ]
)
_ODD_TEXTS = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "\ud800",
        "a\nb",
        "\u2028",
        "\ufeff",
        "é",
        "../x",
        "/",
        "[noise]",
        "<unk>",
        "x" * 5_000,
        "[" * 300,
    ]
)
_LEAVES = (
    st.none() | st.booleans() | st.integers(-9, 99_999) | _ODD_NUMBERS | st.text(max_size=6) | _ODD_TEXTS
)


def json_text(value: Any, **options: Any) -> str:
    """JSON of a value of `VALUES`: what is deeper than Python may go is text from the start."""
    return _DEEP.sub(lambda match: _nested(int(match[1])), json.dumps(value, **options))


def _nested(depth: int) -> str:
    return '[{"a": ' * (depth // 2) + "1" + "}]" * (depth // 2)


_DEEP = re.compile(r'"@deep(\d+)@"')
_DEPTHS = st.sampled_from(
    ["@deep8@"] * 16 + ["@deep60@", "@deep300@", "@deep900@", "@deep9000@"]
)  # the deep are slow
VALUES = st.one_of(
    _LEAVES,
    _ODD_NUMBERS,
    _ODD_NUMBERS,
    _ODD_TEXTS,
    st.lists(_LEAVES, max_size=3),
    st.dictionaries(st.text(max_size=4), _LEAVES, max_size=3),
    _DEPTHS,
)


@st.composite
def changed_bytes(draw: st.DrawFn, intact: st.SearchStrategy[bytes]) -> bytes:
    """Some bytes of it replaced, cut out, put in or said twice; mostly near the beginning, where headers are."""
    data = bytearray(draw(intact))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, min(len(data), draw(st.sampled_from([16, 64, 100_000])))))
        kind = draw(st.sampled_from(["set", "set", "cut", "put", "twice", "word"]))
        if kind == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.sampled_from([1, 4, 8, 1_000_000]))]
        elif kind == "put":
            data[at:at] = draw(st.binary(max_size=8))
        elif kind == "twice":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        elif kind == "word":
            data[at : at + 4] = struct.pack("<I", draw(st.sampled_from(_WORDS)))
    return bytes(data)


_WORDS = [0, 1, 3, 8, 16, 0x7F, 0xFF, 0xFFFE, 44_100, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF]

# Manifests

_ROW = {
    "audio_filepath": "a.wav",
    "duration": 0.1,
    "text": "go forward",
    "source": "x",
    "speaker": "y",
    "offset": 0.05,
}
_ROW_KEYS = st.sampled_from([*_ROW, *_ROW, "id", ""])


@st.composite
def _row(draw: st.DrawFn) -> bytes:
    row: dict[str, Any] = {
        key: value for key, value in _ROW.items() if key != "offset" or draw(st.booleans())
    }
    for _ in range(draw(st.integers(0, 2))):
        key = draw(_ROW_KEYS)
        if draw(st.booleans()) and draw(st.booleans()):
            row.pop(key, None)
        else:
            row[key] = draw(VALUES)
    if draw(st.integers(0, 9)):
        return json_text(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return json_text(row, ensure_ascii=False).encode("utf-16", "surrogatepass")


_LINES = st.one_of(_row(), _row(), _row(), changed_bytes(_row()), st.binary(max_size=30))
MANIFESTS = st.builds(
    lambda bom, lines, end: bom + end.join(lines),
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    st.lists(_LINES, max_size=4),
    st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b""]),
)

# bundle.json


def places(holder: dict[str, Any] | list[Any]) -> list[Any]:
    """Keys of an object, or places in a list."""
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


def within(holder: dict[str, Any] | list[Any], key: Any) -> dict[str, Any] | list[Any] | None:
    """What is there, if it holds something itself."""
    inner = holder[key] if key in places(holder) else None
    return inner if isinstance(inner, (dict, list)) and inner else None


@st.composite
def bundle_bodies(draw: st.DrawFn, intact: dict[str, Any]) -> dict[str, Any]:
    """A manifest's object with up to three places changed, at any depth; it still has to be sealed."""
    body = copy.deepcopy(intact)
    for _ in range(draw(st.integers(0, 3))):
        holder, key = body, draw(st.sampled_from([*intact, *_BUNDLE_PARTS, "unknown"]))
        while (inner := within(holder, key)) and draw(st.integers(0, 5)):
            holder = inner
            odd = ["unknown", "../up", "onnx/x.onnx"] if isinstance(inner, dict) else []
            key = draw(st.sampled_from([*places(inner), *odd]))
        if draw(st.integers(0, 5)):
            holder[key] = draw(VALUES)
        elif key in places(holder):
            del holder[key]
    return body


_BUNDLE_PARTS = ["audio", "prompt", "decoder", "decode", "files", "providers", "llama", "precision"] * 2

# Phrases

_PIECES = st.sampled_from(
    [
        "go ",
        "stop ",
        "é",
        "(",
        ")",
        "[",
        "]",
        "|",
        "{",
        "}",
        "{digit}",
        "{room}",
        "{room} = ",
        "{digit:n}",
        "{none}",
        "\n",
        "\n",
        ": ",
        "label: ",
        "#",
        "=",
        "\t",
        "\0",
        "\ud800",
        "\u2028",
        "\u00a0",
        "'",
        "|",
        "(a | b) ",
        "[c] ",
    ]
)
_LARGE_PHRASES = st.sampled_from(
    [
        "(" * 5_000,
        "[" * 31 + "a" + "]" * 31,
        "[a " * 33,
        "(a|" * 31 + "b" + ")" * 31,
        "|" * 30_000,
        "{number} {number}",
        "{number} {number} {number}",
        "{digit} " * 40,
        "{letter} {letter} {letter}",
        "[a] " * 14,
        "[a] " * 400,
        "(a|b) " * 17,
        "\n".join(f"{{a{n}}} = {{number}} {{number}}" for n in range(60)),
        "\n".join(f"{{a{n + 1}}} = ({{a{n}}} | {{a{n}}}) x" for n in range(40)).replace("{a0}", "{digit}"),
        "\n".join(f"say {n}" for n in range(5_000)),
        "go " * 20_000,
        "x" * 60_000,
        "{" * 20_000,
        "{room} = " + "|".join(f"r{n}" for n in range(3_000)) + "\n{room} {digit}",
        "#" * 60_000,
        "a: " * 10_000,
    ]
)
_SMALL_PHRASES = st.lists(_PIECES, max_size=24).map("".join) | st.text(max_size=40)


@st.composite
def _phrases(draw: st.DrawFn) -> str:
    text = draw(_SMALL_PHRASES)
    if draw(st.integers(0, 99)) == 7:  # rare, since they cost a thousand times as much
        text += "\n" + draw(_LARGE_PHRASES) + draw(_SMALL_PHRASES)
    return text


PHRASES = _phrases()

# Live audio over a WebSocket: str is a text message, bytes a binary one

_TONE = (9_000 * np.sin(np.arange(24_000) / 5)).astype("<i2").tobytes()
_START_KEYS = st.sampled_from(["type", "sample_rate", "api_key", "phrases", "phrases", "language", "x"])
_STARTS = st.builds(
    lambda rate, changes: json_text({"type": "start", "sample_rate": rate} | changes),
    st.sampled_from([16_000, 16_000, 8_000, 44_100, 192_000]),
    st.dictionaries(_START_KEYS, VALUES | _SMALL_PHRASES, max_size=2) | st.just({}),
)
_STOPS = st.sampled_from(
    ['{"type": "stop"}', '{"type": "stop", "x": 1}', '{"type": "end"}', "[]", "", "stop", "1"]
)
_AUDIO = st.one_of(
    st.sampled_from(
        [_TONE, _TONE[:9_600], bytes(32_000), bytes(2), b"", b"\0", bytes(1 << 20), bytes((1 << 20) + 2)]
    ),
    st.binary(max_size=60),
)
_MESSAGES = st.one_of(
    _AUDIO, _AUDIO, _STOPS, _STARTS, VALUES.map(json_text), st.text(max_size=20), st.just("x" * 70_000)
)
CONVERSATIONS = st.builds(
    lambda first, rest: [*first, *rest],
    st.lists(_STARTS, min_size=1, max_size=1) | st.lists(_MESSAGES, max_size=1),
    st.lists(_MESSAGES, max_size=5),
)

# Wyoming: what a connection sends, events and bytes

_EVENT_TYPES = ["describe", "transcribe", "audio-start", "audio-chunk", "audio-stop", "ping", "x"]
_EVENT_DATA = {
    "describe": {},
    "transcribe": {"language": "en"},
    "audio-start": {"rate": 16_000, "width": 2, "channels": 1},
    "audio-chunk": {"rate": 16_000, "width": 2, "channels": 1},
    "audio-stop": {},
    "ping": {"text": "there"},
    "x": {},
}


@st.composite
def _event(draw: st.DrawFn, kind: str | None = None) -> bytes:
    kind = kind or draw(st.sampled_from(_EVENT_TYPES))
    data: Any = dict(_EVENT_DATA[kind])
    payload = draw(st.sampled_from([b"", _TONE[:3_200], bytes(7)])) if kind == "audio-chunk" else b""
    header: dict[str, Any] = {"type": kind, "version": "1.8.0"}
    oddity = draw(st.integers(0, 9))
    if oddity == 0:
        data = draw(VALUES)
    elif oddity == 1:
        data[draw(st.sampled_from(["rate", "width", "channels", "text", "timestamp", "language"]))] = draw(
            VALUES
        )
    body = b""
    if draw(st.booleans()):
        body = json_text(data).encode()
        header["data_length"] = len(body)
    else:
        header["data"] = data
    if payload:
        header["payload_length"] = len(payload)
    if oddity == 2:
        header[draw(st.sampled_from(["type", "data_length", "payload_length", "data", "version"]))] = draw(
            VALUES
        )
    return json_text(header).encode() + b"\n" + body + payload


_UTTERANCE = st.tuples(
    *(_event(kind) for kind in ("transcribe", "audio-start", "audio-chunk", "audio-chunk", "audio-stop"))
).map(b"".join)
WYOMING = st.one_of(
    _UTTERANCE,
    changed_bytes(_UTTERANCE),
    st.lists(_event(), max_size=5).map(b"".join),
    changed_bytes(_event()),
    st.binary(max_size=60),
    st.just(b"{" * 70_000 + b"\n"),
    st.just(b'{"type": "ping", "data": ' + b"[" * 50_000 + b"\n"),
)

# WAV files and what is nearly one


def _wav(subtype: str, channels: int, rate: int, form: str) -> bytes:
    file = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(120 * channels) / 5).reshape(-1, channels)
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


_KINDS = [
    ("WAV", subtype)
    for subtype in ("PCM_16", "PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")
]
_KINDS += [("WAVEX", "PCM_16"), ("WAVEX", "FLOAT"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16")]
_KINDS += [("AU", "PCM_16"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")]
_WAVS = [
    _wav(subtype, channels, rate, form)
    for form, subtype in _KINDS
    for channels, rate in ((1, 16_000), (2, 8_000))
]
_CHUNK = st.builds(
    lambda name, size, body: name + struct.pack("<I", len(body) if size is None else size) + body,
    st.sampled_from([b"fmt ", b"data", b"LIST", b"fact", b"JUNK", b"id3 ", b"\0\0\0\0", b"ds64"]),
    st.none() | st.sampled_from(_WORDS),
    st.binary(max_size=40),
)
_BUILT = st.builds(
    lambda size, chunks: b"RIFF" + struct.pack("<I", size) + b"WAVE" + b"".join(chunks),
    st.sampled_from(_WORDS),
    st.lists(_CHUNK, max_size=5),
)
_FORMATTED = st.builds(
    lambda kind, channels, rate, bits, more, size, data: (
        b"RIFF\xff\xff\xff\xffWAVEfmt "
        + struct.pack("<IHHIIHH", 16 + len(more), kind, channels, rate, rate * 2 % 2**32, 2, bits)
        + more
        + (b"\0" if len(more) % 2 else b"")
        + b"data"
        + struct.pack("<I", size)
        + data
    ),
    st.sampled_from([1, 3, 0xFFFE, 0, 2, 6, 7, 17, 85, 0xFFFF]),
    st.sampled_from([1, 2, 0, 3, 32, 33, 1_024, 65_535]),
    st.sampled_from([16_000, 8_000, 48_000, 0, 1, 999, 768_000, 2**31, 2**32 - 1]),
    st.sampled_from([16, 24, 32, 8, 0, 12, 64, 65_535]),
    st.sampled_from([b"", b"", b"\0\0", struct.pack("<HHIH", 22, 16, 0, 1) + bytes(14), bytes(3)]),
    st.sampled_from(_WORDS),
    st.binary(max_size=64) | st.just(_TONE[:600]) | st.just(b"\0\0\xc0\x7f" * 30),
)
WAVS = st.one_of(
    changed_bytes(st.sampled_from(_WAVS)),
    _FORMATTED,
    changed_bytes(_FORMATTED),
    _BUILT,
    st.binary(max_size=80),
)
