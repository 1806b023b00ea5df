"""Dictation: what is said into the microphone is appended to a text file, and typed into the focused window if wanted.

    python examples/dictation/dictate.py BUNDLE notes.txt
    python examples/dictation/dictate.py BUNDLE notes.txt --type     # X11: xdotool; Wayland: wtype or ydotool

Spoken marks are written as marks: "comma", "full stop", "question mark", "new line", "new paragraph". The model's words
are lower case; sentences begin with a capital here. Ctrl-C ends it, and what was said until then is still written.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from prunella.device_runtime.listen import listen
from prunella.device_runtime.live.events import LiveEvent
from prunella.device_runtime.live.microphone import Microphone
from prunella.device_runtime.opening import open_transcriber

MARKS = {
    "new paragraph": "\n\n",
    "new line": "\n",
    "full stop": ".",
    "question mark": "?",
    "exclamation mark": "!",
    "comma": ",",
    "colon": ":",
}
TYPERS = {
    "wtype": ["wtype", "--"],
    "ydotool": ["ydotool", "type", "--"],
    "xdotool": ["xdotool", "type", "--"],
}


def write_out(said: str, before: str) -> str:
    """Spoken words as they are written behind `before`: marks for their names, capitals where sentences begin."""
    for name, mark in MARKS.items():
        said = re.sub(rf" *\b{name}\b *", mark if "\n" in mark else f"{mark} ", said)
    said = re.sub(r" +\n", "\n", said)
    said = said.strip(" ")
    if not said:
        return ""
    if not before or re.search(r"(?:[.?!]\s*|\n)$", before):
        said = said[0].upper() + said[1:]
    said = re.sub(r"((?:[.?!] |\n)\s*)([a-z])", lambda match: match[1] + match[2].upper(), said)
    glue = "" if not before or before[-1].isspace() or said[0] in ".,?!:\n" else " "
    return glue + said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("notes", type=Path, help="the text file; it is made, or appended to")
    parser.add_argument("--type", action="store_true", help="also type into the focused window")
    parser.add_argument("--device", help="`prunella devices` lists them")
    args = parser.parse_args()
    typer = next((words for name, words in TYPERS.items() if shutil.which(name)), None)
    if args.type and typer is None:
        parser.error(f"--type needs one of {', '.join(TYPERS)}: install it, or leave --type out")
    text = args.notes.read_text(encoding="utf-8") if args.notes.exists() else ""
    transcriber = open_transcriber(args.bundle).with_options(beams=0)
    transcriber.warm_up()

    def on_event(event: LiveEvent) -> None:
        nonlocal text
        if event.type == "partial" and sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{event.text[-78:]}")
        if event.type != "final" or not (piece := write_out(event.text, text)):
            return
        text += piece
        with args.notes.open("a", encoding="utf-8") as file:
            file.write(piece)
        sys.stderr.write("\r\x1b[K" if sys.stderr.isatty() else "")
        print(piece.strip(" "), flush=True)
        if args.type and typer is not None:
            subprocess.run([*typer, piece], check=False)

    with Microphone(args.device) as microphone:
        signal.signal(signal.SIGINT, lambda *_: microphone.stop())
        listen(transcriber, microphone, on_event, partials=transcriber.with_options(beams=1))


if __name__ == "__main__":
    main()
