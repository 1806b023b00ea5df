"""The table that a build ends in: every form of the model, its size, its errors and its speed."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path

from prunella.benchmark.compare import measure
from prunella.device_runtime.base.errors import PrunellaError
from prunella.device_runtime.bundle import open_bundle
from prunella.evaluation.evaluate import evaluate
from prunella.evaluation.manifest import SpeechManifest
from prunella.evaluation.systems import open_system
from prunella.evaluation.table import render_table
from prunella.targets.detect import match_target
from prunella.targets.machine import read_machine
from prunella.targets.profile import TargetProfile

_BENCH_CLIPS, _BENCH_REPEATS = 5, 3


@dataclass(frozen=True)
class BuildRow:
    """One line of the final table. Rates are shares; memory and sizes in bytes; None where it does not apply."""

    name: str
    layers: int | None
    disk_bytes: int | None
    cross_entropy: float | None
    wer: float
    wer_low: float
    wer_high: float
    real_time_factor: float
    decode_tokens_per_second: float | None
    peak_memory_bytes: int | None
    vocabulary: int | None = None  # tokens


def measure_row(name: str, system: str, manifest: SpeechManifest) -> BuildRow:
    """Time a system on the shortest clips of a manifest, and judge it on all, as `transcribe` decodes.

    Args:
        name: what the row is called.
        system: for `evaluation.systems.open_system`.
        manifest: clips with their texts.
    """
    # Timed before this process holds the system too: idle threads of a loaded engine cost the measured one.
    # Beams in PyTorch take long, and are no device's.
    repeat = 1 if _is_checkpoint(system) else _BENCH_REPEATS
    record = measure([system], shortest(manifest, _BENCH_CLIPS), repeat=repeat, beams=0).records[0]
    opened = open_system(system, beams=0)
    report = evaluate(opened.system, manifest, name=name, fingerprint=opened.fingerprint, progress=True)
    del opened
    gc.collect()
    total = report.overall
    return BuildRow(
        name=name,
        layers=_decoder_fact(system, "num_layers"),
        disk_bytes=record.disk_bytes,
        cross_entropy=total.cross_entropy,
        wer=total.wer,
        wer_low=total.wer_low,
        wer_high=total.wer_high,
        real_time_factor=record.real_time_factor,
        decode_tokens_per_second=record.decode_tokens_per_second,
        peak_memory_bytes=record.peak_memory_bytes,
        vocabulary=_decoder_fact(system, "vocab_size"),
    )


def shortest(manifest: SpeechManifest, count: int) -> SpeechManifest:
    """The `count` shortest clips of at least 1.5 s: commands, which is what devices hear, timed in little time."""
    clips = sorted((one for one in manifest.utterances if one.duration >= 1.5), key=lambda one: one.duration)
    return SpeechManifest(manifest.path, tuple(clips[:count]) or manifest.utterances[:count])


def measured_elsewhere(target: TargetProfile) -> str:
    """What stands above a table that was measured on a machine that is not the target; nothing where it is."""
    machine = read_machine()
    if not match_target(target, machine).fails:
        return ""
    here = machine.soc or (machine.device_tree or (machine.arch,))[0]
    return f"Measured on this machine ({here}), which is no {target.name}: RTF, tokens/s and peak MB are others there."


def render_rows(rows: tuple[BuildRow, ...], *, markdown: bool = False, heading: str = "") -> str:
    """The final table as text, below a heading if there is one."""
    header = ("system", "layers", "tokens", "MB", "loss", "WER % (95 %)", "RTF", "tokens/s", "peak MB")
    cells = [
        (
            row.name,
            _cell(row.layers, "d"),
            _cell(row.vocabulary, "d"),
            _cell(row.disk_bytes and row.disk_bytes / 1e6, ".0f"),
            _cell(row.cross_entropy, ".3f"),
            f"{100 * row.wer:.1f} ({100 * row.wer_low:.1f}-{100 * row.wer_high:.1f})",
            _cell(row.real_time_factor, ".3f"),
            _cell(row.decode_tokens_per_second, ".0f"),
            _cell(row.peak_memory_bytes and row.peak_memory_bytes / 1e6, ".0f"),
        )
        for row in rows
    ]
    return (f"{heading}\n\n" if heading else "") + render_table(header, cells, markdown=markdown)


def table_legend(*, healed: bool) -> str:
    """What rows and columns are, in three lines.

    Args:
        healed: whether what the cut lost was trained back, and is what the bundles hold.
    """
    bundles = (
        "Bundles called pruned hold the healed one." if healed else "Bundles called pruned hold that one."
    )
    trained = "healed: trained afterwards. " if healed else ""
    return (
        f"full: nothing cut. cut: layers taken out, no more. pruned: the gap bridged. {trained}{bundles}\n"
        "tokens: of the vocabulary. MB: on disk. loss: nats a token of what was said, less is better. WER: words wrong; few clips make wide intervals.\n"
        f"RTF: seconds of work for one of speech; tokens/s and peak MB with it, on the {_BENCH_CLIPS} shortest clips. All as `transcribe` decodes."
    )


def _is_checkpoint(system: str) -> bool:
    return (Path(system) / "decoder" / "config.json").is_file()


def _decoder_fact(system: str, name: str) -> int | None:
    """The decoder's `num_layers` or `vocab_size`, of a bundle or a checkpoint."""
    path = Path(system)
    try:
        return int(getattr(open_bundle(path, verify=False).manifest.decoder, name))
    except PrunellaError:
        config = path / "decoder" / "config.json"
        key = "num_hidden_layers" if name == "num_layers" else name
        return json.loads(config.read_text())[key] if config.is_file() else None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
