import pytest

from prunella.cli import main
from prunella.device_runtime.base.suggestions import did_you_mean, nearest_paths

TARGETS = ["apple-silicon", "jetson-agx-orin", "jetson-orin-nano", "raspberry-pi-5", "x86-cpu"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("jetson", "did you mean 'jetson-agx-orin' or 'jetson-orin-nano'?"),
        ("pi", "did you mean 'raspberry-pi-5'?"),
        ("X86", "did you mean 'x86-cpu'?"),
        ("jetson-orin-nona", "did you mean 'jetson-orin-nano'?"),
        ("nothing like it", ""),
        ("", ""),
    ],
)
def test_all_that_are_as_near_are_named(word, said):
    assert did_you_mean(word, TARGETS) == said


def test_a_mistyped_path_is_found_folder_by_folder(tmp_path):
    for name in ("pruned-int4", "pruned-int8", "full-fp32"):
        (tmp_path / "out" / "demo" / name).mkdir(parents=True)
    demo = tmp_path / "out" / "demo"
    assert nearest_paths(demo / "prned-int4") == [str(demo / "pruned-int4")]
    assert nearest_paths(tmp_path / "out" / "dmo" / "pruned-int8") == [str(demo / "pruned-int8")]
    assert nearest_paths(demo / "pruned-int") == [str(demo / "pruned-int4"), str(demo / "pruned-int8")]
    assert nearest_paths(demo / "pruned-int4") == []  # it is there
    assert nearest_paths(demo / "elsewhere") == nearest_paths("no/such/folder") == []


def test_a_mistyped_bundle_and_manifest_name_those_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "pruned-int4").mkdir(parents=True)
    (tmp_path / "dev.jsonl").write_text("")
    assert main(["transcribe", "out/pruned-int", "x.wav"]) == 1
    assert "did you mean 'out/pruned-int4'?" in capsys.readouterr().err
    assert main(["bench", "out/pruned-int4", "--speech", "dev.json"]) == 1
    assert "did you mean 'dev.jsonl'?" in capsys.readouterr().err
