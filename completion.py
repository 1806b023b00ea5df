"""What a shell completes after `prunella`: a script for it on stdout, made from the verbs' own options.

    prunella completion bash > ~/.local/share/bash-completion/completions/prunella
    prunella completion zsh > ~/.zfunc/_prunella    (a folder of $fpath)
    prunella completion fish > ~/.config/fish/completions/prunella.fish

A verb whose libraries are not installed is completed without its options.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prunella.cli import VERBS, verb_parser
from prunella.device_runtime.base.argument_parser import ArgumentParser
from prunella.device_runtime.base.model_names import EMBEDDED
from prunella.targets.profile import list_targets

_LONGEST = 72  # of an explanation
_PLAIN = re.compile(r"[\w.+:@/-]+")


@dataclass(frozen=True)
class Option:
    """`values`: what may stand behind it; none where anything may, such as a file."""

    names: tuple[str, ...]
    takes_value: bool
    values: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class Command:
    """A verb, or a verb's verb: `words` are what calls it. `values`: what its first argument may be."""

    words: tuple[str, ...]
    summary: str
    options: tuple[Option, ...] = ()
    values: tuple[str, ...] = ()


def commands() -> tuple[Command, ...]:
    """Every verb, each followed by its own verbs, as far as their parsers can be made here."""
    found: list[Command] = []
    for verb, (_, summary) in VERBS.items():
        try:
            parser = verb_parser(verb)
        except ImportError:
            found.append(Command((verb,), summary))
        else:
            found += _commands(parser, (verb,), summary)
    return tuple(found)


def _commands(parser: ArgumentParser, words: tuple[str, ...], summary: str) -> Iterator[Command]:
    positional = (_values(action, words) for action in parser.arguments if not action.option_strings)
    options = tuple(
        Option(
            tuple(action.option_strings),
            action.nargs != 0,
            _values(action, words),
            _shortened(parser.explanation(action)),
        )
        for action in parser.arguments
        if action.option_strings and action.help != argparse.SUPPRESS
    )
    yield Command(words, summary, options, next(filter(None, positional), ()))
    for name, (told, inner) in parser.verbs().items():
        yield from _commands(inner, (*words, name), told)


def _values(action: argparse.Action, words: tuple[str, ...]) -> tuple[str, ...]:
    if action.choices is not None:
        return tuple(map(str, action.choices))
    if action.dest == "target" or (words[0] == "targets" and action.dest == "name"):
        return tuple(list_targets())
    return EMBEDDED if action.dest == "model" and not action.option_strings else ()


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rsplit(" ", 1)[0] + " …"


def bash() -> str:
    """For bash 3.2 and newer; where it has no suggestion, files are completed."""
    every = commands()
    behind = [
        f"        {'|'.join(_quoted(' '.join((*one.words, name))) for name in option.names)}) words={_quoted(' '.join(option.values))}; return 0 ;;"
        for one in every
        for option in one.options
        if option.takes_value
    ]
    options = [
        f"        {_quoted(' '.join(one.words))}) words={_quoted(' '.join(name for option in one.options for name in option.names))} ;;"
        for one in every
    ]
    values = [
        f"        {_quoted(' '.join(one.words))}) words={_quoted(' '.join(one.values))} ;;"
        for one in every
        if one.values
    ]
    nested = "|".join(sorted({one.words[0] for one in every if len(one.words) > 1}))
    newline = "\n"
    return f"""# bash completion of prunella, made by `prunella completion bash`
_prunella_words() {{
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={_quoted(" ".join((*VERBS, "help")))}
        return
    fi
    local command="${{COMP_WORDS[1]}}" current="${{COMP_WORDS[COMP_CWORD]}}"
    case "$command" in
        {nested}) if [ "$COMP_CWORD" -gt 2 ]; then command="$command ${{COMP_WORDS[2]}}"; fi ;;
    esac
    case "$command ${{COMP_WORDS[COMP_CWORD-1]}}" in
{newline.join(behind)}
    esac
    case "$current" in
        -*) case "$command" in
{newline.join(options)}
        esac ;;
        *) case "$command" in
{newline.join(values)}
        esac ;;
    esac
}}
_prunella() {{
    local words=""
    _prunella_words
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _prunella prunella
"""


