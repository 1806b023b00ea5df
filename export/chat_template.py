"""The fixed prompt as a chat template, for runners that only know chats (llama-server, llama-mtmd-cli)."""

from __future__ import annotations

import json

_MARKER = "<__media"  # libmtmd's stand-in for the audio begins so and ends with ">"

# A user's message is its audio, whatever is written around it; a message without audio is taken whole.
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set content = message['content'] if message['content'] is string "
    "else message['content'] | map(attribute='text', default='') | join('') -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- BEFORE -}}"
    "{%- set pieces = content.split('MARKER') -%}"
    "{%- if pieces | length > 1 -%}"
    "{%- for piece in pieces[1:] -%}{{- 'MARKER' + piece.split('>')[0] + '>' -}}{%- endfor -%}"
    "{%- else -%}{{- content -}}{%- endif -%}"
    "{{- AFTER -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- content -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)


def speech_chat_template(before_audio: str, after_audio: str) -> str:
    """A Jinja template that renders a user's message with one audio as exactly these texts around it.

    What `after_audio` opens (the assistant's turn) belongs to it, so there is nothing to add for
    `add_generation_prompt`.
    """
    before, after = (json.dumps(text, ensure_ascii=False) for text in (before_audio, after_audio))
    return _TEMPLATE.replace("MARKER", _MARKER).replace("BEFORE", before).replace("AFTER", after)
