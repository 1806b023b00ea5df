"""The `prunella` command: a table of verbs, nothing else.

Every verb's module offers `add_arguments(parser)` and `run(args) -> int | None`; it is imported only when it is
called, so that `prunella transcribe` on a device never loads what `prunella prune` needs.
Exit codes: 0 done, 1 the work failed, 2 bad usage, 130 interrupted. Results go to stdout, all else to stderr. What failed
is said in a line; --traceback behind a verb, or PRUNELLA_TRACEBACK=1, adds the traceback where the error came from the
system or a library.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from prunella._version import __version__
from prunella.device_runtime.base import environment
from prunella.device_runtime.base.argument_parser import ArgumentParser
from prunella.device_runtime.base.blas import start_alone
from prunella.device_runtime.base.errors import PrunellaError
from prunella.device_runtime.base.extras import explained, require
from prunella.device_runtime.base.standard_streams import prepare_streams, silence
from prunella.device_runtime.base.suggestions import did_you_mean
from prunella.needs import HELP, needed_modules

VERBS: dict[str, tuple[str, str]] = {
    "analyze": (
        "prunella.pruning.analyze",
        "measure which decoder layers are redundant, for speech and for text",
    ),
    "prune": ("prunella.pruning.prune", "cut decoder layers and bridge the gap"),
    "heal": ("prunella.healing.heal", "train LoRA and projector to heal a cut, resumable"),
    "synth": (
        "prunella.synth.synth",
        "speak sentences into a training manifest, without recording anything",
    ),
    "export": ("prunella.export.export", "write a bundle for one target"),
    "verify": ("prunella.export.verify", "compare a bundle with its model on speech, in numbers"),
    "quantize": ("prunella.quantize.quantize", "re-quantise a float bundle without its model"),
    "build": ("prunella.building.build", "the whole path for a target, resumable"),
    "transcribe": ("prunella.device_runtime.transcribe", "audio files to text"),
    "listen": ("prunella.device_runtime.listen", "a microphone (or standard input) to text, live"),
    "devices": ("prunella.device_runtime.devices", "list the microphones, with a level meter"),
    "serve": (
        "prunella.device_runtime.serve",
        "an HTTP server as OpenAI's clients know it, a page with a microphone, and Wyoming",
    ),
    "info": ("prunella.device_runtime.info", "say what is inside a bundle, and verify it"),
    "eval": ("prunella.evaluation.evaluate", "word error rates of a bundle or a model"),
    "bench": ("prunella.benchmark.bench", "speed and memory of a bundle or a model"),
    "fit": ("prunella.building.fit", "say whether a model fits a target, and how fast, before it is built"),
    "targets": ("prunella.targets.targets", "list and show the target profiles"),
    "pack": (
        "prunella.deployment.pack",
        "a bundle as an archive that installs on a device without a network",
    ),
    "deploy": (
        "prunella.deployment.deploy",
        "an archive to devices over ssh, and back where it does not work",
    ),
    "doctor": ("prunella.deployment.doctor", "what this device lacks, and a remedy for each"),
    "models": ("prunella.models", "list the embedded models, fetch their parts, clear the cache of them"),
    "completion": ("prunella.completion", "what bash, zsh or fish completes, as a script for it"),
}

TRACEBACK = "PRUNELLA_TRACEBACK"
_TRACEBACK_HELP = "also where an error of the system or of a library came from"
_ON_DEVICE = ("transcribe", "listen", "serve")  # their products are small, and their starts waited for
_TRAINING = ("heal", "build")  # they may train, for which malloc is chosen before anything is imported


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    prepare_streams()
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where what goes wrong can still be said
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): not an error, and no traceback at exit.
        silence("stdout")
        return 0
    except OSError as error:
        silence("stdout")
        return _fail(f"standard output cannot be written ({error.strerror or error}): free some space", 1)


def _run(argv: Sequence[str] | None) -> int:
    is_program = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("help", *HELP):  # `prunella help VERB`
        argv = [argv[1], "--help"] if len(argv) > 1 else ["--help"]
    if argv in ([], ["--help"]):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"prunella {__version__}")  # noqa: T201
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        if verb.startswith("-"):
            return _fail(
                f"options stand behind a verb: prunella VERB {verb}; `prunella --help` lists the verbs", 2
            )
        hint = did_you_mean(verb, VERBS)
        return _fail(f"no verb '{verb}'{f': {hint}' if hint else '.'} `prunella --help` lists them.", 2)
    return _run_verb(verb, rest, is_program=is_program)


def verb_parser(verb: str) -> ArgumentParser:
    """The parser of a verb.

    Raises:
        ImportError: a library that its module imports is not installed.
    """
    module_name, summary = VERBS[verb]
    module = importlib.import_module(module_name)
    parser = ArgumentParser(
        prog=f"prunella {verb}",
        description=module.__doc__ or summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    for one in (parser, *(inner for _, inner in parser.verbs().values())):
        one.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=_TRACEBACK_HELP)
    return parser


def _run_verb(verb: str, rest: Sequence[str], *, is_program: bool) -> int:
    module_name, _ = VERBS[verb]
    traced = _wants_traceback(rest)
    try:
        require(needed_modules(verb, rest), f"`prunella {verb}`")
        if is_program and verb in _ON_DEVICE:
            start_alone()
        if is_program and verb in _TRAINING:
            importlib.import_module("prunella.healing.allocator").restart_with_tcmalloc()
        module = importlib.import_module(module_name)
        if "prunella.speech_llm" in sys.modules:
            importlib.import_module("prunella.speech_llm.process").tune()
        return int(module.run(_arguments(verb, rest)) or 0)
    except PrunellaError as error:
        if error.__cause__ is not None:
            _show_traceback(error, traced)
        return _fail(str(error), error.exit_code)
    except ImportError as error:
        _show_traceback(error, traced)
        try:  # `--help` comes as far as the imports
            require(needed_modules(verb, [word for word in rest if word not in HELP]), f"`prunella {verb}`")
        except PrunellaError as all_at_once:
            return _fail(str(all_at_once), all_at_once.exit_code)
        return _fail(str(explained(error, f"`prunella {verb}`")), 1)
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        return _fail(
            f"memory ran out{reason}: close other programs, or take a smaller model or shorter audio", 1
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        _show_traceback(error, traced)
        if error.errno == errno.ENOSPC:
            return _fail(
                f"the disk is full ({error.filename or 'while writing'}): free some space and run it again", 1
            )
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _arguments(verb: str, rest: Sequence[str]) -> argparse.Namespace:
    """Of the command line; of verbs that run as services, of the environment too."""
    parser = verb_parser(verb)
    args: argparse.Namespace = parser.parse_args(rest)
    if verb not in environment.VERBS:
        return args
    for line in environment.unknown_variables(parser.arguments):
        print(f"prunella: {line}", file=sys.stderr)  # noqa: T201
    words, positionals = environment.words_of_environment(parser.arguments)
    if words:
        args = parser.parse_args([*words, *rest])
    for name, value in positionals.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    bundle = [args.bundle] if args.bundle is not None else []
    require(needed_modules(verb, [*words, *rest, *bundle]), f"`prunella {verb}`")
    return args


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(
        [
            "usage: prunella VERB [options]",
            "",
            *lines,
            "",
            "`prunella VERB --help` explains a verb; `prunella --version`.",
            f"--traceback behind a verb (or {TRACEBACK}=1) shows where an error of the system or of a library came from.",
        ]
    )


def _wants_traceback(words: Sequence[str]) -> bool:
    """Told before the words are parsed, which may itself fail; shortened as argparse takes it."""
    own = words[: words.index("--")] if "--" in words else words
    asked = any(len(word) > len("--tr") and "--traceback".startswith(word) for word in own)
    return asked or os.environ.get(TRACEBACK, "0") != "0"


def _show_traceback(error: Exception, traced: bool) -> None:
    """Where an error that is not of prunella's own making came from, for those who ask."""
    if traced:
        with contextlib.suppress(OSError):  # nobody reads it
            traceback.print_exception(error, file=sys.stderr)


def _fail(message: str, code: int) -> int:
    try:
        print(f"prunella: {' '.join(message.split())}", file=sys.stderr, flush=True)  # noqa: T201
    except OSError:  # nobody reads it
        silence("stderr")
    return code