def zsh() -> str:
    """For a file `_prunella` in a folder of `$fpath`."""
    every = commands()
    verbs = [one for one in every if len(one.words) == 1]
    nested = "|".join(sorted({one.words[0] for one in every if len(one.words) > 1}))
    behind = [
        f"        {'|'.join(_quoted(' '.join((*one.words, name))) for name in option.names)}) "
        + (f"compadd -- {' '.join(option.values)}; return ;;" if option.values else "_files; return ;;")
        for one in every
        for option in one.options
        if option.takes_value
    ]
    options = []
    for one in every:
        told = [_quoted(f"{name}:{option.summary}") for option in one.options for name in option.names]
        options.append(f"        {_quoted(' '.join(one.words))}) found=({' '.join(told)}) ;;")
    values = [
        f"        {_quoted(' '.join(one.words))}) compadd -- {' '.join(one.values)} ;;"
        for one in every
        if one.values
    ]
    newline = "\n"
    return f"""#compdef prunella
# zsh completion of prunella, made by `prunella completion zsh`
_prunella() {{
    local -a found
    if (( CURRENT == 2 )); then
        found=({" ".join(_quoted(f"{one.words[0]}:{one.summary}") for one in verbs)})
        _describe verb found
        return
    fi
    local command="$words[2]"
    case "$command" in
        {nested}) if (( CURRENT > 3 )); then command="$command $words[3]"; fi ;;
    esac
    case "$command $words[CURRENT-1]" in
{newline.join(behind)}
    esac
    if [[ "$words[CURRENT]" == -* ]]; then
        case "$command" in
{newline.join(options)}
        esac
        _describe -o option found
        return
    fi
    case "$command" in
{newline.join(values)}
    esac
    _files
}}
if [ "$funcstack[1]" = _prunella ]; then _prunella "$@"; else compdef _prunella prunella; fi
"""


def fish() -> str:
    """For `~/.config/fish/completions/prunella.fish`."""
    lines = ["# fish completion of prunella, made by `prunella completion fish`"]
    every = commands()
    for one in every:
        *above, last = one.words
        seen = " ".join(f"; and __fish_seen_subcommand_from {word}" for word in above)[len("; and ") :]
        where = _fish_quoted(seen or "__fish_use_subcommand")
        lines.append(
            f"complete -c prunella -n {where} -a {last} -d {_fish_quoted(one.summary)}"
            + ("" if above else " -f")
        )
        here = _fish_quoted("; and ".join(f"__fish_seen_subcommand_from {word}" for word in one.words))
        if one.values and not _below(one, every):
            lines.append(f"complete -c prunella -n {here} -a {_fish_quoted(' '.join(one.values))}")
        for option in one.options:
            names = " ".join(_fish_name(name) for name in option.names if name.strip("-"))
            if names:
                values = (
                    f" -r -a {_fish_quoted(' '.join(option.values))}"
                    if option.values
                    else " -r"
                    if option.takes_value
                    else ""
                )
                lines.append(
                    f"complete -c prunella -n {here} {names}{values} -d {_fish_quoted(option.summary)}"
                )
    return "\n".join(lines) + "\n"


def _below(command: Command, every: tuple[Command, ...]) -> bool:
    """Whether it has verbs of its own."""
    return any(one.words[:-1] == command.words for one in every)


def _fish_name(name: str) -> str:
    return f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else shlex.quote(text)


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `prunella completion`."""
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


def run(args: argparse.Namespace) -> int:
    """`prunella completion`."""
    sys.stdout.write(SHELLS[args.shell]())
    return 0
