"""What ONNX Runtime makes of a bundle's graphs, in a program of its own: a graph that is wrong may kill it.

`python -m prunella.quantize.onnx_probe FOLDER GIVEN.json OUT.npz`
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ExportError, PrunellaError
from prunella.device_runtime.bundle import Bundle, BundleManifest, FileEntry
from prunella.device_runtime.decoding.engine import Engine
from prunella.device_runtime.engines.onnx_audio_encoder import OnnxAudioEncoder
from prunella.device_runtime.engines.onnx_engine import DECODER, OnnxEngine
from prunella.quantize.free_memory import free_memory

TEXT_POSITIONS = 48
SPOKEN_TOKENS = 32
_SECONDS = 1_800
_SOUND_SECONDS = 4
# Of a session, beside the weights that it reads and packs again.
_PACKED, _RUNTIME_BYTES = 1.3, 200_000_000


@dataclass(frozen=True)
class Answers:
    """What a speech LLM says of `probe_sound`.

    Attributes:
        embeddings: (audio_tokens, hidden) float32.
        ctc_log_probs: (ctc_frames, classes) float32 log-probabilities; None without a CTC head.
        logits: (TEXT_POSITIONS + SPOKEN_TOKENS, vocab) float32: behind the audio and each token of a given text,
            then those that the spoken tokens were chosen from; None of an audio half alone.
        tokens: the spoken ones, SPOKEN_TOKENS of them, most likely first.
    """

    embeddings: Float32
    ctc_log_probs: Float32 | None = None
    logits: Float32 | None = None
    tokens: tuple[int, ...] = ()


def probe_sound(rate: int) -> Float32:
    """Four seconds that move through the spectrum, with noise below: (n,) float32."""
    time = np.arange(_SOUND_SECONDS * rate) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 * time + 350 * time**2)) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
    noise = np.random.default_rng(0).normal(0, 0.02, len(time))
    return (tone + noise).astype(np.float32)


def answer(engine: Engine, vocab: int, rate: int, spoken: Sequence[int] = ()) -> Answers:
    """Ask any engine.

    Args:
        engine: of the model.
        vocab: size of its vocabulary.
        rate: of its audio, in Hz.
        spoken: tokens to follow in one pass; none: its own most likely ones, step by step as on a device.

    Raises:
        EngineError: sound and text are longer than its context.
    """
    text = np.random.default_rng(0).integers(0, vocab, TEXT_POSITIONS - 1).tolist()
    audio = engine.encode(probe_sound(rate))
    log_probs = engine.ctc_log_probs
    first = engine.start(audio).copy()
    rows = [first[None], engine.extend(text).copy()]
    engine.rewind(len(text))
    rows.append(first[None])
    tokens = list(spoken) or [int(first.argmax())]
    if spoken:
        rows.append(engine.extend(tokens[:-1]).copy())
    while len(tokens) < SPOKEN_TOKENS:
        rows.append(engine.step(tokens[-1])[None].copy())
        tokens.append(int(rows[-1].argmax()))
    return Answers(audio, log_probs, np.concatenate(rows), tuple(tokens))


def probe_graphs(folder: Path, manifest: BundleManifest, spoken: Sequence[int] = ()) -> Answers:
    """Ask the graphs in `folder`/onnx, which need not be sealed, on one thread of this machine's processor.

    Args:
        folder: of the bundle.
        manifest: of the bundle; its files and providers do not count.
        spoken: see `answer`.

    Raises:
        ExportError: they do not load, or bring ONNX Runtime down.
    """
    with tempfile.TemporaryDirectory(prefix="prunella-probe-") as name:
        given, out = Path(name) / "given.json", Path(name) / "out.npz"
        plain = json.loads(replace(manifest, providers=(), files={}).dumps())
        given.write_text(json.dumps({"manifest": plain, "spoken": list(spoken)}), encoding="utf-8")
        _in_child(folder, given, out)
        with np.load(out, allow_pickle=False) as found:
            arrays = {key: found[key] for key in found.files}
        return Answers(**arrays | {"tokens": tuple(arrays["tokens"].tolist())})


def too_large(folder: Path) -> str | None:
    """Why the graphs in `folder`/onnx cannot be asked here, their weights being larger than the free memory; or None."""
    weights = sum(path.stat().st_size for path in (folder / "onnx").iterdir())
    needed, free = _PACKED * weights + _RUNTIME_BYTES, free_memory()
    if needed <= free:
        return None
    return f"their graphs need about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"


def _in_child(folder: Path, given: Path, out: Path) -> None:
    command = [sys.executable, "-m", "prunella.quantize.onnx_probe", str(folder), str(given), str(out)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"ONNX Runtime has not finished with {folder} after {_SECONDS} s") from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1] if lines else "it said nothing"
    if done.returncode == -signal.SIGKILL:
        reason = "killed, most likely for want of memory: close other programs, or export on a larger machine"
    elif done.returncode < 0:
        reason = f"crashed with {signal.Signals(-done.returncode).name}: {reason}"
    raise ExportError(f"ONNX Runtime cannot run the graphs that were just written ({reason})")


def main(arguments: list[str]) -> int:
    """The child."""
    folder, given, out = map(Path, arguments)
    task = json.loads(given.read_text(encoding="utf-8"))
    manifest = msgspec.convert(task["manifest"], BundleManifest)
    files = {path.relative_to(folder).as_posix(): FileEntry("", 0) for path in folder.rglob("*")}
    bundle = Bundle(folder, replace(manifest, files=files))
    rate = manifest.audio.sampling_rate
    try:
        if DECODER in files:
            engine = OnnxEngine.open(bundle, threads=1)
            found = answer(engine, manifest.decoder.vocab_size, rate, task["spoken"])
        else:
            encoder = OnnxAudioEncoder(bundle, threads=1)
            embeddings = encoder.encode(probe_sound(rate))
            found = Answers(embeddings, encoder.ctc_log_probs)
    except PrunellaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    arrays: dict[str, Any] = {key: np.array(value) for key, value in vars(found).items() if value is not None}
    np.savez(out, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
