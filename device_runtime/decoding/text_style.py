"""How a model writes: the form that a transcript must have before it is compared with, or taught to, the model."""

from __future__ import annotations

import re

TEXT_STYLES = ("as-is", "lower")
_NOT_WORDS = re.compile(r"[^\w\s']|_")


def style_text(text: str, style: str) -> str:
    """`text` as a model of this style writes it.

    "as-is" changes nothing but white space; "lower" is lower case without punctuation, apostrophes kept.
    """
    if style == "lower":
        text = _NOT_WORDS.sub(" ", text.lower().replace("\u2019", "'"))
    return " ".join(text.split())
