"""What an evaluation found: rates overall and by source, and the comparison of two systems on the same clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunella.device_runtime.base.errors import ManifestError
from prunella.evaluation.bootstrap import PairedDifference, paired_difference, ratio_interval
from prunella.evaluation.records import ClipRecord
from prunella.evaluation.table import number, percent, render_table
from prunella.evaluation.word_errors import total

OVERALL = "overall"


@dataclass(frozen=True)
class GroupReport:
    """Rates over a group of clips. WER, CER and their parts are fractions of the reference, not per cent."""

    wer: float
    wer_low: float  # 95 % interval, bootstrap over clips
    wer_high: float
    cer: float
    substitutions: float
    deletions: float
    insertions: float
    words: int
    clips: int
    empty: int  # clips without a word of text: in the WER as deletions, and failures
    cross_entropy: float | None  # nats a token of the reference text; None where the system cannot score
    finish_reasons: dict[str, int]
    audio_seconds: float
    real_time_factor: float  # seconds of compute for a second of audio
    decode_tokens_per_second: float | None  # None where the system does not time its decoder apart

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict, floats to six digits."""
        return _rounded(asdict(self))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> GroupReport:
        """Inverse of `to_json`, up to its rounding."""
        return cls(**{key: values[key] for key in cls.__dataclass_fields__})


@dataclass(frozen=True)
class EvaluationReport:
    """One system on one manifest. `skipped`: clips whose audio could not be read, with the reason; not in any rate."""

    system: str
    overall: GroupReport
    sources: dict[str, GroupReport]
    records: tuple[ClipRecord, ...]
    skipped: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, GroupReport]:
        """`overall` and one entry a source."""
        return {OVERALL: self.overall, **{_group_name(s): group for s, group in self.sources.items()}}

    def to_json(self) -> dict[str, Any]:
        """`overall` and one entry a source, each the fields of `GroupReport`."""
        return {name: group.to_json() for name, group in self.groups.items()}


@dataclass(frozen=True)
class PairedReport:
    """System B against system A on the clips that both have."""

    system_a: str
    system_b: str
    overall: PairedDifference
    sources: dict[str, PairedDifference]

    def to_json(self) -> dict[str, Any]:
        groups = {OVERALL: self.overall, **{_group_name(s): d for s, d in self.sources.items()}}
        return {name: _rounded(asdict(difference)) for name, difference in groups.items()}

    def verdict(self) -> str:
        """One sentence: which is better overall, by how much, and whether chance explains it."""
        d = self.overall
        interval = (
            f"95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}, p = {d.p_value:.3g}, {d.clips} clips"
        )
        if d.low <= 0 <= d.high:
            return f"{self.system_b} and {self.system_a} cannot be told apart ({100 * d.difference:+.1f} points of WER; {interval})."
        better, worse = (self.system_b, self.system_a) if d.difference < 0 else (self.system_a, self.system_b)
        relative = "" if d.relative is None else f", {100 * d.relative:+.0f} % relative"
        return f"{better} beats {worse}: B - A is {100 * d.difference:+.1f} points of WER{relative} ({interval})."


def summarize(system: str, records: Sequence[ClipRecord], skipped: Sequence[str] = ()) -> EvaluationReport:
    """Report over clip records.

    Raises:
        ManifestError: no record.
    """
    if not records:
        why = f" (first: {skipped[0]})" if skipped else ""
        raise ManifestError(f"no clip could be evaluated{why}: check the manifest's audio files")
    names = dict.fromkeys(record.source for record in records)
    by_source = {name: _group([r for r in records if r.source == name]) for name in names}
    return EvaluationReport(system, _group(records), by_source, tuple(records), tuple(skipped))


def compare_reports(a: EvaluationReport, b: EvaluationReport) -> PairedReport:
    """Paired bootstrap of two reports over the clips that both evaluated.

    Raises:
        ManifestError: they share no clip.
    """
    # Rows may repeat a file (with another text, say): the reference is part of the identity.
    in_b = {(r.id, r.source, r.reference): r for r in b.records}
    pairs = [(r, in_b[key]) for r in a.records if (key := (r.id, r.source, r.reference)) in in_b]
    if not pairs:
        raise ManifestError(f"{a.system} and {b.system} share no clip: evaluate both on the same manifest")
    names = dict.fromkeys(first.source for first, _ in pairs)
    by_source = {name: _difference([pair for pair in pairs if pair[0].source == name]) for name in names}
    return PairedReport(a.system, b.system, _difference(pairs), by_source)


def render_report(report: EvaluationReport) -> str:
    """The report as text: one row a source, then what failed."""
    header = ["source", "clips", "words", "WER%", "95% interval", "sub", "del", "ins", "CER%", "CE", "empty"]
    header += ["RTF", "tok/s"]
    by_source = [(name, group) for name, group in report.groups.items() if group is not report.overall]
    rows = [
        [
            name,
            str(g.clips),
            str(g.words),
            percent(g.wer),
            f"{percent(g.wer_low)}-{percent(g.wer_high)}",
            percent(g.substitutions),
            percent(g.deletions),
            percent(g.insertions),
            percent(g.cer),
            number(g.cross_entropy),
            str(g.empty),
            number(g.real_time_factor, 3),
            number(g.decode_tokens_per_second, 0),
        ]
        for name, g in [*by_source, (OVERALL, report.overall)]
    ]
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.overall.finish_reasons.items())
    lines = [report.system, render_table(header, rows), f"finished by: {reasons}"]
    empty = [record.id for record in report.records if record.errors.empty]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        lines.append(f"FAILED, no text: {', '.join(empty[:5])}{more}")
    if report.skipped:
        lines.append(f"not evaluated: {len(report.skipped)} clip(s), first: {report.skipped[0]}")
    return "\n".join(lines)


def _group(records: Sequence[ClipRecord]) -> GroupReport:
    words = total(record.errors.words for record in records)
    interval = ratio_interval(
        [record.errors.words.errors for record in records],
        [record.errors.words.reference for record in records],
    )
    scored = [record for record in records if record.nll is not None]
    scored_tokens = sum(record.scored_tokens for record in scored)
    timed = [record for record in records if record.decode_seconds > 0]
    audio = sum(record.audio_seconds for record in records)
    return GroupReport(
        wer=words.rate,
        wer_low=interval.low,
        wer_high=interval.high,
        cer=total(record.errors.characters for record in records).rate,
        substitutions=words.per_reference(words.substitutions),
        deletions=words.per_reference(words.deletions),
        insertions=words.per_reference(words.insertions),
        words=words.reference,
        clips=len(records),
        empty=sum(record.errors.empty for record in records),
        cross_entropy=sum(r.nll or 0.0 for r in scored) / scored_tokens if scored_tokens else None,
        finish_reasons=dict(Counter(record.finish_reason for record in records).most_common()),
        audio_seconds=audio,
        real_time_factor=sum(record.compute_seconds for record in records) / audio if audio else 0.0,
        decode_tokens_per_second=(
            sum(record.tokens for record in timed) / sum(record.decode_seconds for record in timed)
            if timed
            else None
        ),
    )


def _difference(pairs: Sequence[tuple[ClipRecord, ClipRecord]]) -> PairedDifference:
    return paired_difference(
        [a.errors.words.errors for a, _ in pairs],
        [b.errors.words.errors for _, b in pairs],
        [a.errors.words.reference for a, _ in pairs],
    )


def _group_name(source: str) -> str:
    return f"{source} (source)" if source == OVERALL else source


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}
