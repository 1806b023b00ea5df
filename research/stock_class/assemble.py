"""Assemble a small real speech LLM of a stock class: Qwen2-Audio around the reference's Whisper encoder and SmolLM2.

    python research/stock_class/assemble.py --speech train.jsonl -o out/stock

The audio encoder (Whisper tiny.en, fine-tuned) and the decoder (SmolLM2-135M-Instruct, which has learned to transcribe) are
those of the embedded reference. The projector is one new matrix: with --speech it begins as the ridge regression of the
reference's audio embeddings on the pooled frames of the same instant, without as transformers initializes it. `prunella
heal` trains on from there. The folder is what transformers saves: model, tokenizer, processor, chat template.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import torch
import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from prunella.device_runtime.base.arrays import Float32
from prunella.evaluation.manifest import read_manifest
from prunella.speech_llm.families import FAMILIES
from prunella.speech_llm.load import load
from prunella.speech_llm.model import SpeechLLM
from prunella.speech_llm.process import tune
from prunella.speech_llm.stock import take_apart
from prunella.speech_llm.stock_config import StockFacts
from prunella.speech_llm.torch_engine import model_features

AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
VOCABULARY_MULTIPLE = 64  # rows of the embedding table, as models on the Hub are padded
# The instruction stands before the audio, as the reference has it; Qwen2-Audio's marks stand around it.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'audio' %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def stock_tokenizer(source: SpeechLLM) -> PreTrainedTokenizerBase:
    """The source's tokenizer with the audio tokens and the chat template."""
    tokenizer = copy.deepcopy(source.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(AUDIO_TOKENS)})
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(source.prompt.eos_ids[0])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def assemble(source: SpeechLLM, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Encoder and decoder of `source`, which is of prunella's own folder, in Qwen2-Audio's class, with a new projector."""
    heard = source.own_config.audio_encoder
    decoder = copy.deepcopy(source.decoder)
    # A new row is the mean of all: its logit is the mean logit, which never wins.
    decoder.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=VOCABULARY_MULTIPLE)
    audio = {
        "model_type": "qwen2_audio_encoder",
        "d_model": heard.d_model,
        "encoder_layers": heard.encoder_layers,
        "encoder_attention_heads": heard.encoder_attention_heads,
        "encoder_ffn_dim": heard.encoder_ffn_dim,
        "num_mel_bins": heard.num_mel_bins,
        "max_source_positions": heard.max_source_positions,
    }
    text = {key: value for key, value in decoder.config.to_dict().items() if not key.endswith("name_or_path")}
    # Qwen2-Audio's class never ties the head to the embeddings, whatever a configuration says.
    config = Qwen2AudioConfig(
        audio_config=audio,
        text_config=text | {"tie_word_embeddings": False},
        audio_token_index=tokenizer.convert_tokens_to_ids(AUDIO_TOKENS[0]),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    stock = Qwen2AudioForConditionalGeneration(config)
    stock.model.audio_tower.load_state_dict(source.audio_encoder.state_dict())
    stock.model.language_model.load_state_dict(decoder.model.state_dict())
    stock.lm_head.load_state_dict(decoder.lm_head.state_dict())
    ends = list(source.prompt.eos_ids)
    stock.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id or ends[0]
    )
    return stock.eval()


def save(stock: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the folder: model, processor, and what prunella notes beside it."""
    stock.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=stock.config.audio_config.num_mel_bins)
    Qwen2AudioProcessor(extractor, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    StockFacts(
        stock.config.model_type,
        text_style="lower",
        provenance={"base_model": folder.name, "assembled_from": "reference", "class": type(stock).__name__},
    ).save(folder)


@torch.inference_mode()
def paired(source: SpeechLLM, model: SpeechLLM, samples: Float32) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, d_model) pooled frames of a clip, and (rows, hidden) what the source hears at the middle of each."""
    theirs, _ = model_features(source, samples)
    wanted = source.embed_audio(theirs[None])[0]
    heard, valid = model_features(model, samples)
    rows = model.config.encoder_frames(valid)
    frames = model.audio_encoder(heard[None], torch.tensor([valid]))[0, :rows]
    ratio = model.config.audio.samples_per_token / source.config.audio.samples_per_token
    places = ((torch.arange(rows) + 0.5) * ratio).long().clamp(max=len(wanted) - 1)
    return frames, wanted[places]


class RidgeSums:
    """Sums of a regression with an intercept, over any number of clips, in float64."""

    def __init__(self, width: int, hidden: int) -> None:
        self.inner = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self.outer = torch.zeros(width + 1, hidden, dtype=torch.float64)

    def add(self, frames: torch.Tensor, wanted: torch.Tensor) -> None:
        """Take in the rows of a clip."""
        rows = torch.cat([frames, torch.ones(len(frames), 1)], dim=1).double()
        self.inner += rows.T @ rows
        self.outer += rows.T @ wanted.double()

    def solve(self, strength: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden, width) matrix and (hidden,) bias; `strength` times the mean square of a column is added."""
        scale = self.inner.diagonal()[:-1].mean() * strength
        ridge = torch.eye(len(self.inner), dtype=torch.float64) * scale
        ridge[-1, -1] = 0
        solved = torch.linalg.solve(self.inner + ridge, self.outer).float()
        return solved[:-1].T.contiguous(), solved[-1]


def fit_projector(stock: PreTrainedModel, sums: RidgeSums) -> None:
    """Put the regression's solution into the projector."""
    weight, bias = sums.solve()
    stock.model.multi_modal_projector.linear.load_state_dict({"weight": weight, "bias": bias})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speech", type=Path, metavar="MANIFEST", help="that the projector is fitted on")
    parser.add_argument("--clips", type=int, default=600, help="of it, drawn once (default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    source = load("reference")
    tokenizer = stock_tokenizer(source)
    stock = assemble(source, tokenizer)
    save(stock, tokenizer, args.out)
    if args.speech is not None:
        family = FAMILIES[stock.config.architectures[0]]
        model = take_apart(stock, tokenizer, family, args.out)
        sums = RidgeSums(model.config.encoder_width, source.decoder.config.hidden_size)
        for clip in tqdm.tqdm(read_manifest(args.speech).sample(args.clips, seed=0).utterances, disable=None):
            sums.add(*paired(source, model, clip.load()))
        fit_projector(stock, sums)
        save(stock, tokenizer, args.out)
    sys.stderr.write(f"{args.out}: {sum(tensor.numel() for tensor in stock.parameters()):,} parameters\n")
    return 0


if __name__ == "__main__":
    tune()
    raise SystemExit(main())
