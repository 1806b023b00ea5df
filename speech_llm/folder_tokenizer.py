"""The tokenizer of a model folder: transformers' own, also where the folder has Mistral's file alone."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prunella.device_runtime.base.errors import CheckpointError

TEKKEN = "tekken.json"
_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    TEKKEN,
)  # one of which has the vocabulary


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds one, in whatever form."""
    return any((folder / name).is_file() for name in _FILES)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Of a folder; one with a backend of the library tokenizers, which a bundle takes along.

    Where mistral-common is installed, `AutoTokenizer` would read `tekken.json` with it, into something without such a backend.

    Raises:
        CheckpointError: the installed transformers cannot convert `tekken.json` by itself.
    """
    found: PreTrainedTokenizerBase
    if not (folder / TEKKEN).is_file():
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return found
    if (folder / "tokenizer.json").is_file():
        found = PreTrainedTokenizerFast.from_pretrained(folder)
        return found
    try:
        from transformers.integrations import mistral

        found = mistral.convert_tekken_tokenizer(str(folder / TEKKEN))  # type: ignore[attr-defined]
    except ImportError as error:
        raise CheckpointError(
            f"{folder} has Mistral's {TEKKEN} and no tokenizer.json, and this transformers cannot read it: "
            "pip install 'transformers>=5.15' (or mistral-common)"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / TEKKEN} is damaged ({type(error).__name__}: {error}): download or copy it again"
        ) from error
    return found
