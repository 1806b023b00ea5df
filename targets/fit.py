"""The cost model: memory and time of a speech LLM on a machine, before anything is built.

A roofline: every matrix product takes what its arithmetic takes at the rate that the machine's kernel reaches, or what
reading its weights takes, whichever is longer; beside the products stand attention, what goes through values one by one,
and what calling an operator costs. Shapes come from the model's configuration or a bundle's graphs (`shapes.py`,
`bundle_shapes.py`), the machine's rates from `compute.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prunella.device_runtime.bundle import Bundle
from prunella.device_runtime.transcript import DecodeOptions
from prunella.targets.bundle_shapes import bundle_shapes
from prunella.targets.compute import Compute
from prunella.targets.profile import TargetProfile
from prunella.targets.shapes import DecoderShapes, ModelShapes
from prunella.targets.storage import Format, Storage

RUNTIME_MB = 150  # interpreter, libraries, tokenizer, as measured for the reference on x86
COMMAND_SECONDS = 3.0
TEXT_TOKENS = 4.0  # a second of speech, in vocabularies of 32,000 and more
PREFIX_TOKENS = 16  # before the audio, kept from one utterance to the next
_LONGEST = 29.5  # seconds of an utterance, for which memory must do
# Of a graph after ONNX Runtime's fusions: in a layer of the decoder query, key and value are one product; beside the five
# products stand two norms, attention, an activation and a multiplication.
_DECODER_PRODUCTS, _DECODER_NODES, _FIXED_NODES = 5, 5, 12
_ENCODER_PRODUCTS, _ENCODER_NODES = 6, 20
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Prediction:
    """A model on a machine. Seconds are of a command of `COMMAND_SECONDS`, the machine otherwise idle, the model loaded.

    Attributes:
        layers: of the decoder.
        vocabulary: tokens.
        recipe: how it is stored.
        weights_mb: of all parts.
        cache_mb: keys and values of the longest utterance, in float32.
        activations_mb: of encoding the longest utterance.
        features: seconds of log-mel, and of telling speech from silence.
        encode: seconds of the audio encoder.
        prefill: seconds of the decoder over the audio.
        step: seconds of a token.
        tokens: of the answer.
        seconds: of the audio.
    """

    layers: int
    vocabulary: int
    recipe: str
    weights_mb: float
    cache_mb: float
    activations_mb: float
    features: float
    encode: float
    prefill: float
    step: float
    tokens: int
    seconds: float

    @property
    def memory_mb(self) -> float:
        """Of the whole process."""
        return self.weights_mb + self.cache_mb + self.activations_mb + RUNTIME_MB

    @property
    def first_token(self) -> float:
        """Seconds from the end of the audio."""
        return self.features + self.encode + self.prefill

    @property
    def total(self) -> float:
        """Seconds until the whole text is there."""
        return self.first_token + self.tokens * self.step

    @property
    def tokens_per_second(self) -> float:
        """Of the decoder."""
        return 1 / self.step

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for one of audio."""
        return self.total / self.seconds


def predict(
    shapes: ModelShapes,
    storage: Storage,
    compute: Compute,
    *,
    seconds: float = COMMAND_SECONDS,
    tokens: int | None = None,
    beams: int = 1,
) -> Prediction:
    """What a command of so many seconds takes.

    Args:
        shapes: of the model.
        storage: of its parts.
        compute: of the machine; must be known.
        seconds: of audio.
        tokens: of the answer; what so much speech usually takes, if not given.
        beams: transcripts that are followed at once, as rows of one product.
    """
    encoder = shapes.encoder
    if tokens is None:
        tokens = round(seconds * TEXT_TOKENS) + shapes.answer_tokens
    heard = encoder.heard(seconds)
    rows = heard * encoder.tokens_per_second + shapes.prompt_tokens
    seen = PREFIX_TOKENS + rows + tokens / 2
    weights, cache, activations = _memory(shapes, storage)
    return Prediction(
        layers=shapes.decoder.layers,
        vocabulary=shapes.decoder.vocabulary,
        recipe=storage.name,
        weights_mb=weights,
        cache_mb=cache,
        activations_mb=activations,
        features=(compute.features_ms * heard + compute.gate_ms * seconds) / 1e3,
        encode=_encode(shapes, storage, compute, heard),
        prefill=_decode(shapes.decoder, storage, compute, rows, PREFIX_TOKENS + rows),
        step=_decode(shapes.decoder, storage, compute, 1, seen, beams),
        tokens=tokens,
        seconds=seconds,
    )


def _decode(
    of: DecoderShapes, storage: Storage, compute: Compute, rows: float, seen: float, beams: int = 1
) -> float:
    """Seconds of one run of the decoder over so many positions, the last of which looks back on `seen`."""
    together = rows * beams
    spent = 0.0
    for inputs, outputs, how in _layer_products(of, storage):
        spent += compute.product_seconds(inputs * outputs, how.stored(inputs, outputs), how.kernel, together)
    # Of a long run a position looks back on half of it, on average.
    attention = 4 * of.queries * together * (seen if rows == 1 else (seen + rows) / 2)
    spent += compute.attention_seconds(attention, rows)
    spent += together * (4 * of.hidden + 2 * of.feed_forward) / (compute.elementwise * 1e9)
    spent = of.layers * (spent + (_DECODER_PRODUCTS + _DECODER_NODES) * compute.node_us * 1e-6)
    head = storage.head
    spent += compute.product_seconds(
        of.hidden * of.vocabulary, head.stored(of.hidden, of.vocabulary), head.kernel, beams
    )
    calls = 2 * compute.call_us  # token embeddings and decoder
    return spent + (_FIXED_NODES * compute.node_us + calls) * 1e-6


