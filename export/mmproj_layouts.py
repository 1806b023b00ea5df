"""The layouts of audio halves that llama.cpp has, as data: where each has our parameters, and what it takes for granted.

Read in llama.cpp's `tools/mtmd` (`clip.cpp`, `models/whisper-enc.cpp`, `models/qwen3a.cpp`, `mtmd-audio.cpp`), as
llama-cpp-python 0.3.36 has it. What differs from what it hard-codes would load and be silently wrong, or end the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import HOP_LENGTH
from prunella.export.mmproj_granite import check_granite, granite_keys, granite_tensors
from prunella.speech_llm.model import SpeechLLM

POSITIONS = 1_500  # of the 30 s that llama.cpp always encodes with Whisper's kin
_WINDOW_FRAMES = 3_000
_REMEDY = "a bundle for the gguf engine goes without llama.cpp's own audio half"
_SCALED = ("gemma", "gemma2")  # decoders; `LlamaDecoder` divides before
_UNMASKED = (
    "llama.cpp's own audio half hears 30 s with nothing masked, and gives a token for every part of them; the model was "
    "trained with the silence behind the audio masked: take --engine gguf, which does that"
)
# Of a layer, by the names of transformers' Whisper.
_LAYER = {
    "self_attn_layer_norm": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "final_layer_norm": "ln2",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
_WHISPER = {
    "conv1": "a.conv1d.1",
    "conv2": "a.conv1d.2",
    "embed_positions": "a.position_embd",
    "layer_norm": "a.post_ln",
}
_CHUNKED = {
    "conv2d1": "a.conv2d.1",
    "conv2d2": "a.conv2d.2",
    "conv2d3": "a.conv2d.3",
    "conv_out": "a.conv_out",
    "ln_post": "a.post_ln",
}
_TWO_MATRICES = {"linear_1": "mm.a.mlp.1", "linear_2": "mm.a.mlp.2"}


@dataclass(frozen=True)
class EncoderFacts:
    """Sizes of an audio encoder, by whatever names its configuration has them."""

    width: int
    feed_forward: int
    layers: int
    heads: int
    num_mel_bins: int
    norm_eps: float


@dataclass(frozen=True)
class Layout:
    """One projector type of llama.cpp.

    Attributes:
        projector_type: llama.cpp's name of it.
        encoder: module of the audio encoder → its name in the file; its layers are `a.blk.N`.
        projector: module of the projector → its name in the file.
        check: raises CheckpointError where the model is not what llama.cpp computes.
        tensors: further ones, that are no parameters of the model: name in the file → values.
        whole: whether `tensors` are all that the file has.
        keys: of the file, beside those that all have.
        stacked: whether the file says how many frames become one vector.
        around: whether its output begins and ends with a token of its own, which here are those of the prompt on both sides.
        added: texts that libmtmd itself puts before and behind the audio.
        whole_window: whether it hears 30 s whatever the audio's length.
        exact: whether it hears audio of any length as the model does.
        note: how what it hears differs from what the model does.
    """

    projector_type: str
    encoder: dict[str, str]
    projector: dict[str, str]
    check: Callable[[SpeechLLM], None]
    tensors: Callable[[SpeechLLM], dict[str, torch.Tensor]] = field(default=lambda model: {})
    whole: bool = False
    keys: Callable[[SpeechLLM], Mapping[str, int]] = field(default=lambda model: {})
    stacked: bool = False
    around: bool = False
    added: tuple[str, str] = ("", "")
    whole_window: bool = True
    exact: bool = False
    note: str = ""

    def name(self, source: str) -> str:
        """In the file, of one of our parameters: `audio_encoder.layers.0.fc1.weight`, `projector.linear_1.weight`.

        Raises:
            CheckpointError: the layout has no place for it.
        """
        module, _, suffix = source.rpartition(".")
        part, _, inner = module.partition(".")
        if part == "audio_encoder" and inner in self.encoder:
            return f"{self.encoder[inner]}.{suffix}"
        if part == "projector" and inner in self.projector:
            return f"{self.projector[inner]}.{suffix}"
        layers, _, rest = inner.partition(".")
        index, _, within = rest.partition(".")
        if part == "audio_encoder" and layers == "layers" and within in _LAYER:
            return f"a.blk.{index}.{_LAYER[within]}.{suffix}"
        raise CheckpointError(
            f"llama.cpp's {self.projector_type} layout has no place for {source}: {_REMEDY}"
        )


def find_layout(model: SpeechLLM) -> Layout:
    """The layout for a model, checked against what llama.cpp assumes of it.

    Raises:
        CheckpointError: there is none, or llama.cpp would abort on this model, or run it wrongly: says why.
    """
    family = model.config.family
    name = "ultravox" if family == "ultravox" else model.stock.family.mmproj if model.stock else None
    if name in _WRONG:
        raise CheckpointError(f"{_WRONG[name]}: {_REMEDY}")
    if name not in LAYOUTS:
        raise CheckpointError(f"llama.cpp has no projector type for the family '{family}': {_REMEDY}")
    kind = model.decoder.config.model_type
    if kind in _SCALED:
        raise CheckpointError(
            f"llama.cpp multiplies a {kind}'s audio by the factor of looked up tokens, which its own audio half does not "
            f"undo: {_REMEDY}"
        )
    layout = LAYOUTS[name]
    layout.check(model)
    return layout


def prompt_for_libmtmd(model: SpeechLLM) -> tuple[str, str]:
    """What a chat template is to put before and behind the audio: the prompt, without what llama.cpp's audio half brings along."""
    before, after = model.prompt.before_audio, model.prompt.after_audio
    try:
        layout = find_layout(model)
    except CheckpointError:
        return before, after
    first, last = _edges(model) if layout.around else layout.added
    return before.removesuffix(first), after.removeprefix(last)


