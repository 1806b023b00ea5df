"""Whether GGUF files say what their model says: every key and tensor read back, and llama.cpp's numbers compared.

A missing bias or norm loads silently, a wrong order of rows too, and both give fluent nonsense: so nothing is
trusted. llama.cpp runs in a child process, because it ends the process on some files.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel
from transformers.activations import GELUTanh

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.base.errors import ExportError
from prunella.device_runtime.bundle import HOP_LENGTH
from prunella.device_runtime.sound.log_mel import log_mel
from prunella.export.gguf_decoder import decoder_keys
from prunella.export.gguf_families import find_family
from prunella.export.gguf_keys import rope_tables
from prunella.export.gguf_mmproj import mmproj_keys, named_values, stored_shape
from prunella.export.gguf_tensors import source_weights, stored_tensors, unpermute_heads
from prunella.export.gguf_vocabulary import lead_in, read_vocabulary
from prunella.export.mmproj_layouts import find_layout
from prunella.quantize.gguf_files import FILE_TYPE, GgufFile, read_gguf
from prunella.quantize.gguf_probe import probe_embeddings, probe_logits, probe_tokens
from prunella.quantize.gguf_recipes import GGUF_RECIPES
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.torch_engine import TorchEngine

_REMEDY = "this is a fault of prunella or llama.cpp: take a target with the onnx engine, and report it"
# Largest error of a stored value, relative to the tensor's largest; 8-bit blocks have a scale each.
_ROUNDING = {
    GGMLQuantizationType.F32: 0.0,
    GGMLQuantizationType.F16: 2.0**-10,
    GGMLQuantizationType.BF16: 2.0**-7,
    GGMLQuantizationType.Q8_0: 1.0 / 127,
}
# Of the logits' standard deviation, at every position.
_LOGIT_ERROR = {name: recipe.error for name, recipe in GGUF_RECIPES.items() if recipe.is_float}
# Or so many times what rounding the matrices does in PyTorch: llama.cpp also rounds what they are multiplied with.
_ROUNDINGS = 4
_MIN_COSINE = {"F32": 0.999, "F16": 0.999, "Q8_0": 0.99}
# Of audio tokens from ours, as a share of what distinguishes ours from each other: where they are nearly equal, as a
# projector's bias makes them, the cosine sees nothing.
_MAX_DISTANCE = {"F32": 0.02, "F16": 0.02, "Q8_0": 0.2}
_PROBED_TOKENS, _PROBED_VECTORS = 48, 16
_SECONDS_OF_30 = 30
_BROKEN_SECONDS = 3.37  # that end within a window and a block
_WHOLE_CHUNKS = 29  # seconds; libmtmd cuts what is longer than 29.9
_HARD_TEXT = (
    "Hello world, it's 3.14 o'clock!",
    " leading and trailing  spaces   ",
    "\n\n\tTabs\tand\r\nlines\n \n",
    "I'll've DON'T we'Re THEY'LL 1234567 3rd",
    "naïve café résumé Ünïcödé Straße ﬁne",
    "Привет, мир! 你好，世界。こんにちは 안녕하세요 สวัสดี नमस्ते",
    "emoji 🦙🚀👩‍👩‍👧 … — “quotes” ‘single’ €§¶",
    "x=a[0]*(b-->c); // {json: [1,2,3]} <tag attr='v'/>",
    "!!!??? ...---=== ##$$ %%",
)


@dataclass(frozen=True)
class GateReport:
    """What was compared, for the bundle's provenance."""

    tensors: int
    logit_error: float  # largest difference, in standard deviations of the logits
    mmproj_cosine: float | None  # smallest over the audio tokens; None without an audio half


def gate(
    model: SpeechLLM,
    decoder: Path,
    decoder_kind: str,
    mmproj: Path | None,
    mmproj_kind: str,
    *,
    max_context: int,
) -> GateReport:
    """Check both files against the model they were written from; the decoder's alone where there is no `mmproj`.

    Raises:
        ExportError: says which key, tensor or number differs.
    """
    tensors = check_decoder_file(model, decoder, max_context=max_context)
    if mmproj is not None:
        tensors += check_mmproj_file(model, mmproj)
    check_tokenizer(model, decoder)
    error = compare_logits(model, decoder, decoder_kind)
    cosine = None if mmproj is None else compare_embeddings(model, mmproj, mmproj_kind, decoder)
    return GateReport(tensors, error, cosine)


def check_decoder_file(model: SpeechLLM, path: Path, *, max_context: int = 2_048) -> int:
    """Read every key and tensor back. Returns the number of tensors; raises as `gate`."""
    config = model.decoder.config
    family = find_family(config, max_context)
    file = read_gguf(path)
    _check_keys(file, decoder_keys(model, family))
    weights = source_weights(model.decoder)
    stored = stored_tensors(model.decoder, family)
    expected = rope_tables(config) | {name: one.of(weights) for name, one in stored.items()}
    _check_names(file, set(expected))
    for name, values in expected.items():
        found = file.tensors[name].values()
        heads = stored[name].heads if name in stored else 0
        # Back in Hugging Face's order, so that a mistake in the order when writing is not repeated here.
        _check_tensor(file, name, unpermute_heads(found, heads) if heads else found, values)
    return len(expected)


