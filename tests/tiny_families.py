"""Tiny random checkpoints of the stock speech LLM classes, as transformers saves them; one entry of `FAMILIES` each."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.audio_utils import mel_filter_bank

from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.stock import assembled

TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2_048,
    "initializer_range": 0.3,
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 128,
    "initializer_range": 0.2,
}
# A second size: odd heads, one for all keys, widths that differ, fewer bins; the head tied where the first is not.
OTHER_TEXT = {
    "vocab_size": 333,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "num_hidden_layers": 7,
}
OTHER_WHISPER = {
    "d_model": 36,
    "encoder_layers": 1,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 72,
    "num_mel_bins": 80,
}
CONFORMER = {
    "hidden_dim": 32,
    "num_layers": 4,
    "num_heads": 2,
    "input_dim": 160,
    "output_dim": 7,
    "context_size": 20,
    "max_pos_emb": 32,
    "initializer_range": 0.2,
}
Q_FORMER = {
    "model_type": "blip_2_qformer",
    "hidden_size": 32,
    "encoder_hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "cross_attention_frequency": 1,
    "initializer_range": 0.2,
}
GRANITE = {
    "model_type": "granite",
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}
# Another block and convolution, 64 bins, other windows.
OTHER_CONFORMER = {
    "hidden_dim": 36,
    "num_layers": 3,
    "num_heads": 3,
    "input_dim": 128,
    "context_size": 13,
    "conv_kernel_size": 8,
}
OTHER_Q_FORMER = Q_FORMER | {"hidden_size": 24, "encoder_hidden_size": 36, "num_attention_heads": 3}
OTHER_WINDOWS = {"window_size": 8, "downsample_rate": 4}
_CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


@dataclass(frozen=True)
class TinyFamily:
    """A family in small.

    Attributes:
        name: the classes' prefix in transformers.
        tokens: that its prompt needs; the first is the audio placeholder.
        audio: fields of the encoder's configuration.
        text: fields of the decoder's.
        mask: what the stock class calls the features' mask; "": it takes none.
        extractor: name of its feature extractor.
        heard: how the stock processor calls it.
        plain: added tokens that are no special ones.
        bos: the token that begins a prompt.
        ends: tokens that end an answer.
        rest: further fields of the configuration.
        audio_part: what the encoder's configuration is called.
        other_rest: further fields of the configuration in the second size.
        frames_first: whether the class takes features as (batch, frames, width).
        other_audio: fields of the encoder's configuration in the second size.
        other_heard: how the processor calls the extractor then, besides.
        features: what the stock class and its extractor call the features.
        head: what the class's name ends with.
        flat: whether the decoder's fields are the configuration's own.
        passed: what else the extractor makes that the class takes.
        seed: of weights with which it says a few words before it ends.
    """

    name: str
    tokens: tuple[str, ...]
    audio: dict[str, Any]
    text: dict[str, Any]
    mask: str = ""
    extractor: str = "WhisperFeatureExtractor"
    heard: dict[str, Any] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    bos: str | None = None
    ends: tuple[int, ...] = (0, 2)
    rest: dict[str, Any] = field(default_factory=dict)
    audio_part: str = "audio_config"
    other_rest: dict[str, Any] = field(default_factory=dict)
    frames_first: bool = False
    other_audio: dict[str, Any] = field(default_factory=OTHER_WHISPER.copy)
    other_heard: dict[str, Any] = field(default_factory=dict)
    features: str = "input_features"
    head: str = "ForConditionalGeneration"
    flat: bool = False
    passed: tuple[str, ...] = ()
    seed: int = 0

    @property
    def stock(self) -> Any:
        """The class in transformers."""
        return getattr(transformers, f"{self.name}{self.head}")


FAMILIES = {
    "qwen3_asr": TinyFamily(
        "Qwen3ASR",
        ("<|audio_pad|>", "<|audio_start|>", "<|audio_end|>"),
        WHISPER | {"model_type": "qwen3_asr_encoder", "downsample_hidden_size": 8, "output_dim": 64},
        {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
        mask="input_features_mask",
        extractor="Qwen3ASRFeatureExtractor",
        heard={"padding": True},
        plain=("<asr_text>",),
        other_audio=OTHER_WHISPER
        | {"n_window": 52, "n_window_infer": 104, "downsample_hidden_size": 6, "output_dim": 48},
        other_heard={"n_window": 52},
    ),
    "qwen2_audio": TinyFamily(
        "Qwen2Audio",
        ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
        WHISPER | {"model_type": "qwen2_audio_encoder"},
        {"model_type": "qwen2"},
        mask="feature_attention_mask",
    ),
    "voxtral": TinyFamily(
        "Voxtral",
        ("[AUDIO]", "[BEGIN_AUDIO]", "[INST]", "[/INST]", "[TRANSCRIBE]", "<s>"),
        WHISPER | {"model_type": "voxtral_encoder", "encoder_ffn_dim": 128},
        {"model_type": "llama", "head_dim": 16},
        heard={"padding": True, "truncation": False, "pad_to_multiple_of": 480_000},
        bos="<s>",
        other_audio=OTHER_WHISPER | {"encoder_ffn_dim": 180},
    ),
    "glmasr": TinyFamily(
        "GlmAsr",
        ("<|audio|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|user|>", "<|assistant|>"),
        {
            "model_type": "glmasr_encoder",
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": 128,
            "initializer_range": 0.2,
        },
        {"model_type": "llama", "tie_word_embeddings": True},
        mask="input_features_mask",
        ends=(0, 2, 7),
        other_audio={
            "hidden_size": 36,
            "intermediate_size": 144,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "num_mel_bins": 80,
        },
    ),
    "audioflamingo3": TinyFamily(
        "AudioFlamingo3",
        ("<sound>",),
        WHISPER | {"model_type": "audioflamingo3_encoder"},
        {"model_type": "qwen2"},
        mask="input_features_mask",
        seed=1,
    ),
    "moss_transcribe_diarize": TinyFamily(
        "MossTranscribeDiarize",
        ("<|audio_pad|>", "<|audio_start|>", "<|audio_end|>"),
        {
            "model_type": "moss_transcribe_diarize_audio",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": 128,
            "initializer_range": 0.2,
        },
        {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
        mask="input_features_mask",
        extractor="MossTranscribeDiarizeFeatureExtractor",
        passed=("padding_mask",),
        other_audio={
            "hidden_size": 36,
            "intermediate_size": 72,
            "num_hidden_layers": 1,
            "num_attention_heads": 3,
            "num_mel_bins": 80,
        },
    ),
    "qwen2_5_omni_thinker": TinyFamily(
        "Qwen2_5OmniThinker",
        ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
        WHISPER | {"output_dim": 64},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}},
        mask="feature_attention_mask",
        rest={
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 64,
                "fullatt_block_indexes": [0],
            },
            "audio_start_token_id": 5,
            "audio_end_token_id": 6,
            "vision_start_token_id": 300,
            "tie_word_embeddings": False,
        },
        other_audio=OTHER_WHISPER | {"n_window": 37, "output_dim": 48},
    ),
    "fun_asr_nano": TinyFamily(
        "FunAsrNano",
        ("<|object_ref_start|>",),
        {
            "model_type": "fun_asr_nano_encoder",
            "num_mel_bins": 80,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_timestamp_prediction_layers": 1,
            "fsmn_kernel_size": 5,
        },
        {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
        mask="input_features_mask",
        extractor="FunAsrNanoFeatureExtractor",
        frames_first=True,
        rest={"adaptor_config": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 16}},
        other_audio={
            "num_mel_bins": 60,
            "hidden_size": 36,
            "num_attention_heads": 3,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
        },
        other_rest={"adaptor_config": {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 12}},
    ),
    "phi4_multimodal": TinyFamily(
        "Phi4Multimodal",
        ("<|audio|>", "<|image|>", "<|user|>", "<|end|>", "<|assistant|>"),
        {
            "input_size": 80,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 8,
            "bias_max_distance": 20,
            "initializer_range": 0.2,
        },
        {"bos_token_id": 1, "original_max_position_embeddings": 2_048},
        extractor="Phi4MultimodalFeatureExtractor",
        features="audio_input_features",
        passed=("audio_embed_sizes",),
        frames_first=True,
        head="ForCausalLM",
        flat=True,
        rest={
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 28,
                "crop_size": 28,
                "image_token_id": 5,
            }
        },
        other_audio={
            "input_size": 60,
            "hidden_size": 36,
            "intermediate_size": 40,
            "num_blocks": 1,
            "num_attention_heads": 3,
            "ext_pw_out_channel": 36,
            "depthwise_separable_out_channel": 36,
            "chunk_size": 4,
            "left_chunk": 2,
        },
    ),
    "musicflamingo": TinyFamily(
        "MusicFlamingo",
        ("<sound>", "<|sound_bos|>", "<|sound_eos|>"),
        WHISPER | {"model_type": "audioflamingo3_encoder"},
        {"model_type": "qwen2"},
        mask="input_features_mask",
        rest={"audio_bos_token_id": 5, "audio_eos_token_id": 6},
        seed=2,
    ),
    "granite_speech": TinyFamily(
        "GraniteSpeech",
        ("<|audio|>",),
        CONFORMER | {"model_type": "granite_speech_encoder"},
        GRANITE | {"tie_word_embeddings": True},
        extractor="",  # torchaudio's
        rest={"has_lora_adapter": False, "initializer_range": 0.2, "projector_config": Q_FORMER},
        audio_part="encoder_config",
        frames_first=True,
        other_audio=OTHER_CONFORMER,
        other_rest=OTHER_WINDOWS | {"projector_config": OTHER_Q_FORMER},
    ),
    "granite_speech_plus": TinyFamily(
        "GraniteSpeechPlus",
        ("<|audio|>",),
        CONFORMER | {"model_type": "granite_speech_plus_encoder", "cat_hidden_layers": [0, 2]},
        GRANITE | {"tie_word_embeddings": False},
        extractor="",
        rest={
            "has_lora_adapter": False,
            "initializer_range": 0.2,
            "projector_config": Q_FORMER | {"encoder_hidden_size": 96},
        },
        audio_part="encoder_config",
        frames_first=True,
        other_audio=OTHER_CONFORMER | {"cat_hidden_layers": [1]},
        other_rest=OTHER_WINDOWS | {"projector_config": OTHER_Q_FORMER | {"encoder_hidden_size": 72}},
        seed=9,  # never says the placeholder, whose embedding the class takes for that of token 0
    ),
}
FAMILY_NAMES = tuple(FAMILIES)


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Every byte a token, no merges, with the special tokens of the family; the audio placeholder is 4, <|im_end|> 2."""
    kind = FAMILIES[family]
    special = [*_CONTROLS, *kind.tokens]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in kind.plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=kind.bos, eos_token="<|im_end|>", pad_token="<|pad|>"
    )


