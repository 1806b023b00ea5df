"""The verb `listen`: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from prunella.cli import main
from prunella.device_runtime.opening import open_transcriber
from prunella.device_runtime.sound.audio import load_audio

CLIPS = Path(__file__).parents[2] / "examples" / "clips"
RUN = "import sys; from prunella.cli import main; sys.exit(main(sys.argv[1:]))"


def pcm(*clips) -> bytes:
    """Clips with a second of near silence behind each, as raw PCM."""
    hush = 0.0005 * np.random.default_rng(0).standard_normal(16_000)
    parts = [part for clip in clips for part in (load_audio(CLIPS / "evaluation" / clip), hush)]
    return (np.concatenate(parts) * 32_767).astype("<i2").tobytes()


def listen(bundle, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "listen", str(bundle), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_pipe_becomes_events_and_text(reference_bundle):
    data = pcm("cards_001.flac", "librivox_0880.flac")
    out, err = listen(reference_bundle, "--json", "-").communicate(data, timeout=120)
    events = [json.loads(line) for line in out.splitlines()]
    finals = [event for event in events if event["type"] == "final"]
    assert [event["utterance_id"] for event in finals] == [1, 2]
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32_768
    transcriber = open_transcriber(reference_bundle).with_options(beams=0)
    assert transcriber.options.beams > 1
    for final in finals:
        piece = samples[round(final["t0"] * 16_000) : round(final["t1"] * 16_000)]
        assert final["text"] == transcriber.transcribe(piece).text != "", "the file path differs"
    assert finals[1]["text"].startswith("he was not")
    assert {"latency", "compute"} <= finals[0]["timings"].keys()
    ranges = [event for event in events if event["type"] != "partial"]
    assert ranges[0]["t0"] == 0
    assert all(before["t1"] == after["t0"] for before, after in pairwise(ranges))
    assert b"2 utterances" in err

    out, _ = listen(reference_bundle, "-").communicate(data, timeout=120)
    assert out.decode().splitlines() == [event["text"] for event in finals]


def test_finals_follow_as_many_beams_as_are_asked_for(reference_bundle):
    data = pcm("librivox_0880.flac", "cards_001.flac")
    out, _ = listen(reference_bundle, "--json", "--beams", "3", "-").communicate(data, timeout=120)
    finals = [event for event in map(json.loads, out.splitlines()) if event["type"] == "final"]
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32_768
    transcriber = open_transcriber(reference_bundle)
    pieces = [samples[round(one["t0"] * 16_000) : round(one["t1"] * 16_000)] for one in finals]
    searched = [transcriber.with_options(beams=3).transcribe(piece) for piece in pieces]
    assert [one["text"] for one in finals] == [one.text for one in searched]
    assert all(one.options.beams == 3 for one in searched) and transcriber.options.beams == 1


def test_ctrl_c_prints_what_was_said_until_then(reference_bundle):
    process = listen(reference_bundle, "--json", "-")
    process.stdin.write(pcm("librivox_0880.flac")[: 2 * 16_000 * 2])  # ends in the middle of a sentence
    process.stdin.flush()
    while b"reading standard input" not in process.stderr.readline():
        assert process.poll() is None
    # A partial of the second half second of words: all that was written has been read by then, or nearly.
    out = b""
    while b"he was not" not in out:
        out += (line := process.stdout.readline())
        assert line, "it ended before it was told to"
    os.kill(process.pid, signal.SIGINT)
    out += process.stdout.read()
    assert process.wait(60) == 0, process.stderr.read()
    process.stdin.close()
    finals = [event for event in map(json.loads, out.splitlines()) if event["type"] == "final"]
    assert [event["text"][:10] for event in finals] == ["he was not"]


@pytest.mark.parametrize("shell", ["<&-", "</dev/null", "<header.wav"])
def test_a_pipe_in_which_nothing_comes_is_a_failure(reference_bundle, tmp_path, shell):
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 16_000)
    command = [sys.executable, "-c", RUN, "listen", str(reference_bundle), "-"]
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(command)} {shell}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing came on standard input" in done.stderr.splitlines()[-1]


def test_raw_samples_without_words_are_said_to_be_a_guess(reference_bundle):
    process = listen(reference_bundle, "-")
    noise = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()
    out, err = process.communicate(bytes(4_096) + noise, timeout=60)  # as an mp3 behind padding
    assert (out, process.returncode) == (b"", 0)
    assert b"taken for raw 16-bit samples at 16000 Hz" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_log_loses_no_text(reference_bundle):
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, "listen", str(reference_bundle), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=full,
        )
        out, _ = process.communicate(pcm("librivox_0880.flac"), timeout=60)
    assert process.returncode == 0 and out.startswith(b"he was not")


def test_a_reader_that_goes_away_is_no_error(reference_bundle):
    process = listen(reference_bundle, "--json", "-")
    process.stdout.close()
    process.stdin.write(pcm("cards_001.flac"))
    process.stdin.close()
    assert process.wait(60) == 0
    assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "1", "-"], "belong to a microphone"),
        (["--end-silence", "0", "-"], "above 0"),
        (["--end-silence", "nan", "-"], "above 0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_line(arguments, words, capsys):
    assert main(["listen", "nowhere", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
