"""A voice assistant that needs no network: microphone → text → intent → action.

    python examples/voice_assistant/assistant.py BUNDLE               # speak; Ctrl-C or "goodbye" ends it
    python examples/voice_assistant/assistant.py BUNDLE clip.wav ...  # or let it hear recordings

`commands.txt` lists what can be said. The decoder can only say what is on it, so that even a small model does not
mishear "kitchen" as a word it has never seen, and speech that is no command does nothing. An action is a function named
after a command's label; what it returns is the answer. Add `| espeak-ng` to have the answers spoken.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from prunella.device_runtime.decoding.limits import MIN_SCORE
from prunella.device_runtime.decoding.phrase_grammar import NUMBERS, read_phrases
from prunella.device_runtime.listen import listen
from prunella.device_runtime.live.events import LiveEvent
from prunella.device_runtime.live.microphone import Microphone
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio

COMMANDS = Path(__file__).with_name("commands.txt")


@dataclass
class Home:
    """What the assistant can change. Put your own switches here."""

    lights: dict[str, int] = field(default_factory=dict)  # room → percent
    degrees: int = 20
    volume: int = 5
    timer: threading.Timer | None = None
    ended: bool = False
    answer: Callable[[str], None] = print

    def light_on(self, room: str) -> str:
        self.lights[room] = 100
        return f"The {room} light is on."

    def light_off(self, room: str) -> str:
        self.lights.pop(room, None)
        return f"The {room} light is off."

    def all_off(self) -> str:
        count = len(self.lights)
        self.lights.clear()
        return f"All lights are off; {count} were on."

    def brightness(self, room: str, level: str) -> str:
        self.lights[room] = NUMBERS[level]
        return f"The {room} light is at {NUMBERS[level]} percent."

    def timer_set(self, minutes: str) -> str:
        self.cancel_timer()
        self.timer = threading.Timer(60 * NUMBERS[minutes], self.answer, ["The timer is up."])
        self.timer.daemon = True
        self.timer.start()
        return f"A timer of {NUMBERS[minutes]} minutes is running."

    def cancel_timer(self) -> str:
        if self.timer is None:
            return "No timer is running."
        self.timer.cancel()
        self.timer = None
        return "The timer is cancelled."

    def temperature(self, degrees: str) -> str:
        if not 5 <= NUMBERS[degrees] <= 30:
            return f"{NUMBERS[degrees]} degrees are not for a home."
        self.degrees = NUMBERS[degrees]
        return f"The heating is set to {self.degrees} degrees."

    def time(self) -> str:
        return f"It is {datetime.now():%H:%M}."

    def date(self) -> str:
        return f"It is {datetime.now():%A, %d %B}."

    def louder(self) -> str:
        self.volume = min(10, self.volume + 1)
        return f"The volume is {self.volume}."

    def quieter(self) -> str:
        self.volume = max(0, self.volume - 1)
        return f"The volume is {self.volume}."

    def add(self, first: str, second: str) -> str:
        return f"{NUMBERS[first]} plus {NUMBERS[second]} is {NUMBERS[first] + NUMBERS[second]}."

    def goodbye(self) -> str:
        self.ended = True
        return "Goodbye."

    def act(self, label: str, slots: dict[str, str]) -> str:
        """Do what a command says → the answer."""
        action = self.timer_set if label == "timer" else getattr(self, label)
        return action(**slots)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("recordings", nargs="*", help="in place of the microphone")
    parser.add_argument("--device", help="`prunella devices` lists them")
    parser.add_argument("--min-score", type=float, default=MIN_SCORE)
    args = parser.parse_args()
    transcriber = open_transcriber(args.bundle).with_phrases(read_phrases(COMMANDS), min_score=args.min_score)
    transcriber.warm_up()
    home = Home(answer=lambda text: print(text, flush=True))

    def obey(found: tuple[dict, ...]) -> None:
        for phrase in found:
            sys.stderr.write(f"> {phrase['text']} ({phrase['label']}, score {phrase['score']:.2f})\n")
            home.answer(home.act(phrase["label"], phrase["slots"]))

    if args.recordings:
        for path in args.recordings:
            obey(transcriber.transcribe(load_audio(path)).phrases)
        return
    with Microphone(args.device) as microphone, suppress(KeyboardInterrupt):

        def on_event(event: LiveEvent) -> None:
            if event.transcript is not None:
                obey(event.transcript.phrases)
            if home.ended:
                microphone.stop()

        sys.stderr.write("Listening. Say for example: turn on the kitchen light\n")
        listen(transcriber, microphone, on_event)


if __name__ == "__main__":
    main()
