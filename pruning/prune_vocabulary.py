"""Cut a model's vocabulary to the tokens that its texts need: a table, a head and a search of fewer rows.

prunella prune reference-pruned --keep-vocabulary transcripts.jsonl commands.txt --keep-tokens 16000 -o out/small
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from prunella.pruning.vocabulary import choose_tokens
from prunella.pruning.vocabulary_surgery import cut_vocabulary
from prunella.speech_llm import SpeechLLM, TextLLM

Model = TypeVar("Model", SpeechLLM, TextLLM)


@dataclass(frozen=True)
class VocabularyReport:
    """What was cut.

    Attributes:
        kept_by: "texts", "count" (the most used of the texts) or "lossless".
        tokens_before: of the vocabulary; rows of the table that no token had do not count.
        tokens_after: likewise.
        floor: tokens that could not have gone.
        max_logit_difference: between the model in memory and the one read back; None: not compared.
    """

    kept_by: str
    tokens_before: int
    tokens_after: int
    floor: int
    max_logit_difference: float | None = None


def prune_vocabulary(
    model: Model, texts: Sequence[str], *, keep_tokens: int | None = None, lossless: bool = False
) -> tuple[Model, VocabularyReport]:
    """The model with the tokens that `choose_tokens` chooses; the one given is left as it was.

    Args:
        model: a speech LLM or a text LLM.
        texts: that it is to spell as before.
        keep_tokens: at most so many tokens.
        lossless: keep all that its style can write.

    Returns:
        The smaller model, a speech LLM with an entry added to `provenance["vocabulary"]`, and what was done.

    Raises:
        UsageError: no text, or fewer tokens than cannot go.
        CheckpointError: a tokenizer or a decoder of a kind that cannot be cut.
    """
    choice = choose_tokens(model, texts, keep_tokens=keep_tokens, lossless=lossless)
    cut = cut_vocabulary(model, choice.kept)
    report = VocabularyReport(
        kept_by="lossless" if lossless else "texts" if keep_tokens is None else "count",
        tokens_before=choice.before,
        tokens_after=len(cut.tokenizer),
        floor=choice.floor,
    )
    if isinstance(model, TextLLM):
        return cut, report
    known: dict[str, Any] = model.config.provenance
    name = known.get("name") or known.get("base_model") or model.config.family
    cut.config = model.config.with_provenance(
        vocabulary=[*known.get("vocabulary", []), asdict(report)],
        name=f"{name}-vocabulary-{report.tokens_after}",
    )
    return cut, report
