"""What a bundle or model says where nothing is said, and before a long silence.

    python research/reference_model/robustness.py BUNDLE --speech dev.jsonl

Clips of at most 4.4 s are transcribed as they are and followed by 25 s of silence (in one piece, as llama.cpp's mtmd pads
to 30 s); a minute of noise and silence is cut into 5 s clips. Without guards, so that the model itself is seen, and with
them. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from prunella.device_runtime.options import BEAMS_HELP
from prunella.device_runtime.sound.audio import load_audio
from prunella.evaluation.manifest import SpeechManifest, read_manifest
from prunella.evaluation.systems import System, open_system
from prunella.evaluation.word_errors import ErrorCounts, count_errors, total
from prunella.synth.noise import NOISES, colored_noise

RATE, SILENCE, LONGEST = 16_000, 25.0, 4.4


def noises(seconds: float = 5.0) -> list[np.ndarray]:
    """A minute in twelve pieces: every color of noise at three levels, the rest silence."""
    rng = np.random.default_rng(0)
    size = int(seconds * RATE)
    pieces = [
        colored_noise(size, color, rng) * 10 ** (level / 20) for level in (-50, -35, -20) for color in NOISES
    ]
    pieces = [np.asarray(piece, np.float32) for piece in pieces[:10]]
    return [*pieces, *(np.zeros(size, np.float32) for _ in range(12 - len(pieces)))]


def _errors(system: System, manifest: SpeechManifest, silence: float) -> ErrorCounts:
    """Word errors over the clips with `silence` seconds behind each."""
    padding = (0, int(silence * RATE))
    return total(
        count_errors(one.text, system.transcribe(np.pad(load_audio(one.audio), padding)).text).words
        for one in manifest.utterances
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system")
    parser.add_argument("--speech", required=True, metavar="MANIFEST")
    parser.add_argument("--clips", type=int, default=12, help="of every source")
    parser.add_argument("--beams", type=int, default=0, metavar="N", help=BEAMS_HELP)
    args = parser.parse_args()
    guarded = open_system(args.system, beams=args.beams).system
    manifest = read_manifest(args.speech).at_most(LONGEST).limit(args.clips, seed=0)
    behind: dict[str, dict[str, float]] = {}
    said: dict[str, list[str]] = {}
    for name, system in (("model alone", guarded.with_options(guards=False)), ("with guards", guarded)):
        heard = [_errors(system, manifest, silence) for silence in (0.0, SILENCE)]
        behind[name] = {"wer": heard[0].rate, "wer_before_silence": heard[1].rate,
                        "insertions": heard[0].insertions, "insertions_before_silence": heard[1].insertions}  # fmt: skip
        said[name] = [text for piece in noises() if (text := system.transcribe(piece).text)]
    result = {"system": args.system, "beams": guarded.options.beams, "clips": len(manifest), "silence": behind,
              "noise_clips_with_text": {name: len(texts) for name, texts in said.items()}, "texts": said}  # fmt: skip
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
