"""The smallest recipe whose word error rate is still good enough: all are written, then measured from small to large.

Resumable: what was written and every clip that was transcribed stay in a folder beside the output until it is there.
"""

from __future__ import annotations

import glob
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prunella.device_runtime.base.errors import BundleError, ExportError, TargetError, UsageError
from prunella.device_runtime.base.files import beside, hold, remove_abandoned, sha256, whole_directory
from prunella.device_runtime.base.outputs import check_output
from prunella.device_runtime.bundle import MANIFEST_NAME, Bundle, open_bundle
from prunella.evaluation.evaluate import evaluate
from prunella.evaluation.manifest import SpeechManifest
from prunella.evaluation.report import EvaluationReport, compare_reports
from prunella.evaluation.systems import open_system
from prunella.evaluation.table import megabytes, number, percent, render_table
from prunella.quantize.bundle_recipe import find_bundle_recipe
from prunella.quantize.bundle_writer import requantize, seal_bundle
from prunella.quantize.gguf_recipes import GGUF_RECIPES
from prunella.quantize.recipes import RECIPES
from prunella.targets.profile import load_target

KEY = "recipe_search"  # in the provenance


@dataclass(frozen=True)
class Attempt:
    """One recipe of the search. Rates are fractions; None where nothing was measured.

    Attributes:
        recipe: its name.
        bytes: of the whole bundle; 0 where it could not be written.
        wer: on the manifest.
        increase: of the WER over the float bundle's.
        low, high: 95 % interval of the increase, by resampling clips.
        verdict: "kept", "too many errors", "larger than needed", or why it could not be written.
    """

    recipe: str
    bytes: int
    wer: float | None = None
    increase: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class RecipeSearch:
    """What was tried, from small to large."""

    float_recipe: str
    float_bytes: int
    float_wer: float
    max_wer_increase: float  # a fraction, not points
    manifest: str
    clips: int
    attempts: tuple[Attempt, ...]

    @property
    def kept(self) -> Attempt | None:
        """The smallest that is good enough."""
        return next((attempt for attempt in self.attempts if attempt.verdict == "kept"), None)

    def table(self) -> str:
        """For people: one line a recipe."""
        rows = [
            [
                attempt.recipe,
                megabytes(attempt.bytes or None),
                percent(attempt.wer),
                number(None if attempt.increase is None else 100 * attempt.increase, 1),
                "-"
                if attempt.low is None or attempt.high is None
                else f"{100 * attempt.low:+.1f} to {100 * attempt.high:+.1f}",
                attempt.verdict,
            ]
            for attempt in self.attempts
        ]
        start = [
            self.float_recipe,
            megabytes(self.float_bytes),
            percent(self.float_wer),
            "-",
            "-",
            "measured against",
        ]
        return render_table(["recipe", "MB", "WER %", "increase", "95 %", "verdict"], [*rows, start])


def candidate_recipes(bundle: Bundle) -> tuple[str, ...]:
    """Recipes that a float bundle can be written as: those of one of its engines, and of its target where that is known."""
    names = [
        name
        for engine, recipes in (("onnx", RECIPES), ("gguf", GGUF_RECIPES))
        if engine in bundle.manifest.engines
        for name in recipes
        if not find_bundle_recipe(name).is_float
    ]
    try:
        allowed = load_target(bundle.manifest.target).recipes
    except TargetError:  # a profile of the user's own, elsewhere
        return tuple(names)
    return tuple(name for name in names if name in allowed)


def quantize_smallest(
    bundle: Bundle,
    out: str | Path,
    manifest: SpeechManifest,
    *,
    max_wer_increase: float = 0.01,
    recipes: Sequence[str] = (),
    threads: int | None = None,
    progress: bool = False,
) -> tuple[Bundle, RecipeSearch]:
    """Write a float bundle as the smallest recipe whose WER is at most so much above its own.

    Args:
        bundle: in float.
        out: folder of the new bundle; the search stands in its provenance.
        manifest: what is transcribed to decide.
        max_wer_increase: a fraction: 0.01 is one point of WER.
        recipes: to try; `candidate_recipes` where none are given.
        threads: of the engines.
        progress: bars and verdicts on stderr.

    Raises:
        UsageError: no such recipe, a negative increase, nothing to try, an output that may not be replaced, or another
            process searches for the same one.
        BundleError: the bundle is not float.
        ExportError: no recipe is good enough; the message names the best.
    """
    if not max_wer_increase >= 0:
        raise UsageError(f"a WER increase of at most {100 * max_wer_increase:g} points: give 0 or more")
    check_output(out, inputs=[bundle.path, manifest.path])
    out = Path(out)
    names = tuple(dict.fromkeys(recipes)) or candidate_recipes(bundle)
    for name in names:
        find_bundle_recipe(name)
    if not names:
        raise UsageError(
            f"{bundle.path} has no engine that a recipe is for: export it again for a target with one"
        )
    work = _work_folder(bundle, out)
    with hold(work) as held:
        if not held:
            raise UsageError(
                f"another process is already searching for {out}: wait for it, or choose another -o"
            )
        return _search(bundle, out, manifest, names, work, max_wer_increase, threads, progress)


