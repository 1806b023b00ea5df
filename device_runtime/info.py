"""Say what is inside a bundle, after verifying every file in it by its sha256."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

from prunella.device_runtime.base.errors import BundleError
from prunella.device_runtime.bundle import (
    MANIFEST_NAME,
    Bundle,
    FeatureSpec,
    MmprojSpec,
    PromptSpec,
    open_bundle,
)


def open_for_info(path: str | Path) -> Bundle:
    """As `open_bundle`, with a word for those who point at a checkpoint.

    Raises:
        BundleError: not a bundle, or not an intact one.
    """
    folder = Path(path)
    if (folder / "config.json").is_file() and not (folder / MANIFEST_NAME).exists():
        raise BundleError(
            f"{path} is a checkpoint (a model to prune and export), not a bundle: "
            f"`prunella export {path} --target x86-cpu` makes a bundle of it"
        )
    return open_bundle(folder)


def describe(bundle: Bundle) -> str:
    """The bundle in lines for people: what it is, how it decodes, where it comes from, its files."""
    manifest = bundle.manifest
    decoder, audio, decode = manifest.decoder, manifest.audio, manifest.decode
    rows = [
        ("name", manifest.name),
        ("family", manifest.family),
        ("target", manifest.target),
        ("recipe", manifest.recipe),
        ("engines", ", ".join(manifest.engines)),
        (
            "decoder",
            f"{decoder.num_layers} layers, hidden {decoder.hidden_size}, vocabulary {decoder.vocab_size}",
        ),
        (
            "audio",
            f"{audio.sampling_rate} Hz, {_per_second(audio.sampling_rate / audio.samples_per_token)} audio tokens/s",
        ),
        ("features", _features(audio.features)),
        ("letters", _letters(bundle)),
        *_mmproj(manifest.mmproj),
        ("prompt", f"{manifest.prompt.before_audio!r} AUDIO {manifest.prompt.after_audio!r}"),
        *_time_marks(manifest.prompt),
        ("languages", _languages(manifest.prompt)),
        ("vocabulary", "--vocabulary WORDS" if manifest.prompt.takes_vocabulary else "the prompt takes none"),
        ("token cap", f"{_per_second(decode.max_tokens_per_second)} per second + {decode.extra_tokens}"),
        ("guards", _guards(bundle)),
        ("threads", f"at most {manifest.threads or 'one per physical core'}"),
        ("made by", manifest.created_by or "unknown"),
        *_provenance(manifest.provenance, manifest.name),
    ]
    width = max(len(key) for key, _ in rows)
    lines = [f"{key:<{width}}  {value}" for key, value in rows]
    lines += ["", f"{len(manifest.files)} files, {bundle.total_bytes / 1e6:.1f} MB, every sha256 verified"]
    lines += [f"{entry.bytes:>13,}  {name}" for name, entry in sorted(manifest.files.items())]
    return "\n".join(lines)


def to_json(bundle: Bundle) -> dict[str, Any]:
    """The manifest as a JSON-ready dict, with the bundle's path and total size."""
    return {
        "path": str(bundle.path),
        "total_bytes": bundle.total_bytes,
        "verified": True,
        **asdict(bundle.manifest),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a directory made by `prunella export` or `prunella build`"
    )
    parser.add_argument("--json", action="store_true", help="the manifest as one JSON object")


def run(args: argparse.Namespace) -> None:
    bundle = open_for_info(args.bundle)
    text = (
        json.dumps(to_json(bundle), indent=2, ensure_ascii=False)
        if args.json
        else _printable(describe(bundle))
    )
    sys.stdout.write(text + "\n")


def _printable(text: str) -> str:
    """What a bundle of somebody else says must not move the cursor of whoever reads it."""
    return "".join(
        sign if sign.isprintable() or sign in "\n" else sign.encode("unicode_escape").decode()
        for sign in text
    )


def _mmproj(spec: MmprojSpec | None) -> list[tuple[str, str]]:
    if spec is None:
        return []
    found = f"layout {spec.projector}" if spec.projector else "none"
    return [("llama.cpp's audio half", f"{found}; {spec.note}" if spec.note else found)]


def _letters(bundle: Bundle) -> str:
    audio, decode = bundle.manifest.audio, bundle.manifest.decode
    if not audio.ctc_alphabet:
        return "no CTC head"
    return f"CTC head over {audio.ctc_alphabet!r}, weighed {decode.ctc_weight:g} when several transcripts are followed"


