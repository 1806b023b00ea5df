"""Whether a bundle says on speech what the model that it was made of says in PyTorch, within what its recipe promises.

prunella verify out/reference reference --speech examples/clips/evaluation.jsonl

Every clip is heard by PyTorch and by the bundle's engines, which follow PyTorch's words: audio embeddings, logits and the
next tokens are compared. Exit code 1: a difference beyond the bound of the recipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import msgspec
import tqdm

from prunella.device_runtime.base.common_options import add_speech, add_threads
from prunella.device_runtime.base.errors import AudioError, EngineError, ExportError, UsageError
from prunella.device_runtime.bundle import BundleManifest, open_bundle
from prunella.device_runtime.opening import open_transcriber
from prunella.evaluation.manifest import SpeechManifest, read_manifest
from prunella.export.agreement import (
    Difference,
    Heard,
    OtherToken,
    difference,
    follow,
    lead,
    other_tokens,
    pooled,
)
from prunella.export.promises import Promise, Promises, promises
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.model_facts import read_facts
from prunella.speech_llm.torch_engine import TorchEngine

ENGINES = ("onnx", "gguf")
_CLIPS = 20
_SHOWN = 10  # other tokens that are written out


@dataclass(frozen=True)
class EngineReport:
    """One engine of a bundle beside PyTorch; differences are those of all clips, each in its own standard deviations.

    Attributes:
        engine: with its recipe, such as "onnx-int4".
        embeddings: of the audio.
        letters: log-probabilities of the CTC head; None: there is none.
        logits: of every token that PyTorch says, the tokens before it being PyTorch's.
        equal_tokens: next tokens that are PyTorch's.
        equal_clips: clips of which all tokens are, so that the bundle says the same.
        others: next tokens that are not.
        promises: what the recipe allows.
    """

    engine: str
    embeddings: Difference
    letters: Difference | None
    logits: Difference
    equal_tokens: int
    equal_clips: int
    others: tuple[OtherToken, ...]
    promises: Promises

    def broken(self) -> tuple[str, ...]:
        """What is beyond the recipe's promise, and by how much; nothing where all is kept."""
        compared = [("audio embeddings", self.embeddings, self.promises.audio)]
        if self.letters is not None:
            compared.append(("letters", self.letters, self.promises.audio))
        compared.append(("logits", self.logits, self.promises.logits))
        found = []
        for what, off, promise in compared:
            value = getattr(off, promise.measure)
            if not value <= promise.bound:  # also when it is NaN
                found.append(
                    f"{self.engine}: the {what} are {value:.2g} standard deviations from PyTorch's "
                    f"({_MEASURES[promise.measure]}; {promise.bound:g} is allowed)"
                )
        return tuple(found)


@dataclass(frozen=True)
class VerifyReport:
    """A bundle beside its model on speech."""

    bundle: str
    model: str
    recipe: str
    clips: int
    tokens: int
    skipped: tuple[str, ...]
    engines: tuple[EngineReport, ...]

    def broken(self) -> tuple[str, ...]:
        """Of all engines, see `EngineReport.broken`."""
        return tuple(one for report in self.engines for one in report.broken())


_MEASURES = {"largest": "the largest", "rms": "root mean square"}


