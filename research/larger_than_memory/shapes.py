"""Write a text LLM of a known shape with random bf16 weights, shard by shard: as large as the real one, and nothing to download.

With --speech it is the decoder of a speech LLM (Ultravox's layout, a small encoder).

python research/larger_than_memory/shapes.py llama-3.1-8b out/llama
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from functools import cache
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from prunella.speech_llm import SpeechLLM, save_checkpoint
from prunella.speech_llm.checkpoint import load_decoder
from prunella.speech_llm.config import AudioEncoderConfig, Prompt, SpeechLLMConfig

# As their config.json says on the Hub.
CONFIGS: dict[str, PretrainedConfig] = {
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8_192,
        },
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152_064,
        hidden_size=3_584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=False,
    ),
    # Of the same make, and small enough to be loaded whole: 0.43 and 0.12 billion weights.
    "half-a-billion": LlamaConfig(
        vocab_size=32_000,
        hidden_size=1_024,
        intermediate_size=4_096,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
    "an-eighth-of-a-billion": LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=3_072,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
}


_SHARD_BYTES = 2_000_000_000
_DRAWN = 1 << 26


def write_shape(name: str, folder: Path) -> None:
    """The checkpoint, in shards as the Hub has them, with a tokenizer of bytes."""
    config = CONFIGS[name]
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.dtype = torch.bfloat16
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    _bytes_tokenizer().save_pretrained(folder)
    shards: list[dict[str, torch.Size]] = [{}]
    filled = 0
    for key, tensor in model.state_dict().items():
        if filled and filled + 2 * tensor.numel() > _SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor.shape
        filled += 2 * tensor.numel()
    places = {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({key: _random(key, shape) for key, shape in shard.items()}, path, {"format": "pt"})
        places |= dict.fromkeys(shard, path.name)
    total = 2 * sum(shape.numel() for shard in shards for shape in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_speech_shape(name: str, folder: Path) -> None:
    """A checkpoint of prunella's own folder around such a decoder."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        write_shape(name, Path(work) / "decoder")
        decoder, tokenizer = load_decoder(Path(work) / "decoder", stream=True)
        config = SpeechLLMConfig(
            audio_encoder=AudioEncoderConfig(128, 2, 2, 256),
            stack_factor=5,
            projector_hidden_size=256,
            text_hidden_size=decoder.config.hidden_size,
            prompt=Prompt("user: ", " say it: ", "</s>"),
        )
        save_checkpoint(SpeechLLM(config, decoder, tokenizer), folder)


def _random(name: str, shape: torch.Size) -> torch.Tensor:
    """Norms 1, biases 0, matrices of a standard deviation of 0.02, cut from one long row of numbers."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    start, count = zlib.crc32(name.encode()) % _DRAWN, shape.numel()
    return _numbers().repeat(2 + count // _DRAWN)[start : start + count].reshape(shape).clone()


@cache
def _numbers() -> torch.Tensor:
    """Enough for the largest matrix of a layer: a billion of them would take minutes to draw."""
    generator = torch.Generator().manual_seed(0)
    return torch.empty(_DRAWN).normal_(0.0, 0.02, generator=generator).to(torch.bfloat16)


def _bytes_tokenizer() -> PreTrainedTokenizerFast:
    tokens = ["<s>", "<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=CONFIGS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speech", action="store_true", help="a speech LLM with this decoder")
    given = parser.parse_args()
    (write_speech_shape if given.speech else write_shape)(given.shape, given.folder)
