"""argparse whose errors are a line: what is wrong, what was most likely meant, and where the options are explained."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from prunella.device_runtime.base.suggestions import did_you_mean

_CHOICE = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)$", re.DOTALL)
_NAME = re.compile(r"[\w.:+-]+")
_UNKNOWN = "unrecognized arguments: "


class ArgumentParser(argparse.ArgumentParser):
    """Says in a line what argparse says with its whole usage."""

    _words: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but words may go on behind an option where the last positional takes any number of them."""
        self._words = list(sys.argv[1:] if args is None else args)
        known, rest = self.parse_known_args(self._words, namespace)
        many = next(
            (action for action in self._actions if action.nargs == "+" and not action.option_strings), None
        )
        late = _positional(rest) if many else []
        if many is None or len(late) < len(rest) - rest.count("--"):
            if rest:
                self.error(f"{_UNKNOWN}{' '.join(rest)}")
            return known
        getattr(known, many.dest).extend(self._get_value(many, word) for word in late)
        return known

    @property
    def arguments(self) -> tuple[argparse.Action, ...]:
        """Options and positionals, in their order."""
        return tuple(self._actions)

    def verbs(self) -> dict[str, tuple[str, ArgumentParser]]:
        """Its own verbs, each with a line about it and its parser."""
        found: dict[str, tuple[str, ArgumentParser]] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                told = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
                found |= {name: (told.get(name, ""), parser) for name, parser in action.choices.items()}
        return found

    def _known_options(self) -> list[str]:
        """Of it and of its verbs."""
        inner = [name for _, parser in self.verbs().values() for name in parser._known_options()]  # noqa: SLF001
        return [
            name for name in dict.fromkeys([*self._option_string_actions, *inner]) if name.startswith("--")
        ]

    def explanation(self, action: argparse.Action) -> str:
        """The help of one of its arguments, with what stands for its default filled in, in one line."""
        return " ".join(self._get_formatter()._expand_help(action).split()) if action.help else ""  # noqa: SLF001

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2 and a line."""
        known = self._known_options()
        own = self._words[: self._words.index("--")] if "--" in self._words else self._words
        unknown = [word.partition("=")[0] for word in own if _is_unknown(word, known)]
        said = [f"no option '{word}'{_hint(word, known)}" for word in dict.fromkeys(unknown)]
        choice = _CHOICE.search(message)
        if choice:
            message += _hint(choice[1], _NAME.findall(choice[2]))
        if not (said and message.startswith(_UNKNOWN)):
            said.append(message)
        line = "; ".join([*said, f"`{self.prog} --help` explains"]).replace("?; ", "? ")
        self.exit(2, f"prunella: {line}\n")


def _positional(words: Sequence[str]) -> list[str]:
    """Those that are no options."""
    end = words.index("--") if "--" in words else len(words)
    return [word for word in words[:end] if not word.startswith("-") or word == "-"] + list(words[end + 1 :])


def _is_unknown(word: str, known: Sequence[str]) -> bool:
    name = word.partition("=")[0]
    return re.match("--[a-zA-Z]", name) is not None and not any(one.startswith(name) for one in known)


def _hint(word: str, known: Sequence[str]) -> str:
    dashes = "--" if word.startswith("--") else ""
    hint = did_you_mean(word[len(dashes) :], [name[len(dashes) :] for name in known], prefix=dashes)
    return f": {hint}" if hint else ""