def verify(
    bundle_path: str | Path,
    model: SpeechLLM | str | Path,
    speech: SpeechManifest,
    *,
    engine: str | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> VerifyReport:
    """Compare a bundle with the model that it was made of.

    Args:
        bundle_path: the bundle's folder.
        model: in memory, or anything `load` takes.
        speech: clips; of longer ones than the bundle hears in one piece the beginning counts.
        engine: one of `ENGINES`; by default all that the bundle has.
        threads: of the bundle's engines.
        progress: a bar on stderr, if stderr is a terminal.

    Raises:
        UsageError: the bundle was made of another model, as far as shapes, prompt and features tell.
        BundleError, CheckpointError, EngineError: one of both cannot be opened, or the bundle has no such engine.
        AudioError: no clip could be read.
    """
    manifest = open_bundle(bundle_path).manifest
    chosen = _engines(manifest, engine, bundle_path)
    allowed = [promises(manifest, name) for name in chosen]
    if not isinstance(model, SpeechLLM):
        name = str(model)
        facts = read_facts(model)
        text = facts.decoder.get_text_config()
        shapes = {
            "layers": text.num_hidden_layers,
            "hidden size": text.hidden_size,
            "vocabulary": text.vocab_size,
        }
        _check_same(bundle_path, name, _shapes_differ(manifest, shapes))  # before minutes of loading
        model = load(model)
    else:
        name = str(model.config.provenance.get("base_model", model.config.family))
    _check_same(bundle_path, name, differences(manifest, model))
    opened = [open_transcriber(bundle_path, engine=one, threads=threads).engine for one in chosen]
    tallies = [_Tally(one.name, bound) for one, bound in zip(opened, allowed, strict=True)]
    torch_engine = TorchEngine(model)
    audio = manifest.audio
    tokens, clips, skipped = 0, 0, []
    bar = tqdm.tqdm(
        speech.utterances, desc="verify", unit="clip", file=sys.stderr, disable=None if progress else True
    )
    for utterance in bar:
        try:
            samples = utterance.load()[: int(audio.max_seconds * audio.sampling_rate)]
        except AudioError as error:
            skipped.append(str(error))
            sys.stderr.write(f"skipped {utterance.id}: {error}\n")
            continue
        most = manifest.decode.token_cap(len(samples) / audio.sampling_rate)
        expected = lead(torch_engine, samples, manifest.prompt.eos_ids, most)
        for one, tally in zip(opened, tallies, strict=True):
            tally.add(utterance.id, expected, follow(one, samples, expected.tokens))
        tokens, clips = tokens + len(expected.tokens), clips + 1
    if not clips:
        raise AudioError(f"none of {len(speech)} clips could be read: give others with --speech")
    reports = tuple(tally.report() for tally in tallies)
    return VerifyReport(str(bundle_path), name, manifest.recipe, clips, tokens, tuple(skipped), reports)


class _Tally:
    """Differences of one engine over the clips."""

    def __init__(self, engine: str, allowed: Promises) -> None:
        self._engine, self._allowed = engine, allowed
        self._parts: dict[str, list[tuple[Difference, int]]] = {"embeddings": [], "letters": [], "logits": []}
        self._tokens = self._clips = 0
        self._others: list[OtherToken] = []

    def add(self, clip: str, expected: Heard, found: Heard) -> None:
        """One clip."""
        for what, parts in self._parts.items():
            ours, theirs = getattr(expected, what), getattr(found, what)
            if ours is not None and theirs is not None:
                parts.append((difference(ours, theirs, centered=what == "logits"), ours.size))
        others = other_tokens(clip, expected, found)
        self._others += others
        self._tokens += len(expected.tokens) - len(others)
        self._clips += not others

    def report(self) -> EngineReport:
        """What came of all clips."""
        letters = self._parts["letters"]
        return EngineReport(
            self._engine,
            pooled(self._parts["embeddings"]),
            pooled(letters) if letters else None,
            pooled(self._parts["logits"]),
            self._tokens,
            self._clips,
            tuple(self._others),
            self._allowed,
        )


def differences(manifest: BundleManifest, model: SpeechLLM) -> list[str]:
    """What of a bundle is not this model's, in words: shapes, prompt, features. Nothing: it may have been made of it."""
    text = model.decoder.config.get_text_config()
    found = _shapes_differ(
        manifest,
        {"layers": text.num_hidden_layers, "hidden size": text.hidden_size, "vocabulary": text.vocab_size},
    )
    if manifest.family != model.config.family:
        found.append(f"its family is {manifest.family}, the model's {model.config.family}")
    here, there = manifest.audio, model.config.audio
    for what in ("features", "sampling_rate", "samples_per_token", "ctc_alphabet"):
        if getattr(here, what) != getattr(there, what):
            found.append(
                f"its audio has {what} {getattr(here, what) or 'none'}, the model's {getattr(there, what) or 'none'}"
            )
    for what in ("before_audio", "after_audio", "before_ids", "after_ids", "eos_ids", "answer", "time_marks"):
        if getattr(manifest.prompt, what) != getattr(model.prompt, what):
            ours, theirs = getattr(manifest.prompt, what), getattr(model.prompt, what)
            found.append(f"its prompt has {what} {ours!r}, the model's {theirs!r}")
            break
    return found


def _shapes_differ(manifest: BundleManifest, model: dict[str, int]) -> list[str]:
    spec = manifest.decoder
    ours = {"layers": spec.num_layers, "hidden size": spec.hidden_size, "vocabulary": spec.vocab_size}
    return [
        f"its {what} {value}, the model's {model[what]}"
        for what, value in ours.items()
        if model[what] != value
    ]


def _check_same(bundle: str | Path, model: str, found: list[str]) -> None:
    if found:
        raise UsageError(
            f"{bundle} was not made of {model} ({'; '.join(found)}): name the model that it was exported from"
        )


def _engines(manifest: BundleManifest, asked: str | None, where: str | Path) -> list[str]:
    if asked is not None and asked not in ENGINES:
        raise UsageError(f"no engine '{asked}' can be verified: choose one of {', '.join(ENGINES)}")
    has = [name for name in manifest.engines if name in ENGINES]
    if asked is not None and asked not in has:
        raise EngineError(
            f"{where} has no engine {asked} (it has {', '.join(has)}): name one of those, or none"
        )
    return [asked] if asked else has


def render(report: VerifyReport, words: Callable[[int], str]) -> str:
    """The report as text.

    Args:
        report: of `verify`.
        words: token id → its text.
    """
    lines = [
        f"{report.bundle} ({report.recipe}) beside {report.model} in PyTorch: {report.clips} clips, {report.tokens} tokens"
    ]
    for one in report.engines:
        lines += ["", f"{one.engine:18}{'largest':>10}{'rms':>10}   standard deviations of PyTorch's"]
        rows: list[tuple[str, Difference | None, Promise]] = [
            ("audio embeddings", one.embeddings, one.promises.audio),
            ("letters", one.letters, one.promises.audio),
            ("logits", one.logits, one.promises.logits),
        ]
        for what, off, promise in rows:
            if off is not None:
                allowed = f"{promise.bound:g} allowed ({_MEASURES[promise.measure]})"
                lines.append(f"{what:18}{off.largest:10.2g}{off.rms:10.2g}   {allowed}")
        share = 100 * one.equal_tokens / report.tokens
        lines.append(
            f"greedy tokens     {share:.1f} % equal ({one.equal_tokens} of {report.tokens}); "
            f"{one.equal_clips} of {report.clips} clips in every token"
        )
        for other in sorted(one.others, key=lambda other: other.gap)[:_SHOWN]:
            lines.append(
                f"  {other.clip}, token {other.place}: {words(other.found)!r} for PyTorch's {words(other.expected)!r}, "
                f"whose logits are {other.gap:.2g} standard deviations apart"
            )
        if len(one.others) > _SHOWN:
            lines.append(f"  and {len(one.others) - _SHOWN} further apart (--json has all)")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella verify`."""
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="what it was exported from: 'reference', a checkpoint folder, or a Hugging Face id",
    )
    add_speech(parser)
    parser.add_argument(
        "--clips", type=int, default=_CLIPS, metavar="N", help="clips drawn at most (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", metavar="NAME", help=f"{' or '.join(ENGINES)} (default: every one that the bundle has)"
    )
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """`prunella verify`."""
    if args.clips < 1:
        raise UsageError(f"{args.clips} clips leave nothing: give 1 or more with --clips")
    speech = read_manifest(args.speech).sample(args.clips)
    report = verify(args.bundle, args.model, speech, engine=args.engine, threads=args.threads, progress=True)
    broken = report.broken()
    if args.json:
        body = asdict(report) | {"kept": not broken, "broken": broken}
        text = msgspec.json.format(msgspec.json.encode(body), indent=2)  # null for what is no number
        sys.stdout.write(text.decode() + "\n")
    else:
        tokenizer = open_bundle(args.bundle, verify=False).file("tokenizer.json")
        sys.stdout.write(render(report, _words(tokenizer)) + "\n")
    if broken:
        raise ExportError(
            f"{'; '.join(broken)}: the bundle is not what its recipe promises; if {args.model} is what it was made of, "
            "export it again, or take a recipe of more bits"
        )
    return 0


def _words(path: Path) -> Callable[[int], str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return partial(_word, tokenizer)


def _word(tokenizer: object, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False))  # type: ignore[attr-defined]
