"""What a shell completes after `prunella`: a script for it on stdout, made from the verbs' own options.

    prunella completion bash > ~/.local/share/bash-completion/completions/prunella
    prunella completion zsh > ~/.zfunc/_prunella    (a folder of $fpath)
    prunella completion fish > ~/.config/fish/completions/prunella.fish

A verb whose libraries are not installed is completed without its options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import shtab

from prunella.cli import VERBS, verb_parser
from prunella.device_runtime.base.argument_parser import ArgumentParser
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.targets.profile import list_targets

SHELLS = ("bash", "zsh", "fish")
_LONGEST = 72  # of an explanation


def script(shell: str) -> str:
    """What makes one of `SHELLS` complete verbs, options, their values, names and files."""
    return shtab.complete(_whole_parser(), shell)


def _whole_parser() -> argparse.ArgumentParser:
    """Every verb below one parser, for completing alone: what it calls a choice may be one name among files."""
    whole = argparse.ArgumentParser(prog="prunella")
    whole.add_argument("-V", "--version", action="store_true", help="say which version this is")
    verbs = whole.add_subparsers(parser_class=_parser_of)  # type: ignore[call-overload]  # argparse calls it, no more
    for verb, (_, summary) in VERBS.items():
        _prepare(verbs.add_parser(verb, help=summary), (verb,), summary)
    verbs.add_parser("help", help="explain a verb").add_argument("verb", choices=tuple(VERBS), help="a verb")
    return whole


def _parser_of(prog: str, **_: object) -> ArgumentParser:
    verb = prog.split()[-1]
    try:
        return verb_parser(verb) if verb in VERBS else ArgumentParser(prog=prog)
    except ImportError:
        return ArgumentParser(prog=prog)


def _prepare(parser: ArgumentParser, words: tuple[str, ...], summary: str) -> None:
    """Explanations of a line, and what may stand where argparse takes any word."""
    for action in parser.arguments:
        if "-" in action.option_strings:  # standard input, which shells take for the beginning of an option
            action.help = argparse.SUPPRESS
        elif action.help != argparse.SUPPRESS:
            action.help = _shortened(parser.explanation(action)).replace("%", "%%")
        if isinstance(action.metavar, str):
            action.metavar = action.metavar.replace(":", "-")  # zsh's separator
        if action.choices is None and action.nargs != 0:
            _complete(action, _names(action, words))
        elif action.choices is not None and not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            action.choices = tuple(action.choices)
    for name, (told, inner) in parser.verbs().items():
        _prepare(inner, (*words, name), told)
    parser.description = summary


def _names(action: argparse.Action, words: tuple[str, ...]) -> Sequence[str]:
    if action.dest == "target" or (words[0] == "targets" and action.dest == "name"):
        return list_targets()
    return EMBEDDED if action.dest == "model" and not action.option_strings else ()


def _complete(action: argparse.Action, names: Sequence[str]) -> None:
    """Files, and these names before them."""
    words = " ".join(names)
    function = f"_prunella_{action.dest}_file"
    action.complete = shtab.FILE if not names else {  # type: ignore[attr-defined]
        "bash": function,
        "zsh": f"{{compadd -- {words}; _files}}",
        "fish": f"{words} {shtab.FILE['fish']}",
        "preamble": {"bash": f"{function}() {{ compgen -W '{words}' -- \"$1\"; compgen -f -- \"$1\"; }}"},
    }  # fmt: skip


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rsplit(" ", 1)[0] + " …"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella completion`."""
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


def run(args: argparse.Namespace) -> int:
    """`prunella completion`."""
    sys.stdout.write(script(args.shell))
    return 0