def _edges(model: SpeechLLM) -> tuple[str, str]:
    """The prompt's tokens next to the audio, as text."""
    name = model.tokenizer.convert_ids_to_tokens
    return str(name(model.prompt.before_ids[-1])), str(name(model.prompt.after_ids[0]))


def encoder_facts(model: SpeechLLM) -> EncoderFacts:
    """Sizes of the model's audio encoder."""
    stock: Any = None if model.stock is None else model.stock.model.config
    epsilons = {module.eps for module in model.audio_encoder.modules() if isinstance(module, nn.LayerNorm)}
    if len(epsilons) != 1:
        raise CheckpointError(
            f"llama.cpp normalises with one epsilon in the audio encoder, the model with {sorted(epsilons)}: {_REMEDY}"
        )
    if hasattr(stock, "encoder_config"):  # Granite Speech's
        part = stock.encoder_config
        wide = part.hidden_dim * part.feedforward_mult
        return EncoderFacts(
            part.hidden_dim, wide, part.num_layers, part.num_heads, part.input_dim, float(epsilons.pop())
        )
    config: Any = model.own_config.audio_encoder if stock is None else stock.audio_config
    return EncoderFacts(
        config.d_model,
        config.encoder_ffn_dim,
        config.encoder_layers,
        config.encoder_attention_heads,
        config.num_mel_bins,
        float(epsilons.pop()),
    )


def _audio_config(model: SpeechLLM) -> Any:
    assert model.stock is not None
    return model.stock.model.config.audio_config


def _check_gelu(model: SpeechLLM) -> None:
    assert model.stock is not None
    config: Any = model.stock.model.config
    found = {_audio_config(model).activation_function, getattr(config, "projector_hidden_act", "gelu")}
    if found != {"gelu"}:
        raise CheckpointError(
            f"llama.cpp's audio half has gelu everywhere, the model {', '.join(sorted(found))}: {_REMEDY}"
        )


def _check_positions(rows: int) -> None:
    if rows < POSITIONS:
        raise CheckpointError(
            f"llama.cpp always encodes 30 s, which needs {POSITIONS} positions, the encoder has {rows}: {_REMEDY}"
        )


def stacked_rows(width: int, factor: int) -> int:
    """Vectors that llama.cpp's graph makes of 30 s: it rounds up by a mask of bits, as if the stride were a power of two."""
    stride = width * factor
    return ((POSITIONS * width + stride - 1) & ~(stride - 1)) // stride


