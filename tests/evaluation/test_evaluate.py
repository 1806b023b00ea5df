import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from prunella.cli import main
from prunella.device_runtime.base.errors import AudioError, ManifestError, UsageError
from prunella.device_runtime.transcript import Segment, Timings, Transcript
from prunella.evaluation import evaluate as module
from prunella.evaluation.evaluate import evaluate
from prunella.evaluation.manifest import read_manifest
from prunella.evaluation.report import GroupReport, compare_reports, render_report
from prunella.evaluation.systems import OpenedSystem

REQUIRED = {"wer", "cer", "substitutions", "deletions", "insertions", "words", "clips"}
TEXTS = ["the cat sat down", "come here", "birds sing at dawn", "red blue"]


class Fake:
    """Says what it was told to for each clip: the clip's number is in its amplitude."""

    def __init__(self, texts, *, score=None):
        self.texts = texts
        self.calls = 0
        if score is not None:
            self.score = score

    def transcribe(self, samples):
        self.calls += 1
        text = self.texts[round(float(samples.max()) * 10) - 1]
        timings = Timings(audio=1.0, decode=0.1, total=0.25)
        segment = Segment(0.0, 1.0, text, (1, 2), 10, "eos" if text else "silence", timings)
        return Transcript(text, (segment,), timings, "fake")


@pytest.fixture
def manifest_path(tmp_path):
    lines = []
    for i, text in enumerate(TEXTS, start=1):
        soundfile.write(tmp_path / f"{i}.wav", np.full(16_000, i / 10, np.float32), 16_000, subtype="FLOAT")
        line = {"audio_filepath": f"{i}.wav", "duration": 1.0, "text": text}
        lines.append(line if i == 4 else {**line, "source": "people" if i < 3 else "more"})
    path = tmp_path / "speech.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture
def fakes(monkeypatch):
    systems = {
        "perfect": Fake(TEXTS),
        "poor": Fake(["the cat sad down", "", "birds sing at dawn loudly", "red"]),
    }
    monkeypatch.setattr(
        module, "open_system", lambda name, **_: OpenedSystem(name, systems[name], name, None)
    )
    monkeypatch.setattr(module, "check_system", systems.__getitem__)
    return systems


def test_rates_by_source(manifest_path):
    report = evaluate(
        Fake(["the cat sad down", "", "birds sing at dawn loudly", "red"]), read_manifest(manifest_path)
    )
    overall, people = report.overall, report.sources["people"]
    assert list(report.sources) == ["people", "more", "unknown"]
    assert (overall.words, overall.clips, overall.empty) == (12, 4, 1)
    assert (overall.substitutions, overall.deletions, overall.insertions) == (1 / 12, 3 / 12, 1 / 12)
    assert overall.wer == pytest.approx(5 / 12)
    assert overall.wer_low <= overall.wer <= overall.wer_high
    assert (people.wer, people.empty) == (3 / 6, 1)
    assert overall.finish_reasons == {"eos": 3, "silence": 1}
    assert overall.real_time_factor == pytest.approx(0.25)
    assert overall.decode_tokens_per_second == pytest.approx(20)
    assert overall.cross_entropy is None
    assert "FAILED, no text: 2.wav" in render_report(report)


def test_cross_entropy_is_per_token_and_optional(manifest_path):
    manifest = read_manifest(manifest_path)
    system = Fake(TEXTS, score=lambda samples, text: (2.0 * len(text.split()), len(text.split())))
    assert evaluate(system, manifest).overall.cross_entropy == pytest.approx(2.0)
    assert evaluate(system, manifest, score=False).overall.cross_entropy is None


def test_a_clip_that_cannot_be_scored_still_counts(manifest_path):
    def score(samples, text):
        if text == TEXTS[0]:
            raise AudioError("too long")
        return 3.0, 2

    report = evaluate(Fake(TEXTS, score=score), read_manifest(manifest_path))
    assert report.overall.clips == 4
    assert report.overall.cross_entropy == pytest.approx(9.0 / 6)


