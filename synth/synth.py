"""Make training speech out of sentences, on this machine, so that nobody has to record any.

SENTENCES is a text file, one sentence a line. DIR gets flac files and a manifest.jsonl for `prunella heal`. A run that
was interrupted goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tqdm

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.common_options import add_output
from prunella.device_runtime.base.errors import ManifestError, UsageError
from prunella.device_runtime.base.files import only_writer, whole_file, write_json
from prunella.device_runtime.base.outputs import check_output, output_path
from prunella.device_runtime.sound.log_mel import SAMPLE_RATE
from prunella.device_runtime.sound.resampling import resample
from prunella.synth.noise import NOISES, colored_noise
from prunella.synth.voices import Voice, open_voices

MANIFEST_NAME, SETTINGS_NAME = "manifest.jsonl", "synth.json"
_SHARD = 1_000  # files in one folder
_SILENT = 1e-4
_BATCH = 16


@dataclass(frozen=True)
class SynthesisPlan:
    """How sentences are spoken. Every clip draws its voice, rate, pitch, level and noise from the seed and its number."""

    voices: tuple[str, ...]
    copies: int = 1
    rate: tuple[float, float] = (0.85, 1.2)
    pitch: tuple[float, float] = (0.88, 1.12)
    noisy: float = 0.5
    snr_db: tuple[float, float] = (10.0, 40.0)
    edges: tuple[float, float] = (0.05, 0.5)  # seconds of silence before and behind
    seed: int = 0


def synthesize(
    sentences: Sequence[str],
    folder: str | Path,
    plan: SynthesisPlan,
    *,
    jobs: int = 1,
    progress: bool = False,
) -> Path:
    """Speak every sentence `plan.copies` times into `folder`.

    Args:
        sentences: one a clip; empty ones are left out.
        folder: gets `clips/*/*.flac`, `manifest.jsonl` and `synth.json`. Clips that its manifest has are not made again.
        plan: voices and variation.
        jobs: processes.
        progress: a bar on stderr.

    Returns:
        The manifest's path.

    Raises:
        UsageError: `folder` holds clips of other sentences or of another plan, or another process writes there.
        EngineError: a voice cannot speak here.
        ManifestError: no sentence, or none gave any sound.
    """
    check_output(folder, replaces=False)
    folder = output_path(folder)
    sentences = [" ".join(sentence.split()) for sentence in sentences]
    work = [(number, text) for number, text in enumerate(sentences * plan.copies) if text]
    if not work:
        raise ManifestError("there is no sentence to say: give a text file with one sentence a line")
    voices = open_voices(plan.voices)
    _claim(folder, {**json.loads(json.dumps(asdict(plan))), "sentences": len(sentences)})
    with only_writer(folder):
        return _speak_all(work, folder, plan, voices, jobs, progress)


def _speak_all(
    work: Sequence[tuple[int, str]],
    folder: Path,
    plan: SynthesisPlan,
    voices: list[Voice],
    jobs: int,
    progress: bool,
) -> Path:
    manifest = folder / MANIFEST_NAME
    done = _made(manifest, dict(work))
    left = [item for item in work if item[0] not in done]
    batches = [left[at : at + _BATCH] for at in range(0, len(left), _BATCH)]
    silent = 0
    bar = tqdm.tqdm(
        total=len(work), initial=len(done), unit="clip", file=sys.stderr, disable=None if progress else True
    )
    with bar, manifest.open("a", encoding="utf-8") as lines:
        for rows in _spoken(batches, folder, plan, voices, jobs):
            for row in rows:
                if row is None:
                    silent += 1
                else:
                    # A line at a time, each after its file: what a killed run has listed is there.
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                bar.update()
            lines.flush()
    if silent:
        sys.stderr.write(f"skipped {silent} sentences that gave no sound\n")
    if silent == len(work):
        raise ManifestError("no sentence gave any sound: give other sentences or --voices")
    return manifest


def speak(text: str, number: int, plan: SynthesisPlan, voices: Sequence[Voice]) -> tuple[Float32, str]:
    """Clip number `number` → (n,) float32 at 16 kHz, and the voice's name. Empty when the voice says nothing."""
    rng = np.random.default_rng((plan.seed, number))
    voice = voices[int(rng.integers(len(voices)))]
    rate, pitch = rng.uniform(*plan.rate), round(rng.uniform(*plan.pitch), 2)
    # Resampling by the pitch also changes the pace, so the voice speaks that much slower or faster.
    samples = voice.speak(text, rate / pitch, int(rng.integers(2**31)))
    if not len(samples) or np.abs(samples).max() < _SILENT:
        return np.zeros(0, np.float32), voice.name
    samples = resample(samples, SAMPLE_RATE * pitch)
    samples *= 10 ** (rng.uniform(-20, -3) / 20) / np.abs(samples).max()
    before, behind = (round(rng.uniform(*plan.edges) * SAMPLE_RATE) for _ in range(2))
    samples = np.pad(samples, (before, behind))
    if rng.random() < plan.noisy:
        level = np.sqrt(np.mean(np.square(samples)) / 10 ** (rng.uniform(*plan.snr_db) / 10))
        samples = samples + level * colored_noise(len(samples), str(rng.choice(NOISES)), rng)
    return np.clip(samples, -1.0, 1.0).astype(np.float32), voice.name