def _check_ultravox(model: SpeechLLM) -> None:
    config = model.own_config
    factor = config.stack_factor
    counted = -(-_WINDOW_FRAMES // factor) // 2
    computed = stacked_rows(config.audio_encoder.d_model, factor)
    if counted != computed:
        raise CheckpointError(
            f"stack factor {factor} with an encoder {config.audio_encoder.d_model} wide aborts llama.cpp's whole process "
            f"(it counts {counted} audio tokens and computes {computed}): {_REMEDY}; "
            "a model with a stack factor of 4, 5 or 10 has it"
        )
    _check_positions(config.audio_encoder.max_source_positions)
    if config.projector_norm_eps != 1e-6:
        raise CheckpointError(
            f"llama.cpp normalises in the projector with an epsilon of 1e-6, the model with {config.projector_norm_eps}: {_REMEDY}"
        )


def _check_pooled(model: SpeechLLM) -> None:
    _check_gelu(model)
    _check_positions(_audio_config(model).max_source_positions)
    names = dict(model.projector.named_parameters())
    if not any(name.endswith(".bias") for name in names):
        raise CheckpointError(
            f"llama.cpp's layout wants a bias in the projector, the model's has none: {_REMEDY}"
        )


def _check_chunked(model: SpeechLLM) -> None:
    _check_gelu(model)
    audio = _audio_config(model)
    if (audio.n_window, audio.n_window_infer) != (50, 800):
        raise CheckpointError(
            "llama.cpp's qwen3a has chunks of 100 frames in windows of 800, the model chunks of "
            f"{2 * audio.n_window} in windows of {audio.n_window_infer}: {_REMEDY}"
        )


def _check_voxtral(model: SpeechLLM) -> None:
    _check_gelu(model)
    _check_positions(_audio_config(model).max_source_positions)
    factor = model.config.frames_per_token
    computed = stacked_rows(model.config.encoder_width, factor)
    if computed != POSITIONS // factor:
        raise CheckpointError(
            f"with an encoder {model.config.encoder_width} wide llama.cpp counts {POSITIONS // factor} audio tokens and "
            f"computes {computed}, which aborts its whole process: {_REMEDY}"
        )
    if model.config.audio.features.multiple < _WINDOW_FRAMES * HOP_LENGTH:
        raise CheckpointError(
            f"the model was healed on audio of its true length, llama.cpp always encodes 30 s: {_REMEDY}"
        )
    prompt = model.prompt
    if not (prompt.before_ids and prompt.after_ids):
        raise CheckpointError(
            f"llama.cpp's glma puts a token before and behind the audio, the prompt has none there: {_REMEDY}"
        )
    before, after = _edges(model)
    if not (prompt.before_audio.endswith(before) and prompt.after_audio.startswith(after)):
        raise CheckpointError(
            f"llama.cpp's glma puts a token before and behind the audio, the prompt has {before!r} and {after!r} there, "
            f"which are no texts of their own: {_REMEDY}"
        )


def _as_glma(model: SpeechLLM) -> dict[str, torch.Tensor]:
    """What glma has and Voxtral has not: biases, and a token on each side, for which the prompt's own stand."""
    width = model.decoder.config.get_text_config().hidden_size
    beginning, end = model.embed_tokens(
        torch.tensor([model.prompt.before_ids[-1], model.prompt.after_ids[0]])
    )
    biases = {f"mm.a.mlp.{number}.bias": torch.zeros(width) for number in (1, 2)}
    return biases | {"v.boi": beginning, "v.eoi": end}


def _sinusoids(model: SpeechLLM) -> dict[str, torch.Tensor]:
    """Computed, so not among the parameters. llama.cpp reads those of one chunk."""
    tower: Any = model.audio_encoder.tower
    return {"a.position_embd.weight": tower.positional_embedding.positional_embedding}


# By `Family.mmproj`, llama.cpp's name for the family.
LAYOUTS = {
    "granite_speech": Layout(
        "granite_speech",
        {},
        {},
        check_granite,
        granite_tensors,
        whole=True,
        keys=granite_keys,
        whole_window=False,
        exact=True,
    ),
    "ultravox": Layout(
        "ultravox",
        _WHISPER,
        _TWO_MATRICES | {"ln_pre": "mm.a.norm_pre", "ln_mid": "mm.a.norm_mid"},
        _check_ultravox,
        stacked=True,
    ),
    "qwen2a": Layout(
        "qwen2a",
        _WHISPER,
        {"linear": "mm.a.fc"},
        _check_pooled,
        added=("<|audio_bos|>", "<|audio_eos|>"),
        note=_UNMASKED,
    ),
    "musicflamingo": Layout("musicflamingo", _WHISPER, _TWO_MATRICES, _check_pooled, note=_UNMASKED),
    # llama.cpp's own voxtral averages pairs of encoder frames, and so makes 187 tokens of 30 s where the model makes 375
    # (llama.cpp #25496). Its glma is what Voxtral computes, the encoder's last norm being glma's first.
    "voxtral": Layout(
        "glma",
        _WHISPER | {"layer_norm": "mm.a.norm_pre"},
        _TWO_MATRICES,
        _check_voxtral,
        _as_glma,
        stacked=True,
        around=True,
    ),
    "qwen3a": Layout(
        "qwen3a",
        _CHUNKED,
        _TWO_MATRICES,
        _check_chunked,
        _sinusoids,
        added=("<|audio_start|>", "<|audio_end|>"),
        whole_window=False,
        note="llama.cpp's own audio half fills the last second up with nothing masked; the model was trained with that masked: "
        "take --engine gguf, which does that",
    ),
}
# Types that llama.cpp has a name for, and computes something else.
_WRONG = {
    "glma": "llama.cpp's glma adds learned positions in the audio encoder, the model turns queries and keys by theirs "
    "(rotary embeddings)",
    "musicflamingo with times": "llama.cpp's musicflamingo is Audio Flamingo 3's encoder, without this model's rotary time embedding",
    "qwen2.5o": "llama.cpp's qwen2.5o lets the audio encoder attend to 30 s at once, the model to chunks of two seconds",
}
