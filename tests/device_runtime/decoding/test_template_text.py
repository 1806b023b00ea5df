"""The removal of template text."""

from __future__ import annotations

import pytest

from prunella.device_runtime.decoding.template_text import strip_template


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("hello<|im_end|>", "hello"),
        ("<|im_start|>hello <|im_end|> there", "hello there"),
        ("hello <|im_e", "hello"),
        ("hello <|im_end|", "hello"),
        ("  hello  ", "hello"),
        ("<|endoftext|>", ""),
        ("a < b and a | b", "a < b and a | b"),
    ],
)
def test_template_text_is_stripped(text, clean):
    assert strip_template(text) == clean