def _spoken(
    batches: Sequence[list[tuple[int, str]]],
    folder: Path,
    plan: SynthesisPlan,
    voices: list[Voice],
    jobs: int,
) -> Iterator[list[dict[str, Any] | None]]:
    if jobs == 1:
        for batch in batches:
            yield _speak_batch(batch, folder, plan, voices)
        return
    with ProcessPoolExecutor(jobs, initializer=end_with_parent) as pool:
        count = len(batches)
        yield from pool.map(_speak_batch, batches, [folder] * count, [plan] * count, [voices] * count)


def end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_opened: dict[tuple[str, ...], Sequence[Voice]] = {}


def _speak_batch(
    batch: list[tuple[int, str]], folder: Path, plan: SynthesisPlan, voices: Sequence[Voice]
) -> list[dict[str, Any] | None]:
    # A worker gets fresh copies with every batch; the first ones stay, with their models loaded.
    voices = _opened.setdefault(tuple(voice.name for voice in voices), voices)
    rows: list[dict[str, Any] | None] = []
    for number, text in batch:
        samples, voice = speak(text, number, plan, voices)
        if not len(samples):
            rows.append(None)
            continue
        name = f"clips/{number // _SHARD:04d}/{number:07d}.flac"
        with whole_file(folder / name) as partial, partial.open("wb") as file:
            soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        rows.append(
            {
                "audio_filepath": name,
                "duration": len(samples) / SAMPLE_RATE,
                "text": text,
                "source": "synth",
                "speaker": voice,
                "number": number,
            }
        )
    return rows


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS_NAME
    if path.is_file():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{path} is none that `synth` wrote: choose another folder, or remove {folder}"
            ) from error
        changed = [key for key in settings if known.get(key) != settings[key]]
        if changed:
            raise UsageError(
                f"{folder} was made with other settings ({', '.join(changed)}): choose another folder"
            )
    else:
        others = [name for name in (MANIFEST_NAME, "clips") if (folder / name).exists()]
        if others:
            raise UsageError(
                f"{folder} holds {others[0]}, which `synth` did not make: choose another folder with -o"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


def _made(manifest: Path, wanted: dict[int, str]) -> set[int]:
    """Numbers of the clips that a manifest has; a last line cut off by a kill is removed from it."""
    if not manifest.is_file():
        return set()
    *lines, torn = manifest.read_bytes().split(b"\n")
    done = set()
    for line in lines:
        try:
            row = json.loads(line)
            number, text = int(row["number"]), row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{manifest} has lines that `synth` did not write: choose another folder, or move them elsewhere"
            ) from error
        if wanted.get(number) != text:
            raise UsageError(f"{manifest} has other sentences: choose another folder, or remove this one")
        done.add(number)
    if torn:
        with whole_file(manifest) as partial:
            partial.write_bytes(b"".join(line + b"\n" for line in lines))
    return done


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella synth`."""
    parser.add_argument(
        "sentences", type=Path, metavar="SENTENCES", help="text file, one sentence a line; - is stdin"
    )
    add_output(parser, "folder of the clips and their manifest")
    parser.add_argument(
        "--voices",
        default="",
        metavar="NAMES",
        help="such as hibari:heart,flite:slt (default: all that are installed)",
    )
    parser.add_argument(
        "--copies", type=int, default=1, metavar="N", help="clips of each sentence, all different"
    )
    parser.add_argument("--noisy", type=float, default=0.5, metavar="SHARE", help="share of clips with noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )


def run(args: argparse.Namespace) -> int:
    """`prunella synth`: speak, and write the manifest's path to stdout."""
    if args.copies < 1 or args.jobs < 1 or not 0 <= args.noisy <= 1:
        raise UsageError("--copies and --jobs must be 1 or more, --noisy between 0 and 1")
    check_output(args.out, inputs=[args.sentences], replaces=False)
    try:
        text = sys.stdin.read() if str(args.sentences) == "-" else args.sentences.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(
            f"cannot read {args.sentences} ({error}): give a text file, one sentence a line"
        ) from error
    names = [name.strip() for name in args.voices.split(",") if name.strip()]
    # The names are settled now, so that a resumed run has the same even if a voice was installed since.
    voices = tuple(names or [voice.name for voice in open_voices()])
    plan = SynthesisPlan(voices=voices, copies=args.copies, noisy=args.noisy, seed=args.seed)
    manifest = synthesize(text.splitlines(), args.out, plan, jobs=args.jobs, progress=True)
    sys.stdout.write(f"{manifest}\n")
    return 0