def _features(spec: FeatureSpec) -> str:
    told = {"all": "", "floor": "; whole hops of audio are told", "ceil": "; begun hops of audio are told"}[
        spec.valid
    ]
    parts = [
        f"{spec.kind}, {spec.num_mel_bins} bins",
        "on HTK's mel scale" if spec.mel_scale == "htk" else "",
        f"{spec.stack} frames in one, every {spec.stack_step}" if spec.stack > 1 else "",
        f"audio of at least {spec.min_samples} samples" if spec.min_samples else "",
        f"padded to a multiple of {spec.multiple} samples" if spec.multiple > 1 else "",
        f"{spec.extra} samples of silence behind it" if spec.extra else "",
        f"padded to a multiple of {spec.frame_multiple} frames" if spec.frame_multiple > 1 else "",
    ]
    return ", ".join(filter(None, parts)) + told


def _time_marks(prompt: PromptSpec) -> list[tuple[str, str]]:
    if not prompt.time_marks:
        return []
    first, last = prompt.time_marks[0], prompt.time_marks[-1]
    return [
        (
            "time marks",
            f"{first.text!r} behind {first.after} audio tokens, to {last.text!r} behind {last.after}",
        )
    ]


def _languages(prompt: PromptSpec) -> str:
    if not prompt.languages:
        return "the prompt takes none"
    told = f"told {prompt.language}" if prompt.language else "the model finds out"
    return f"{', '.join(one.code for one in prompt.languages)} (--language; else {told})"


def _guards(bundle: Bundle) -> str:
    decode = bundle.manifest.decode
    if not decode.guards:
        return "off"
    return (
        f"stop after {decode.repeat_times} times the same 1 to {decode.repeat_max_words} words; "
        f"no text for audio below {decode.silence_dbfs:g} dBFS or without speech"
    )


def _provenance(provenance: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    """Rows in which cuts and healing, however often the model was trained, are a line each. Its values are free-form."""
    rest = dict(provenance)
    if rest.get("name") == name:
        del rest["name"]
    cuts, sittings = rest.get("pruning"), rest.get("healing")
    cuts = [cuts] if isinstance(cuts, Mapping) else cuts
    if _mappings(cuts):
        del rest["pruning"]
        yield from (("pruning", _cut(cut)) for cut in cuts)
    if _mappings(fewer := rest.get("vocabulary")):
        del rest["vocabulary"]
        yield from (("pruning", _tokens(cut)) for cut in fewer)
    if _mappings(sittings):
        del rest["healing"]
        yield "healing", _sittings(sittings)
    yield from _flatten(rest)


def _cut(cut: Mapping[str, Any]) -> str:
    blocks = cut.get("blocks")
    named = " ".join(map(str, blocks)) if isinstance(blocks, list) else "?"
    after, before = cut.get("layers_after", "?"), cut.get("layers_before", "?")
    losses = [
        f"{_number(cut[key]):.3g} {what}"
        for key, what in (("loss_full", "before"), ("loss_cut", "cut"), ("loss_pruned", "after"))
        if cut.get(key) is not None
    ]
    told = [
        f"layers {named} taken out, {after} of {before} left",
        f"chosen as {cut.get('strategy', '?')}",
        *([f"loss {', '.join(losses)}"] if losses else []),
    ]
    return "; ".join(told)


def _tokens(cut: Mapping[str, Any]) -> str:
    told = [f"{cut.get('tokens_after', '?')} of {cut.get('tokens_before', '?')} tokens left"]
    told.append(f"kept by {cut.get('kept_by', '?')}")
    speech = cut.get("speech")
    if isinstance(speech, Mapping):
        before, after = (100 * _number(speech.get(f"wer_{when}")) for when in ("before", "after"))
        told.append(f"WER {before:.1f} → {after:.1f} % on {speech.get('clips', '?')} clips")
    return "; ".join(told)


def _sittings(sittings: Sequence[Mapping[str, Any]]) -> str:
    carried = [one["sittings"] for one in sittings if _mappings(one.get("sittings"))]  # of another model
    every = [one for group in (sittings, *carried) for one in group]
    stages = Counter(str(one.get("stage", "training")) for one in every)
    steps = sum(_number(one.get("steps")) for one in every)
    hours = sum(_number(one.get("minutes")) for one in every) / 60
    kinds = ", ".join(f"{count} x {stage}" if count > 1 else stage for stage, count in stages.most_common())
    return f"{kinds}; {steps:,.0f} steps, {hours:.1f} h; `--json` tells all of them"


def _mappings(values: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(values, list) and bool(values) and all(isinstance(one, Mapping) for one in values)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e15 else 0.0


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Rows for a free-form, possibly nested mapping: `wer.before`, `wer.after`, ...; one for each mapping of a list."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif _mappings(value):
            for number, one in enumerate(value, 1):
                yield f"{prefix}{key}.{number}", ", ".join(" ".join(row) for row in _flatten(one))
        elif value is not None and value != []:
            yield f"{prefix}{key}", _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def _per_second(value: float) -> str:
    return f"{value:g}"
