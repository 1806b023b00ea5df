"""The prompt of a family as its own chat template renders it, in segments with their token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import Language, PromptSegment, PromptSpec

AUDIO = {"type": "audio", "audio": "", "audio_url": ""}  # families ask for one key or another


def says(text: str) -> dict[str, str]:
    """A piece of text in a message."""
    return {"type": "text", "text": text}


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    messages: list[dict[str, Any]],
    usual: str,
    **options: Any,
) -> str:
    """The chat template's text of these messages; `usual` where the folder brings no template."""
    template = tokenizer.chat_template
    file = folder / "chat_template.jinja"
    if template is None and file.is_file():
        template = file.read_text(encoding="utf-8")
    if template is None:
        return usual
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    except Exception as error:  # jinja2 has many, and a template raises its own
        raise CheckpointError(f"the chat template of {folder} cannot be rendered: {error}") from error
    return str(text)


def split_at_audio(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    audio_token: int,
    eos_ids: tuple[int, ...],
    *,
    behind: str = "",
    **facts: Any,
) -> PromptSpec:
    """The prompt around the only audio token of a text.

    Args:
        text: of the whole prompt.
        tokenizer: of the model. A token that it puts before every text belongs to the prompt, as in the stock processor.
        audio_token: placeholder of one audio embedding.
        eos_ids: tokens that end an answer.
        behind: text behind the language slot.
        facts: further fields of `PromptSpec`; `languages` puts a slot behind the text.

    Raises:
        CheckpointError: there is not exactly one audio in it.
    """
    placeholder = str(tokenizer.convert_ids_to_tokens(audio_token))
    before, found, after = text.partition(placeholder)
    if not found or placeholder in after:
        raise CheckpointError(
            f"the prompt {text!r} has not exactly one {placeholder}: the model's chat template drops or repeats the audio"
        )
    starts = tokenizer.bos_token is not None and before.startswith(tokenizer.bos_token)
    ids = tokenizer(f"{before}{placeholder}{after}", add_special_tokens=not starts)["input_ids"]
    at = ids.index(audio_token)
    segments = [
        PromptSegment("text", before, tuple(ids[:at])),
        PromptSegment("audio"),
        PromptSegment("text", after, tuple(ids[at + 1 :])),
    ]
    if facts.get("languages"):
        segments.append(PromptSegment("language"))
    if behind:
        segments.append(PromptSegment("text", behind, token_ids(tokenizer, behind)))
    return PromptSpec(tuple(segments), eos_ids, **facts)


def language(tokenizer: PreTrainedTokenizerBase, code: str, name: str, text: str) -> Language:
    """What stands in the language slot for one language."""
    return Language(code, name, text, token_ids(tokenizer, text))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokens of a text, and nothing else."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
