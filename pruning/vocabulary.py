"""Which tokens of a model's vocabulary a device needs: those that given texts are spelled with, or all that its style can write."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunella.device_runtime.base.errors import ManifestError, UsageError
from prunella.device_runtime.decoding.text_style import style_text
from prunella.pruning.calibration import read_lines
from prunella.pruning.vocabulary_surgery import config_ids
from prunella.speech_llm import SpeechLLM, TextLLM
from prunella.speech_llm.tokenizer_surgery import TokenizerParts

_AT_ONCE = 1_000  # lines
_PARTIAL_START, _PARTIAL_END = re.compile(rb"^[\x80-\xbf]+"), re.compile(rb"[\xc2-\xf4][\x80-\xbf]{0,2}$")


@dataclass(frozen=True)
class VocabularyChoice:
    """Tokens to keep.

    Attributes:
        kept: ids, in order.
        before: number of tokens that there are.
        floor: how many of the kept ones cannot go: special tokens, the prompt's, single bytes or characters, with their parts.
        used: how many of all the texts use, in themselves or as parts.
    """

    kept: tuple[int, ...]
    before: int
    floor: int
    used: int


def read_texts(paths: Iterable[str | Path]) -> list[str]:
    """Lines of text files, and transcripts of speech manifests (`.jsonl`), whose audio need not be there.

    Raises:
        UsageError: a text that is missing or not UTF-8.
        ManifestError: a line of a manifest that is no object with a `text`.
    """
    texts: list[str] = []
    for path in paths:
        lines = read_lines(path)
        if Path(path).suffix != ".jsonl":
            texts += lines
            continue
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ManifestError(
                    f'{path}:{number}: not a JSON object with a "text" ({error}): give a speech manifest, or plain text'
                ) from error
            texts.append(str(text))
    return texts


def choose_tokens(
    model: SpeechLLM | TextLLM,
    texts: Sequence[str],
    *,
    keep_tokens: int | None = None,
    lossless: bool = False,
) -> VocabularyChoice:
    """What is needed of a vocabulary.

    Args:
        model: its tokenizer, prompt and text style.
        texts: are spelled as before, unless `keep_tokens` leaves out some of their tokens.
        keep_tokens: at most so many, those that the texts use most; None: all that they use.
        lossless: also all that the model's style can write.

    Raises:
        UsageError: no text, or fewer tokens than cannot go.
        CheckpointError: the tokenizer is of a kind that cannot be cut.
    """
    if not lossless and not any(text.strip() for text in texts):
        raise UsageError(
            "there is no text to choose the tokens by: give files of what will be said, or --lossless"
        )
    parts = TokenizerParts(model.tokenizer)
    own = parts.names.keys() | parts.added.keys()
    floor = _closed(parts, (parts.indispensable() | _own_tokens(model)) & own)
    counts = count_tokens(model, texts)
    used = _closed(parts, counts)
    if lossless:
        kept = floor | used | _closed(parts, _writable(parts, model))
    elif keep_tokens is None:
        kept = floor | used
    else:
        kept = _most_used(parts, floor, counts, keep_tokens)
    return VocabularyChoice(tuple(sorted(kept)), len(own), len(floor), len(used - floor))


def count_tokens(model: SpeechLLM | TextLLM, texts: Sequence[str]) -> Counter[int]:
    """How often each token stands in the texts, as the model is to write them."""
    backend = model.tokenizer.backend_tokenizer
    said = [model.answer(text) for text in texts] if isinstance(model, SpeechLLM) else texts
    counts: Counter[int] = Counter()
    for start in range(0, len(said), _AT_ONCE):
        for encoding in backend.encode_batch(list(said[start : start + _AT_ONCE]), add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def _own_tokens(model: SpeechLLM | TextLLM) -> set[int]:
    """What the model cannot do without, whatever is said: the prompt, tokens that its configuration names, silence, the frame of an answer."""
    if isinstance(model, TextLLM):
        return config_ids(model)
    silence, frame = model.tokenizer([model.answer(""), model.answer("a")], add_special_tokens=False)[
        "input_ids"
    ]
    return config_ids(model) | {*silence, *frame}


def _most_used(parts: TokenizerParts, floor: set[int], counts: Counter[int], most: int) -> set[int]:
    if most < len(floor):
        raise UsageError(
            f"--keep-tokens {most} is too few: special tokens, the prompt and single bytes or characters are {len(floor)} "
            "already; give that many or more"
        )
    kept = set(floor)
    # By use, and among equals by number, which is by how common a token was where the tokenizer was made.
    for token, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        needed = parts.parts(token) - kept
        if len(kept) + len(needed) <= most:
            kept |= needed
    return kept


def _writable(parts: TokenizerParts, model: SpeechLLM | TextLLM) -> set[int]:
    """Tokens that texts in the model's style can be spelled with."""
    style = model.config.text_style if isinstance(model, SpeechLLM) else "as-is"
    reachable = (parts.names.keys() | parts.added.keys()) - parts.unreachable()
    if style == "as-is":  # changes white space alone, and white space a model may write nevertheless
        return set(reachable)
    return {token for token in reachable if _in_style(parts.text(token), style)}


def _in_style(piece: bytes, style: str) -> bool:
    """Whether a piece may stand in a text of this style; a character that is not whole may be any."""
    whole = _PARTIAL_END.sub(b"", _PARTIAL_START.sub(b"", piece)) if _is_partial(piece) else piece
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return False  # no part of any text
    # A word before and behind, so that a space at the piece's edge is one between words.
    return style_text(f"a{text}a", style) == f"a{text}a"


def _is_partial(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return True
    return False


def _closed(parts: TokenizerParts, tokens: Iterable[int]) -> set[int]:
    """With the parts that their merges need."""
    found: set[int] = set()
    for token in tokens:
        if token not in found:
            found |= parts.parts(token)
    return found