def _layer_products(of: DecoderShapes, storage: Storage) -> Iterator[tuple[float, float, Format]]:
    """Inputs, outputs and format of a layer's products, as they are run."""
    yield of.hidden, of.queries + 2 * of.keys, storage.attention
    yield of.queries, of.hidden, storage.attention
    yield of.hidden, of.feed_forward, storage.gate_up
    yield of.hidden, of.feed_forward, storage.gate_up
    yield of.feed_forward, of.hidden, storage.down


def _encode(shapes: ModelShapes, storage: Storage, compute: Compute, heard: float) -> float:
    """Seconds of the audio encoder and its projector."""
    of, how = shapes.encoder, storage.encoder
    rows = of.rows_per_second * heard
    window = min(rows, of.window_seconds * of.rows_per_second) if of.window_seconds else rows
    each = of.weights_per_layer / _ENCODER_PRODUCTS
    layer = _ENCODER_PRODUCTS * compute.product_seconds(each, how.stored(each, 1), how.kernel, rows)
    layer += compute.attention_seconds(4 * of.width * rows * window, rows)
    passes = 2 if how.kernel == "int8_rows" else 1  # rounded before a product, scaled behind it
    layer += passes * rows * (6 * of.width + 2 * of.feed_forward) / (compute.elementwise * 1e9)
    spent = of.layers * (layer + (_ENCODER_PRODUCTS + _ENCODER_NODES) * compute.node_us * 1e-6)
    spent += of.convolution_ops * heard / (compute.rate("float32")[-1] * 1e9)
    for products, kept in ((of.projector, storage.projector), (of.letters, how)):
        for inputs, outputs, rate in products:
            stored = kept.stored(inputs, outputs)
            spent += compute.product_seconds(inputs * outputs, stored, kept.kernel, rate * heard)
            spent += rate * heard * (inputs + outputs) / (compute.elementwise * 1e9)
    return spent


def _memory(shapes: ModelShapes, storage: Storage) -> tuple[float, float, float]:
    """Megabytes of weights, of the cache and of activations."""
    decoder, encoder = shapes.decoder, shapes.encoder
    layer = sum(how.stored(inputs, outputs) for inputs, outputs, how in _layer_products(decoder, storage))
    weights = decoder.layers * layer + storage.head.stored(decoder.hidden, decoder.vocabulary)
    if not (storage.shared and decoder.tied):
        weights += storage.embeddings.stored(decoder.hidden, decoder.vocabulary)
    weights += encoder.layers * storage.encoder.stored(encoder.weights_per_layer, 1)
    weights += _FLOAT_BYTES * encoder.front_weights
    weights += sum(storage.projector.stored(inputs, outputs) for inputs, outputs, _ in encoder.projector)
    weights += sum(storage.encoder.stored(inputs, outputs) for inputs, outputs, _ in encoder.letters)
    heard = encoder.heard(_LONGEST)
    positions = (
        PREFIX_TOKENS
        + heard * encoder.tokens_per_second
        + shapes.prompt_tokens
        + DecodeOptions().token_cap(_LONGEST)
    )
    cache = 2 * decoder.layers * decoder.keys * positions * _FLOAT_BYTES
    rows = heard * encoder.rows_per_second
    window = min(rows, encoder.window_seconds * encoder.rows_per_second) if encoder.window_seconds else rows
    heads = max(1, encoder.width // 64)
    activations = rows * (2 * heads * window + 4 * encoder.width + 2 * encoder.feed_forward) * _FLOAT_BYTES
    return weights / 1e6, cache / 1e6, activations / 1e6


@dataclass(frozen=True)
class Fit:
    """A bundle against a target.

    Attributes:
        weights_mb: of all its files.
        cache_mb: see `Prediction`.
        activations_mb: likewise.
        budget_mb: of the target; 0 where it is not limited.
        prediction: of a command on the target; None where the machine's rates are not known.
    """

    weights_mb: float
    cache_mb: float
    activations_mb: float
    budget_mb: int
    prediction: Prediction | None

    @property
    def needed_mb(self) -> float:
        """An estimate of the whole process."""
        return self.weights_mb + self.cache_mb + self.activations_mb + RUNTIME_MB

    @property
    def fits(self) -> bool:
        """Whether it stays within the budget."""
        return not self.budget_mb or self.needed_mb <= self.budget_mb

    def describe(self) -> str:
        """One line."""
        budget = f", the budget is {self.budget_mb} MB" if self.budget_mb else ""
        found = self.prediction
        speed = (
            f"; predicted for {found.seconds:g} s of speech: first token after {found.first_token:.2f} s, "
            f"{found.tokens_per_second:.0f} tokens/s, text after {found.total:.2f} s"
            if found
            else ""
        )
        return (
            f"about {self.needed_mb:.0f} MB ({self.weights_mb:.0f} of weights, {self.cache_mb:.0f} of cache, "
            f"{self.activations_mb:.0f} of activations, {RUNTIME_MB} of runtime){budget}{speed}"
        )


def fit_bundle(
    target: TargetProfile, bundle: Bundle, *, seconds: float = COMMAND_SECONDS, beams: int = 1
) -> Fit:
    """Memory of a bundle on a target, and the time that so many seconds of speech take there.

    Raises:
        BundleError: a graph of it cannot be read.
    """
    shapes, storage = bundle_shapes(bundle)
    _, cache, activations = _memory(shapes, storage)
    found = (
        predict(shapes, storage, target.compute, seconds=seconds, beams=beams)
        if target.compute.known
        else None
    )
    return Fit(bundle.total_bytes / 1e6, cache, activations, target.memory.budget_mb, found)
