"""Whether ONNX graphs say what their model says: embeddings, logits and spoken tokens compared with PyTorch's.

The model builder leaves out silently what it does not know of a family (a factor on the embeddings, a window), and
what it leaves out gives fluent nonsense: so nothing is trusted. ONNX Runtime runs in a child process, because it ends
the process on some graphs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ExportError
from prunella.device_runtime.bundle import BundleManifest
from prunella.quantize.onnx_drift import REMEDY_UNSEEN
from prunella.quantize.onnx_probe import answer, probe_graphs, too_large
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.torch_engine import TorchEngine

_LOG = logging.getLogger(__name__)
# Of the values' standard deviation, for every one of them.
FLOAT_ERROR = 1e-3


@dataclass(frozen=True)
class OnnxGateReport:
    """What was compared, for the bundle's provenance: largest differences in standard deviations of PyTorch's values.

    Attributes:
        embedding_error: of the audio embeddings.
        logit_error: over all positions and tokens; None where there is no ONNX decoder.
        near_ties: spoken tokens that are others in PyTorch, by less than both may err.
        not_compared: why nothing was; None where it was.
    """

    embedding_error: float | None = None
    logit_error: float | None = None
    near_ties: tuple[str, ...] = ()
    not_compared: str | None = None


def gate_onnx(model: SpeechLLM, folder: Path, manifest: BundleManifest) -> OnnxGateReport:
    """Check the float graphs in `folder`/onnx against the model that they were written from.

    Args:
        model: in float32.
        folder: of the bundle, not sealed yet.
        manifest: of the bundle; its files do not count.

    Raises:
        ExportError: says what differs and by how much, or that the graphs do not run.
    """
    reason = too_large(folder)
    if reason is not None:
        _LOG.warning("the bundle was NOT compared with PyTorch: %s; %s", reason, REMEDY_UNSEEN)
        return OnnxGateReport(not_compared=reason)
    found = probe_graphs(folder, manifest)
    expected = answer(
        TorchEngine(model), manifest.decoder.vocab_size, manifest.audio.sampling_rate, found.tokens
    )
    embedding_error = compare(expected.embeddings, found.embeddings, "audio embeddings")
    if expected.ctc_log_probs is not None:
        compare(expected.ctc_log_probs, found.ctc_log_probs, "letters")
    if found.logits is None:
        return OnnxGateReport(embedding_error)
    assert expected.logits is not None  # TorchEngine has a decoder
    logit_error = compare(expected.logits, found.logits, "logits")
    return OnnxGateReport(embedding_error, logit_error, near_ties(expected.logits, found.tokens))


def compare(expected: Float32 | None, found: Float32 | None, what: str) -> float:
    """The largest difference of ONNX Runtime's numbers from PyTorch's, in standard deviations of PyTorch's.

    Raises:
        ExportError: more than `FLOAT_ERROR`, not a number, or another shape; `what` names the numbers.
    """
    remedy = "this is a fault of prunella or of the model builder: report the family"
    if expected is None or found is None or found.shape != expected.shape:
        shapes = ["none" if one is None else str(one.shape) for one in (found, expected)]
        raise ExportError(
            f"ONNX Runtime's {what} have the shape {shapes[0]}, PyTorch's {shapes[1]}: {remedy}"
        )
    error = float(np.abs(found - expected).max()) / max(float(expected.std()), 1e-12)
    if not error <= FLOAT_ERROR:  # also when it is NaN
        raise ExportError(
            f"ONNX Runtime's {what} are up to {error:.2g} standard deviations from PyTorch's "
            f"({FLOAT_ERROR:g} is allowed): {remedy}; a target with the gguf engine may take it"
        )
    return error


def near_ties(logits: Float32, tokens: tuple[int, ...]) -> tuple[str, ...]:
    """Where PyTorch would have said another token: only near ties are left once all logits agree."""
    deviation = max(float(logits.std()), 1e-12)
    ties = []
    for place, (row, token) in enumerate(zip(logits[-len(tokens) :], tokens, strict=True)):
        other = int(row.argmax())
        if other != token:
            gap = float(row[other] - row[token]) / deviation
            ties.append(f"token {place}: {token} for PyTorch's {other}, {gap:.1g} standard deviations apart")
            _LOG.warning("near tie at %s", ties[-1])
    return tuple(ties)
