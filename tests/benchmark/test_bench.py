import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunella.benchmark import compare, conditions, measure
from prunella.benchmark.bench import render_comparison, render_records
from prunella.benchmark.compare import Comparison
from prunella.benchmark.predicted import with_prediction
from prunella.benchmark.record import BenchRecord, ClipTiming, bench_record, median_timings
from prunella.cli import main
from prunella.device_runtime.base.errors import EngineError, PrunellaError, UsageError
from prunella.device_runtime.transcript import Segment, Timings, Transcript
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.systems import OpenedSystem
from prunella.targets.profile import load_target

MANIFEST = Path(__file__).parents[2] / "examples" / "clips" / "evaluation.jsonl"


def timing(clip="a", repeat=0, total=1.0, text="hello", **changes) -> ClipTiming:
    base = ClipTiming(clip, repeat, 10.0, total, 0.2, 0.1, 0.5, 0.35, 20, text)
    return replace(base, **changes)


def record(timings, **changes) -> BenchRecord:
    made = bench_record(
        timings,
        system="s",
        engine="e",
        threads=None,
        load_seconds=2.0,
        first_call_seconds=3.0,
        peak_memory_bytes=5_000_000,
        disk_bytes=None,
        conditions={"cpu": "a CPU"},
    )
    return replace(made, **changes)


def test_medians_are_taken_clip_by_clip():
    timings = [timing("a", i, total) for i, total in enumerate((1.0, 9.0, 2.0))]
    timings += [timing("b", i, total) for i, total in enumerate((4.0, 3.0, 50.0))]
    assert [t.total for t in median_timings(timings)] == [2.0, 4.0]
    made = record(timings)
    assert (made.clips, made.repeats) == (2, 3)
    assert made.real_time_factor == pytest.approx(6.0 / 20.0)
    assert made.times_real_time == pytest.approx(20.0 / 6.0)
    assert made.decode_tokens_per_second == pytest.approx(40)
    assert made.first_token_seconds == pytest.approx(0.35)
    assert not made.failed


def test_what_a_system_does_not_time_is_none_and_not_zero():
    made = record([timing(encode=0.0, prefill=0.0, decode=0.0, first_token=0.0)])
    assert made.decode_tokens_per_second is made.first_token_seconds is made.decode_seconds is None


def test_one_empty_repeat_fails_the_clip():
    made = record([timing("a", 0), timing("a", 1, text=" "), timing("a", 2)])
    assert made.failed and made.empty == 1
    assert "FAILED s: 1 of 1" in render_comparison(Comparison((made,), ()))


def test_a_record_survives_json():
    made = record([timing()])
    values = json.loads(json.dumps(made.to_json()))
    assert values["failed"] is False
    assert BenchRecord.from_json(values) == made


def test_nothing_measured_is_no_record():
    with pytest.raises(ValueError, match="at least one timing"):
        record([])


def test_conditions_are_json_and_name_the_machine():
    found = json.loads(json.dumps(conditions.conditions()))
    assert found["cpu"] and found["python"] and "numpy" in found["versions"]
    assert found["cpu_threads"] >= 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux'")
