"""Cut a model's vocabulary to the tokens that its texts need: a table, a head and a search of fewer rows.

prunella prune reference-pruned --keep-vocabulary transcripts.jsonl commands.txt --keep-tokens 16000 -o out/small
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from prunella.device_runtime.base.errors import UsageError
from prunella.evaluation.manifest import SpeechManifest
from prunella.pruning.spelling import SpeechCost, Spelling, said_texts, speech_cost, spelling
from prunella.pruning.vocabulary import choose_tokens, read_texts
from prunella.pruning.vocabulary_surgery import cut_vocabulary
from prunella.speech_llm import SpeechLLM, TextLLM
from prunella.speech_llm.checkpoint import DECODER_NAME, is_checkpoint
from prunella.speech_llm.decoder_view import decoder_view
from prunella.speech_llm.families import find_family
from prunella.speech_llm.folder_tokenizer import has_tokenizer
from prunella.speech_llm.load import resolve

Model = TypeVar("Model", SpeechLLM, TextLLM)


@dataclass(frozen=True)
class VocabularyReport:
    """What was cut, and what it did.

    Attributes:
        kept_by: "texts", "count" (the most used of the texts) or "lossless".
        tokens_before: of the vocabulary; rows of the table that no token had do not count.
        tokens_after: likewise.
        floor: tokens that could not have gone.
        rows_before: of the token table.
        rows_after: likewise.
        spelling: of the texts that were given; None: none were.
        speech: measured on speech; None: it was not.
        max_logit_difference: between the model in memory and the one read back; None: not compared.
    """

    kept_by: str
    tokens_before: int
    tokens_after: int
    floor: int
    rows_before: int
    rows_after: int
    spelling: Spelling | None = None
    speech: SpeechCost | None = None
    max_logit_difference: float | None = None


def prune_vocabulary(
    model: Model,
    texts: Sequence[str],
    *,
    keep_tokens: int | None = None,
    lossless: bool = False,
    speech: SpeechManifest | None = None,
) -> tuple[Model, VocabularyReport]:
    """The model with the tokens that `choose_tokens` chooses; the one given is left as it was.

    Args:
        model: a speech LLM or a text LLM.
        texts: that it is to spell as before.
        keep_tokens: at most so many tokens.
        lossless: keep all that its style can write.
        speech: to measure the cost on, of a speech LLM, see `speech_cost`.

    Returns:
        The smaller model, a speech LLM with an entry added to `provenance["vocabulary"]`, and what was done.

    Raises:
        UsageError: no text, or fewer tokens than cannot go.
        CheckpointError: a tokenizer or a decoder of a kind that cannot be cut.
    """
    choice = choose_tokens(model, texts, keep_tokens=keep_tokens, lossless=lossless)
    cut = cut_vocabulary(model, choice.kept)
    said = said_texts(model, texts)
    report = VocabularyReport(
        kept_by="lossless" if lossless else "texts" if keep_tokens is None else "count",
        tokens_before=choice.before,
        tokens_after=len(choice.kept),
        floor=choice.floor,
        rows_before=decoder_view(model.decoder).vocab_size,
        rows_after=decoder_view(cut.decoder).vocab_size,
        spelling=spelling(model.tokenizer, cut.tokenizer, said) if said else None,
    )
    if isinstance(model, TextLLM) or isinstance(cut, TextLLM):
        return cut, report
    if speech is not None:
        report = replace(report, speech=speech_cost(model, cut, speech))
    known: dict[str, Any] = model.config.provenance
    name = known.get("name") or known.get("base_model") or model.config.family
    cut.config = model.config.with_provenance(
        vocabulary=[*known.get("vocabulary", []), asdict(report)],
        name=f"{name}-vocabulary-{report.tokens_after}",
    )
    return cut, report


def add_vocabulary_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `prunella prune` that cut tokens."""
    group = parser.add_argument_group("vocabulary")
    group.add_argument(
        "--keep-vocabulary",
        nargs="*",
        type=Path,
        metavar="TEXT",
        help="cut the tokens that these texts do not need: plain text, or the transcripts of speech manifests (.jsonl)",
    )
    amount = group.add_mutually_exclusive_group()
    amount.add_argument(
        "--keep-tokens", type=int, metavar="N", help="keep at most N tokens, those that the texts use most"
    )
    amount.add_argument(
        "--lossless", action="store_true", help="keep every token that the model's style of writing can use"
    )


def cuts_vocabulary(args: argparse.Namespace) -> bool:
    """Whether the options ask for it.

    Raises:
        UsageError: of how much to keep, but not by what; or by no text.
    """
    if args.keep_tokens is not None and args.keep_vocabulary is None:
        raise UsageError(
            "--keep-tokens keeps those that texts use most: give the texts with --keep-vocabulary TEXT..."
        )
    if args.keep_vocabulary == [] and not args.lossless:
        raise UsageError("--keep-vocabulary needs texts of what will be said, or --lossless")
    return args.keep_vocabulary is not None or bool(args.lossless)


def check_has_tokenizer(name: str | Path) -> None:
    """Refuse a folder that a vocabulary cannot be cut in, before its weights are read.

    Raises:
        UsageError: it holds no tokenizer.
    """
    folder = resolve(name)
    family = find_family(folder)
    if is_checkpoint(folder):
        folder = folder / DECODER_NAME
    elif family is not None and family.layout == "own":
        return  # whose text model is elsewhere
    if not has_tokenizer(folder):
        raise UsageError(
            f"{folder} holds no tokenizer, such as tokenizer.json, and a vocabulary is cut in both: put its files there"
        )


def prune_vocabulary_asked(
    model: Model, args: argparse.Namespace, speech: SpeechManifest | None
) -> tuple[Model, VocabularyReport]:
    """`prune_vocabulary` as the options say."""
    texts = read_texts(args.keep_vocabulary or ())
    return prune_vocabulary(model, texts, keep_tokens=args.keep_tokens, lossless=args.lossless, speech=speech)


def render_vocabulary(report: VocabularyReport) -> list[str]:
    """The report as lines for a terminal."""
    lines = [
        f"tokens    {report.tokens_before} → {report.tokens_after} ({_KEPT_BY[report.kept_by]}); {report.floor} cannot go"
    ]
    if report.spelling is not None:
        lines.append(f"texts     {_spelled(report.spelling)}")
    if (cost := report.speech) is not None:
        low, high = (100 * bound for bound in cost.wer_difference[1:])
        lines += [
            f"speech    {_spelled(cost.spelling)}; {cost.tokens_per_second_before:.2f} → "
            f"{cost.tokens_per_second_after:.2f} tokens a second",
            f"loss      {cost.loss_before:.3f} → {cost.loss_after:.3f} nats a word ({cost.clips} clips held out)",
            f"WER       {100 * cost.wer_before:.1f} → {100 * cost.wer_after:.1f} % ({low:+.1f} to {high:+.1f} points)",
        ]
    return lines


_KEPT_BY = {
    "texts": "all that the texts use",
    "count": "those that the texts use most",
    "lossless": "all that its style can write",
}


def _spelled(spelling: Spelling) -> str:
    return (
        f"{100 * spelling.in_more_pieces:.2f} % of {spelling.words} words in more pieces "
        f"({100 * spelling.distinct_in_more_pieces:.1f} % of {spelling.distinct} different ones)"
    )
