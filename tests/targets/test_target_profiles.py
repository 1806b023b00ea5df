import json

import pytest

from prunella.cli import main
from prunella.device_runtime.errors import TargetError
from prunella.targets.profile import PROFILES, list_targets, load_target

GOOD = (PROFILES / "x86-cpu.toml").read_text()


def test_every_profile_parses_and_bears_its_files_name():
    assert "x86-cpu" in list_targets()
    for name in list_targets():
        profile = load_target(name)
        assert profile.name == name
        assert profile.install


def test_a_profile_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('name = "x86-cpu"', 'name = "mine"').replace("threads = 0", "threads = 4"))
    profile = load_target(path)
    assert (profile.name, profile.threads, profile.match.arch) == ("mine", 4, ("x86_64", "AMD64"))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name = "x86-cpu"', "", r"mine.toml: the key 'name' is missing"),
        ("threads = 0", "thread = 0", r"unknown key 'thread': did you mean 'threads'\?"),
        ("threads = 0", "threads = true", "'threads' must be a whole number, is True"),
        ("threads = 0", "threads = -1", "'threads' must be 0"),
        ('engines = ["onnx"]', 'engines = "onnx"', "'engines' must be a list of strings"),
        ('engines = ["onnx"]', 'engines = ["tflite"]', "'engines' holds 'tflite': choose among onnx, gguf"),
        ('engines = ["onnx"]', "engines = []", "'engines' is empty"),
        ('recipe = "int4"', 'recipe = "int3"', "'recipe' is 'int3', which is not in 'recipes'"),
        ("arch =", "cpu =", r"unknown key 'match.cpu'"),
        ("max_context = 2048", "max_context = 8", "'max_context' must be 64 or more"),
        ("[match]", "[match", "is not valid TOML"),
    ],
)
def test_errors_name_file_and_key(old, new, complaint, tmp_path):
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(TargetError, match=complaint) as error:
        load_target(path)
    assert "mine.toml" in str(error.value)


def test_match_must_be_a_table(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.partition("[match]")[0] + 'match = "x86"\n')
    with pytest.raises(TargetError, match="'match' must be a table"):
        load_target(path)


def test_unknown_targets(tmp_path):
    with pytest.raises(TargetError, match=r"no target 'jetson': .*`prunella targets list`"):
        load_target("jetson")
    with pytest.raises(TargetError, match="did you mean 'x86-cpu'"):
        load_target("x86cpu")
    with pytest.raises(TargetError, match=r"cannot read the target .*none\.toml"):
        load_target(tmp_path / "none.toml")


def test_the_verb(capsys):
    assert main(["targets", "list"]) == 0
    assert capsys.readouterr().out.startswith("x86-cpu")
    assert main(["targets", "show", "x86-cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "int4"
    assert main(["targets", "show", "x86-cpu"]) == 0
    assert "match.arch" in capsys.readouterr().out
    assert main(["targets", "show", "jetson"]) == 2
