"""`prunella listen` through a real PortAudio device, without hardware: a PulseAudio null sink as the microphone.

    python examples/virtual_microphone.py BUNDLE [CLIP ...]

Starts a PulseAudio server of its own, lets `prunella listen` record its null sink, plays the clips into it in real
time, and checks that
- every clip is whole in what PortAudio delivered (a tap writes it): none of its samples is missing or twice,
- every final text equals that of the file path for the same samples,
- after the server died and came back (--unplug), the microphone is reopened and hears again.
Needs (Debian, Ubuntu): apt install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2

Prints one JSON object per clip. Exit codes: 0 all held, 1 something did not, 77 a program is missing (it says which).
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio

RATE = 16_000
CLIPS = Path(__file__).parent / "clips" / "evaluation"
SINK = "prunella"
MISSING = 77


class VirtualMicrophone:
    """A PulseAudio server with one null sink; what is played into it can be recorded from the device "pulse"."""

    def __init__(self, folder: Path, rate: int = 48_000) -> None:
        self.folder = folder
        self.rate = rate
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder),
            "PULSE_SERVER": f"unix:{folder}/native",
            "PULSE_SINK": SINK,
            "PULSE_SOURCE": f"{SINK}.monitor",
        }

    def __enter__(self) -> VirtualMicrophone:
        self.plug_in()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()

    def plug_in(self) -> None:
        command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
        command += ["--disable-shm=yes", "--log-target=stderr"]
        command += ["-L", f"module-native-protocol-unix auth-anonymous=1 socket={self.folder}/native"]
        command += ["-L", f"module-null-sink sink_name={SINK} rate={self.rate} channels=2"]
        with (self.folder / "pulseaudio.log").open("ab") as log:
            self.server = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while subprocess.run(["pactl", "info"], env=self.environment, capture_output=True).returncode:
            if time.monotonic() > deadline or self.server.poll() is not None:
                raise RuntimeError(f"pulseaudio did not start: {self.log()}")
            time.sleep(0.1)

    def unplug(self) -> None:
        self.server.terminate()
        try:
            self.server.wait(5)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        (self.folder / "native").unlink(missing_ok=True)

    def play(self, clip: Path) -> None:
        """In real time; returns when it has been heard."""
        subprocess.run(["paplay", str(clip)], env=self.environment, check=True)

    def log(self) -> str:
        return (self.folder / "pulseaudio.log").read_text(errors="replace")[-500:]


class Listener:
    """`prunella listen BUNDLE --json` as a process; its events and its messages, with the moment of each."""

    def __init__(self, bundle: Path, environment: dict[str, str], tap: Path) -> None:
        code = "import sys; from prunella.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "listen", str(bundle), "--json", "--device", "pulse"]
        command += ["--tap", str(tap)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        self.events: list[dict] = []
        self.messages: list[str] = []
        self._threads = [
            threading.Thread(
                target=self._read,
                args=(self.process.stdout, lambda line: self.events.append(json.loads(line))),
            ),
            threading.Thread(target=self._read, args=(self.process.stderr, self.messages.append)),
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, condition, what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{what} did not happen: {self.messages[-5:]}")
            time.sleep(0.05)

    def said(self, text: str) -> bool:
        return any(text in line for line in self.messages)

    def finals(self) -> int:
        return sum(event["type"] == "final" for event in self.events)

    def stop(self) -> int:
        """Ctrl-C → its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        for thread in self._threads:
            thread.join()
        return code

    @staticmethod
    def _read(stream, take) -> None:
        for line in stream:
            take(line.rstrip("\n"))


def missing_parts() -> str | None:
    """What is not installed, or None."""
    programs = [name for name in ("pulseaudio", "pactl", "paplay") if shutil.which(name) is None]
    if programs:
        return f"{', '.join(programs)} not installed: apt install pulseaudio pulseaudio-utils"
    if ctypes.util.find_library("portaudio") is None:
        return "PortAudio is not installed: apt install libportaudio2"
    folders = [*Path("/usr/lib").glob("*/alsa-lib"), Path("/usr/lib64/alsa-lib"), Path("/usr/lib/alsa-lib")]
    if not any((folder / "libasound_module_pcm_pulse.so").exists() for folder in folders):
        return "ALSA's PulseAudio plugin is not installed: apt install libasound2-plugins"
    return None


