"""Removal of what is left of a chat template in a text."""

from __future__ import annotations

import re

_TEMPLATE = re.compile(r"\s*<\|[^<>|]*\|>\s*")
_UNCLOSED_TEMPLATE = re.compile(r"<(\|[^<>|]*\|?)?$")


def strip_template(text: str) -> str:
    """Text without what is left of a chat template (`<|im_end|>` spelled out, even half of it at the end) or of space
    around it."""
    return _UNCLOSED_TEMPLATE.sub("", _TEMPLATE.sub(" ", text)).strip()