def tiny_stock(
    family: str,
    *,
    seed: int | None = None,
    text: dict[str, Any] | None = None,
    audio: dict[str, Any] | None = None,
    rest: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A random model of the stock class; `text`, `audio` and `rest` change its configuration."""
    kind = FAMILIES[family]
    torch.manual_seed(kind.seed if seed is None else seed)
    fields = (
        {"audio_token_id": 4, "eos_token_id": list(kind.ends), "pad_token_id": 3} | kind.rest | (rest or {})
    )
    hears, says = kind.audio | (audio or {}), TEXT | kind.text | (text or {})
    if kind.flat:
        hears["audio_token_id"] = fields.pop("audio_token_id")
        parts = {kind.audio_part: hears, **says}
    else:
        parts = {kind.audio_part: hears, "text_config": says}
    config = getattr(transformers, f"{kind.name}Config")(**parts | fields)
    model: PreTrainedModel = kind.stock(config)
    model.generation_config.eos_token_id = list(kind.ends)
    model.generation_config.pad_token_id = 3
    return model.eval()


def write_tiny(family: str, folder: Path, **options: Any) -> Path:
    """Save model and tokenizer as a folder from the Hub has them."""
    tiny_stock(family, **options).save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder


def other_size(family: str) -> dict[str, Any]:
    """Options of `tiny_stock` for the second size."""
    kind = FAMILIES[family]
    tied = not (TEXT | kind.text).get("tie_word_embeddings", False)
    return {
        "text": OTHER_TEXT | {"tie_word_embeddings": tied},
        "audio": kind.other_audio,
        "rest": {"tie_word_embeddings": tied} | kind.other_rest,
    }


def stock_extractor(family: str, num_mel_bins: int = 128) -> Any:
    """The feature extractor of transformers that the family's processor holds."""
    if family == "fun_asr_nano":
        from kaldi_features import KaldiExtractor

        return KaldiExtractor(feature_size=num_mel_bins)
    return getattr(transformers, FAMILIES[family].extractor)(feature_size=num_mel_bins)


def stock_features(family: str, samples: np.ndarray, num_mel_bins: int = 128) -> dict[str, torch.Tensor]:
    """Features by transformers' own extractor, called as the family's processor does, under the names that the class takes."""
    kind = FAMILIES[family]
    if not kind.extractor:
        return {"input_features": torch.from_numpy(htk_pairs(samples, num_mel_bins))[None]}
    other = kind.other_heard if num_mel_bins == OTHER_WHISPER["num_mel_bins"] else {}
    found = stock_extractor(family, num_mel_bins)(
        samples,
        sampling_rate=16_000,
        return_attention_mask=True,
        return_tensors="pt",
        **(kind.heard | other),
    )
    features = {kind.features: found[kind.features]}
    features |= {name: found[name] for name in kind.passed}
    if not kind.mask:
        return features
    return features | {kind.mask: found[kind.mask if kind.mask in found else "attention_mask"]}


def htk_pairs(samples: np.ndarray, num_mel_bins: int = 80) -> np.ndarray:
    """(frames, 2 * bins): what `GraniteSpeechFeatureExtractor` has torchaudio compute, by torch and transformers' own filters."""
    filters = mel_filter_bank(257, num_mel_bins, 0.0, 8_000.0, 16_000, norm=None, mel_scale="htk")
    wave = torch.from_numpy(np.pad(np.asarray(samples, np.float32), (0, max(0, 320 - len(samples)))))
    spectrum = torch.stft(
        wave, 512, 160, 400, torch.hann_window(400), center=True, pad_mode="reflect", return_complex=True
    )
    log = ((spectrum.abs() ** 2).T @ torch.from_numpy(filters).float()).clamp(min=1e-10).log10()
    log = torch.maximum(log, log.amax() - 8.0) / 4 + 1
    return log[: len(log) // 2 * 2].reshape(-1, 2 * num_mel_bins).numpy()


def sound(seconds: float) -> np.ndarray:
    """Noise that swells, in which every frame differs."""
    count = int(seconds * 16_000)
    noise = 0.1 * np.random.default_rng(count).standard_normal(count)
    return (noise * np.linspace(0.2, 1, count)).astype(np.float32)


def stock_rows(model: SpeechLLM, samples: np.ndarray) -> torch.Tensor:
    """(audio tokens, hidden): what the stock class puts in the place of the audio."""
    stock = assembled(model)
    heard = stock_features(model.config.family, samples, model.config.audio.features.num_mel_bins)
    takes = inspect.signature(getattr(stock, "get_audio_features", _merged_rows)).parameters
    if "stock" not in takes and "input_ids" not in takes:
        return stock.get_audio_features(**heard).pooler_output.reshape(-1, model.view.hidden_size)
    return _merged_rows(stock, model, heard)


def _merged_rows(stock: Any, model: SpeechLLM, heard: dict[str, torch.Tensor]) -> torch.Tensor:
    """For a class without `get_audio_features`, or whose wants tokens: what its decoder is given."""
    kind = FAMILIES[model.config.family]
    frames = int(heard[kind.mask].sum()) if kind.mask else heard[kind.features].shape[1]
    ids = torch.full((1, model.config.audio_tokens(model.config.encoder_frames(frames))), 4)
    given: list[torch.Tensor] = []
    body = getattr(stock.model, "language_model", stock.model)
    hook = body.layers[0].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    stock(input_ids=ids, attention_mask=torch.ones_like(ids), **heard)
    hook.remove()
    return given[0][0]
