"""What a smaller vocabulary costs: words in more pieces, and on speech the loss, the word errors and the tokens of a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import UsageError
from prunella.evaluation.evaluate import evaluate
from prunella.evaluation.manifest import SpeechManifest
from prunella.evaluation.report import EvaluationReport, compare_reports
from prunella.pruning.calibration import HELD_OUT_SHARE, MAX_HELD_OUT
from prunella.speech_llm import SpeechLLM, TextLLM
from prunella.speech_llm.torch_engine import model_transcriber


@dataclass(frozen=True)
class Spelling:
    """Of texts, by the vocabulary before the cut and behind it.

    Attributes:
        words: running words, each with the space before it.
        in_more_pieces: share of them that take more tokens than before.
        distinct: different words; one that begins a text is another.
        distinct_in_more_pieces: share of these.
        tokens_before: of the whole texts.
        tokens_after: likewise.
    """

    words: int
    in_more_pieces: float
    distinct: int
    distinct_in_more_pieces: float
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True)
class SpeechCost:
    """On transcribed speech that nothing was chosen by.

    Attributes:
        clips: that were transcribed by both models and scored, see `held_out`.
        spelling: of what is said in the whole manifest.
        loss_before: cross-entropy in nats a word, which does not depend on how many tokens a word takes.
        loss_after: likewise.
        wer_before: share of the words that are wrong.
        wer_after: likewise.
        wer_difference: of the two (after minus before), and its 95 % interval, by paired bootstrap over clips.
        tokens_per_second_before: of what is said, for a second of audio.
        tokens_per_second_after: likewise.
    """

    clips: int
    spelling: Spelling
    loss_before: float
    loss_after: float
    wer_before: float
    wer_after: float
    wer_difference: tuple[float, float, float]
    tokens_per_second_before: float
    tokens_per_second_after: float


def said_texts(model: SpeechLLM | TextLLM, texts: Sequence[str]) -> list[str]:
    """As the model writes them."""
    return [model.said(text) for text in texts] if isinstance(model, SpeechLLM) else list(texts)


def spelling(
    before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Spelling:
    """Compare two tokenizers on texts."""
    # The first word of a text has no space before it.
    words = Counter(
        word for text in texts for word in " ".join(text.split()).replace(" ", "\n ").splitlines()
    )
    pieces = [_counts(one, list(words)) for one in (before, after)]
    more = {word for word, old, new in zip(words, *pieces, strict=True) if new > old}
    running = sum(words.values())
    return Spelling(
        words=running,
        in_more_pieces=sum(words[word] for word in more) / max(running, 1),
        distinct=len(words),
        distinct_in_more_pieces=len(more) / max(len(words), 1),
        tokens_before=sum(_counts(before, texts)),
        tokens_after=sum(_counts(after, texts)),
    )


def held_out(manifest: SpeechManifest) -> SpeechManifest:
    """The clips that `speech_calibration` holds out too: every fifth, at most 40."""
    chosen = manifest.utterances[:: round(1 / HELD_OUT_SHARE)][:MAX_HELD_OUT]
    return replace(manifest, utterances=chosen)


def speech_cost(before: SpeechLLM, after: SpeechLLM, manifest: SpeechManifest) -> SpeechCost:
    """Spell a manifest's texts by both models' vocabularies, transcribe and score the clips that `held_out` chooses.

    Raises:
        UsageError: no clip of the manifest can be used.
    """
    if not manifest.utterances:
        raise UsageError(f"{manifest.path} has no clip to measure the smaller vocabulary on")
    reports = [
        evaluate(model_transcriber(model), held_out(manifest), name=name, progress=True)
        for name, model in (("before", before), ("after", after))
    ]
    difference = compare_reports(*reports).overall
    texts = said_texts(before, [utterance.text for utterance in manifest.utterances])
    spelled = spelling(before.tokenizer, after.tokenizer, texts)
    seconds = manifest.seconds
    return SpeechCost(
        clips=difference.clips,
        spelling=spelled,
        loss_before=_nats_a_word(reports[0]),
        loss_after=_nats_a_word(reports[1]),
        wer_before=difference.rate_a,
        wer_after=difference.rate_b,
        wer_difference=(difference.difference, difference.low, difference.high),
        tokens_per_second_before=spelled.tokens_before / seconds,
        tokens_per_second_after=spelled.tokens_after / seconds,
    )


def _nats_a_word(report: EvaluationReport) -> float:
    scored = [record for record in report.records if record.nll is not None]
    words = sum(len(record.reference.split()) for record in scored)
    return sum(record.nll or 0.0 for record in scored) / max(words, 1)


def _counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    encodings = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [len(encoding.ids) for encoding in encodings]