def _search(
    bundle: Bundle,
    out: Path,
    manifest: SpeechManifest,
    names: Sequence[str],
    work: Path,
    max_wer_increase: float,
    threads: int | None,
    progress: bool,
) -> tuple[Bundle, RecipeSearch]:
    written, attempts = _write_all(bundle, names, work, progress)
    report = _measure(bundle.path, manifest, work, threads, progress)
    chosen: Bundle | None = None
    for candidate in sorted(written, key=lambda candidate: candidate.total_bytes):
        attempt = Attempt(candidate.manifest.recipe, candidate.total_bytes, verdict="larger than needed")
        if chosen is None:
            attempt = _judge(
                attempt, report, _measure(candidate.path, manifest, work, threads, progress), max_wer_increase
            )
            chosen = candidate if attempt.verdict == "kept" else None
            if progress and attempt.increase is not None:
                sys.stderr.write(
                    f"{attempt.recipe}: {attempt.bytes / 1e6:.1f} MB, WER {percent(attempt.wer)} % "
                    f"({100 * attempt.increase:+.1f}): {attempt.verdict}\n"
                )
        attempts.append(attempt)
    search = RecipeSearch(
        bundle.manifest.recipe,
        bundle.total_bytes,
        report.overall.wer,
        max_wer_increase,
        manifest.path.name,
        report.overall.clips,
        tuple(attempts),
    )
    if chosen is None:
        raise _none_passes(search)
    with whole_directory(out) as partial:
        shutil.copytree(chosen.path, partial, dirs_exist_ok=True)
        facts = chosen.manifest.provenance | {KEY: asdict(search)}
        seal_bundle(replace(chosen.manifest, provenance=facts), partial)
    shutil.rmtree(work, ignore_errors=True)
    return open_bundle(out, verify=False), search


def _work_folder(bundle: Bundle, out: Path) -> Path:
    """Where this search keeps what it did; what it kept for another bundle is removed."""
    stem = beside(out, "search")
    work = stem.with_name(f"{stem.name}{sha256(bundle.path / MANIFEST_NAME)[:12]}")
    for other in stem.parent.glob(f"{glob.escape(stem.name)}*"):
        if other != work:
            remove_abandoned(other)
    work.mkdir(parents=True, exist_ok=True)
    return work


def _write_all(
    bundle: Bundle, names: Iterable[str], work: Path, progress: bool
) -> tuple[list[Bundle], list[Attempt]]:
    """Only written bundles have a size. What fails is an attempt of its own, the search goes on."""
    written, failed = [], []
    for name in names:
        folder = work / find_bundle_recipe(name).name
        try:
            try:
                candidate = open_bundle(folder)
            except BundleError:  # not there yet, or damaged
                if progress:
                    sys.stderr.write(f"writing {name}\n")
                shutil.rmtree(folder, ignore_errors=True)
                candidate = requantize(bundle, name, folder)
        except ExportError as error:
            failed.append(Attempt(name, 0, verdict=" ".join(str(error).split())))
            continue
        written.append(candidate)
    return written, failed


def _measure(
    path: Path, manifest: SpeechManifest, work: Path, threads: int | None, progress: bool
) -> EvaluationReport:
    opened = open_system(str(path), threads=threads)
    return evaluate(
        opened.system,
        manifest,
        score=False,
        name=path.name,
        fingerprint=opened.fingerprint,
        records=work / "records.jsonl",
        progress=progress,
    )


def _judge(attempt: Attempt, before: EvaluationReport, after: EvaluationReport, limit: float) -> Attempt:
    difference = compare_reports(before, after).overall
    # A WER is a ratio of whole numbers: what is on the limit shall not fail by the last bit.
    passes = difference.difference <= limit + 1e-9
    return replace(
        attempt,
        wer=after.overall.wer,
        increase=difference.difference,
        low=difference.low,
        high=difference.high,
        verdict="kept" if passes else "too many errors",
    )


def _none_passes(search: RecipeSearch) -> ExportError:
    measured = [
        (attempt.increase, attempt.recipe) for attempt in search.attempts if attempt.increase is not None
    ]
    if not measured:
        why = search.attempts[0].verdict
        return ExportError(f"no recipe could be written (first: {search.attempts[0].recipe}: {why})")
    increase, recipe = min(measured)
    return ExportError(
        f"no recipe stays within {100 * search.max_wer_increase:g} points of WER: the nearest is {recipe} with "
        f"{100 * increase:+.1f}; raise --max-wer-increase, or take the float bundle"
    )
