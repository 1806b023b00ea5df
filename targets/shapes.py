"""The shapes of a speech LLM, from its `config.json` alone: what is multiplied with what, and how often in a second of audio.

`shapes/*.json` has those of models that people ask for, so that nothing need be downloaded to know whether one fits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.base.suggestions import did_you_mean

KNOWN = Path(__file__).parent / "shapes"
TRIMMED = "@trimmed"  # behind a name: healed on audio of its true length, where the family hears 30 s whole
_WINDOW_SECONDS = 30.0
_WHOLE_WINDOWS = (
    *("voxtral", "glmasr", "audioflamingo3"),  # families that hear them, silence and all
    "moss_transcribe_diarize",
)
_AVERAGED = ("qwen2_audio", "audioflamingo3", "musicflamingo", "qwen2_5_omni_thinker")  # pairs of rows
_ONE_MATRIX = ("qwen2_audio", "qwen2_5_omni_thinker")
_UNKNOWN = ("fun_asr_nano", "phi4_multimodal")  # whose encoders are of another build
_FRAMES = 100  # of features, a second
_MEL_STACK = 2  # encoder rows come every second frame behind Whisper's convolutions


@dataclass(frozen=True)
class DecoderShapes:
    """Of a decoder of Llama's kind.

    Attributes:
        layers: how many.
        hidden: width of the residual stream.
        queries: width of all query heads together.
        keys: width of all key heads together, which the values share.
        feed_forward: width of gate and up projection.
        vocabulary: rows of the head, and of the token embeddings.
        tied: whether head and token embeddings are the same weights.
        heads: query heads.
        kv_heads: key heads.
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    feed_forward: int
    vocabulary: int
    tied: bool
    heads: int
    kv_heads: int

    @property
    def layer_weights(self) -> int:
        """Of a layer's matrices."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.feed_forward)


@dataclass(frozen=True)
class EncoderShapes:
    """Of an audio encoder and its projector.

    Attributes:
        layers: how many.
        width: of a row.
        feed_forward: width inside.
        weights_per_layer: of a layer's matrices.
        rows_per_second: that go through the layers.
        window_seconds: of audio whose rows see each other; 0 for all.
        whole_seconds: audio is filled up with silence to a multiple of it; 0: the true length is heard.
        padding_seconds: of silence behind all audio.
        convolution_ops: multiplications and additions of the front end in a second of audio; it stays float.
        front_weights: of the front end.
        projector: matrices between encoder and decoder as (inputs, outputs, rows a second); they stay float.
        tokens_per_second: that the decoder gets.
        letters: matrices of a CTC head, as `projector`'s; stored as the layers are.
    """

    layers: int
    width: int
    feed_forward: int
    weights_per_layer: int
    rows_per_second: float
    window_seconds: float
    whole_seconds: float
    padding_seconds: float
    convolution_ops: float
    front_weights: int
    projector: tuple[tuple[int, int, float], ...]
    tokens_per_second: float
    letters: tuple[tuple[int, int, float], ...] = ()

    def heard(self, seconds: float) -> float:
        """Seconds that are encoded for so many of audio."""
        if self.whole_seconds:
            return -(-seconds // self.whole_seconds) * self.whole_seconds
        return seconds + self.padding_seconds


@dataclass(frozen=True)
class ModelShapes:
    """A speech LLM.

    Attributes:
        name: as it was asked for.
        title: as people write it.
        decoder: its shapes.
        encoder: its shapes.
        prompt_tokens: that stand behind the audio; what stands before it is kept from one utterance to the next.
        answer_tokens: that an answer says before its transcript.
        wer: in percent, of the whole model, where it is known.
        wer_source: where that is from.
        wer_increase: by recipe, in percent of it, where the model was trained for rounded weights.
        source: where the shapes are from.
        checkpoint: what `prunella build` takes for this model.
    """

    name: str
    title: str
    decoder: DecoderShapes
    encoder: EncoderShapes
    prompt_tokens: int = 8
    answer_tokens: int = 0
    wer: float | None = None
    wer_source: str = ""
    wer_increase: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    checkpoint: str = ""

    def kept(self, layers: int, vocabulary: int | None = None) -> ModelShapes:
        """With so many decoder layers, and so many tokens of the vocabulary.

        Raises:
            UsageError: it has not so many, or none would be left.
        """
        decoder = self.decoder
        if not 1 <= layers <= decoder.layers:
            raise UsageError(
                f"{self.title} has {decoder.layers} decoder layers: keep 1 to {decoder.layers}, not {layers}"
            )
        tokens = decoder.vocabulary if vocabulary is None else vocabulary
        if not 1 <= tokens <= decoder.vocabulary:
            raise UsageError(
                f"{self.title} has {decoder.vocabulary} tokens: keep 1 to {decoder.vocabulary}, not {tokens}"
            )
        return replace(self, decoder=replace(decoder, layers=layers, vocabulary=tokens))


def known_models() -> tuple[str, ...]:
    """Names of the models whose shapes are here."""
    return tuple(sorted(path.stem for path in KNOWN.glob("*.json")))


def read_shapes(model: str | Path) -> ModelShapes:
    """Shapes of a model: a name of `known_models`, a `config.json`, the folder of a checkpoint, or a Hub id whose shapes are here.

    Raises:
        UsageError: it is none of these, or its configuration is of no family that is known here.
    """
    text = str(model).removesuffix(TRIMMED)
    path = Path(text)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        body = _read(path)
        if "text_config" not in body and (below := path.parent / "decoder" / "config.json").is_file():
            body["text_config"] = _read(below)  # a checkpoint of prunella's own layout
        body = body if "config" in body else {"config": body}
    else:
        found = next((name for name in known_models() if text.lower() in _names(name)), None)
        if found is None:
            hint = did_you_mean(text, known_models())
            raise UsageError(
                f"no shapes of '{text}': {hint}{' ' if hint else ''}give a config.json, the folder of a checkpoint, or one of "
                f"{', '.join(known_models())}"
            )
        body, path = _read(KNOWN / f"{found}.json"), KNOWN / f"{found}.json"
    try:
        shapes = _shapes(text, body)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no configuration of a speech LLM that is known here ({error} is missing): wanted are text_config and "
            "audio_config, as transformers writes them"
        ) from error
    if str(model).endswith(TRIMMED):
        shapes = replace(shapes, name=str(model), encoder=replace(shapes.encoder, whole_seconds=0.0))
    return shapes


def _names(known: str) -> set[str]:
    body = _read(KNOWN / f"{known}.json")
    return {known, body["title"].lower(), *(name.lower() for name in body["names"])}


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): give a model's config.json") from error
    if not isinstance(body, dict):
        raise UsageError(f"{path} is no configuration: give a model's config.json")
    return body


def _shapes(name: str, body: Mapping[str, Any]) -> ModelShapes:
    config = body["config"]
    kind = config.get("model_type") or config.get("family", "ultravox")
    if kind in _UNKNOWN:
        raise UsageError(
            f"{name} is a {kind}, whose audio encoder's time and memory cannot be predicted: export it, and `prunella bench` the bundle"
        )
    wer = body.get("wer") or {}
    decoder = _decoder(config["text_config"])
    return ModelShapes(
        name=name,
        title=body.get("title", Path(name).name),
        decoder=decoder,
        encoder=encoder_shapes(kind, config, decoder.hidden),
        answer_tokens=3 if kind == "qwen3_asr" else 0,  # `language English<asr_text>`
        wer=wer.get("percent"),
        wer_source=wer.get("of", ""),
        wer_increase=wer.get("increase", {}),
        source=body.get("source", "its config.json"),
        checkpoint=next(iter(body.get("names", ())), name),
    )


def _decoder(text: Mapping[str, Any]) -> DecoderShapes:
    heads = text["num_attention_heads"]
    width = text.get("head_dim") or text["hidden_size"] // heads
    kv_heads = text.get("num_key_value_heads") or heads
    return DecoderShapes(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        queries=heads * width,
        keys=kv_heads * width,
        feed_forward=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        tied=bool(text.get("tie_word_embeddings", False)),
        heads=heads,
        kv_heads=kv_heads,
    )


def encoder_shapes(kind: str, config: Mapping[str, Any], hidden: int) -> EncoderShapes:
    """Of the audio half of a model; families of `_UNKNOWN` are refused before.

    Args:
        kind: its `model_type`.
        config: with `audio_config` and what else its family says about it.
        hidden: width of the decoder.
    """
    if kind == "qwen3_asr":
        return _qwen3_asr(config["audio_config"], hidden)
    if kind.startswith("granite_speech"):
        return _granite(config, hidden)
    return _whisper(kind, config, hidden)


def _whisper(kind: str, config: Mapping[str, Any], hidden: int) -> EncoderShapes:
    """Whisper's encoder, and a projector of stacked, or of averaged, rows."""
    audio = config.get("audio_config") or config["audio_encoder"]
    width = audio.get("d_model") or audio["hidden_size"]
    wide = audio.get("encoder_ffn_dim") or audio["intermediate_size"]
    bins, rows = audio["num_mel_bins"], _FRAMES / _MEL_STACK
    stack = config.get("stack_factor", 2 if kind in _AVERAGED else 4)
    tokens = rows / stack
    projector: tuple[tuple[int, int, float], ...]
    if kind == "ultravox":  # a gated projector, whose gate halves what goes in
        inside = config.get("projector_hidden_size") or config["hidden_size"]
        projector = ((width * stack, inside, tokens), (inside // 2, hidden, tokens))
    elif kind in _ONE_MATRIX:
        projector = ((width, hidden, tokens),)
    elif kind in _AVERAGED:
        projector = ((width, hidden, tokens), (hidden, hidden, tokens))
    else:
        projector = ((width * stack, hidden, tokens), (hidden, hidden, tokens))
    return EncoderShapes(
        layers=audio.get("encoder_layers") or audio["num_hidden_layers"],
        width=width,
        feed_forward=wide,
        weights_per_layer=4 * width**2 + 2 * width * wide,
        rows_per_second=rows,
        window_seconds=0.0,
        whole_seconds=_WINDOW_SECONDS if kind in _WHOLE_WINDOWS else 0.0,
        padding_seconds=0.0 if kind in _WHOLE_WINDOWS else 0.1,
        convolution_ops=2.0 * (_FRAMES * 3 * bins * width + rows * 3 * width**2),
        front_weights=3 * bins * width + 3 * width**2,
        projector=projector,
        tokens_per_second=tokens,
        letters=_letters(width, rows) if config.get("ctc_alphabet") else (),
    )


def _letters(width: int, rows: float) -> tuple[tuple[int, int, float], ...]:
    """A CTC head (`speech_llm/ctc_head.py`): a window of four rows, five blocks."""
    half = rows / 2
    return ((4 * width, width, half), *((width, 2 * width, half), (2 * width, width, half)) * 5)


def _qwen3_asr(audio: Mapping[str, Any], hidden: int) -> EncoderShapes:
    """Three strided convolutions over chunks of a second, windows of attention, two linear layers."""
    width, wide, channels = audio["d_model"], audio["encoder_ffn_dim"], audio["downsample_hidden_size"]
    height, length = audio["num_mel_bins"], 2 * audio["n_window"]
    chunks, inputs, macs, weights = _FRAMES / length, 1, 0.0, 0
    for _ in range(3):
        height, length = (height + 1) // 2, (length + 1) // 2
        macs += height * length * inputs * channels * 9
        weights += inputs * channels * 9
        inputs = channels
    macs += length * channels * height * width
    rows = chunks * length
    return EncoderShapes(
        layers=audio["encoder_layers"],
        width=width,
        feed_forward=wide,
        weights_per_layer=4 * width**2 + 2 * width * wide,
        rows_per_second=rows,
        window_seconds=audio["n_window_infer"] / _FRAMES,
        whole_seconds=0.0,
        padding_seconds=0.5 / chunks,  # to whole chunks: half of one, on average
        convolution_ops=2.0 * macs * chunks,
        front_weights=weights + channels * height * width,
        projector=((width, width, rows), (width, hidden, rows)),
        tokens_per_second=rows,
    )


def _granite(config: Mapping[str, Any], hidden: int) -> EncoderShapes:
    """A Conformer over pairs of frames, and a Q-Former that makes `window / downsample` tokens of a window's rows."""
    audio, former = config["encoder_config"], config["projector_config"]
    width, rows = audio["hidden_dim"], _FRAMES / 2
    wide = width * audio["feedforward_mult"]
    inner = audio["num_heads"] * audio["dim_head"]
    gated = width * audio["conv_expansion_factor"]
    tokens = rows / config.get("downsample_rate", 5)
    inside, deep = former["hidden_size"], former["num_hidden_layers"]
    projector = [(inside, 6 * inside, tokens), (inside, 2 * former["intermediate_size"], tokens)] * deep
    projector += [(width, 2 * inside, rows)] * deep + [(inside, hidden, tokens)]
    return EncoderShapes(
        layers=audio["num_layers"],
        width=width,
        feed_forward=wide,
        weights_per_layer=4 * width * wide + 4 * width * inner + width * 2 * gated + gated * width,
        rows_per_second=rows,
        window_seconds=audio["context_size"] / rows,
        whole_seconds=0.0,
        padding_seconds=0.15,
        convolution_ops=2.0 * rows * audio["input_dim"] * width,
        front_weights=audio["input_dim"] * width,
        projector=tuple(projector),
        tokens_per_second=tokens,
    )
