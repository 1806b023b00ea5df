import json

import pytest

from prunella.cli import main
from prunella.device_runtime.base.errors import TargetError
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
        ('engines = ["onnx", "gguf"]', 'engines = "onnx"', "'engines' must be a list of strings"),
        (
            'engines = ["onnx", "gguf"]',
            'engines = ["tflite"]',
            "'engines' holds 'tflite': choose among onnx, gguf",
        ),
        ('engines = ["onnx", "gguf"]', "engines = []", "'engines' is empty"),
        ('recipe = "int4" ', 'recipe = "int3" ', "'recipe' is 'int3', which is not in 'recipes'"),
        ("arch =", "cpu =", r"unknown key 'match.cpu'"),
        ("max_context = 2048", "max_context = 8", "'max_context' must be 64 or more"),
        ("[match]", "[match", "is not valid TOML"),
        (
            '"CPUExecutionProvider"',
            '"CUDAExecutionProvder"',
            "'providers' is .*did you mean 'CUDAExecutionProvider'",
        ),
        ("[match]", "[provider_options.CUDAExecutionProvider]\n[match]", "not in 'providers'"),
        ("[match]", "[provider_options.CPUExecutionProvider]\narena = 1\n[match]", "it takes none"),
        (
            "[match]",
            "[llama]\nn_gpu_layer = 3\n[match]",
            r"'llama.n_gpu_layer' is no setting .*'n_gpu_layers'",
        ),
        ("[match]", "[llama]\noffload_kqv = 3\n[match]", "'llama.offload_kqv' must be true or false, is 3"),
        (
            "[match]",
            '[precision]\nhead = "int2"\n[match]',
            "'precision.head' is 'int2': choose among float, int8",
        ),
        ("[match]", "[bandwidth]\ngb_per_s = 17\n[match]", "'bandwidth.source' is missing"),
        ("[match]", '[bandwidth]\ngb_per_s = "17"\n[match]', "'bandwidth.gb_per_s' must be a number"),
        ("[match]", "[[match]]", "'match' must be a table"),
        ("budget_mb = 4000", "budget_mb = -4000", "'memory.budget_mb' must be 0"),
        ('name = "x86-cpu"', 'name = "m"\ninherits = 3', "'inherits' must be a string"),
        (
            'name = "x86-cpu"',
            'name = "m"\ninherits = "x86-cp"',
            "'inherits': no target 'x86-cp': did you mean",
        ),
    ],
)
def test_errors_name_file_and_key(old, new, complaint, tmp_path):
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(TargetError, match=complaint) as error:
        load_target(path)
    assert "mine.toml" in str(error.value)


def test_unknown_targets(tmp_path):
    with pytest.raises(TargetError, match=r"no target 'zzz': .*`prunella targets list`"):
        load_target("zzz")
    with pytest.raises(TargetError, match="did you mean 'x86-cpu'"):
        load_target("x86cpu")
    with pytest.raises(TargetError, match=r"cannot read the target .*none\.toml"):
        load_target(tmp_path / "none.toml")


def test_options_of_the_providers(tmp_path):
    path = tmp_path / "mine.toml"

    def write(options):
        path.write_text(f'name = "mine"\ninherits = "jetson-agx-orin"\n[provider_options.{options}\n')
        return path

    options = load_target(write("CUDAExecutionProvider]\ndevice_id = 1")).onnx_providers()[1].options
    assert options["device_id"] == 1
    assert options["gpu_mem_limit"] == 4_294_967_296  # the parent's
    for wrong, complaint in (
        (
            "CUDAExecutionProvider]\ngpu_memory_limit = 1",
            r"no option of CUDA\w+: did you mean 'gpu_mem_limit'",
        ),
        ('CUDAExecutionProvider]\ncudnn_conv_algo_search = "FAST"', "choose among DEFAULT, HEURISTIC"),
        ("TensorrtExecutionProvider]\ntrt_fp16_enable = []", "must be a string, a number, true or false"),
    ):
        with pytest.raises(TargetError, match=complaint) as error:
            load_target(write(wrong))
        assert f"{path}: 'provider_options." in str(error.value)


def test_inheritance(tmp_path):
    parent, child = load_target("jetson-orin-nano"), load_target("jetson-agx-orin")
    assert child.engines == parent.engines
    assert child.match.arch == ("aarch64",)
    assert child.match.device_tree != parent.match.device_tree
    base, mine = tmp_path / "base.toml", tmp_path / "mine.toml"
    base.write_text('name = "base"\ninherits = "x86-cpu"\nthreads = 3\n')
    mine.write_text('name = "mine"\ninherits = "base.toml"\nmax_context = 512\n')
    profile = load_target(mine)
    assert (profile.name, profile.threads, profile.max_context, profile.recipe) == ("mine", 3, 512, "int4")
    mine.write_text('inherits = "base.toml"\n')
    with pytest.raises(TargetError, match=r"mine.toml: the key 'name' is missing"):
        load_target(mine)
    base.write_text('name = "base"\ninherits = "x86-cpu"\nthreds = 3\n')
    with pytest.raises(TargetError, match=r"base.toml: unknown key 'threds'"):  # the file it stands in
        load_target(mine)
    base.write_text('name = "base"\ninherits = "mine.toml"\n')
    with pytest.raises(TargetError, match=r"leads back to mine\.toml"):
        load_target(mine)


def test_the_verb(capsys):
    assert main(["targets", "list"]) == 0
    assert "\nx86-cpu " in capsys.readouterr().out
    assert main(["targets", "show", "x86-cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "int4"
    assert main(["targets", "show", "x86-cpu"]) == 0
    assert "match.arch" in capsys.readouterr().out
    assert main(["targets", "show", "jetson-orin"]) == 2


@pytest.mark.parametrize("name", list_targets())
def test_every_target_is_shown(name, capsys):
    assert main(["targets", "show", name]) == 0
    assert "source" in capsys.readouterr().out or not load_target(name).compute.known
