"""Silero's network rewritten so that it judges many frames in one run: the graph that `device_runtime/sound/vad.py` loads.

    pip download --no-deps silero-vad==6.2.3 && unzip silero_vad-6.2.3-*.whl
    python research/silero_sequence.py silero_vad/data/silero_vad_16k_op15.onnx -o silero_vad_16k.onnx

The original takes one frame a run, and most of its 130 nodes reckon shapes. Here the convolutions take all frames at once and
the LSTM reads them one after the other: frames (n, 576) float32 and state (2, 1, 128) → output (n,) and stateN. The weights are
the same numbers, only the LSTM's gates are in ONNX's order (i, o, f, c), not PyTorch's (i, f, c, o).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 128  # of the LSTM
_BINS = 129  # of the spectrum
_FRAME = 576  # samples: 64 of the frame before, and 512


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph for many frames, with the weights of the original's 16 kHz half."""
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights: dict[str, npt.NDArray[np.generic]] = {
        "spectrum": given["model.stft.forward_basis_buffer"],
        "input": _gates(given["model.decoder.rnn.weight_ih"])[None],
        "recurrent": _gates(given["model.decoder.rnn.weight_hh"])[None],
        "bias": np.concatenate([_gates(given[f"model.decoder.rnn.bias_{part}h"]) for part in "ih"])[None],
        "out": given["model.decoder.decoder.2.weight"].reshape(_WIDTH, 1),
        "out.bias": given["model.decoder.decoder.2.bias"],
        "mirrored": np.array([0, 0, 0, 64], np.int64),
        "one": np.array([1], np.int64),
        "halves": np.array([_BINS, _BINS], np.int64),
        "sequence": np.array([-1, 1, _WIDTH], np.int64),
        "rows": np.array([-1, _WIDTH], np.int64),
        "flat": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("Pad", ["frames", "mirrored"], ["padded"], mode="reflect"),
        helper.make_node("Unsqueeze", ["padded", "one"], ["wave"]),
        helper.make_node("Conv", ["wave", "spectrum"], ["complex"], strides=[128]),
        helper.make_node("Split", ["complex", "halves"], ["real", "imaginary"], axis=1),
        helper.make_node("Mul", ["real", "real"], ["real2"]),
        helper.make_node("Mul", ["imaginary", "imaginary"], ["imaginary2"]),
        helper.make_node("Add", ["real2", "imaginary2"], ["power"]),
        helper.make_node("Sqrt", ["power"], ["heard0"]),
    ]
    for layer, stride in enumerate((1, 2, 2, 1)):
        for part in ("weight", "bias"):
            weights[f"conv{layer}.{part}"] = given[f"model.encoder.{layer}.reparam_conv.{part}"]
        names = [f"heard{layer}", f"conv{layer}.weight", f"conv{layer}.bias"]
        nodes += [
            helper.make_node("Conv", names, [f"conv{layer}"], pads=[1, 1], strides=[stride]),
            helper.make_node("Relu", [f"conv{layer}"], [f"heard{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("Reshape", ["heard4", "sequence"], ["steps"]),
        helper.make_node("Split", ["state"], ["hidden", "cell"], axis=0),
        helper.make_node(
            "LSTM",
            ["steps", "input", "recurrent", "bias", "", "hidden", "cell"],
            ["states", "hiddenN", "cellN"],
            hidden_size=_WIDTH,
        ),
        helper.make_node("Concat", ["hiddenN", "cellN"], ["stateN"], axis=0),
        helper.make_node("Reshape", ["states", "rows"], ["flatStates"]),
        helper.make_node("Relu", ["flatStates"], ["positive"]),
        helper.make_node("Gemm", ["positive", "out", "out.bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["output"]),
    ]
    state = [2, 1, _WIDTH]
    graph = helper.make_graph(
        nodes,
        "silero_vad_16k",
        [_tensor("frames", ["n", _FRAME]), _tensor("state", state)],
        [_tensor("output", ["n"]), _tensor("stateN", state)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8, producer_name="prunella"
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def _tensor(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _gates(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(512, ...) in PyTorch's order → in ONNX's."""
    i, f, c, o = np.split(array, 4)
    return np.concatenate([i, o, f, c])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.write_bytes(rewritten(onnx.load(args.model)).SerializeToString())


if __name__ == "__main__":
    main()