def test_unreadable_audio_is_skipped_and_said(manifest_path, capsys):
    (manifest_path.parent / "2.wav").write_bytes(b"this is not audio")
    report = evaluate(Fake(TEXTS), read_manifest(manifest_path))
    assert report.overall.clips == 3
    assert len(report.skipped) == 1
    assert "not evaluated: 1 clip" in render_report(report)
    assert "skipped 2.wav" in capsys.readouterr().err
    for i in (1, 3, 4):
        (manifest_path.parent / f"{i}.wav").write_bytes(b"nor is this")
    with pytest.raises(ManifestError, match="no clip could be evaluated"):
        evaluate(Fake(TEXTS), read_manifest(manifest_path))


def test_an_interrupted_evaluation_goes_on(manifest_path, tmp_path):
    manifest, records = read_manifest(manifest_path), tmp_path / "out" / "records.jsonl"
    first = Fake(TEXTS)
    complete = evaluate(first, manifest, records=records, name="a")
    lines = records.read_text().splitlines()
    assert (first.calls, len(lines)) == (4, 4)
    # As a kill leaves it: two whole lines and a torn one.
    records.write_text("\n".join([*lines[:2], lines[2][:40]]))
    second = Fake(TEXTS)
    resumed = evaluate(second, manifest, records=records, name="a")
    assert second.calls == 2
    assert resumed.overall == complete.overall
    third = Fake(TEXTS)
    evaluate(third, manifest, records=records, name="a")
    assert third.calls == 0


def test_a_name_of_another_encoding_is_kept(manifest_path, tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / "1.wav").rename(tmp_path / name)
    manifest_path.write_text(manifest_path.read_text().replace('"1.wav"', json.dumps(name)))
    records = tmp_path / "records.jsonl"
    for calls in (4, 0):
        system = Fake(TEXTS)
        evaluate(system, read_manifest(manifest_path), records=records)
        assert system.calls == calls


def test_nothing_is_appended_to_a_file_of_something_else(manifest_path, tmp_path):
    asked = Fake(TEXTS)
    before = manifest_path.read_text()
    for taken in (manifest_path, tmp_path):
        with pytest.raises(UsageError, match="choose another name"):
            evaluate(asked, read_manifest(manifest_path), records=taken)
    assert asked.calls == 0 and manifest_path.read_text() == before


@pytest.mark.parametrize(
    "change", [{"tokens": "3"}, {"audio_seconds": None}, {"scored": 1}, {"hypothesis": 3}]
)
def test_a_record_with_a_value_of_another_type_is_not_believed(manifest_path, tmp_path, capsys, change):
    records = tmp_path / "records.jsonl"
    manifest = read_manifest(manifest_path)
    evaluate(Fake(TEXTS), manifest, records=records)
    first, *rest = records.read_text().splitlines()
    records.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]) + "\n")
    capsys.readouterr()
    again = Fake([TEXTS[0]])
    assert evaluate(again, manifest, records=records).overall.clips == len(manifest)
    assert "1 unreadable line(s) ignored" in capsys.readouterr().err


def test_records_are_not_reused_for_another_system_or_another_text(manifest_path, tmp_path):
    records = tmp_path / "records.jsonl"
    evaluate(Fake(TEXTS), read_manifest(manifest_path), records=records, fingerprint="a")
    other = Fake(TEXTS)
    evaluate(other, read_manifest(manifest_path), records=records, fingerprint="b")
    assert other.calls == 4
    manifest_path.write_text(manifest_path.read_text().replace("red blue", "red green"))
    changed = Fake(TEXTS)
    report = evaluate(changed, read_manifest(manifest_path), records=records, fingerprint="a")
    assert changed.calls == 1
    assert report.overall.substitutions == pytest.approx(1 / 12)


def test_records_are_not_reused_for_another_recording_of_the_same_size(manifest_path, tmp_path):
    records = tmp_path / "records.jsonl"
    evaluate(Fake(TEXTS), read_manifest(manifest_path), records=records)
    clip = manifest_path.parent / "1.wav"
    content = bytearray(clip.read_bytes())
    content[-2:] = bytes(byte ^ 1 for byte in content[-2:])
    clip.write_bytes(content)
    again = Fake(TEXTS)
    evaluate(again, read_manifest(manifest_path), records=records)
    assert again.calls == 1


