"""Runs llama.cpp on one file and writes down what it says. A program of its own: a file that is wrong may kill it.

`python -m prunella.quantize.gguf_probe logits MODEL TOKENS.npy OUT.npy [VECTORS.npy]`
`python -m prunella.quantize.gguf_probe tokenize MODEL TEXTS.json OUT.json`
`python -m prunella.quantize.gguf_probe embed MMPROJ MODEL SAMPLES.npy OUT.npy`
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ExportError, PrunellaError
from prunella.device_runtime.engines.llama_decoder import LlamaDecoder
from prunella.device_runtime.engines.mtmd_encoder import MtmdEncoder

_SECONDS = 900


def probe_logits(model: Path, tokens: list[int], vectors: Float32 | None = None) -> Float32:
    """Logits after every token, computed by llama.cpp in a child process with a float32 cache → (len(tokens), vocab).

    Args:
        model: file of the decoder.
        tokens: that are fed.
        vectors: (n, hidden) float32, fed in place of the first n tokens, as audio is; none: tokens alone.

    Raises:
        ExportError: the file does not load, or brings llama.cpp down.
    """
    with tempfile.TemporaryDirectory(prefix="prunella-probe-") as name:
        given, out = Path(name) / "tokens.npy", Path(name) / "logits.npy"
        np.save(given, np.array(tokens, np.int32))
        paths = [given, out]
        if vectors is not None:
            paths.append(Path(name) / "vectors.npy")
            np.save(paths[-1], vectors)
        _in_child("logits", model, *paths)
        return np.load(out, allow_pickle=False)


def probe_tokens(model: Path, texts: list[str]) -> list[list[int]]:
    """Token ids of texts by llama.cpp, special tokens recognised. Raises as `probe_logits`."""
    with tempfile.TemporaryDirectory(prefix="prunella-probe-") as name:
        given, out = Path(name) / "texts.json", Path(name) / "ids.json"
        given.write_text(json.dumps(texts), encoding="utf-8")
        _in_child("tokenize", model, given, out)
        return json.loads(out.read_text(encoding="utf-8"))


def probe_embeddings(mmproj: Path, model: Path, samples: Float32) -> Float32:
    """Embeddings of 30 s by libmtmd → (audio_tokens, hidden). Raises as `probe_logits`."""
    with tempfile.TemporaryDirectory(prefix="prunella-probe-") as name:
        given, out = Path(name) / "samples.npy", Path(name) / "embeddings.npy"
        np.save(given, samples)
        _in_child("embed", mmproj, model, given, out)
        return np.load(out, allow_pickle=False)


def _in_child(what: str, *paths: Path) -> None:
    command = [sys.executable, "-m", "prunella.quantize.gguf_probe", what, *map(str, paths)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"llama.cpp has not finished with {paths[0].name} after {_SECONDS} s") from error
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else "it said nothing"
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        asserted = [line for line in lines if "GGML_ASSERT" in line or "GGML_ABORT" in line]
        raise ExportError(
            f"llama.cpp crashed on {paths[0].name} ({name}: {(asserted or [reason])[0].strip()}): "
            "take a target with the onnx engine, and report this model"
        )
    raise ExportError(f"llama.cpp cannot run {paths[0].name}: {reason}")


def main(arguments: list[str]) -> int:
    """The child."""
    what, *names = arguments
    paths = [Path(name) for name in names]
    try:
        if what == "logits":
            tokens = np.load(paths[1], allow_pickle=False).tolist()
            decoder = LlamaDecoder(paths[0], positions=max(256, len(tokens)), threads=1, exact=True)
            rows, fed = [], 0
            if paths[3:]:
                vectors = np.load(paths[3], allow_pickle=False)
                fed = len(vectors)
                rows.append(decoder.feed_embeddings(vectors, keep=fed).copy())
            rows.append(decoder.feed_tokens(tokens[fed:], keep=len(tokens) - fed))
            np.save(paths[2], np.concatenate(rows))
        elif what == "tokenize":
            decoder = LlamaDecoder(paths[0], positions=256, threads=1)
            texts = json.loads(paths[1].read_text(encoding="utf-8"))
            paths[2].write_text(json.dumps([decoder.tokenize(text) for text in texts]), encoding="utf-8")
        else:
            samples = np.load(paths[2], allow_pickle=False)
            np.save(paths[3], MtmdEncoder(paths[0], paths[1], threads=1).encode(samples))
    except PrunellaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
