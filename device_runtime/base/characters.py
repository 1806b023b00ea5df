"""Text that no library takes: halves of characters, which Python makes of bytes that are not UTF-8."""

from __future__ import annotations


def has_half_characters(text: str) -> bool:
    """Whether there is a surrogate in it: an argument or a file in another encoding, or half of a pair of UTF-16.

    >>> has_half_characters("a\\udcffb"), has_half_characters("smørrebrød 😀")
    (True, False)
    """
    return any("\ud800" <= letter <= "\udfff" for letter in text)
