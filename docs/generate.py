"""Pages that are made from the code when the site is built: the command line's help, and the bundle's schema.

A hook of MkDocs (`mkdocs.yml`); without it:

    python docs/generate.py -o FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

COLUMNS = "88"  # of the help texts, whatever terminal builds the site


def command_line() -> str:
    """Every verb's `--help`."""
    os.environ["COLUMNS"] = COLUMNS
    from prunella.cli import VERBS, verb_parser

    parts = ["# Command line\n", "What `prunella VERB --help` prints.\n"]
    for verb, (_, summary) in VERBS.items():
        parser = verb_parser(verb)
        parts.append(f"## {verb}\n\n{summary[0].upper()}{summary[1:]}.\n")
        parts.append(f"```text\n{parser.format_help().strip()}\n```\n")
        for name, (_, below) in parser.verbs().items():
            parts.append(f"### {verb} {name}\n\n```text\n{below.format_help().strip()}\n```\n")
    return "\n".join(parts)


def bundle_schema() -> str:
    """The dataclasses that `bundle.json` is read into, as tables and as a JSON schema."""
    import msgspec

    from prunella.device_runtime import bundle, transcript

    parts = ["# Bundle schema\n", "The fields of `bundle.json`, from the classes that it is read into.\n"]
    kinds = (
        bundle.BundleManifest,
        bundle.AudioSpec,
        bundle.FeatureSpec,
        bundle.PromptSpec,
        bundle.PromptSegment,
        bundle.Language,
        bundle.TimeMark,
        bundle.DecoderSpec,
        bundle.MmprojSpec,
        transcript.DecodeOptions,
        bundle.Provider,
        bundle.Buckets,
        bundle.FileEntry,
    )
    for kind in kinds:
        words, comments = _described(kind)
        parts.append(f"## {kind.__name__}\n\n{words}\n" if words else f"## {kind.__name__}\n")
        rows = ["| key | type | default | |", "|:--|:--|:--|:--|"]
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            cells = (
                f"`{field.name}`",
                _type(hints[field.name]),
                _default(field),
                comments.get(field.name, ""),
            )
            rows.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(rows) + "\n")
    schema = json.dumps(msgspec.json.schema(bundle.BundleManifest), indent=2, sort_keys=True)
    parts.append(f"## JSON schema\n\n```json\n{schema}\n```\n")
    return "\n".join(parts)


def _described(kind: type) -> tuple[str, dict[str, str]]:
    """What a class says of itself, and of each field: in its docstring, or beside it."""
    doc = inspect.getdoc(kind) or ""
    if doc.startswith(f"{kind.__name__}("):  # dataclasses give themselves a signature
        doc = ""
    words, _, attributes = doc.partition("\n\nAttributes:\n")
    found = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE))
    said = {name: " ".join(text.split()).replace("|", "\\|") for name, text in found.items()}
    return words, _comments(kind) | said


def _comments(kind: type) -> dict[str, str]:
    """What stands behind a field, or in the lines before it."""
    found, above = {}, []
    names = {field.name for field in dataclasses.fields(kind)}
    for line in inspect.getsource(kind).splitlines():
        code, _, comment = line.partition("# ")
        name = code.split(":")[0].strip()
        if name in names and ":" in code:
            found[name] = " ".join([*above, comment.strip()]).strip()
            above = []
        elif not code.strip() and comment:
            above.append(comment.strip())
        elif code.strip() not in (")", ""):
            above = []
    return {name: text.replace("|", "\\|") for name, text in found.items()}


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        inner, *metas = typing.get_args(hint)
        limits = []
        for meta in metas:
            signs = (
                ("ge", "≥ "),
                ("gt", "> "),
                ("le", "≤ "),
                ("lt", "< "),
                ("pattern", "matches "),
                ("min_length", "length ≥ "),
            )
            for name, sign in signs:
                value = getattr(meta, name, None)
                if value is not None and not (name == "le" and value == 2**53):
                    limits.append(f"{sign}`{value}`".replace("|", "\\|"))
        return f"{_type(inner)}{', ' if limits else ''}{', '.join(limits)}"
    origin, inside = typing.get_origin(hint), [part for part in typing.get_args(hint) if part is not Ellipsis]
    if origin is tuple:
        return f"list of {_type(inside[0])}"
    if origin is dict or getattr(origin, "__name__", "") == "Mapping":
        return f"object of {_type(inside[1])}"
    if inside:
        return " or ".join(map(_type, inside))
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return names.get(hint, "anything" if hint is Any else str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{json.dumps(field.default)}`"
    if field.default_factory is dataclasses.MISSING:
        return "required"
    return "its own defaults" if dataclasses.is_dataclass(field.default_factory) else "empty"


PAGES: dict[str, Callable[[], str]] = {"cli.md": command_line, "bundle-schema.md": bundle_schema}


def on_files(files: Any, *, config: Any) -> Any:
    """MkDocs: add the pages to the site."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write them into")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (out / name).write_text(make(), encoding="utf-8")
        print(out / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
