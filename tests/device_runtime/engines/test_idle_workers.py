"""Workers of a session wait while others do their work, and nothing hangs: not a run, not the session's end, not the interpreter's."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from prunella.device_runtime.engines.idle_workers import IdleWorkers

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SIZE = 256
SESSION = """
import sys, onnxruntime
from prunella.device_runtime.engines.idle_workers import IdleWorkers
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 3
session = onnxruntime.InferenceSession(sys.argv[1], options)
workers = IdleWorkers(onnxruntime, session, 3)
"""
ENDS = {
    "while they wait": "workers.leave(1)",
    "on their way back": "workers.leave(1); workers.leave(3)",
    "after some time": "workers.leave(2); import time; time.sleep(0.2)",
    "by the session": "workers.leave(1); del session, workers",
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A product that is large enough for several threads."""
    value = onnx.helper.make_tensor_value_info
    weights = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
    made = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [value("x", onnx.TensorProto.FLOAT, ["rows", SIZE])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", SIZE])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path_factory.mktemp("graph") / "product.onnx"
    onnx.save(
        onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def open_graph(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def waiting():
    """Threads that are in the callback."""
    frames = sys._current_frames().values()  # noqa: SLF001
    found = 0
    for frame in frames:
        while frame is not None:
            found += frame.f_code.co_qualname == "_Idle.wait" if hasattr(frame.f_code, "co_qualname") else 0
            frame = frame.f_back
    return found


@pytest.mark.parametrize("threads", [2, 4])
def test_the_same_answers_with_every_number_of_threads(graph, threads):
    session = open_graph(graph, threads)
    workers = IdleWorkers(onnxruntime, session, threads)
    x = np.random.default_rng(1).standard_normal((64, SIZE)).astype(np.float32)
    expected = session.run(None, {"x": x})[0]
    counts = [1, threads, 2, 1, 1, threads, *np.random.default_rng(2).integers(1, threads + 1, 60).tolist()]
    for count in counts:
        workers.leave(count)
        for _ in range(3):
            np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects have no qualified name")
def test_as_many_wait_as_should(graph):
    session = open_graph(graph, 4)
    workers = IdleWorkers(onnxruntime, session, 4)
    for count in (2, 1, 3, 4):
        workers.leave(count)
        deadline = time.monotonic() + 60
        while waiting() != 4 - count and time.monotonic() < deadline:
            session.run(None, {"x": np.zeros((8, SIZE), np.float32)})
        assert waiting() == 4 - count


@pytest.mark.parametrize("end", ENDS)
def test_processes_end(graph, end):
    ended = subprocess.run(
        [sys.executable, "-c", SESSION + ENDS[end], str(graph)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("providers", "kind"),
    [(["CUDAExecutionProvider"], "tensor(float)"), (["CPUExecutionProvider"], "tensor(string)")],
)
def test_all_stay_where_it_would_not_do(providers, kind):
    session = SimpleNamespace(
        get_providers=lambda: providers,
        get_inputs=lambda: [SimpleNamespace(name="x", shape=[1, "n"], type=kind)],
    )
    IdleWorkers(onnxruntime, session, 2).leave(1)  # there is no `run_async` to call
