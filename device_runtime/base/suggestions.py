"""What a word or a path that is not there was most likely meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

_MOST = 3  # named at once
_LIKE = 0.75  # of paths, whose folders hold many names


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6, prefix: str = "") -> str:
    """`did you mean 'x'?`, naming all that are as near, with `prefix` before each; empty where nothing is."""
    found = nearest(word, known, cutoff=cutoff)
    return f"did you mean {' or '.join(repr(prefix + name) for name in found)}?" if found else ""


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """The names that are nearest: those with the word in them, else those spelled alike."""
    names = list(known)
    around = [name for name in names if len(word) > 1 and word.lower() in name.lower()]
    if around:
        return around if len(around) <= _MOST else difflib.get_close_matches(word, around, n=1, cutoff=0)
    found = difflib.get_close_matches(word, names, n=_MOST, cutoff=cutoff)
    return [name for name in found if _ratio(word, name) == _ratio(word, found[0])]


def nearest_paths(path: str | Path) -> list[str]:
    """Paths that are there and spelled nearly like this one, which is not; none where nothing is."""
    given = Path(path)
    if given.exists():
        return []
    found = [Path(given.anchor)]
    for part in given.parts[1 if given.anchor else 0 :]:
        step = [folder / part for folder in found if (folder / part).exists()]
        for folder in () if step else found:
            step += [folder / name for name in nearest(part, _visible(folder), cutoff=_LIKE)]
        found = step
    return [str(one) for one in found][:_MOST]


def path_hint(path: str | Path) -> str:
    """` (did you mean 'x'?)` to put behind a path that is not there, or nothing."""
    found = nearest_paths(path)
    return f" (did you mean {' or '.join(repr(name) for name in found)}?)" if found else ""


def _ratio(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, name, word).ratio()


def _visible(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []
