"""What a Qwen3-ASR with fewer layers takes, reckoned from its shapes before anything is downloaded.

    python examples/qwen3_asr/sizes.py
    python examples/qwen3_asr/sizes.py --config FOLDER/config.json --layers 28 24 --hours 500 --gpu H100

Bytes of the bundle by recipe, memory on the device, and the hours that healing takes on one GPU in bf16. Every formula is
printed with its result; `tests/test_edge_examples.py` holds the bytes against a bundle that is exported there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Qwen3-ASR-0.6B. The decoder's are those of Qwen3-0.6B, the encoder's those that a public port documents
# (github.com/ivan-digital/qwen3-asr-swift, docs/asr-model.md); the defaults of the class (`transformers.Qwen3ASRConfig()`) are
# the 1.7B model's. `--config` reads the file of the checkpoint itself, which was not at hand here.
CONFIG: dict[str, Any] = {
    "text_config": {
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "head_dim": 128,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 3072,
        "vocab_size": 151_936,
    },
    "audio_config": {
        "encoder_layers": 18,
        "d_model": 896,
        "encoder_ffn_dim": 3584,
        "downsample_hidden_size": 480,
        "num_mel_bins": 128,
    },
}
# Bytes a weight: its bits, and the float16 scale of a block.
FLOAT, HALF, INT8_ROWS, INT8_BLOCKS, INT8_128 = 4.0, 2.0, 1.0, 1 + 2 / 64, 1 + 2 / 128
INT4_32, INT4_16, NONE = 0.5 + 2 / 32, 0.5 + 2 / 16, 0.0
# By recipe: attention, gate and up, down, head; encoder layers; token embeddings, which a quantized head holds too; projector; convolutions.
RECIPES = {
    "fp32": (FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT),
    "int8": (INT8_BLOCKS, INT8_BLOCKS, INT8_BLOCKS, INT8_BLOCKS, INT8_ROWS, NONE, INT8_128, HALF),
    "int4-mixed": (INT8_BLOCKS, INT4_16, INT8_BLOCKS, INT8_BLOCKS, INT8_ROWS, NONE, INT8_128, HALF),
    "int4": (INT4_32, INT4_32, INT4_32, INT4_32, INT8_ROWS, NONE, INT4_32, HALF),
}
# llama.cpp's bits a weight where nothing falls back (`quantize/gguf_recipes.py`); the embeddings are the head there.
GGUF_BITS = {"Q8_0": 8.5, "Q4_K_M": 4.89, "Q4_0": 4.66}
GRAPH_BYTES = 14_000  # a layer of either graph without its weights
CONTEXT, RUNTIME_BYTES = 2_048, 150e6
AUDIO_TOKENS, TEXT_TOKENS = 13, 4  # a second of speech
PROMPT_TOKENS = 15
CLIP_SECONDS = 10
PEAK = {
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}  # dense bf16 FLOPs a second, data sheets
MFU = 0.3  # of that peak: an assumption, nothing was measured on a GPU here


@dataclass(frozen=True)
class Shapes:
    """Numbers of weights by what a recipe stores alike."""

    layers: int
    attention: int  # of all layers, as the next three
    gate_up: int
    down: int
    norms: int
    table: int  # vocabulary x hidden: the head, and the embeddings again
    encoder_layers: int
    encoder_matrices: int
    encoder_rows: int  # outputs of those matrices
    convolutions: int
    projector: int  # its matrices
    encoder_rest: int  # biases, norms: float in every recipe
    head_dim: int
    cache_width: int  # keys and values of a position in a layer

    @property
    def decoder(self) -> int:
        """Weights that a token is multiplied with."""
        return self.attention + self.gate_up + self.down + self.table

    @property
    def encoder(self) -> int:
        """Weights of the audio half."""
        return self.encoder_matrices + self.convolutions + self.projector + self.encoder_rest


def shapes(config: dict[str, Any], layers: int | None = None) -> Shapes:
    """Of a Qwen3-ASR `config.json`, with so many decoder layers."""
    text, audio = config["text_config"], config["audio_config"]
    kept = layers or text["num_hidden_layers"]
    hidden, wide = text["hidden_size"], text["intermediate_size"]
    queries, keys = (
        text["num_attention_heads"] * text["head_dim"],
        text["num_key_value_heads"] * text["head_dim"],
    )
    width, ffn, count = audio["d_model"], audio["encoder_ffn_dim"], audio["encoder_layers"]
    channels, bins = audio["downsample_hidden_size"], audio["num_mel_bins"]
    for _ in range(3):
        bins = (bins + 1) // 2
    convolutions = 9 * channels + 2 * 9 * channels**2 + channels * bins * width
    biases = 3 * channels + width + hidden  # of convolutions and projector
    return Shapes(
        layers=kept,
        attention=kept * hidden * (2 * queries + 2 * keys),
        gate_up=kept * 2 * hidden * wide,
        down=kept * wide * hidden,
        norms=kept * (2 * hidden + 2 * text["head_dim"]) + hidden,
        table=text["vocab_size"] * hidden,
        encoder_layers=count,
        encoder_matrices=count * (4 * width**2 + 2 * width * ffn),
        encoder_rows=count * (5 * width + ffn),
        convolutions=convolutions,
        projector=width**2 + width * hidden,
        encoder_rest=count * (9 * width + ffn) + 15 * width + biases,
        head_dim=text["head_dim"],
        cache_width=2 * keys,
    )


def bundle_bytes(of: Shapes, recipe: str) -> float:
    """Of the three ONNX graphs; the tokenizer is beside them."""
    attention, gate_up, down, head, encoder, embeddings, projector, convolutions = RECIPES[recipe]
    rows = 2 * of.encoder_rows * (encoder == INT8_ROWS)  # their scales
    matrices = of.attention * attention + of.gate_up * gate_up + of.down * down + of.table * head
    return (
        matrices
        + 4 * (of.norms + CONTEXT * of.head_dim)
        + of.encoder_matrices * encoder
        + of.projector * projector
        + of.convolutions * convolutions
        + 4 * of.encoder_rest
        + of.table * embeddings
        + rows
        + GRAPH_BYTES * (of.layers + of.encoder_layers)
    )


def gguf_bytes(of: Shapes, recipe: str) -> float:
    """Of llama.cpp's decoder and our encoder in float32, as the Jetson's target stores it."""
    return of.decoder * GGUF_BITS[recipe] / 8 + 4 * of.norms + 4 * of.encoder


def memory_bytes(of: Shapes, bundle: float) -> float:
    """Of the process on the device, as `prunella targets check` reckons it: weights, a full cache in float32, the runtime."""
    return bundle + 4 * of.layers * of.cache_width * CONTEXT + RUNTIME_BYTES


def healing_flops(full: Shapes, kept: Shapes, hours: float, *, lora: bool) -> float:
    """Of one pass over so many hours of speech, with the full model as teacher."""
    tokens = hours * 3_600 * (AUDIO_TOKENS + TEXT_TOKENS + PROMPT_TOKENS / CLIP_SECONDS)
    rows = hours * 3_600 * AUDIO_TOKENS
    return tokens * ((4 if lora else 6) * kept.decoder + 2 * full.decoder) + 2 * rows * full.encoder


FORMULAS = f"""bytes    = (attention + gate, up + down + head) x bytes a weight + encoder matrices x 1 (int8) or 4 + embeddings x 1 or 4
           + 4 x (convolutions, projector, biases, norms, rotary tables, scales of rows) + {GRAPH_BYTES} x layers (the graphs)
           bytes a weight: fp32 4; int8 1 + 4/64; int4 0.5 + 4/32; int4-mixed 0.5 + 4/16 (gate, up) and 1 + 4/64
           GGUF: decoder x bits / 8 (llama.cpp's nominal bits), and the encoder in float32
memory   = bytes + 2 x layers x key heads x head width x {CONTEXT} positions x 4 + {RUNTIME_BYTES / 1e6:.0f} MB
healing  = tokens x (6 x weights kept (LoRA: 4) + 2 x weights of the teacher) + 2 x encoder rows x encoder weights
           tokens a second of speech: {AUDIO_TOKENS} of audio, {TEXT_TOKENS} of text, {PROMPT_TOKENS} of prompt every {CLIP_SECONDS} s
           hours = FLOPs / (the GPU's bf16 peak x MFU {MFU:g}, which is assumed, not measured)"""


def report(config: dict[str, Any], layers: list[int], hours: float, gpu: str) -> str:
    """The formulas and a line for every number of layers."""
    full = shapes(config)
    lines = [FORMULAS, ""]
    names = [*RECIPES, *GGUF_BITS]
    lines.append(
        f"{'layers':>6}  {'weights':>8}  "
        + "  ".join(f"{name:>10}" for name in names)
        + "   MB of the bundle"
    )
    rows = [shapes(config, count) for count in layers]
    sizes = {
        (of.layers, name): bundle_bytes(of, name) if name in RECIPES else gguf_bytes(of, name)
        for of in rows
        for name in names
    }
    for of in rows:
        weights = (of.decoder + of.encoder) / 1e6
        lines.append(
            f"{of.layers:6}  {weights:6.0f} M  "
            + "  ".join(f"{sizes[of.layers, name] / 1e6:10.0f}" for name in names)
        )
    lines.append(f"{'layers':>6}  {'':8}  " + "  ".join(f"{name:>10}" for name in names) + "   MB of memory")
    for of in rows:
        needed = (memory_bytes(of, sizes[of.layers, name]) / 1e6 for name in names)
        lines.append(f"{of.layers:6}  {'':8}  " + "  ".join(f"{mb:10.0f}" for mb in needed))
    lines.append(
        f"healing on {hours:g} hours of speech, one {gpu} in bf16, {PEAK[gpu] * MFU / 1e12:.0f} TFLOP/s:"
    )
    for of in rows:
        for what, lora in (("LoRA", True), ("all weights", False)):
            flops = healing_flops(full, of, hours, lora=lora)
            spent = flops / (PEAK[gpu] * MFU) / 3_600
            lines.append(f"{of.layers:6}  {what:12} {flops:.2g} FLOPs, {spent:.2f} hours")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--config", type=Path, help="config.json of the model (default: Qwen3-ASR-0.6B's shapes)"
    )
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[28, 21, 18], help="decoder layers that are kept"
    )
    parser.add_argument("--hours", type=float, default=100, help="of speech, passed over once")
    parser.add_argument("--gpu", choices=PEAK, default="A100")
    args = parser.parse_args()
    config = CONFIG if args.config is None else json.loads(args.config.read_text(encoding="utf-8"))
    print(report(config, args.layers, args.hours, args.gpu))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