def check_mmproj_file(model: SpeechLLM, path: Path) -> int:
    """As `check_decoder_file`, for the audio half."""
    file = read_gguf(path)
    _check_keys(file, mmproj_keys(model))
    expected = named_values(model)
    _check_names(file, set(expected))
    for name, values in expected.items():
        # llama.cpp aborts over a convolution's bias of one dimension.
        _check_shape(file, name, stored_shape(name, values.shape))
        _check_tensor(file, name, file.tensors[name].values().reshape(values.shape), values)
    return len(expected)


def check_tokenizer(model: SpeechLLM, path: Path) -> None:
    """Compare the tokens of hard text and of the prompt, with every language that it takes, on both sides. Raises as `gate`."""
    prompt = model.prompt
    languages = [language.text for language in prompt.languages]
    body = read_vocabulary(model.tokenizer, model.decoder.config.vocab_size)
    spaced = read_gguf(path).keys.get("tokenizer.ggml.add_space_prefix")
    hard: list[str] = list(_HARD_TEXT)
    if body.first_only and spaced:  # llama.cpp puts a second space before one that is there
        hard = [text.lstrip(" ") for text in hard]
    elif body.first_only:  # as in the prompt, behind a special token
        hard = [f"{lead_in(model.tokenizer)}{text}" for text in hard]
    texts = [*hard, prompt.before_audio, prompt.after_audio, *languages]
    ours = [model.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    for text, expected, found in zip(texts, ours, probe_tokens(path, texts), strict=True):
        if expected != found:
            at = next(
                (i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), 0
            )
            raise ExportError(
                f"{path.name} tokenises {text!r} differently from token {at} on ({found[at : at + 4]}, "
                f"should be {expected[at : at + 4]}): {_REMEDY}"
            )


def compare_logits(model: SpeechLLM, path: Path, kind: str) -> float:
    """Largest difference of llama.cpp's logits from PyTorch's, in standard deviations. Raises as `gate`."""
    vocab = model.decoder.config.vocab_size
    spread = np.random.default_rng(0).integers(0, vocab, _PROBED_TOKENS).tolist()
    tokens = [*model.prompt.before_ids, *model.prompt.after_ids, *spread][:_PROBED_TOKENS]
    expected = _logits(model.decoder, tokens)
    with torch.inference_mode():
        # The first ones as vectors, as audio comes: some families multiply looked up ones alone (Gemma 3).
        rows = model.view.embeddings(torch.tensor(tokens[:_PROBED_VECTORS])).float().numpy()
    deviation = max(float(expected.std()), 1e-12)
    error = float(np.abs(probe_logits(path, tokens, rows) - expected).max()) / deviation
    allowed = _LOGIT_ERROR[kind]
    if error > allowed:  # perhaps a model that says something else after any rounding
        rounded = _logits(rounded_as_stored(model.decoder, kind), tokens)
        allowed = max(allowed, _ROUNDINGS * float(np.abs(rounded - expected).max()) / deviation)
    if not error <= allowed:  # also when it is NaN
        raise ExportError(
            f"{path.name}: llama.cpp's logits are up to {error:.2g} standard deviations from PyTorch's "
            f"({allowed:.2g} is allowed): {_REMEDY}"
        )
    return error


@torch.inference_mode()
def _logits(decoder: PreTrainedModel, tokens: list[int]) -> Float32:
    rows: Float32 = decoder(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    return rows


def rounded_as_stored(decoder: PreTrainedModel, kind: str) -> PreTrainedModel:
    """A copy whose matrices are as the file has them, and whose GELU is as coarse as ggml's."""
    copied = copy.deepcopy(decoder)
    stored = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    for parameter in copied.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(stored).float()
    for module in copied.modules():
        activation = getattr(module, "act_fn", None)
        if isinstance(activation, GELUTanh):
            module.act_fn = _HalfTable(activation)
    return copied


class _HalfTable(torch.nn.Module):
    """A function as a table from half floats to half floats, which is what ggml has for GELU, whatever the file's type."""

    def __init__(self, function: torch.nn.Module) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        within = self._function(x.half().float()).half().float()
        return torch.where(x.abs() < 10, within, x.clamp(min=0))


def compare_embeddings(model: SpeechLLM, path: Path, kind: str, decoder: Path) -> float:
    """Smallest cosine between libmtmd's audio tokens and ours of the same audio. Raises as `gate`.

    It is as long as comes out even, unless the layout is exact: libmtmd masks nothing, and silence is heard by both.
    """
    rate = model.config.audio.sampling_rate
    samples = _sweep(rate)
    layout = find_layout(model)
    seconds: float
    if layout.exact:
        seconds = _BROKEN_SECONDS
        samples = samples[: int(seconds * rate)]
        expected = TorchEngine(model).encode(samples)
    else:
        if layout.whole_window:
            seconds = _SECONDS_OF_30
        else:
            # libmtmd makes one frame more than the model of any audio, and fills up chunks of a second: here it comes out even.
            seconds = _WHOLE_CHUNKS
            samples = np.pad(samples, (0, _WHOLE_CHUNKS * rate - HOP_LENGTH - len(samples)))
        padded = np.pad(samples, (0, int(seconds * rate) - len(samples)))
        features = torch.from_numpy(log_mel(padded, model.config.audio.features.num_mel_bins))
        frames = _whole_tokens(model, features.shape[1])
        with torch.inference_mode():
            expected = model.embed_audio(features[None, :, :frames])[0].numpy()
    found = probe_embeddings(path, decoder, samples)
    if layout.around:
        expected = np.concatenate([_around(model, 0), expected, _around(model, 1)])
    if found.shape != expected.shape:
        raise ExportError(
            f"{path.name}: libmtmd makes {found.shape} of {seconds} s, ours is {expected.shape}: {_REMEDY}"
        )
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((found * expected).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
    if not cosine > _MIN_COSINE[kind]:
        raise ExportError(
            f"{path.name}: libmtmd's audio tokens have a cosine of {cosine:.4f} with ours "
            f"(more than {_MIN_COSINE[kind]} is needed): {_REMEDY}"
        )
    spread = _size(expected - expected.mean(axis=0)) + 0.01 * _size(expected)
    distance = _size(found - expected) / max(spread, 1e-12)
    if not distance <= _MAX_DISTANCE[kind]:
        raise ExportError(
            f"{path.name}: libmtmd's audio tokens are {distance:.2g} of their spread from ours "
            f"({_MAX_DISTANCE[kind]} is allowed): {_REMEDY}"
        )
    return cosine


def _size(values: Float32) -> float:
    return float(np.linalg.norm(values))


def _around(model: SpeechLLM, side: int) -> Float32:
    """(1, hidden): the prompt's token before the audio (0), or behind it (1)."""
    token = model.prompt.after_ids[0] if side else model.prompt.before_ids[-1]
    row: Float32 = model.embed_tokens(torch.tensor([token])).float().numpy()
    return row


def _whole_tokens(model: SpeechLLM, frames: int) -> int:
    """Of so many feature frames, those that our encoder makes whole tokens of."""
    stride = model.own_config.mel_frames_per_token if model.stock is None else 1
    return frames // stride * stride


def _sweep(rate: int) -> Float32:
    """Four seconds that move through the spectrum, with noise below: (n,) float32."""
    time = np.arange(4 * rate) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 * time + 350 * time**2)) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
    noise = np.random.default_rng(0).normal(0, 0.02, len(time))
    return (tone + noise).astype(np.float32)


def _check_keys(file: GgufFile, expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if key not in file.keys:
            raise ExportError(f"{file.path.name} lacks the key {key}: {_REMEDY}")
        found = file.keys[key]
        same = np.float32(value) == np.float32(found) if isinstance(value, float) else found == value
        if not same:
            shown = f"{str(found)[:60]!r}, should be {str(value)[:60]!r}"
            raise ExportError(f"{file.path.name}: the key {key} is {shown}: {_REMEDY}")
    extra = set(file.keys) - set(expected) - {FILE_TYPE}
    if extra:
        raise ExportError(f"{file.path.name} has the unexpected key {min(extra)}: {_REMEDY}")


def _check_names(file: GgufFile, expected: set[str]) -> None:
    missing, extra = expected - set(file.tensors), set(file.tensors) - expected
    if missing or extra:
        what = f"lacks {min(missing)}" if missing else f"has the unexpected {min(extra)}"
        raise ExportError(f"{file.path.name} {what}: {_REMEDY}")


def _check_shape(file: GgufFile, name: str, shape: tuple[int, ...]) -> None:
    if file.tensors[name].shape != shape:
        raise ExportError(
            f"{file.path.name}: {name} has the shape {file.tensors[name].shape}, should be {shape}: {_REMEDY}"
        )


def _check_tensor(file: GgufFile, name: str, stored: Float32, expected: Float32) -> None:
    if stored.shape != expected.shape:
        raise ExportError(
            f"{file.path.name}: {name} is {stored.shape}, should be {expected.shape}: {_REMEDY}"
        )
    tolerance = _ROUNDING[file.tensors[name].kind] * float(np.abs(expected).max(initial=0.0))
    difference = float(np.abs(stored - expected).max(initial=0.0))
    if not difference <= tolerance:
        raise ExportError(
            f"{file.path.name}: {name} differs from the model by up to {difference:.3g} "
            f"(rounding explains {tolerance:.3g}): {_REMEDY}"
        )
