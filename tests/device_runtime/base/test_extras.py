import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunella.device_runtime.base.errors import EngineError
from prunella.device_runtime.base.extras import LIBRARIES, explained, is_installed, require
from prunella.device_runtime.base.install_lines import install_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
CLIPS = Path(__file__).parents[3] / "examples" / "clips" / "evaluation.jsonl"


def _program(folder, *words):
    """prunella, with the libraries that lie in `folder` before all others."""
    return subprocess.run(
        [sys.executable, "-m", "prunella", *words],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_library_is_in_the_extra_that_is_named():
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    for module, (library, extra) in LIBRARIES.items():
        assert any(line.startswith((f"{library}>", f"{library}=")) for line in extras[extra]), module
    listed = {
        line.split(">")[0]
        for extra in ("cpu", "eval", "gguf", "serve", "deploy", "build")
        for line in extras[extra]
    }
    assert listed <= {library for library, _ in LIBRARIES.values()} | {"prunella[cpu,eval,deploy]"}


def test_all_that_is_missing_is_named_at_once(monkeypatch):
    for module in ("jiwer", "llama_cpp", "onnxruntime", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    require(["soundfile"], "this")
    with pytest.raises(EngineError) as refused:
        require(["llama_cpp", "numpy", "torch", "jiwer", "onnxruntime"], "`prunella build`")
    message = str(refused.value)
    assert message.startswith("`prunella build` needs llama-cpp-python, torch, jiwer, onnxruntime: ")
    assert install_line("build", "gguf") in message  # build brings cpu and eval


def test_what_every_install_has_names_no_extra(monkeypatch):
    for module in ("soxr", "starlette"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError) as refused:
        require(["soxr"], "this")
    assert str(refused.value) == f"this needs soxr: {install_line()}" and "[" not in install_line()
    with pytest.raises(EngineError) as refused:
        require(["soxr", "starlette"], "this")
    assert str(refused.value).endswith(install_line("serve"))


def test_a_folder_of_the_same_name_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "uvicorn_of_mine").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("uvicorn_of_mine")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "import surely_not_there",
            ["is installed, but surely_not_there", "pip install surely_not_there"],
        ),
        (
            "raise ImportError('libcudart.so.12: cannot open')",
            ["installed but cannot be loaded (libcudart"],
        ),
    ],
)
def test_installed_but_broken_is_not_called_missing(tmp_path, body, said):
    for module in ("llama_cpp", "faster_whisper"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(body + "\n")
    check = "from prunella.device_runtime.engines.llama_library import llama_library as l; l()"
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "needs llama-cpp-python" in last and all(part in last for part in said), last
    heard = _program(tmp_path, "bench", "whisper-tiny.en", "--speech", str(CLIPS), "--limit", "1")
    assert heard.returncode == 1 and "needs faster-whisper, which is installed" in heard.stderr, heard.stderr
    assert "Traceback" not in heard.stderr


def test_a_module_of_no_extra_is_named_as_it_is():
    try:
        import surely_not_there  # noqa: F401
    except ImportError as error:
        assert "needs surely_not_there: pip install" in str(explained(error, "this"))
