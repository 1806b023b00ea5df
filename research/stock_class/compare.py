"""Compare what transformers' own `generate` says of real speech with what prunella's runtime says, token for token.

    python research/stock_class/compare.py out/stock/full out/stock/full.bundle --speech dev.jsonl --limit 40

MODEL is a folder of Qwen2-Audio's class; it is read, and its inputs are made, by transformers alone (`AutoProcessor`,
`generate`). SYSTEM is a bundle, or a model folder for the PyTorch engine. Where the texts part, and wherever the runtime
would say another token behind stock's own, the gap between the two tokens is shown in the logits of both: a near tie is
one that is smaller than the difference of the two computations. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tqdm
from transformers import AutoProcessor, PreTrainedModel, Qwen2AudioForConditionalGeneration

from prunella.device_runtime.base.arrays import Float32
from prunella.device_runtime.transcriber import Transcriber
from prunella.evaluation.manifest import Utterance, read_manifest
from prunella.evaluation.systems import open_system
from prunella.speech_llm.families.qwen2_audio import INSTRUCTION
from prunella.speech_llm.process import tune

RATE = 16_000
LONGEST = 29.0  # seconds: stock hears 30


@dataclass(frozen=True)
class Answer:
    """Tokens of a transcript, the end token included where it was reached, and (tokens, vocab) logits that chose them."""

    tokens: list[int]
    logits: Float32


@dataclass(frozen=True)
class Difference:
    """A place where two computations prefer different tokens behind the same ones.

    The gaps are in logits and not negative: how far each computation prefers its own token to the other's.
    """

    clip: str
    place: int
    stock: str
    ours: str
    stock_gap: float
    our_gap: float


@dataclass(frozen=True)
class Compared:
    """One clip: whether the texts are the same tokens, how many there are, and how far the logits are apart."""

    same: bool
    tokens: int
    logit_error: float
    differences: list[Difference]


class StockModel:
    """A folder of Qwen2-Audio's class in transformers' hands."""

    def __init__(self, folder: Path) -> None:
        self.model: PreTrainedModel = Qwen2AudioForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def answer(self, samples: Float32, most: int) -> Answer:
        """What `generate` says, greedily, in at most `most` tokens."""
        content = [{"type": "audio", "audio": samples}, {"type": "text", "text": INSTRUCTION}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(text=prompt, audio=[samples], sampling_rate=RATE, return_tensors="pt")
        made = self.model.generate(
            **inputs, max_new_tokens=most, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return Answer(tokens, torch.cat(made.logits).numpy())


def taught_logits(transcriber: Transcriber, samples: Float32, tokens: Sequence[int]) -> Float32:
    """(tokens, vocab) logits of the runtime's engine before each of these tokens, given those before it."""
    engine = transcriber.engine
    first = engine.start(engine.encode(samples)).copy()[None]
    return np.concatenate([first, engine.extend(tokens[:-1])]) if len(tokens) > 1 else first


def compare(stock: Answer, ours: Sequence[int], taught: Float32, ends: Sequence[int]) -> Compared:
    """Compare a clip's two transcripts.

    Args:
        stock: of transformers.
        ours: the runtime's tokens, without end tokens.
        taught: what the runtime's engine thinks behind stock's tokens, as `taught_logits`.
        ends: end tokens.
    """
    said = [token for token in stock.tokens if token not in ends]
    differences = []
    for place, token in enumerate(stock.tokens):
        other = int(taught[place].argmax())
        if other != token:
            theirs, own = stock.logits[place], taught[place]
            gaps = (float(theirs[token] - theirs[other]), float(own[other] - own[token]))
            differences.append(Difference("", place, str(token), str(other), *gaps))
    error = float(np.abs(taught - stock.logits).max())
    return Compared(said == list(ours), len(stock.tokens), error, differences)


def compare_clip(stock: StockModel, transcriber: Transcriber, clip: Utterance) -> Compared:
    """Transcribe a clip with both."""
    samples = clip.load()
    most = transcriber.options.token_cap(transcriber.audio.heard_seconds(len(samples)))
    heard = stock.answer(samples, most)
    steps = transcriber.stream(samples)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            (segment,) = done.value.segments
            break
    taught = taught_logits(transcriber, samples, heard.tokens)
    found = compare(heard, segment.tokens, taught, transcriber.prompt.eos_ids)
    names = stock.processor.tokenizer.convert_ids_to_tokens
    named = [
        Difference(
            clip.id, one.place, names(int(one.stock)), names(int(one.ours)), one.stock_gap, one.our_gap
        )
        for one in found.differences
    ]
    return Compared(found.same, found.tokens, found.logit_error, named)


def summary(clips: Sequence[Compared]) -> dict[str, Any]:
    """Counts over clips, and every difference."""
    differences = [asdict(one) for clip in clips for one in clip.differences]
    return {
        "clips": len(clips),
        "same_tokens": sum(clip.same for clip in clips),
        "tokens": sum(clip.tokens for clip in clips),
        "tokens_that_differ": len(differences),
        "largest_logit_difference": max((clip.logit_error for clip in clips), default=0.0),
        "largest_gap": max((max(one["stock_gap"], one["our_gap"]) for one in differences), default=0.0),
        "differences": differences,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("system", metavar="SYSTEM")
    parser.add_argument("--speech", type=Path, action="append", required=True, metavar="MANIFEST")
    parser.add_argument("--limit", type=int, default=40, help="clips of each manifest (default: %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=LONGEST, help="of a clip (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transcriber: Any = open_system(args.system, guards=False, threads=args.threads).system
    stock = StockModel(args.model)
    chosen: list[Utterance] = []
    for path in args.speech:
        chosen += read_manifest(path).at_most(args.max_seconds).limit(args.limit).utterances
    found = [compare_clip(stock, transcriber, clip) for clip in tqdm.tqdm(chosen, disable=None)]
    result = {"model": str(args.model), "system": transcriber.engine.name, **summary(found)}
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    tune()
    raise SystemExit(main())