def test_peak_memory_sees_what_was_freed_and_not_the_parents():
    ballast = np.ones(40_000_000 // 8)
    assert conditions.peak_memory_bytes() > ballast.nbytes
    # ~150 MB held here must not show in a child that holds nothing.
    ballast = np.ones(150_000_000 // 8)
    code = "from prunella.benchmark.conditions import peak_memory_bytes as p; {}; print(p())"
    bare, peaked = (
        int(subprocess.run([sys.executable, "-c", code.format(body)], capture_output=True, check=True).stdout)
        for body in ("0", "bytearray(60_000_000)")
    )
    assert bare < ballast.nbytes
    assert peaked - bare == pytest.approx(60_000_000, rel=0.2)


class Fake:
    def transcribe(self, samples):
        segment = Segment(0, 1, "hi", (1, 2, 3), 10, "eos", Timings())
        return Transcript("hi", (segment,), Timings(audio=1, decode=1e6, first_token=1e6, total=1e6), "fake")


def lines_of(results: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in results.getvalue().splitlines()]


def test_the_measured_process_answers_line_by_line(monkeypatch):
    monkeypatch.setattr(measure, "open_system", lambda name, **_: OpenedSystem(name, Fake(), "f", 123))
    clip = read_manifest(MANIFEST).utterances[1]
    results = io.StringIO()
    measure.serve("fake", io.StringIO(json.dumps(str(clip.audio)) + "\n"), results)
    loaded, answer, end = lines_of(results)
    assert loaded == {"disk_bytes": 123, "missing": []}
    assert answer["audio_seconds"] == pytest.approx(clip.duration, abs=0.01)
    assert (answer["tokens"], answer["text"], answer["engine"]) == (3, "hi", "fake")
    assert 0 < answer["total"] < 1e6  # the clock of the process that waits, not what the system claims
    assert end["peak_memory_bytes"] is None or end["peak_memory_bytes"] > 1_000_000


def test_the_measured_process_passes_errors_on(tmp_path):
    results = io.StringIO()
    measure.serve("./none", io.StringIO(), results)
    (error,) = lines_of(results)
    assert "no bundle or model folder" in error["error"] and error["exit_code"] == 2
    with pytest.raises(PrunellaError, match=r"\./none: no bundle") as caught:
        compare.measure(["./none"], read_manifest(MANIFEST))
    assert caught.value.exit_code == 2


def test_a_process_that_dies_is_an_error_and_not_a_hang(monkeypatch):
    monkeypatch.setattr(compare.sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match=r"died while loading \(exit code 1\)"):
        compare.MeasuredProcess("whisper-tiny.en")


def test_native_output_does_not_reach_the_results(tmp_path):
    """Descriptor 1 of the measured process is stderr while it works, whoever writes to it."""
    code = (
        "import os, sys\n"
        "from prunella.benchmark import measure\n"
        "def loud(name, **_): os.write(1, b'native noise\\n'); raise measure.PrunellaError('as expected')\n"
        "measure.open_system = loud\n"
        "measure.main(['x'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert done.stderr == "native noise\n"
    assert json.loads(done.stdout)["error"] == "as expected"


@pytest.mark.parametrize(("systems", "repeat"), [([], 3), (["whisper-tiny.en"], 0)])
def test_nothing_to_measure_is_refused(systems, repeat):
    with pytest.raises(UsageError):
        compare.measure(systems, read_manifest(MANIFEST), repeat=repeat)


@pytest.mark.slow
def test_a_system_is_measured_against_itself(capsys):
    arguments = ["bench", "whisper-tiny.en", "whisper-tiny.en", "--speech", str(MANIFEST), "--json"]
    arguments += ["--limit", "2", "--source", "cards", "--threads", "1"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["records"]) == 2
    for values in result["records"]:
        assert values["empty"] == 0 and values["clips"] == 2 and values["repeats"] == 3
        assert (
            values["load_seconds"] > 0 and values["first_call_seconds"] > 0 and values["real_time_factor"] > 0
        )
        assert values["disk_bytes"] > 75_000_000
        assert values["peak_memory_bytes"] > 80_000_000 or os.name == "nt"
    (speed_up,) = result["speed_ups"]
    base, other = (values["real_time_factor"] for values in result["records"])
    assert speed_up["end_to_end"]["value"] == pytest.approx(base / other, rel=1e-3)  # over the same clips
    assert speed_up["decode"] is None


@pytest.mark.slow
def test_beams_are_measured_where_they_are_asked_for(reference_bundle, capsys):
    line = [
        "bench",
        str(reference_bundle),
        "--speech",
        str(MANIFEST),
        "--limit",
        "1",
        "--source",
        "cards",
        "--json",
    ]
    seconds = {}
    for beams in (None, 1, 4):
        asked = [] if beams is None else ["--beams", str(beams)]
        assert main([*line, "--repeat", "1", "--threads", "1", *asked]) == 0
        (record,) = json.loads(capsys.readouterr().out)["records"]
        assert record["conditions"].get("beams") == beams
        seconds[beams] = record["decode_seconds"]
    assert seconds[4] > seconds[1]
    assert main([*line, "--beams", "-1"]) == 2


@pytest.fixture
def target():
    """A target whose rates are known, and one whose rates are not."""
    known, unknown = load_target("raspberry-pi-5"), load_target("x86-cpu")
    assert known.compute.known and not unknown.compute.known
    return known, unknown


def test_bundles_are_held_against_what_is_predicted(reference_bundle, target):
    known, unknown = target
    made = replace(record([timing(), timing("b")]), system=str(reference_bundle))
    held = with_prediction(made, [timing(), timing("b")], known, beams=1)
    more = with_prediction(made, [timing(tokens=40), timing("b")], known, beams=1)
    assert 0 < held.predicted_real_time_factor < more.predicted_real_time_factor
    assert held.of_predicted == pytest.approx(held.predicted_real_time_factor / made.real_time_factor)
    shown = render_records([held, replace(made, system="another")])
    assert "of predicted" in shown and shown.splitlines()[-1].split()[-1] == "-"
    assert with_prediction(record([timing()]), [timing()], known, beams=1).of_predicted is None  # no bundle
    assert BenchRecord.from_json(held.to_json()).of_predicted == pytest.approx(held.of_predicted, rel=1e-3)
    with pytest.raises(UsageError, match="--calibrate"):
        compare.measure([str(reference_bundle)], read_manifest(MANIFEST), target=unknown)


def test_speed_up_is_base_over_system():
    base = [timing("a", i, 4.0, decode=2.0, tokens=20) for i in range(3)]
    fast = [timing("a", i, 1.0, decode=0.5, tokens=10) for i in range(3)]
    speed_up = compare.speed_up("base", base, "fast", fast)
    assert speed_up.end_to_end.value == pytest.approx(4.0)
    assert speed_up.decode.value == pytest.approx(2.0)  # 10 tokens a second against 20
    comparison = Comparison((record(base), record(fast)), (speed_up,))
    assert "end to end 4.00 times as fast" in render_comparison(comparison)
    assert comparison.to_json()["speed_ups"][0]["decode"]["value"] == pytest.approx(2.0)
