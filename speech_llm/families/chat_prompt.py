"""The prompt of a family as its own chat template renders it, in segments with their token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prunella.device_runtime.base.errors import CheckpointError
from prunella.device_runtime.bundle import Language, PromptSegment, PromptSpec

Prompt = Callable[[Any, PreTrainedTokenizerBase, Path, tuple[int, ...]], PromptSpec]  # see `Family.prompt`
VOCABULARY = "prunellavocabulary"  # stands for it while a template is rendered
PLACEHOLDER = "<<audio>>"  # in a usual prompt, for the token that stands for audio
AUDIO = {"type": "audio", "audio": "", "audio_url": ""}  # families ask for one key or another


def audio_token(config: Any) -> int:
    """Token id of the placeholder of one audio embedding, as a stock configuration has it."""
    own = getattr(config, "audio_token_id", None)
    return int(config.audio_config.audio_token_id if own is None else own)


def says(text: str) -> dict[str, str]:
    """A piece of text in a message."""
    return {"type": "text", "text": text}


def chat_prompt(
    content: list[dict[str, str]],
    usual: str,
    *,
    marks: Callable[[Any], tuple[int, int]] | None = None,
    **facts: Any,
) -> Prompt:
    """`Family.prompt` of models that are asked by one turn of a chat.

    Args:
        content: pieces of the user's turn, `AUDIO` among them.
        usual: the whole text where the folder brings no template, with `PLACEHOLDER` where the audio goes.
        marks: configuration → tokens that the processor puts before and behind the placeholder, which stands alone in the text.
        facts: further fields of `PromptSpec`.
    """

    def prompt(
        config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, eos_ids: tuple[int, ...]
    ) -> PromptSpec:
        audio = audio_token(config)
        placeholder = str(tokenizer.convert_ids_to_tokens(audio))
        plain = usual.replace(PLACEHOLDER, placeholder)
        turns = [{"role": "user", "content": content}]
        text = rendered(tokenizer, folder, turns, plain, audio, add_generation_prompt=True)
        if marks is not None:
            begin, end = (str(tokenizer.convert_ids_to_tokens(token)) for token in marks(config))
            text = text.replace(placeholder, f"{begin}{placeholder}{end}")
        return split_at_audio(text, tokenizer, audio, eos_ids, **facts)

    return prompt


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    messages: list[dict[str, Any]],
    usual: str,
    audio_token: int,
    **options: Any,
) -> str:
    """The chat template's text of these messages; `usual` where the folder brings no template that knows of audio.

    Raises:
        CheckpointError: the processor's template cannot be rendered.
    """
    template = _processor_template(folder)
    if template is not None:
        try:
            return _render(tokenizer, template, messages, options)
        except Exception as error:  # jinja2 has many, and a template raises its own
            raise CheckpointError(f"the chat template of {folder} cannot be rendered: {error}") from error
    # The tokenizer's own may be of the text LLM that the model was made of, which drops audio, or stumbles over it.
    try:
        text = (
            _render(tokenizer, tokenizer.chat_template, messages, options) if tokenizer.chat_template else ""
        )
    except Exception:  # as above
        text = ""
    return text if str(tokenizer.convert_ids_to_tokens(audio_token)) in text else usual


def _render(
    tokenizer: PreTrainedTokenizerBase, template: Any, messages: list[dict[str, Any]], options: dict[str, Any]
) -> str:
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))


def chat_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str | None:
    """That `rendered` goes by; None where there is none."""
    own = tokenizer.chat_template
    return _processor_template(folder) or (own if isinstance(own, str) else None)


def _processor_template(folder: Path) -> str | None:
    """Of a folder as processors save it: today a file of its own, before that a value in a file of JSON."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, str):
            return found
    return None


def split_at_audio(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    audio_token: int,
    eos_ids: tuple[int, ...],
    *,
    behind: str = "",
    vocabulary_at: int | None = None,
    **facts: Any,
) -> PromptSpec:
    """The prompt around the only audio token of a text.

    Args:
        text: of the whole prompt.
        tokenizer: of the model. A token that it puts before every text belongs to the prompt, as in the stock processor.
        audio_token: placeholder of one audio embedding.
        eos_ids: tokens that end an answer.
        behind: text behind the language slot.
        vocabulary_at: place in the text before the audio where words that are likely to be said go; None: nowhere.
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
        *_before_audio(tokenizer, before, tuple(ids[:at]), vocabulary_at),
        PromptSegment("audio"),
        PromptSegment("text", after, tuple(ids[at + 1 :])),
    ]
    if facts.get("languages"):
        segments.append(PromptSegment("language"))
    if behind:
        segments.append(PromptSegment("text", behind, token_ids(tokenizer, behind)))
    return PromptSpec(tuple(segments), eos_ids, **facts)


def vocabulary_place(plain: str, marked: str) -> int | None:
    """Where the template puts `VOCABULARY`: its place in the text without it; None where all else is not the same."""
    at = marked.find(VOCABULARY)
    return at if at >= 0 and marked.replace(VOCABULARY, "", 1) == plain else None


def _before_audio(
    tokenizer: PreTrainedTokenizerBase, before: str, ids: tuple[int, ...], at: int | None
) -> list[PromptSegment]:
    """The text before the audio, a slot for vocabulary in it where its tokens can be parted there."""
    if at is not None:
        tail = token_ids(tokenizer, before[at:])
        head = ids[: len(ids) - len(tail)]
        if head + tail == ids and tokenizer.decode(list(head)) == before[:at]:
            return [
                PromptSegment("text", before[:at], head),
                PromptSegment("vocabulary"),
                PromptSegment("text", before[at:], tail),
            ]
    return [PromptSegment("text", before, ids)]


def language(tokenizer: PreTrainedTokenizerBase, code: str, name: str, text: str) -> Language:
    """What stands in the language slot for one language."""
    return Language(code, name, text, token_ids(tokenizer, text))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokens of a text, and nothing else."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
