"""Speech models that prunella cannot take, by name and with the reason: as text LLMs they would be cut without hearing a word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_PREFIXES = ("audio", "speech", "sound", "codec", "acoustic", "thinker", "whisper", "voice", "wav")
_WORDS = {"mel", "mels", "asr", "stt", "mimi", "conformer"}
_EVERY_STEP = (
    "adds audio to the text's embeddings at every step of the decoder: that is another engine, which prunella has not; "
    "take a model that hears an utterance first and answers then"
)
_NO_LLM = "writes without an LLM decoder (an encoder-decoder, CTC or transducer): there is nothing in it that prunella prunes"
_NO_TRANSCRIPT = "makes sound or vectors of it, and no transcript"
_DRAWN = (
    "draws random numbers for every recording as it hears (two convolutional encoders of a wave of 24 kHz, sampled): nothing that "
    "prunella writes of it could be compared with what its own class says; take a model that hears the same of the same recording"
)
_PACKED = (
    "gives every layer embeddings of each token out of one table, packed by the layer's number, and lets later layers use the keys "
    "and values of earlier ones: a cut would shift both; take a model whose layers stand alone"
)
# fmt: off
REASONS = {
    _PACKED: ("gemma3n", "gemma4"),
    _EVERY_STEP: ("voxtral_realtime", "kyutai_speech_to_text", "moshi"),
    _DRAWN: ("vibevoice_asr",),
    _NO_LLM: (
        "whisper", "canary", "cohere_asr", "speech_to_text", "speech-encoder-decoder", "mctct", "lasr_ctc", "lasr_encoder",
        "moonshine", "moonshine_streaming", "parakeet_ctc", "parakeet_tdt", "parakeet_encoder", "granite_speech5",
        "granite_speech5_encoder", "nemotron_asr_streaming", "nemotron_asr_streaming_encoder", "nemotron3_5_asr",
        "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "hubert", "wavlm", "data2vec-audio", "sew", "sew-d",
        "unispeech", "unispeech-sat", "seamless_m4t", "seamless_m4t_v2", "speecht5",
    ),
    _NO_TRANSCRIPT: (
        "csm", "dia", "bark", "higgs_audio_v2", "vibevoice", "musicgen", "musicgen_melody", "pocket_tts", "vits", "clap",
        "gradium_phonon_tts", "fastspeech2_conformer", "encodec", "mimi", "dac", "univnet", "xcodec", "clvp", "pe_audio",
    ),
}
# fmt: on
_OMNI = {"qwen2_5_omni": "Qwen2.5-Omni"}
_OMNI_THINKER = "Qwen2_5OmniThinkerForConditionalGeneration"
_AUTHORS = {"phi4mm": "Phi-4-multimodal"}
_CONVERT = "take a copy in transformers' own (model_type phi4_multimodal, with the folder speech-lora)"
_ALIGNER = "Qwen3ASRForTokenClassification"


def why_not(config: dict[str, Any]) -> str | None:
    """What the model of a `config.json` is, and why it is not taken; None: it does not speak of audio."""
    kind = str(config.get("model_type"))
    names = config.get("architectures") or []
    if _ALIGNER in names:
        return "a forced aligner: it gives a text its times and writes none; take the model that it belongs to, Qwen3-ASR"
    if "thinker_config" in config and kind == "qwen3_asr":
        return (
            "Qwen3-ASR in its authors' own layout (thinker_config), which transformers does not read: take the same model from "
            "the repository whose name ends with -hf, such as Qwen/Qwen3-ASR-0.6B-hf"
        )
    if kind in _OMNI:
        return (
            f"a whole {_OMNI[kind]} ({kind}), which also talks: prunella takes its thinker, the part that hears and writes, as transformers saves "
            f"it: {_OMNI_THINKER}.from_pretrained(FOLDER).save_pretrained(OUT), and beside it the files of the tokenizer and the processor"
        )
    if kind in _AUTHORS:
        return f"{_AUTHORS[kind]} in its authors' own layout ({kind}), which transformers does not read: {_CONVERT}"
    heard = next(_audio_keys(config, ""), None)
    for reason, kinds in REASONS.items():
        # A larger Gemma 4 has no audio and no such tables.
        if kind in kinds and (heard is not None or reason != _PACKED):
            return f"a speech model of the kind '{kind}', which {reason}"
    if heard is None:
        return None
    from prunella.speech_llm.families import FAMILIES, family_named

    here = ", ".join(family.model_type for family in FAMILIES.values() if family.layout == "stock")
    if (known := family_named(kind)) is not None:
        said = ", ".join(map(str, names)) or "none"
        return f"a speech model of the kind '{kind}' whose config.json names the class {said}: prunella takes {known.architecture}"
    return (
        f"a speech LLM of the kind '{kind}' (its config.json has {heard}), which prunella does not know: there are Ultravox "
        f"from Hugging Face, prunella's own checkpoints, and {here}; as a text LLM it would go deaf"
    )


def _audio_keys(body: dict[str, Any], path: str) -> Iterator[str]:
    """Where a configuration speaks of audio: names of keys, and kinds of its parts."""
    for key, value in body.items():
        if value in (None, False, "", [], {}):
            continue
        place = f"{path}{key}"
        if _is_of_audio(str(key)) or (key == "model_type" and _is_of_audio(str(value))):
            yield place
        elif isinstance(value, dict):
            yield from _audio_keys(value, f"{place}.")


def _is_of_audio(name: str) -> bool:
    words = re.split(r"[^a-z0-9]+", name.lower())
    return any(word.startswith(_PREFIXES) or word in _WORDS for word in words)