def test_records_without_a_score_are_not_enough_where_one_is_wanted(manifest_path, tmp_path):
    manifest, records = read_manifest(manifest_path), tmp_path / "records.jsonl"
    system = Fake(TEXTS, score=lambda samples, text: (1.0, 1))
    evaluate(system, manifest, records=records, score=False)
    assert evaluate(system, manifest, records=records).overall.cross_entropy == pytest.approx(1.0)
    assert evaluate(system, manifest, records=records).overall.cross_entropy == pytest.approx(1.0)
    assert system.calls == 8


def test_comparing_pairs_the_clips(manifest_path):
    manifest = read_manifest(manifest_path)
    good, poor = (
        evaluate(Fake(TEXTS), manifest, name="good"),
        evaluate(Fake(["", "", "", ""]), manifest, name="poor"),
    )
    paired = compare_reports(poor, good)
    assert paired.overall.difference == pytest.approx(-1.0)
    assert "good beats poor" in paired.verdict()
    itself = compare_reports(good, good)
    assert (itself.overall.low, itself.overall.high) == (0, 0)
    assert "cannot be told apart" in itself.verdict()
    shared = compare_reports(good, evaluate(Fake(TEXTS), manifest.only(["more"])))
    assert shared.overall.clips == 1
    with pytest.raises(ManifestError, match="share no clip"):
        compare_reports(
            evaluate(Fake(TEXTS), manifest.only(["people"])), evaluate(Fake(TEXTS), manifest.only(["more"]))
        )


def test_the_verb_writes_the_agreed_json(manifest_path, fakes, capsys):
    assert main(["eval", "poor", "--speech", str(manifest_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"overall", "people", "more", "unknown"}
    for group in result.values():
        assert set(group) >= REQUIRED
        assert GroupReport.from_json(group).to_json() == group
    assert result["overall"]["wer"] == pytest.approx(5 / 12, abs=1e-6)


def test_the_verb_with_two_systems(manifest_path, fakes, capsys):
    assert main(["eval", "poor", "perfect", "--speech", str(manifest_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"systems", "a", "b", "paired"}
    assert result["systems"] == ["poor", "perfect"]
    assert result["b"]["overall"]["wer"] == 0
    assert result["paired"]["overall"]["difference"] == pytest.approx(-5 / 12, abs=1e-6)
    assert set(result["paired"]) == set(result["a"])


def test_the_verb_selects_and_prints_a_table(manifest_path, fakes, capsys):
    arguments = ["eval", "perfect", "--speech", str(manifest_path), "--limit", "1", "--source", "people"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert fakes["perfect"].calls == 1
    assert "WER%" in out and "people" in out and "more" not in out


def test_the_verb_shows_transcripts_under_what_was_said(manifest_path, fakes, capsys):
    words = ["eval", "poor", "--speech", str(manifest_path), "--clip", "1", "--clip", "4.wav"]
    assert main([*words, "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1.wav: 4 words, 1 wrong\n  said   the cat sat down\n  heard  the cat sad down\n")
    assert "4.wav" not in out and "overall" in out and out.count("said") == 1
    assert main([*words, "--show"]) == 0 and capsys.readouterr().out.count("heard") == 2
    assert main([*words, "--clip", "5"]) == 2 and "has no clip '5'" in capsys.readouterr().err
    assert main([*words, "--show", "1", "--json"]) == 2


def test_the_verb_reports_errors_in_one_line(manifest_path, fakes, capsys):
    assert main(["eval", "perfect", "--speech", str(manifest_path), "--source", "none"]) == 2
    assert main(["eval", "perfect", "--speech", str(Path("none.jsonl"))]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 2


def test_a_source_called_overall_does_not_hide_the_overall(manifest_path):
    manifest_path.write_text(manifest_path.read_text().replace('"people"', '"overall"'))
    report = evaluate(Fake(TEXTS), read_manifest(manifest_path))
    groups = report.to_json()
    assert (groups["overall"]["clips"], groups["overall (source)"]["clips"]) == (4, 2)
