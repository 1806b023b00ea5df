"""The reference's prompt: the instruction stands before the audio, so that a runner prefills it once."""

from __future__ import annotations

from dataclasses import replace

from prunella.speech_llm.config import Prompt
from prunella.speech_llm.families.ultravox import tokenize_prompt
from prunella.speech_llm.model import SpeechLLM

INSTRUCTION = "Transcribe the speech."
PROMPT = Prompt(
    before_audio=f"<|im_start|>user\n{INSTRUCTION}\n",
    after_audio="<|im_end|>\n<|im_start|>assistant\n",
    eos_token="<|im_end|>",  # noqa: S106 - not a secret
)
# What stock servers fill in: a user's message is the audio, with or without the instruction. No system message.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = message['content'] if message['content'] is string else "
    "message['content'] | map(attribute='text', default='') | join('') %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<|im_start|>user\n" + INSTRUCTION + "\n' + (content | replace('" + INSTRUCTION + "', '') | trim) "
    "+ '<|im_end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def instruct_before_audio(model: SpeechLLM) -> SpeechLLM:
    """Give `model` this prompt and a chat template that renders exactly it, in place."""
    model.config = replace(model.own_config, prompt=PROMPT)
    model.tokenizer.chat_template = CHAT_TEMPLATE
    model.prompt = tokenize_prompt(model.own_config, model.tokenizer)
    return model
