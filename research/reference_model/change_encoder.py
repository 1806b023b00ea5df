"""Give the reference another Whisper encoder, and a projector that says with it what the old one says.

    python research/reference_model/change_encoder.py whisper-base/model.bin --speech train.jsonl --clips 3000 \\
        --hidden 4096 -o out/base

The file is a CTranslate2 Whisper model (what faster-whisper loads). The new projector learns the old audio embeddings of
the same clips, step by step, so that the decoder reads on as before; `train.py --start out/base` trains on from there.
"""

from __future__ import annotations

import argparse
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tqdm

from prunella.evaluation.manifest import read_manifest
from prunella.healing.clips import manifest_clips
from prunella.speech_llm.checkpoint import save_checkpoint
from prunella.speech_llm.config import AudioEncoderConfig
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.process import tune
from prunella.speech_llm.torch_engine import model_features
from prunella.speech_llm.ultravox import UltravoxProjector
from prunella.speech_llm.whisper_encoder import TrueLengthWhisperEncoder

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_HEAD = 64  # channels of an attention head in every Whisper
_MATCH_STEPS = 1_024  # audio steps of one optimiser step


def ctranslate2_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every array of a CTranslate2 model file (binary version 6), in float32."""
    tensors = {}
    with path.open("rb") as file:

        def number(form: str) -> int:
            return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])

        def name() -> str:
            return file.read(number("<H")).rstrip(b"\0").decode()

        if number("<I") != 6:
            raise ValueError(f"{path} is not a CTranslate2 model of binary version 6")
        name(), number("<I")  # which specification, and its revision
        for _ in range(number("<I")):
            key = name()
            shape = [number("<I") for _ in range(number("<B"))]
            kind = _TYPES[number("<B")]
            data = np.frombuffer(file.read(number("<I")), kind).reshape(shape)
            tensors[key] = torch.from_numpy(data.astype(np.float32))
    return tensors


def whisper_encoder(path: Path) -> tuple[TrueLengthWhisperEncoder, AudioEncoderConfig]:
    """The encoder of a CTranslate2 Whisper model."""
    tensors = {
        key.removeprefix("encoder/"): value
        for key, value in ctranslate2_tensors(path).items()
        if key.startswith("encoder/")
    }
    width, mels, _ = tensors["conv1/weight"].shape
    layers = len(
        {key.split("/")[0] for key in tensors if key.startswith("layer_") and "/" in key} - {"layer_norm"}
    )
    config = AudioEncoderConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=width // _HEAD,
        encoder_ffn_dim=len(tensors["layer_0/ffn/linear_0/bias"]),
        num_mel_bins=mels,
    )
    state = {
        f"conv{number}.{part}": tensors[f"conv{number}/{part}"]
        for number in (1, 2)
        for part in ("weight", "bias")
    }
    state["embed_positions.weight"] = tensors["position_encodings/encodings"]
    norm = {"weight": "gamma", "bias": "beta"}
    state |= {f"layer_norm.{part}": tensors[f"layer_norm/{old}"] for part, old in norm.items()}
    for layer in range(layers):
        new, old = f"layers.{layer}", f"layer_{layer}"
        for part, gamma in norm.items():
            state[f"{new}.self_attn_layer_norm.{part}"] = tensors[f"{old}/self_attention/layer_norm/{gamma}"]
            state[f"{new}.final_layer_norm.{part}"] = tensors[f"{old}/ffn/layer_norm/{gamma}"]
        for part in norm:
            # Fused; the keys' bias, which Whisper does not have, is stored as zeros.
            fused = tensors[f"{old}/self_attention/linear_0/{part}"].chunk(3)
            for letter, tensor in zip("qkv", fused, strict=True):
                if (letter, part) != ("k", "bias"):
                    state[f"{new}.self_attn.{letter}_proj.{part}"] = tensor
            state[f"{new}.self_attn.out_proj.{part}"] = tensors[f"{old}/self_attention/linear_1/{part}"]
            for number in (0, 1):
                state[f"{new}.fc{number + 1}.{part}"] = tensors[f"{old}/ffn/linear_{number}/{part}"]
    encoder = TrueLengthWhisperEncoder(config)
    encoder.load_state_dict({key: tensor.clone() for key, tensor in state.items()})
    return encoder.eval().requires_grad_(False), config


def change_encoder(
    model: SpeechLLM, encoder: TrueLengthWhisperEncoder, config: AudioEncoderConfig, hidden: int
) -> torch.nn.ModuleList:
    """Put the encoder and a fresh projector into the model, in place, without a CTC head; returns the old ones."""
    old = torch.nn.ModuleList([model.audio_encoder, model.projector])
    model.remove_ctc_head()
    model.config = replace(model.config, audio_encoder=config, projector_hidden_size=hidden)
    torch.manual_seed(0)
    model.audio_encoder, model.projector = encoder, UltravoxProjector(model.config)
    return old


@torch.no_grad()
def paired(
    model: SpeechLLM, old: torch.nn.ModuleList, clips: list, *, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacked frames of the new encoder (steps, stack, d_model) float16 and old embeddings (steps, hidden) of all clips."""
    stack = model.config.stack_factor
    frames, wanted = [], []
    for clip in tqdm.tqdm(clips, file=sys.stderr, disable=None if progress else True):
        mel = model_features(model, clip.read())[0][None]
        with torch.autocast("cpu", torch.bfloat16):
            new = model.audio_encoder(mel)[0]
            target = old[1](old[0](mel))[0]
        frames.append(new.reshape(-1, stack, new.shape[-1]).half())
        wanted.append(target.half())
    return torch.cat(frames), torch.cat(wanted)


def match(projector: UltravoxProjector, frames: torch.Tensor, wanted: torch.Tensor, steps: int) -> float:
    """Train the projector to give `wanted`; returns the share of the variance that is left on a held-out fortieth."""
    projector.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    spread = (wanted.float() - wanted.float().mean(0)).square().mean()
    held_out = max(1, len(frames) // 40)

    def error(chosen: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            got = projector(frames[chosen].flatten(1).reshape(1, -1, frames.shape[-1]).float())[0]
        return (got.float() - wanted[chosen].float()).square().mean() / spread

    for step in tqdm.trange(steps, file=sys.stderr, disable=None):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        loss = error(torch.randint(held_out, len(frames), (_MATCH_STEPS,)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
    projector.requires_grad_(False).eval()
    with torch.no_grad():
        return float(error(torch.arange(held_out)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path, metavar="MODEL.BIN")
    parser.add_argument("--model", default="reference")
    parser.add_argument("--speech", action="append", required=True, metavar="MANIFEST")
    parser.add_argument("--clips", type=int, default=3_000, help="of each manifest, drawn once")
    parser.add_argument("--hidden", type=int, default=2_048, help="of the new projector")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    model = load(args.model)
    old = change_encoder(model, *whisper_encoder(args.encoder), args.hidden)
    clips = []
    for path in args.speech:
        manifest = read_manifest(path)
        clips += manifest_clips(manifest.sample(args.clips, seed=0))
    frames, wanted = paired(model, old, clips, progress=True)
    left = match(model.projector, frames, wanted, args.steps)
    sys.stderr.write(
        f"{len(frames)} audio steps; on held-out ones {left:.1%} of the old embeddings' variance is left\n"
    )
    save_checkpoint(model, args.out)
    return 0


if __name__ == "__main__":
    tune()
    raise SystemExit(main())