def find_clip(clip: np.ndarray, tap: np.ndarray) -> tuple[int, float, int]:
    """Where a clip lies in a recording.

    Returns:
        The sample at which it begins, the lowest correlation of any loud 100 ms of the clip with the recording at that
        one offset, and how many samples any of them is off. Lost or repeated samples would shift all that follow.
    """
    size = 1 << (len(clip) + len(tap)).bit_length()
    spectrum = np.fft.rfft(tap, size) * np.conj(np.fft.rfft(clip, size))
    start = int(np.argmax(np.fft.irfft(spectrum, size)[: len(tap)]))
    heard = np.pad(tap[start : start + len(clip)], (0, max(0, len(clip) - len(tap) + start)))
    # Two resamplings lie between them, so that the clip begins between two samples of the recording.
    shifted = [_delayed(clip, part / 10) for part in range(-10, 11)]
    clip = max(shifted, key=lambda candidate: float(candidate @ heard))
    width, reach = RATE // 10, 160
    worst, shift = 1.0, 0
    loud = np.sqrt(np.mean(np.square(clip))) / 2
    for begin in range(reach, len(clip) - width - reach, width):
        piece = clip[begin : begin + width]
        if np.sqrt(np.mean(np.square(piece))) < loud:
            continue
        scores = [
            float(piece @ other / (np.linalg.norm(piece) * np.linalg.norm(other) + 1e-9))
            for lag in range(-reach, reach + 1)
            for other in [heard[begin + lag : begin + lag + width]]
        ]
        worst = min(worst, scores[reach])
        shift = max(shift, abs(int(np.argmax(scores)) - reach))
    return start, worst, shift


def _delayed(samples: np.ndarray, delay: float) -> np.ndarray:
    """Samples delayed by a fraction of one."""
    spectrum = np.fft.rfft(samples)
    return np.fft.irfft(spectrum * np.exp(-2j * np.pi * np.fft.rfftfreq(len(samples)) * delay), len(samples))


def check(bundle: Path, clips: list[Path], *, unplug: bool) -> bool:
    """Play, listen, compare; prints a line per clip → whether all held."""
    with tempfile.TemporaryDirectory(prefix="prunella-mic-") as name:
        folder = Path(name)
        tap = folder / "tap.wav"
        with VirtualMicrophone(folder) as microphone:
            listener = Listener(bundle, microphone.environment, tap)
            try:
                listener.wait_for(lambda: listener.said("listening to"), "opening the microphone", 60)
                time.sleep(0.5)
                for clip in clips:
                    microphone.play(clip)
                    time.sleep(1.2)
                listener.wait_for(lambda: listener.finals() >= len(clips), "a final text of every clip")
                if unplug:
                    microphone.unplug()
                    listener.wait_for(
                        lambda: listener.said("is gone"), "noticing that the microphone is gone"
                    )
                    microphone.plug_in()
                    listener.wait_for(lambda: listener.said("is back"), "reopening the microphone")
                    time.sleep(0.5)
                    before = listener.finals()
                    microphone.play(clips[0])
                    listener.wait_for(lambda: listener.finals() > before, "a final text after the unplugging")
            finally:
                code = listener.stop()
        recording = load_audio(tap)
        return _judge(bundle, clips, listener, recording, unplug) and code == 0


def _judge(bundle: Path, clips: list[Path], listener: Listener, recording: np.ndarray, unplug: bool) -> bool:
    transcriber = open_transcriber(bundle).with_options(beams=0)  # as `listen` decodes
    finals = [event for event in listener.events if event["type"] == "final"]
    held = True
    gap = next((round(event["t0"] * RATE) for event in listener.events if event.get("drops")), len(recording))
    recording = recording[:gap]  # the first clip was played again after the unplugging
    for event in finals:
        start, stop = (round(event[key] * RATE) for key in ("t0", "t1"))
        if stop <= gap:
            event["file_path_text"] = transcriber.transcribe(recording[start:stop]).text
            held &= event["text"] == event["file_path_text"]
    for clip in clips:
        samples = load_audio(clip)
        start, correlation, shift = find_clip(samples, recording)
        inside = [
            event
            for event in finals
            if "file_path_text" in event
            and start / RATE - 1 < event["speech_end"] < (start + len(samples)) / RATE + 1
        ]
        whole = correlation > 0.98 and shift == 0
        held &= whole and bool(inside)
        row = {
            "clip": clip.name,
            "found_at": round(start / RATE, 3),
            "worst_correlation": round(correlation, 4),
            "largest_shift": shift,
            "texts": [event["text"] for event in inside],
            "file_path_texts": [event["file_path_text"] for event in inside],
            "latency": [event["timings"]["latency"] for event in inside],
        }
        print(json.dumps(row))
    dropped = sum(event.get("drops", 0) for event in listener.events)
    heard_after = len(finals) > len(clips) if unplug else None
    print(
        json.dumps({"utterances": len(finals), "dropped_samples": dropped, "heard_after_unplug": heard_after})
    )
    sys.stderr.write("\n".join(listener.messages) + "\n")
    return held and heard_after is not False and (unplug or dropped == 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clips", type=Path, nargs="*", default=[CLIPS / "librivox_0880.flac"])
    parser.add_argument("--unplug", action="store_true", help="stop the sound server in between")
    arguments = parser.parse_args()
    if reason := missing_parts():
        print(reason, file=sys.stderr)
        sys.exit(MISSING)
    sys.exit(0 if check(arguments.bundle, arguments.clips, unplug=arguments.unplug) else 1)
